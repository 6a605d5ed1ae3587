//! What deploy/ has for Prometheus, Alertmanager and Grafana, against a real Prometheus that scrapes real daemons: every query
//! of the dashboards returns rows, every rule evaluates, a storm is told and what is well is not.

mod alertmanager;
mod draw;
mod fleet;
mod formats;
mod healthy;
mod pictures;
mod server;
mod traffic;

use std::collections::BTreeSet;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Path, Traffic, harness};

use self::server::{Prometheus, Setup, promtool};
use self::traffic::while_busy;
use crate::daemon::Daemon;
use crate::dashboard::{self, Panel};
use crate::obstacle;

pub(crate) fn trials() -> Vec<Trial> {
    let both = || server::obstacle().or_else(obstacle);
    vec![
        harness::trial_unless("promtool_accepts_the_rules_and_their_tests", server::obstacle, accepted_rules),
        harness::trial_unless("promtool_has_no_complaint_about_a_scrape", both, accepted_scrape),
        harness::trial_unless("prometheus_answers_every_panel_and_every_rule", both, answers),
        harness::trial_unless("prometheus_keeps_exemplars_of_openmetrics", both, formats::exemplars),
        harness::trial_unless("prometheus_takes_native_histograms", both, formats::native),
        harness::trial_unless("prometheus_and_alertmanager_tell_of_a_storm_and_its_end", both, alertmanager::tells),
        harness::trial_unless("prometheus_is_silent_for_an_hour_of_healthy_traffic", both, healthy::silent),
        harness::trial_unless("prometheus_shows_two_hosts_and_what_they_cost", both, fleet::two_hosts),
        harness::trial_unless("prometheus_has_what_the_pictures_of_dashboards_show", both, pictures::drawn),
    ]
}

/// The rules of a host, and those of many.
const RULES: [&str; 2] = [
    include_str!("../../../../deploy/prometheus/tcpwatch.rules.yml"),
    include_str!("../../../../deploy/prometheus/tcpwatch.fleet.rules.yml"),
];
/// What the kernel tells only while its BPF statistics are on.
const OF_STATISTICS: [&str; 2] = ["tcpwatch_program_runs_total", "tcpwatch_program_mean_run_seconds"];

fn folder() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

fn accepted_rules() -> Result<()> {
    for configuration in ["prometheus.yml", "prometheus.fleet.yml"] {
        let said = promtool(&["check", "config", configuration], &folder(), "")?;
        ensure!(said.matches("rules found").count() == RULES.len(), "{said}");
    }
    let said = promtool(&["test", "rules", "tcpwatch.rules.test.yml", "tcpwatch.fleet.rules.test.yml"], &folder(), "")?;
    ensure!(said.matches("SUCCESS").count() == RULES.len(), "{said}");
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
    let prometheus = Prometheus::start(&Setup { rules: RULES.map(hasty).to_vec(), ..Setup::of(&[daemon.address]) })?;
    // Whatever comes after a first scrape is a change that rate() sees.
    prometheus.wait(|p| Ok(p.rows("up{job=\"tcpwatch\"} == 1")?.pop()), "the first scrape")?;
    let busy = |go_on: &_| traffic::of_all_kinds(&path, go_on);
    let storm = |go_on: &_| traffic::storm(&path, go_on);
    while_busy(&[&busy, &storm], || {
        let storms = prometheus.wait_firing("TcpwatchResetStorm")?;
        let storm = storms.iter().find(|alert| alert["labels"]["cause"] == "no_listener");
        ensure!(storm.context("no storm")?["labels"]["service"] == "none", "{storms:?}");
        let received = prometheus.wait_firing("TcpwatchResetsReceivedStorm")?;
        for alert in storms.iter().chain(&received) {
            complete(alert)?;
        }
        for board in dashboard::all() {
            for panel in &board.panels {
                panel_has_rows(&prometheus, panel, &daemon.address.to_string())
                    .with_context(|| format!("dashboard {}", board.name))?;
            }
            variables_have_values(&prometheus, &board.definitions())?;
        }
        rules_evaluate(&prometheus)?;
        every_metric_is_there(&prometheus)
    })?;
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

/// The query as Grafana sends it, with these hosts and all services chosen.
fn filled(query: &str, hosts: &str, rate: &str, range: &str) -> String {
    let values = [("$__rate_interval", rate), ("$__range", range), ("$instance", hosts), ("$service", ".*")];
    values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value))
}

