//! What deploy/ has for Prometheus and Grafana, against a real Prometheus that scrapes a real daemon: every query of the
//! dashboard returns rows, every rule evaluates, a storm fires and what is well does not.

mod server;

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Path, Traffic, harness};

use self::server::{Prometheus, promtool};
use crate::daemon::Daemon;
use crate::dashboard::{self, Panel};
use crate::obstacle;

pub(crate) fn trials() -> Vec<Trial> {
    let both = || server::obstacle().or_else(obstacle);
    vec![
        harness::trial_unless("promtool_accepts_the_rules_and_their_tests", server::obstacle, accepted_rules),
        harness::trial_unless("promtool_has_no_complaint_about_a_scrape", both, accepted_scrape),
        harness::trial_unless("prometheus_answers_every_panel_and_every_rule", both, answers),
    ]
}

const RULES: &str = include_str!("../../../../deploy/prometheus/tcpwatch.rules.yml");
/// What comes of `refused` in one namespace: more than the floor of a storm, 10 a second over two minutes.
const STORM: usize = 2500;

fn folder() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

fn accepted_rules() -> Result<()> {
    let said = promtool(&["check", "config", "prometheus.yml"], &folder(), "")?;
    ensure!(said.contains("rules found"), "{said}");
    let said = promtool(&["test", "rules", "tcpwatch.rules.test.yml"], &folder(), "")?;
    ensure!(said.contains("SUCCESS"), "{said}");
    Ok(())
}

fn accepted_scrape() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    Traffic::over(&path, Family::V4).connect()?.abort(End::Client)?;
    let (status, page) = daemon.get("/metrics")?;
    ensure!(status.ends_with("200 OK"), "{status}");
    let said = promtool(&["check", "metrics"], &folder(), &page)?;
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

fn answers() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let prometheus = Prometheus::scraping(daemon.address, &hasty(RULES))?;
    // Whatever comes after a first scrape is a change that rate() sees.
    prometheus.wait(|p| Ok(p.rows("up{job=\"tcpwatch\"} == 1")?.pop()), "the first scrape")?;
    let _open = traffic(&path)?;

    let storms = prometheus.wait_firing("TcpwatchResetStorm")?;
    ensure!(storms.iter().all(|alert| alert["labels"]["cause"] == "no_listener"), "{storms:?}");
    ensure!(storms.iter().all(|alert| alert["labels"]["service"] == "none"), "{storms:?}");
    let received = prometheus.wait_firing("TcpwatchResetsReceivedStorm")?;
    ensure!(received.iter().all(|alert| alert["labels"]["state"] == "SYN_SENT"), "{received:?}");
    for alert in storms.iter().chain(&received) {
        complete(alert)?;
    }
    for panel in dashboard::panels() {
        panel_has_rows(&prometheus, &panel, &daemon.address.to_string())?;
    }
    variables_have_values(&prometheus)?;
    rules_evaluate(&prometheus)?;
    for well in ["TcpwatchTotalsIncomplete", "TcpwatchDetailsLost", "TcpwatchDown", "TcpwatchAbsent"] {
        ensure!(prometheus.state(well)? == "inactive", "{well} is {}", prometheus.state(well)?);
    }
    let detached = prometheus.rows("tcpwatch_probe_attached == 0")?;
    ensure!((prometheus.state("TcpwatchProbeNotAttached")? == "inactive") == detached.is_empty(), "{detached:?}");

    daemon.stop()?;
    complete(prometheus.wait_firing("TcpwatchDown")?.first().context("no alert")?)
}

