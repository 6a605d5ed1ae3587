//! One connection, or one reset, with all that is known of it.

use std::fmt::Write as _;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Borders, Chart, Dataset, GraphType, Paragraph, Sparkline, Wrap};

use crate::api::connection::Connection;
use crate::api::resets::Reset;
use crate::api::text::time;
use crate::explain::command::{said, window};

use super::super::app::App;
use super::super::columns::{Row as _, bytes, duration, shares};
use super::super::history::Sample;
use super::{Theme, within};

/// Seconds that a chart shows at least.
const SPAN_S: f64 = 60.0;

/// Draws a connection: its windows and RTT over time, what was counted, and the verdicts.
pub(super) fn connection(frame: &mut Frame<'_>, area: Rect, app: &App, cookie: u64, theme: Theme) {
    let Some(kept) = app.kept.as_ref().filter(|kept| kept.connection.cookie == cookie) else {
        frame.render_widget(Line::styled("waiting for it", Theme::quiet()), area);
        return;
    };
    let c = &kept.connection;
    let charts = (area.height / 3).clamp(5, 14);
    let parts = [Constraint::Length(1), Constraint::Length(charts), Constraint::Length(1), Constraint::Fill(1)];
    let [title, charts, bars, text] = Layout::vertical(parts).areas(area);
    let mut words = vec![
        Span::styled(format!("{} → {}", c.local(), c.remote()), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!(
            "  {}, {}  ",
            c.direction,
            c.congestion_control.as_deref().unwrap_or("congestion control unknown")
        )),
    ];
    if kept.gone {
        words.push(Span::styled("CLOSED: this is the last that was seen of it", theme.bad()));
    }
    frame.render_widget(Line::from(words), title);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(charts);
    let windows = [
        Curve { name: "cwnd", style: theme.first(), of: |sample| Some(sample.cwnd.into()) },
        Curve { name: "in flight", style: theme.second(), of: |sample| Some(sample.in_flight.into()) },
    ];
    chart(frame, left, app, cookie, "segments", &windows);
    let rtt = [Curve { name: "srtt", style: theme.first(), of: |sample| Some(f64::from(sample.srtt_us?) / 1e3) }];
    chart(frame, right, app, cookie, "ms", &rtt);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(bars);
    changes(frame, left, "moved", app.history.changes(cookie, |sample| sample.moved_bytes), theme.first());
    changes(frame, right, "resent", app.history.changes(cookie, |sample| sample.retransmits.into()), theme.bad());
    let mut lines = verdicts(app, theme);
    lines.extend(facts(c).into_iter().map(|(name, words)| fact(name, words)));
    let text_of = Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((app.scrolled, 0));
    frame.render_widget(text_of, text);
}

/// Draws a reset with its evidence.
pub(super) fn reset(frame: &mut Frame<'_>, area: Rect, app: &App, reset: &Reset) {
    let mut lines: Vec<_> =
        crate::resets::view::evidence(reset).lines().map(|line| Line::from(line.to_owned())).collect();
    let stack = app.resets.page.rows.iter().filter(|other| other.stack.is_some() && other.stack == reset.stack).count();
    if stack > 1 {
        lines.push(Line::from(format!(
            "    {stack} of the resets at hand have this stack: tcpwatch resets shows its functions"
        )));
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((app.scrolled, 0)), area);
}

/// What a curve shows of a moment.
struct Curve {
    name: &'static str,
    style: Style,
    of: fn(&Sample) -> Option<f64>,
}

fn chart(frame: &mut Frame<'_>, area: Rect, app: &App, cookie: u64, unit: &str, curves: &[Curve]) {
    let samples = app.history.of(cookie);
    let newest_ns = samples.clone().next_back().map_or(0, |sample| sample.ktime_ns);
    let ago_s = |sample: &Sample| newest_ns.saturating_sub(sample.ktime_ns) as f64 / 1e9;
    let points = |of: fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
        samples.clone().filter_map(|sample| Some((-ago_s(sample), of(sample)?))).collect()
    };
    let points: Vec<_> = curves.iter().map(|curve| points(curve.of)).collect();
    let span = samples.clone().next().map_or(SPAN_S, |oldest| ago_s(oldest).max(SPAN_S));
    let most = points.iter().flatten().fold(0.0_f64, |most, (_, value)| most.max(*value));
    let top = if most > 0.0 { most * 1.1 } else { 1.0 };
    let sets = curves.iter().zip(&points).map(|(curve, points)| {
        let line = if points.len() > 1 { GraphType::Line } else { GraphType::Scatter };
        Dataset::default().marker(Marker::Braille).graph_type(line).style(curve.style).data(points)
    });
    let mut title = Vec::new();
    for (curve, points) in curves.iter().zip(&points) {
        let now = points.last().map_or_else(|| "-".to_owned(), |(_, value)| shown(*value));
        title.push(Span::styled(format!(" {} {now} ", curve.name), curve.style));
    }
    title.push(Span::styled(unit.to_owned(), Theme::quiet()));
    let quiet = Theme::quiet();
    let chart = Chart::new(sets.collect())
        .block(Block::new().borders(Borders::TOP).border_style(quiet).title(Line::from(title)))
        .legend_position(None)
        .x_axis(Axis::default().bounds([-span, 0.0]).labels([format!("-{span:.0} s"), "now".to_owned()]).style(quiet))
        .y_axis(Axis::default().bounds([0.0, top]).labels(["0".to_owned(), shown(top)]).style(quiet));
    frame.render_widget(chart, area);
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// How much a count grew from picture to picture, the newest at the right; a full bar is the most of what is shown.
fn changes(frame: &mut Frame<'_>, area: Rect, name: &str, all: Vec<u64>, style: Style) {
    frame.render_widget(Span::styled(name.to_owned(), Theme::quiet()), area);
    let place = within(area, 8, 0, area.width.saturating_sub(9), 1);
    let data: Vec<_> = all.into_iter().rev().take(place.width.into()).collect();
    frame.render_widget(Sparkline::default().data(data.into_iter().rev()).style(style), place);
}

