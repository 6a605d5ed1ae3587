//! The pictures of the dashboards in docs/dashboards: the queries of the panels, asked of a real Prometheus over time.
//!
//! A usual run draws a few seconds, and checks that there is something to see. With `TCPWATCH_DRAW=FOLDER` it takes two
//! minutes and leaves the pictures there.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tcpwatch_lab::{Family, Path, Traffic};

use super::draw::{self, Chart, Kind, Line};
use super::server::{Prometheus, Setup, percent};
use super::traffic::{self, while_busy};
use super::{RULES, filled, hasty};
use crate::daemon::Daemon;
use crate::dashboard::{self, Dashboard};

/// What Grafana's `$__rate_interval` would be: four scrapes.
const RATE: &str = "4s";

pub(crate) fn drawn() -> Result<()> {
    let folder = std::env::var_os("TCPWATCH_DRAW").map(PathBuf::from);
    let seconds = if folder.is_some() { 120 } else { 12 };
    let path = Path::builder().delay(Duration::from_millis(4)).build()?;
    // A path of its own, whose resets are not lost with the segments of the other.
    let well = Path::builder().delay(Duration::from_millis(1)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b(), well.a(), well.b()])?;
    let features = "native-histograms";
    let rules = RULES.map(hasty).to_vec();
    // One that takes native histograms, and has no classic ones then, and one as it is installed.
    let finer = Prometheus::start(&Setup { features, ..Setup::of(&[daemon.address]) })?;
    let usual = Prometheus::start(&Setup { rules, ..Setup::of(&[daemon.address]) })?;
    usual.wait(|p| Ok(p.rows("up == 1")?.pop()), "the first scrape")?;
    let began = Instant::now();
    let busy = |go_on: &_| traffic::of_all_kinds(&path, go_on);
    let healthy = |go_on: &_| traffic::healthy(&well, go_on);
    while_busy(&[&busy, &healthy], || {
        let third = Duration::from_secs(seconds / 3);
        thread::sleep(third);
        // The middle third has a storm.
        while began.elapsed() < 2 * third {
            Traffic::loopback(path.a(), Family::V4).refused(10)?;
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(third);
        Ok(())
    })?;
    let now = usual.rows("vector(time())")?;
    let now: f64 = now[0]["value"][1].as_str().context("no time")?.parse()?;
    let seen = Seen { usual: &usual, finer: &finer, from: now - began.elapsed().as_secs_f64(), to: now };
    for board in dashboard::all() {
        let charts = seen.charts(&board)?;
        let full = charts.iter().filter(|chart| has_data(&chart.kind)).count();
        println!("{}: {full} of {} panels have something to see", board.name, board.panels.len());
        let may_be_empty = board.panels.iter().filter(|panel| panel.may_be_empty).count();
        ensure!(full + may_be_empty >= board.panels.len(), "{}: {full} panels", board.name);
        let title = board.json["title"].as_str().context("no title")?;
        let svg = draw::page(title, &charts)?;
        ensure!(svg.starts_with("<svg") && svg.contains("</svg>"), "{}: no picture", board.name);
        for panel in &board.panels {
            ensure!(svg.contains(&panel.title.replace('\'', "&apos;")), "{} is not in the picture", panel.title);
        }
        if let Some(folder) = &folder {
            fs::create_dir_all(folder)?;
            fs::write(folder.join(format!("{}.svg", board.name)), svg)?;
        }
    }
    Ok(())
}

fn has_data(kind: &Kind) -> bool {
    match kind {
        Kind::Lines { lines, .. } => lines.iter().any(|line| line.points.len() > 1),
        Kind::Numbers(all) => !all.is_empty(),
        Kind::Heat(rows) => rows.iter().flat_map(|(_, counts)| counts).any(|(_, count)| *count > 0.0),
        Kind::Table(rows) => rows.len() > 1,
        Kind::Words => false,
    }
}

/// Times and values.
type Points = Vec<(f64, f64)>;

/// Where the data is, and of when.
struct Seen<'a> {
    usual: &'a Prometheus,
    finer: &'a Prometheus,
    from: f64,
    to: f64,
}

