//! Draws the view. Reads what the state machine has decided, and changes nothing.

use ratatui::Frame;
use ratatui::layout::{Alignment, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use crate::api::connection::Connection;

use super::app::{App, Mode};
use super::columns::{self, COLUMNS, Column};

/// Whether there are colours; without them, bold and reversed text say the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    /// Colours are wanted.
    pub(crate) colour: bool,
}

impl Theme {
    fn coloured(self, colour: Color, otherwise: Modifier) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new().add_modifier(otherwise) }
    }

    fn bad(self) -> Style {
        self.coloured(Color::Red, Modifier::BOLD)
    }

    fn quiet(self) -> Style {
        self.coloured(Color::DarkGray, Modifier::empty())
    }
}

const KEYS: &str = "q quit  s sort  r reverse  / filter  p pause  ? help";

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &App, theme: Theme) {
    let area = frame.area();
    let mut lines = header(app, theme);
    let shown = columns::fitting(area.width);
    lines.push(titles(app, &shown));
    let room = usize::from(area.height).saturating_sub(lines.len() + 1);
    lines.extend(app.rows.iter().skip(app.first).take(room).map(|connection| row(connection, &shown, theme)));
    if app.rows.is_empty() && app.status.is_some() {
        let why = if app.filter.is_empty() { "no connections seen yet" } else { "no connection matches" };
        lines.push(Line::styled(why, theme.quiet()));
    }
    frame.render_widget(Paragraph::new(lines), area);
    let [.., last] = rows_of(area);
    frame.render_widget(Clear, last);
    frame.render_widget(footer(app, theme), last);
    if app.mode == Mode::Help {
        help(frame, area);
    }
}

/// Everything above the last row, and the last row.
fn rows_of(area: Rect) -> [Rect; 2] {
    let above = area.height.saturating_sub(1);
    [Rect { height: above, ..area }, Rect { y: area.y + above, height: area.height.min(1), ..area }]
}

fn header(app: &App, theme: Theme) -> Vec<Line<'static>> {
    let Some(status) = &app.status else {
        return vec![Line::from("tcpwatch: waiting for the first picture"), Line::default(), Line::default()];
    };
    let (attached, probes) = status.attached();
    let lost = status.lost();
    let mut first = vec![
        Span::styled(format!("tcpwatch {}", status.version), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  kernel {}  ", status.kernel)),
        Span::styled(format!("probes {attached}/{probes}"), if attached < probes { theme.bad() } else { Style::new() }),
        Span::raw("  "),
        Span::styled(format!("lost {lost}"), if lost > 0 { theme.bad() } else { Style::new() }),
    ];
    if app.paused {
        first.push(Span::styled("  PAUSED", Style::new().add_modifier(Modifier::REVERSED)));
    }
    let connections = status.table.connections;
    let second = match &app.rates {
        Some(rates) => format!(
            "{connections} connections  opened {:.1}/s  closed {:.1}/s  resent {:.2}%  out {}B/s  in {}B/s",
            rates.opened,
            rates.closed,
            rates.retransmitted_percent,
            columns::bytes(rates.sent_bytes as u64),
            columns::bytes(rates.received_bytes as u64)
        ),
        None => format!("{connections} connections"),
    };
    vec![Line::from(first), Line::from(second), resets(app)]
}

/// Resets by cause, the most frequent first.
fn resets(app: &App) -> Line<'static> {
    let Some(status) = &app.status else { return Line::default() };
    let mut causes: Vec<_> = status.totals.resets_sent.iter().filter(|(_, count)| **count > 0).collect();
    causes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let sent: Vec<_> = causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let sent = if sent.is_empty() { "none".to_owned() } else { sent.join("  ") };
    Line::from(format!("resets received {}  sent: {sent}", status.totals.resets_received))
}

fn titles(app: &App, shown: &[(&Column, u16)]) -> Line<'static> {
    let mut spans = Vec::new();
    for (column, width) in shown {
        let sorted = column.name == app.column.name;
        let style = Style::new().add_modifier(Modifier::REVERSED);
        let style = if sorted { style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED) } else { style };
        spans.push(Span::styled(cell(column.title, column, *width), style));
        spans.push(Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)));
    }
    Line::from(spans)
}

fn row(connection: &Connection, shown: &[(&Column, u16)], theme: Theme) -> Line<'static> {
    let line = shown.iter().flat_map(|(column, width)| {
        let style = match column.name {
            "retrans" if connection.retransmits_total > 0 => theme.bad(),
            "state" if connection.state != "ESTABLISHED" => theme.coloured(Color::Yellow, Modifier::BOLD),
            _ => Style::new(),
        };
        [Span::styled(cell(&(column.text)(connection), column, *width), style), Span::raw(" ")]
    });
    line.collect()
}