/// The rules, with less patience than people need.
fn hasty(rules: &str) -> String {
    let lines = rules.lines().map(|line| match line.split_once("for: ") {
        Some((before, _)) if before.trim().is_empty() => format!("{before}for: 2s\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// Transfers with losses, ends of all kinds, resets of several causes and a storm of them. What is returned stays open.
fn traffic(path: &Path) -> Result<Vec<tcpwatch_lab::Pair>> {
    let server = Traffic::over(path, Family::V4).listen()?;
    let traffic = Traffic::over(path, Family::V4).congestion("cubic");
    let mut pair = traffic.connect_to(&server)?;
    pair.ping_pong(50, 200)?;
    let losses = path.forward().drop_share(0.03, 7);
    pair.send(End::Client, 1_000_000)?;
    losses.remove();
    for family in [Family::V4, Family::V6] {
        let traffic = Traffic::over(path, family);
        traffic.connect()?.close(End::Client)?;
        traffic.connect()?.close(End::Server)?;
        traffic.connect()?.abort(End::Client)?;
        traffic.connect()?.close_with_unread(End::Server, 500)?;
        traffic.connect()?.send_after_close(End::Server)?;
        traffic.refused(3)?;
    }
    Traffic::loopback(path.a(), Family::V4).refused(STORM)?;
    Ok(vec![pair])
}

/// Every query of a panel has rows with the labels of its legend, or the panel says that it may be empty.
fn panel_has_rows(prometheus: &Prometheus, panel: &Panel, instance: &str) -> Result<()> {
    let instance = instance.replace('.', "\\\\.");
    let targets = panel.json["targets"].as_array().context("no targets")?;
    for (query, target) in panel.queries.iter().zip(targets) {
        let query = [("$__rate_interval", "1m"), ("$__range", "1h"), ("$instance", &instance), ("$service", ".*")]
            .iter()
            .fold(query.clone(), |query, (name, value)| query.replace(name, value));
        ensure!(!query.contains('$'), "{}: a variable is not known: {query}", panel.title);
        let rows = if panel.may_be_empty {
            prometheus.rows(&query)?
        } else {
            let some = |p: &Prometheus| Ok(Some(p.rows(&query)?).filter(|rows| !rows.is_empty()));
            prometheus.wait(some, &format!("rows of \"{}\": {query}", panel.title))?
        };
        for label in legend_labels(target["legendFormat"].as_str().unwrap_or_default()) {
            let named = rows.iter().all(|row| row["metric"][label].is_string());
            ensure!(named, "{}: no label {label} in {rows:?}", panel.title);
        }
        println!("{:>4} rows  {}: {query}", rows.len(), panel.title);
    }
    Ok(())
}

/// The labels that a legend like `sent, {{direction}}` is made of.
fn legend_labels(legend: &str) -> impl Iterator<Item = &str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next())
}

/// What the lists of the dashboard's variables are made of.
fn variables_have_values(prometheus: &Prometheus) -> Result<()> {
    let dashboard: Value = serde_json::from_str(dashboard::TEXT)?;
    let all = dashboard["templating"]["list"].as_array().context("no variables")?;
    let definitions: Vec<_> = all.iter().filter_map(|variable| variable["definition"].as_str()).collect();
    ensure!(definitions.len() == 2, "{definitions:?}");
    for definition in definitions {
        let inside = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).context(definition.to_owned())?;
        let rows = prometheus.rows(&format!("count by ({label}) ({})", series.replace("$instance", ".*")))?;
        ensure!(!rows.is_empty() && rows.iter().all(|row| row["metric"][label].is_string()), "{definition}: {rows:?}");
    }
    Ok(())
}

/// Every rule is loaded and evaluates; every record has rows, but what an hour's history takes.
fn rules_evaluate(prometheus: &Prometheus) -> Result<()> {
    let mut count = 0;
    for kind in ["record", "alert"] {
        for rule in
            prometheus.wait(|p| Ok(Some(p.rules(kind)?).filter(|all| evaluated(all))), "rules to be evaluated")?
        {
            ensure!(rule["health"] == "ok" && rule["lastError"].is_null(), "{rule}");
            let name = rule["name"].as_str().context("a rule without name")?;
            let query = rule["query"].as_str().context("a rule without expression")?;
            let rows = prometheus.rows(query)?;
            println!("{:>4} rows  {kind} {name}", rows.len());
            if kind == "record" && !name.ends_with(":avg1h_usual") {
                ensure!(!rows.is_empty() && !prometheus.rows(name)?.is_empty(), "{name} has no rows");
            }
            count += 1;
        }
    }
    let written = fs::read_to_string(folder().join("tcpwatch.rules.yml"))?.matches("expr:").count();
    ensure!(count == written, "{count} rules are loaded of {written}");
    Ok(())
}

fn evaluated(rules: &[Value]) -> bool {
    rules.iter().all(|rule| rule["health"] != "unknown")
}

/// An alert says what is wrong and what to do, with all templates filled in.
fn complete(alert: &Value) -> Result<()> {
    for key in ["summary", "description", "runbook"] {
        let text = alert["annotations"][key].as_str().with_context(|| format!("no {key}: {alert}"))?;
        ensure!(!text.contains("<error") && !text.contains("<no value>") && !text.contains("{{"), "{key}: {text}");
        println!("{key}: {text}");
    }
    ensure!(alert["labels"]["severity"].is_string(), "{alert}");
    Ok(())
}
