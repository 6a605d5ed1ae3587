//! An hour of healthy traffic brings no alert.
//!
//! The hour is made of what a real daemon showed while real connections came and went: each recorded second is lived
//! fifteen times, as one scrape interval, again and again until the hour is over. So every rate and ratio is a real one. It
//! is given to `promtool test rules`, which evaluates the rules as shipped at every 15 s of that hour, with their `for`
//! and their history; a store that is filled afterwards would answer queries, but evaluate no alert in time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path as FilePath;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tcpwatch_lab::Path;

use super::RULES;
use super::server::promtool;
use super::traffic::{self, while_busy};
use crate::daemon::Daemon;

/// Seconds that are recorded.
const RECORDED: usize = 20;
/// Seconds between scrapes of the hour.
const INTERVAL: usize = 15;
/// Scrapes of the hour, and one for its end.
const SCRAPES: usize = 3600 / INTERVAL + 1;

/// The values of each series, a second each.
type Seconds = BTreeMap<String, Vec<f64>>;

fn record(daemon: &Daemon) -> Result<Seconds> {
    let mut all = Seconds::new();
    let began = Instant::now();
    for second in 0..=RECORDED {
        let due = began + Duration::from_secs(second as u64);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (_, page) = daemon.get("/metrics")?;
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').context("no value")?;
            let values = all.entry(series.to_owned()).or_default();
            let value = value.parse()?;
            // What appears begins at 0.
            values.resize(second, 0.0);
            values.push(value);
        }
    }
    all.retain(|_, values| values.len() == RECORDED + 1);
    Ok(all)
}

/// What one series shows at each scrape of the hour.
fn hour(series: &str, seconds: &[f64]) -> Vec<f64> {
    let name = series.split('{').next().unwrap_or_default();
    let counts = ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
    let mut value = seconds.first().copied().unwrap_or_default();
    (0..SCRAPES)
        .map(|scrape| {
            let (before, after) = (seconds[scrape % RECORDED], seconds[scrape % RECORDED + 1]);
            let shown = value;
            value = if counts { value + (after - before) * INTERVAL as f64 } else { after };
            shown
        })
        .collect()
}

fn case(seconds: &Seconds) -> Result<String> {
    let mut text = format!(
        "rule_files: [rules0.yml, rules1.yml]\nevaluation_interval: {INTERVAL}s\ntests:\n  - interval: {INTERVAL}s\n    \
         input_series:\n      - {{ series: 'up{{job=\"tcpwatch\",instance=\"a:1\"}}', values: '1x{SCRAPES}' }}\n"
    );
    for (series, seconds) in seconds {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let comma = if labels == "}" { "" } else { "," };
        write!(text, "      - series: '{name}{{job=\"tcpwatch\",instance=\"a:1\"{comma}{labels}'\n        values: '")?;
        for value in hour(series, seconds) {
            write!(text, "{value} ")?;
        }
        text.push_str("'\n");
    }
    text.push_str("    promql_expr_test:\n");
    for (expression, value) in [
        // The rules had something to look at, and enough of it.
        ("count(count_over_time(service:tcpwatch_reset_ratio:rate5m[1h]) >= 200) > bool 0", Some(1)),
        ("sum(service:tcpwatch_sent_segments:rate5m) > bool 20", Some(1)),
        ("sum(service:tcpwatch_rtt_samples:rate5m) > bool 1", Some(1)),
        ("count_over_time(ALERTS{alertstate=\"firing\"}[1h])", None),
    ] {
        writeln!(text, "      - expr: '{expression}'\n        eval_time: 60m\n        exp_samples:")?;
        if let Some(value) = value {
            writeln!(text, "          - {{ labels: '{{}}', value: {value} }}")?;
        }
    }
    Ok(text)
}

/// Bytes that Prometheus keeps of the hour, in the blocks that it makes of it.
fn kept_bytes(seconds: &Seconds, folder: &FilePath) -> Result<u64> {
    let mut text = String::new();
    for (series, seconds) in seconds {
        let name = series.split('{').next().unwrap_or_default();
        writeln!(text, "# TYPE {name} unknown")?;
        for (scrape, value) in hour(series, seconds).into_iter().enumerate() {
            writeln!(text, "{series} {value} {}", 1_800_000_000 + scrape * INTERVAL)?;
        }
    }
    text.push_str("# EOF\n");
    fs::write(folder.join("hour.om"), text)?;
    promtool(&["tsdb", "create-blocks-from", "openmetrics", "hour.om", "data"], folder, "")?;
    let blocks = fs::read_dir(folder.join("data"))?.map(|entry| Ok(entry?.path().join("chunks/000001")));
    blocks.map(|chunks: Result<_>| Ok(fs::metadata(chunks?)?.len())).sum()
}

pub(crate) fn silent() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let busy = |go_on: &_| traffic::healthy(&path, go_on);
    let seconds = while_busy(&[&busy], || record(&daemon))?;
    let folder = tempfile::tempdir()?;
    for (i, rules) in RULES.iter().enumerate() {
        fs::write(folder.path().join(format!("rules{i}.yml")), rules)?;
    }
    fs::write(folder.path().join("hour.yml"), case(&seconds)?)?;
    let samples = (seconds.len() * SCRAPES) as u64;
    let bytes = kept_bytes(&seconds, folder.path())?;
    println!("{} series, {samples} samples in {bytes} bytes", seconds.len());
    // As docs/FLEET.md reckons.
    ensure!(bytes < samples * 2, "{samples} samples take {bytes} bytes");
    let said = promtool(&["test", "rules", "hour.yml"], folder.path(), "")?;
    ensure!(said.contains("SUCCESS"), "{said}");
    // And it would have told: the same hour with every connection reset.
    let mut worse = seconds;
    let ends: Vec<_> =
        worse.keys().filter(|series| series.starts_with("tcpwatch_connections_closed_total")).cloned().collect();
    for series in ends {
        let (from, to) = ("cause=\"fin_local\"", "cause=\"reset_sent\"");
        if series.contains(from)
            && let Some(values) = worse.remove(&series)
        {
            worse.insert(series.replace(from, to), values);
        }
    }
    fs::write(folder.path().join("worse.yml"), case(&worse)?)?;
    let said = promtool(&["test", "rules", "worse.yml"], folder.path(), "").unwrap_or_else(|error| error.to_string());
    ensure!(said.contains("FAILED") && said.contains("TcpwatchResetRatioHigh"), "{said}");
    Ok(())
}