impl Seen<'_> {
    /// The panels with what they show, headings and words too.
    fn charts(&self, board: &Dashboard) -> Result<Vec<Chart>> {
        let all = board.json["panels"].as_array().context("no panels")?;
        all.iter().map(|panel| self.chart(panel).with_context(|| panel["title"].to_string())).collect()
    }

    fn chart(&self, panel: &Value) -> Result<Chart> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or(0) as u32);
        let defaults = &panel["fieldConfig"]["defaults"];
        let stacked = defaults["custom"]["stacking"]["mode"] == "normal";
        let kind = match panel["type"].as_str() {
            Some("timeseries") => Kind::Lines { lines: self.lines(panel)?, stacked },
            Some("heatmap") => Kind::Heat(self.heat(panel)?),
            Some("stat") => Kind::Numbers(self.numbers(panel)?),
            Some("table") => Kind::Table(self.table(panel)?),
            _ => Kind::Words,
        };
        Ok(Chart { title: text(&panel["title"]), unit: text(&defaults["unit"]), place, kind })
    }

    fn targets(panel: &Value) -> impl Iterator<Item = (String, &str)> {
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        panel["targets"].as_array().into_iter().flatten().map(move |target| {
            let query = filled(&text(&target["expr"]), ".*", RATE, "1h");
            (query, target["legendFormat"].as_str().unwrap_or_default())
        })
    }

    /// The rows of a query over time: labels and points.
    fn over_time(&self, query: &str) -> Result<Vec<(Value, Points)>> {
        let step = ((self.to - self.from) / 180.0).max(1.0);
        let (from, to) = (self.from, self.to);
        let path = format!("query_range?query={}&start={from}&end={to}&step={step}", percent(query));
        // The bare name is the native histogram's.
        let source = if query.contains("(tcpwatch_rtt_seconds{") { self.finer } else { self.usual };
        let data = source.api(&path).with_context(|| query.to_owned())?;
        let rows = data["result"].as_array().context("no rows")?;
        let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse::<f64>().ok()?));
        let points = |row: &Value| -> Vec<_> {
            let all = row["values"].as_array().into_iter().flatten().filter_map(point);
            all.filter(|(_, value)| value.is_finite()).collect()
        };
        Ok(rows.iter().map(|row| (row["metric"].clone(), points(row))).collect())
    }

    fn lines(&self, panel: &Value) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        for (query, legend) in Self::targets(panel) {
            for (labels, points) in self.over_time(&query)? {
                lines.push(Line { name: named(legend, &labels), points });
            }
        }
        Ok(lines)
    }

    fn heat(&self, panel: &Value) -> Result<Vec<(f64, Points)>> {
        let mut rows = Vec::new();
        for (query, _) in Self::targets(panel) {
            for (labels, points) in self.over_time(&query)? {
                let edge = labels["le"].as_str().context("no edge")?;
                rows.push((if edge == "+Inf" { f64::INFINITY } else { edge.parse()? }, points));
            }
        }
        rows.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Ok(rows)
    }

    fn numbers(&self, panel: &Value) -> Result<Vec<(String, f64, String)>> {
        let steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().context("no thresholds")?;
        let mut all = Vec::new();
        for (query, legend) in Self::targets(panel) {
            for row in self.usual.rows(&query)? {
                let value: f64 = row["value"][1].as_str().context("no value")?.parse()?;
                let step = steps.iter().rfind(|step| step["value"].as_f64().is_none_or(|from| value >= from));
                let colour = step.and_then(|step| step["color"].as_str()).unwrap_or_default().to_owned();
                all.push((named(legend, &row["metric"]), value, colour));
            }
        }
        Ok(all)
    }

    fn table(&self, panel: &Value) -> Result<Vec<Vec<String>>> {
        let options = &panel["transformations"][0]["options"];
        let name = |label: &str| options["renameByName"][label].as_str().unwrap_or(label).to_owned();
        let mut rows: Vec<(f64, BTreeMap<String, String>)> = Vec::new();
        for (query, _) in Self::targets(panel) {
            for row in self.usual.rows(&query)? {
                let value = row["value"][1].as_str().context("no value")?.parse()?;
                let labels = row["metric"].as_object().into_iter().flatten();
                let shown = labels.filter(|(label, _)| !options["excludeByName"][label.as_str()].is_boolean());
                let mut cells: BTreeMap<_, _> =
                    shown.map(|(label, text)| (label.clone(), text.as_str().unwrap_or_default().to_owned())).collect();
                if !options["excludeByName"]["Value"].is_boolean() {
                    cells.insert("\0Value".to_owned(), draw::shown(value, "none"));
                }
                rows.push((value, cells));
            }
        }
        rows.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let head =
            rows.first().map(|(_, cells)| cells.keys().map(|label| name(label.trim_start_matches('\0'))).collect());
        Ok(head.into_iter().chain(rows.into_iter().map(|(_, cells)| cells.into_values().collect())).collect())
    }
}

/// A legend with its labels filled in.
fn named(legend: &str, labels: &Value) -> String {
    let mut text = legend.to_owned();
    for (label, value) in labels.as_object().into_iter().flatten() {
        text = text.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    text
}