fn fact(name: &'static str, words: String) -> Line<'static> {
    Line::from(vec![Span::styled(format!("{name:<9}"), Theme::quiet()), Span::raw(words)])
}

/// What was counted, by name.
fn facts(c: &Connection) -> Vec<(&'static str, String)> {
    let before: Vec<_> = c.states.iter().skip(1).map(|state| &**state).collect();
    let since = c.in_state_ms.map_or_else(String::new, |ms| format!(" for {}", time(ms)));
    let before = if before.is_empty() { String::new() } else { format!(", before: {}", before.join(", ")) };
    let again = Connection::COLUMNS
        .iter()
        .find(|column| column.name == "causes")
        .map_or_else(String::new, |column| (column.text)(c));
    let quantiles = c.rtt_quantiles.map_or_else(String::new, |q| {
        format!(", p50 {}, p99 {} of {} samples", duration(Some(q.p50_us)), duration(Some(q.p99_us)), q.samples)
    });
    let limits: Vec<_> = shares(c).iter().map(|(share, name)| format!("{name} {:.0} %", share * 100.0)).collect();
    let limits = if limits.is_empty() { "nothing measured".to_owned() } else { limits.join(", ") };
    let ms = |us: u64| time(us / 1000);
    let owner = &c.owner;
    let mut by = match c.pid {
        Some(pid) => format!("{}/{pid}, ", c.comm),
        None => String::new(),
    };
    by += &owner.user.as_ref().map_or_else(|| format!("uid {}", owner.uid), |user| format!("user {user}"));
    let places =
        [("unit", &owner.unit), ("container", &owner.container), ("pod", &owner.pod), ("cgroup", &owner.cgroup)];
    for (what, name) in places.into_iter().filter_map(|(what, name)| Some((what, name.as_ref()?))) {
        let _to_memory = write!(by, ", {what} {name}");
    }
    vec![
        (
            "state",
            format!("{}{since}{before}; open for {}, read {} ago", c.state, time(c.age_ms), time(c.reading_age_ms)),
        ),
        (
            "RTT",
            format!(
                "{}, min {}{quantiles}; handshake {}, RTO {}",
                duration(c.srtt_us),
                duration(c.min_rtt_us),
                duration(c.handshake_us),
                ms(c.rto_us)
            ),
        ),
        (
            "windows",
            format!(
                "cwnd {}, ssthresh {}, in flight {} segments of {} B; the peer's {} B, ours {} B; {}",
                c.cwnd_segments,
                c.ssthresh_segments.map_or_else(|| "none".to_owned(), |segments| segments.to_string()),
                c.in_flight_segments,
                c.mss_bytes,
                bytes(c.send_window_bytes.into()),
                bytes(c.receive_window_bytes.into()),
                c.congestion_state
            ),
        ),
        (
            "resent",
            format!(
                "{} segments since it was opened, by cause {again}; {} of them needless, {} lost; {} recoveries, {} losses",
                c.retransmits_total, c.spurious_retransmits, c.lost_segments_total, c.recoveries, c.losses
            ),
        ),
        (
            "limited",
            format!(
                "by {limits}; zero windows: the peer's {} ({}), ours {} ({})",
                c.peer_zero_windows,
                ms(c.peer_zero_window_us),
                c.local_zero_windows,
                ms(c.local_zero_window_us)
            ),
        ),
        (
            "bytes",
            format!(
                "sent {}, received {}; unread {}, unsent {}, unacknowledged {}; last ACK {} ago",
                bytes(c.sent_bytes),
                bytes(c.received_bytes),
                bytes(c.unread_bytes.into()),
                bytes(c.unsent_bytes.into()),
                bytes(c.unacked_bytes.into()),
                time(c.since_ack_ms)
            ),
        ),
        ("owner", by),
        ("socket", format!("cookie {}, network namespace {}, service {}", c.cookie, c.netns, c.service)),
    ]
}

fn verdicts(app: &App, theme: Theme) -> Vec<Line<'static>> {
    let Some(explained) = &app.explained else { return Vec::new() };
    let mut lines = Vec::new();
    for verdict in &explained.verdicts {
        let style = if explained.is_trouble() { theme.bad() } else { Style::new().add_modifier(Modifier::BOLD) };
        for (n, line) in said(verdict).lines().enumerate() {
            lines.push(Line::styled(line.to_owned(), if n == 0 { style } else { Style::new() }));
        }
    }
    lines.push(fact("window", format!("{}; as tcpwatch explain has it", window(explained))));
    lines
}