/// The text in its width. Of an address the end is kept: it has the port.
fn cell(text: &str, column: &Column, width: u16) -> String {
    let width = usize::from(width);
    let length = text.chars().count();
    match (length <= width, column.numeric, column.rank) {
        (true, true, _) => format!("{text:>width$}"),
        (true, false, _) => format!("{text:<width$}"),
        (false, _, 0) => "…".chars().chain(text.chars().skip(length + 1 - width)).collect(),
        (false, ..) => text.chars().take(width.saturating_sub(1)).chain("…".chars()).collect(),
    }
}

fn footer(app: &App, theme: Theme) -> Line<'static> {
    if app.mode == Mode::Filter {
        let said = app.mistake.as_deref().unwrap_or("Enter keeps it, Esc drops it");
        return Line::from(format!("filter: {}_   {said}", app.filter));
    }
    if let Some(why) = &app.trouble {
        return Line::styled(why.clone(), theme.bad());
    }
    let mut text = format!("{KEYS}   sorted by {}", app.column.name);
    if app.reversed {
        text.push_str(", reversed");
    }
    if !app.filter.is_empty() {
        let wrong = app.mistake.as_ref().map_or_else(String::new, |why| format!(" is wrong: {why}"));
        text = format!("filter: {}{wrong} (Esc drops it)   {text}", app.filter);
    }
    Line::styled(text, theme.quiet())
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let mut lines: Vec<_> = [
        "q, Ctrl-C       quit",
        "s, S            sort by the next, the previous column",
        "r               reverse the order",
        "/               keep rows that an expression selects, such as",
        "                port 443 and srtt > 50ms; what does not begin",
        "                with a word of that language is searched as text",
        "Esc             drop the filter",
        "p, space        pause",
        "arrows, PgUp    move; Home and End go to the ends",
        "",
    ]
    .map(Line::from)
    .into();
    lines.extend(COLUMNS.iter().map(|column| Line::from(format!("{:<15} {}", column.title, column.help))));
    let (width, height) = (area.width.min(66), area.height.min(lines.len() as u16 + 2));
    let within = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, within);
    let block = Block::bordered().title(" columns that do not fit are left out ").title_alignment(Alignment::Center);
    frame.render_widget(Paragraph::new(lines).block(block), within);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::status::tests::full;
    use crate::top::app::{Input, Key, Picture};

    fn app_with(connections: Vec<Connection>) -> App {
        let mut app = App::new(columns::find(columns::DEFAULT).unwrap());
        let mut status = full();
        app.update(Input::Picture(Box::new(Picture { status: status.clone(), connections: Vec::new() })));
        status.ktime_ns += 1_000_000_000;
        status.totals.sent_bytes += 1_250_000;
        status.totals.sent_segments += 1000;
        app.update(Input::Picture(Box::new(Picture { status, connections })));
        app
    }

    fn frame(app: &App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app, Theme { colour: true })).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|cells| {
            cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned() + "\n"
        })
        .collect()
    }

    fn golden(name: &str, app: &App) {
        for (width, height) in [(80, 24), (120, 40)] {
            crate::golden::check(&format!("tests/golden/top/{name}_{width}x{height}.txt"), &frame(app, width, height));
        }
    }

    fn many() -> Vec<Connection> {
        (0..60)
            .map(|i| {
                let mut record = busy(i);
                record.bytes_sent = i * 100_000;
                record.key.remote_port = 40_000 + i as u16;
                record.state = 1 + (i % 9) as u8;
                shown(&record)
            })
            .collect()
    }

    #[test]
    fn frames_are_as_agreed() {
        golden("waiting", &App::new(columns::find(columns::DEFAULT).unwrap()));
        golden("empty", &app_with(Vec::new()));
        golden("one", &app_with(vec![shown(&busy(1))]));
        golden("many", &app_with(many()));
        let mut record = busy(1);
        record.key.ip_version = 6;
        let address: Ipv6Addr = "2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap();
        (record.key.local, record.key.remote) = (address.octets(), address.octets());
        record.comm = *b"a-very-long-name";
        golden("ipv6_and_long_names", &app_with(vec![shown(&record)]));
    }

    #[test]
    fn what_the_keys_do_is_seen() {
        let mut app = app_with(many());
        for key in "/:4003".chars() {
            app.update(Input::Key(Key::Char(key)));
        }
        golden("filter", &app);
        app.update(Input::Key(Key::Escape));
        app.update(Input::Key(Key::Char('p')));
        app.update(Input::Trouble("the daemon broke off".to_owned()));
        golden("paused_in_trouble", &app);
        app.update(Input::Key(Key::Char('?')));
        golden("help", &app);
    }

    #[test]
    fn any_size_can_be_drawn() {
        let mut app = app_with(many());
        for mode in [Mode::Rows, Mode::Filter, Mode::Help] {
            app.mode = mode;
            for (width, height) in [(1, 1), (2, 3), (10, 4), (79, 23), (300, 2)] {
                frame(&app, width, height);
            }
        }
    }
}
