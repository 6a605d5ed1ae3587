//! What is above every table: the host, what is lost, what tcpwatch costs, and which tables there are.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, Tabs};

use crate::api::status::{Governor, Status};

use super::super::app::App;
use super::super::ask::Table;
use super::super::columns::bytes;
use super::super::history::Rates;
use super::{Theme, within};

/// Draws it into as many rows as there are.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    let row = |y| within(area, 0, y, area.width, 1);
    let Some(status) = &app.status else {
        frame.render_widget(Line::from("tcpwatch: waiting for the first picture"), row(0));
        return;
    };
    frame.render_widget(Paragraph::new(vec![daemon(app, status, theme)]), row(0));
    if area.height < 4 {
        return;
    }
    frame.render_widget(
        Paragraph::new(vec![host(app, status), resets(status, theme)]),
        within(area, 0, 1, area.width, 2),
    );
    if area.height > 4 {
        trends(frame, row(3), app, theme);
    }
    tables(frame, row(area.height - 1), app);
}

fn daemon(app: &App, status: &Status, theme: Theme) -> Line<'static> {
    let (attached, probes) = status.attached();
    let lost = status.lost();
    let plain = Style::new();
    let mut line = vec![
        Span::styled(format!("tcpwatch {}", status.version), plain.add_modifier(Modifier::BOLD)),
        Span::raw(format!("  kernel {}  ", status.kernel)),
        Span::styled(format!("probes {attached}/{probes}"), if attached < probes { theme.bad() } else { plain }),
        Span::raw("  "),
        Span::styled(format!("lost {lost}"), if lost > 0 { theme.bad() } else { plain }),
    ];
    // Before the cost: a narrow screen has no room for both, and this is what explains the numbers below.
    if let Some(governor) = status.governor.as_ref().filter(|governor| governor.level > 0) {
        line.push(Span::styled(held_back(governor, status.sample_interval_ms), theme.bad()));
    }
    if let Some(cost) = app.trend.cpu_percent() {
        let budget = status.governor.as_ref().map(|governor| format!(" of {}", governor.cpu_budget_percent));
        line.push(Span::raw(format!("  cost {cost:.2}{} % of a CPU", budget.unwrap_or_default())));
    }
    if let Some(position) = app.position {
        let end = if position.ended { ", the last" } else { "" };
        line.push(Span::raw(format!("  snapshot {}{end}", position.at)));
    }
    if app.paused {
        line.push(Span::styled("  PAUSED", plain.add_modifier(Modifier::REVERSED)));
    }
    Line::from(line)
}

/// What the governor does to keep the budgets.
fn held_back(governor: &Governor, interval_ms: u64) -> String {
    let interval = interval_ms as f64 / 1e3;
    let thinned = (1.0 / governor.histogram_ratio).round();
    let thinned = if thinned > 1.0 { format!(", 1/{thinned} of RTTs") } else { String::new() };
    format!("  every {interval:.1} s{thinned}")
}

fn host(app: &App, status: &Status) -> Line<'static> {
    let connections = status.table.connections;
    Line::from(match app.trend.newest() {
        Some(rates) => format!(
            "{connections} connections  opened {:.1}/s  closed {:.1}/s  resent {:.2}%  out {}B/s  in {}B/s",
            rates.opened,
            rates.closed,
            rates.retransmitted_percent,
            bytes(rates.sent_bytes as u64),
            bytes(rates.received_bytes as u64)
        ),
        None => format!("{connections} connections"),
    })
}

/// A storm that is under way; else resets by cause, the most frequent first.
fn resets(status: &Status, theme: Theme) -> Line<'static> {
    if let Some(storm) = status.storms.first() {
        let more = match status.storms.len() {
            1 => String::new(),
            storms => format!("  and {} more", storms - 1),
        };
        let text = format!(
            "STORM of resets: {}, {} service {}, {:.0}/s, {} so far{more}",
            storm.cause, storm.direction, storm.service, storm.rate_per_second, storm.resets
        );
        return Line::styled(text, theme.bad());
    }
    let mut causes: Vec<_> = status.totals.resets_sent.iter().filter(|(_, count)| **count > 0).collect();
    causes.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let sent: Vec<_> = causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let sent = if sent.is_empty() { "none".to_owned() } else { sent.join("  ") };
    Line::from(format!("resets received {}  sent: {sent}", status.totals.resets_received))
}

/// A rate, its name, and how it is shown.
type Shown = (&'static str, fn(&Rates) -> f64, fn(Theme) -> Style);

/// Rates of the last minutes, each on its third of the row; a full bar is the most of what is shown.
fn trends(frame: &mut Frame<'_>, area: Rect, app: &App, theme: Theme) {
    let shown: [Shown; 3] = [
        ("out+in", |rates| rates.sent_bytes + rates.received_bytes, Theme::first),
        ("resent", |rates| rates.retransmitted, Theme::second),
        ("resets", |rates| rates.resets, Theme::bad),
    ];
    let third = area.width / 3;
    for (n, (name, of, style)) in (0..).zip(shown) {
        let place = within(area, n * third, 0, third, 1);
        frame.render_widget(Span::styled(name, Theme::quiet()), place);
        let bars = within(place, 7, 0, place.width.saturating_sub(8), 1);
        let data = app.trend.last(bars.width.into(), of);
        frame.render_widget(Sparkline::default().data(data).style(style(theme)), bars);
    }
}

fn tables(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let name = |(n, table): (usize, Table)| {
        let total = match table {
            Table::Connections => app.connections.page.total,
            Table::Services => app.services.page.total,
            Table::Resets => app.resets.page.total,
        };
        let shown = if table == app.table { format!(" ({total})") } else { String::new() };
        format!("{} {}{shown}", n + 1, table.name())
    };
    let titles: Vec<_> = Table::ALL.into_iter().enumerate().map(name).collect();
    let chosen = Table::ALL.iter().position(|table| *table == app.table);
    let highlight = Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    frame
        .render_widget(Tabs::new(titles).select(chosen).highlight_style(highlight).padding("", "").divider("  "), area);
}
