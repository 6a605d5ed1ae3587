//! A table of columns, whatever is in it.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row as Shown, Table as Grid};

use super::super::app::App;
use super::super::columns::{self, Column, Kind, Row};
use super::super::list::List;
use super::{Theme, cell, within};

/// Draws titles and rows.
pub(super) fn draw<T: Row + Mark>(frame: &mut Frame<'_>, area: Rect, app: &App, list: &List<T>, theme: Theme) {
    let shown = columns::fitting::<T>(area.width);
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let titles = shown.iter().map(|(column, width)| {
        let sorted = column.name == list.column.name;
        let style =
            if sorted { Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED) } else { Style::new() };
        Cell::new(words(column.title, column, *width)).style(style)
    });
    let titles = Shown::new(titles).style(reversed);
    let plain = Style::new();
    let line = |row: &T, style: Style| {
        let cells = shown.iter().map(|(column, width)| {
            let style = row.mark(column.name, theme);
            Cell::new(words(&(column.text)(row), column, *width)).style(style)
        });
        Shown::new(cells).style(style)
    };
    let mut rows: Vec<_> = T::frozen(app)
        .map(|(row, gone)| {
            let end = if gone { Modifier::CROSSED_OUT | Modifier::DIM } else { Modifier::empty() };
            line(row, plain.add_modifier(Modifier::UNDERLINED | end))
        })
        .into_iter()
        .collect();
    let fits = usize::from(area.height).saturating_sub(1 + rows.len());
    rows.extend(list.on_screen(fits).map(|(at, row)| line(row, if at == list.selected { reversed } else { plain })));
    let empty = list.page.total == 0;
    let grid = Grid::new(rows, shown.iter().map(|(_, width)| Constraint::Length(*width)))
        .header(titles)
        .column_spacing(1)
        .flex(ratatui::layout::Flex::Start);
    frame.render_widget(grid, area);
    if empty && app.status.is_some() {
        let why = if list.filter.is_empty() { T::NONE } else { "nothing matches the filter" };
        frame.render_widget(Line::styled(why, Theme::quiet()), within(area, 0, area.height.min(2) - 1, area.width, 1));
    }
}

fn words<T: Row>(text: &str, column: &Column<T>, width: u16) -> Text<'static> {
    let alignment = if column.kind == Kind::Number { Alignment::Right } else { Alignment::Left };
    Text::from(cell(text, width, column.kind == Kind::Address)).alignment(alignment)
}

/// What stands out in a row.
pub(super) trait Mark: Sized {
    /// Said where there are no rows.
    const NONE: &'static str;

    /// How a cell looks.
    fn mark(&self, column: &str, theme: Theme) -> Style;

    /// The row that stands above the others, and whether it is gone.
    fn frozen(_: &App) -> Option<(&Self, bool)> {
        None
    }
}

impl Mark for crate::api::connection::Connection {
    const NONE: &'static str = "no connections seen yet";

    fn mark(&self, column: &str, theme: Theme) -> Style {
        match column {
            "retrans" | "causes" if self.retransmits_total > 0 => theme.bad(),
            "zero" if self.peer_zero_windows + self.local_zero_windows > 0 => theme.unusual(),
            "limit" if self.send_window_bytes == 0 => theme.unusual(),
            "state" if self.state != "ESTABLISHED" => theme.unusual(),
            _ => Style::new(),
        }
    }

    fn frozen(app: &App) -> Option<(&Self, bool)> {
        app.frozen?;
        app.kept.as_ref().map(|kept| (&kept.connection, kept.gone))
    }
}

impl Mark for crate::api::service::ServiceTotals {
    const NONE: &'static str = "no services seen yet";

    fn mark(&self, column: &str, theme: Theme) -> Style {
        let rate =
            |of: fn(&crate::api::service::Rates) -> f64| self.rates.as_ref().is_some_and(|rates| of(rates) > 0.0);
        let bad = match column {
            "resent" => rate(|rates| rates.retransmitted_segments_per_second),
            "rst_sent" => rate(|rates| rates.resets_sent_per_second),
            "rst_received" => rate(|rates| rates.resets_received_per_second),
            _ => false,
        };
        if bad { theme.bad() } else { Style::new() }
    }
}

impl Mark for crate::api::resets::Reset {
    const NONE: &'static str = "no resets seen yet";

    fn mark(&self, column: &str, theme: Theme) -> Style {
        match column {
            "unread" if self.socket.as_ref().is_some_and(|socket| socket.unread_bytes > 0) => theme.unusual(),
            "cause" => Style::new().add_modifier(Modifier::BOLD),
            _ => Style::new(),
        }
    }
}