/// Every query of a panel has rows with the labels of its legend, or the panel says that it may be empty.
fn panel_has_rows(prometheus: &Prometheus, panel: &Panel, instance: &str) -> Result<()> {
    let instance = instance.replace('.', "\\\\.");
    for (query, legend) in panel.queries.iter().zip(panel.legends()) {
        let query = filled(query, &instance, "1m", "1h");
        ensure!(!query.contains('$'), "{}: a variable is not known: {query}", panel.title);
        let rows = if panel.may_be_empty {
            prometheus.rows(&query)?
        } else {
            let some = |p: &Prometheus| Ok(Some(p.rows(&query)?).filter(|rows| !rows.is_empty()));
            prometheus.wait(some, &format!("rows of \"{}\": {query}", panel.title))?
        };
        for label in legend_labels(legend) {
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

/// What the lists of a dashboard's variables are made of.
fn variables_have_values(prometheus: &Prometheus, definitions: &[&str]) -> Result<()> {
    ensure!(!definitions.is_empty(), "no variables");
    for definition in definitions {
        let inside = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).context((*definition).to_owned())?;
        let rows = prometheus.rows(&format!("count by ({label}) ({})", series.replace("$instance", ".*")))?;
        ensure!(!rows.is_empty() && rows.iter().all(|row| row["metric"][label].is_string()), "{definition}: {rows:?}");
    }
    Ok(())
}

/// Every rule is loaded and evaluates; every record has rows, but what takes a history or what is not well.
fn rules_evaluate(prometheus: &Prometheus) -> Result<()> {
    let mut count = 0;
    for kind in ["record", "alert"] {
        for rule in
            prometheus.wait(|p| Ok(Some(p.rules(kind)?).filter(|all| evaluated(all))), "rules to be evaluated")?
        {
            ensure!(rule["health"] == "ok" && rule["lastError"].is_null(), "{rule}");
            let name = rule["name"].as_str().context("a rule without name")?;
            let query = rule["query"].as_str().context("a rule without expression")?;
            let may_be_empty = kind == "alert" || name.ends_with("_usual") || name.contains("detached");
            let rows = prometheus.wait(
                |p| Ok(Some(p.rows(query)?).filter(|rows| may_be_empty || !rows.is_empty())),
                &format!("rows of {name}"),
            )?;
            println!("{:>4} rows  {kind} {name}", rows.len());
            if !may_be_empty {
                prometheus.wait(|p| Ok(p.rows(name)?.pop()), &format!("what is recorded as {name}"))?;
            }
            count += 1;
        }
    }
    let written: usize = RULES.iter().map(|rules| rules.matches("expr:").count()).sum();
    ensure!(count == written, "{count} rules are loaded of {written}");
    Ok(())
}

/// Every metric that a rule or a dashboard names was scraped.
fn every_metric_is_there(prometheus: &Prometheus) -> Result<()> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let texts = dashboard::all().into_iter().flat_map(|board| board.panels).flat_map(|panel| panel.queries);
    let texts: Vec<_> = texts.chain(RULES.map(str::to_owned)).collect();
    let words = texts.iter().flat_map(|text| text.split(|c| !is_part(c)));
    let is_metric =
        |word: &&str| ["tcpwatch_", "process_"].iter().any(|prefix| word.starts_with(prefix)) && !word.contains(':');
    let named: BTreeSet<_> = words.filter(is_metric).filter(|word| !OF_STATISTICS.contains(word)).collect();
    ensure!(named.len() > 30, "{named:?}");
    let scraped = prometheus.api("label/__name__/values")?;
    let scraped: BTreeSet<_> = scraped.as_array().context("no names")?.iter().filter_map(Value::as_str).collect();
    // A native histogram has the bare name.
    let there = |name: &str| scraped.contains(name) || scraped.contains(&*format!("{name}_bucket"));
    let missing: Vec<_> = named.into_iter().filter(|name| !there(name)).collect();
    ensure!(missing.is_empty(), "named and not scraped: {missing:?}");
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
