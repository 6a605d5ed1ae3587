//! Draws the view. Reads what the state machine has decided, and changes nothing.

mod detail;
mod header;
mod help;
mod table;
#[cfg(test)]
pub(in crate::top) mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Clear;

use super::app::{App, Mode};
use super::ask::Table;
use super::columns::Row;
use super::list::List;

/// Whether there are colours. Whatever they say, a word, a sign or a modifier says as well; those that are told apart by
/// colour are blue and yellow, which nearly everybody can tell apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    /// Colours are wanted.
    pub(crate) colour: bool,
}

impl Theme {
    fn coloured(self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red, Modifier::BOLD)
    }

    fn unusual(self) -> Style {
        self.coloured(Color::Yellow, Modifier::BOLD)
    }

    fn first(self) -> Style {
        self.coloured(Color::Blue, Modifier::empty())
    }

    fn second(self) -> Style {
        self.coloured(Color::Yellow, Modifier::empty())
    }

    fn quiet() -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Rows above the titles of a table, on a terminal of this height.
pub(crate) const fn header_rows(height: u16) -> u16 {
    match height {
        0..8 => 1,
        8..20 => 4,
        _ => 5,
    }
}

/// Rows of a table on a terminal of this height: below its titles and above the last line.
pub(crate) const fn rows_shown(height: u16) -> usize {
    height.saturating_sub(header_rows(height) + 2) as usize
}

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &App, theme: Theme) {
    let area = frame.area();
    let parts = [Constraint::Length(header_rows(area.height)), Constraint::Fill(1), Constraint::Length(1)];
    let [above, body, below] = Layout::vertical(parts).areas(area);
    header::draw(frame, above, app, theme);
    match &app.mode {
        Mode::Connection(cookie) => detail::connection(frame, body, app, *cookie, theme),
        Mode::Reset(reset) => detail::reset(frame, body, app, reset),
        Mode::Rows | Mode::Filter | Mode::Help => match app.table {
            Table::Connections => table::draw(frame, body, app, &app.connections, theme),
            Table::Services => table::draw(frame, body, app, &app.services, theme),
            Table::Resets => table::draw(frame, body, app, &app.resets, theme),
        },
    }
    frame.render_widget(Clear, below);
    frame.render_widget(footer(app, theme), below);
    if app.mode == Mode::Help {
        help::draw(frame, area, app);
    }
}

fn footer(app: &App, theme: Theme) -> Line<'static> {
    let (filter, mistake, sorted) = match app.table {
        Table::Connections => arranged(&app.connections),
        Table::Services => arranged(&app.services),
        Table::Resets => arranged(&app.resets),
    };
    if app.mode == Mode::Filter {
        let said = mistake.unwrap_or("Enter keeps it, Esc drops it");
        return Line::from(format!("filter: {filter}_   {said}"));
    }
    if let Some(why) = &app.trouble {
        return Line::styled(printable(why), theme.bad());
    }
    let back = app.position.map_or("", |_| "  ←→ 10 s");
    if matches!(app.mode, Mode::Connection(_) | Mode::Reset(_)) {
        return Line::styled(format!("Esc back  ↑↓ scroll  p pause{back}  q quit"), Theme::quiet());
    }
    let mut text = String::new();
    if !filter.is_empty() {
        let wrong = mistake.map_or_else(String::new, |why| format!(" is wrong: {why}"));
        text = format!("filter: {filter}{wrong} (Esc drops it)  ");
    }
    let turn = if back.is_empty() { "  r reverse" } else { back };
    let keys = format!("? help  / filter  s sort{turn}  Tab table  Enter detail  q quit  {sorted}");
    text.push_str(&keys);
    Line::styled(text, Theme::quiet())
}

/// The filter, what is wrong with it, and by what a table is sorted.
fn arranged<T: Row>(list: &List<T>) -> (&str, Option<&str>, String) {
    let turned = if list.reversed { ", reversed" } else { "" };
    (&list.filter, list.mistake.as_deref(), format!("by {}{turned}", list.column.name))
}

/// A text of one line from elsewhere: an error, say.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Words in a place of this width. `end` keeps the end of what is too long: of an address it has the port.
fn cell(text: &str, width: u16, end: bool) -> String {
    let width = usize::from(width);
    let length = text.chars().count();
    match (length <= width, end) {
        (true, _) => text.to_owned(),
        (false, true) => "…".chars().chain(text.chars().skip(length + 1 - width.max(1))).collect(),
        (false, false) => text.chars().take(width.saturating_sub(1)).chain("…".chars()).collect(),
    }
}

/// A part of an area, as far as there is room.
fn within(area: Rect, x: u16, y: u16, width: u16, height: u16) -> Rect {
    Rect { x: area.x + x, y: area.y + y, width, height }.intersection(area)
}
