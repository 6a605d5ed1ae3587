//! The keys, and the columns of the table on the screen.

use ratatui::Frame;
use ratatui::layout::{Alignment, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use crate::api::connection::Connection;
use crate::api::resets::Reset;
use crate::api::service::ServiceTotals;

use super::super::app::App;
use super::super::ask::Table;
use super::super::columns::Row;
use super::within;

const KEYS: [&str; 17] = [
    "q, Ctrl-C      quit",
    "1 2 3, Tab     connections, services, resets",
    "arrows, PgUp   choose a row, which stays chosen wherever it goes;",
    "Home, End      the first and the last one; columns that do not fit are left out",
    "Enter          look closer: windows and RTT over time, verdicts;",
    "               of a service, its connections",
    "f              freeze the connection: it stays on top; f lets it go",
    "s, S           sort by the next, the previous column",
    "r              reverse the order",
    "/              keep rows that an expression selects, such as",
    "               port 443 and srtt > 50ms; what does not begin",
    "               with a word of that language is searched as text",
    "Esc            drop the filter; back",
    "p, space       pause",
    "m              use the mouse: titles sort, rows are chosen",
    "left, right    in a recording, 10 snapshots back and forth",
    "",
];

/// Draws it over everything else, as much as there is room for.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let columns = match app.table {
        Table::Connections => told::<Connection>(),
        Table::Services => told::<ServiceTotals>(),
        Table::Resets => told::<Reset>(),
    };
    let cost = "cost: CPU of tcpwatch; of its kernel programs too while kernel.bpf_stats_enabled = 1".to_owned();
    let mut lines: Vec<_> = KEYS.map(Line::from).into();
    lines.extend(columns.into_iter().chain([cost]).map(Line::from));
    let (width, height) = (area.width.min(90), area.height.min(lines.len() as u16 + 2));
    let place = within(area, (area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    let title = " keys, then columns; arrows scroll, any other key closes this ";
    let block = Block::bordered().title(title).title_alignment(Alignment::Center);
    frame.render_widget(Paragraph::new(lines).block(block).scroll((app.scrolled, 0)), place);
}

fn told<T: Row>() -> Vec<String> {
    T::COLUMNS.iter().map(|column| format!("{:<14} {}", column.title, column.help)).collect()
}
