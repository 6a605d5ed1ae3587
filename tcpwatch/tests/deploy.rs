//! The files of deploy/ against docs/METRICS.md, which is made from the catalogue: a metric, label or value that is
//! renamed fails here at once, on any machine. What the queries return is seen in tests/kernel/prometheus.

#[path = "kernel/dashboard.rs"]
mod dashboard;
mod deploy_docs;

use std::collections::BTreeSet;

use deploy_docs::Documented;
use serde_json::Value;

const RULES: &str = include_str!("../../deploy/prometheus/tcpwatch.rules.yml");
const RULE_TESTS: &str = include_str!("../../deploy/prometheus/tcpwatch.rules.test.yml");
const ALERTS: &str = include_str!("../../docs/ALERTS.md");

/// What the lines that begin with this key say, in a file of rules.
fn values_of<'a>(key: &str, text: &'a str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

fn records() -> BTreeSet<&'static str> {
    values_of("record:", RULES).into_iter().collect()
}

fn alerts() -> Vec<&'static str> {
    values_of("alert:", RULES)
}

#[test]
fn rules_name_documented_metrics_labels_and_values() {
    let complaints = Documented::read().complaints(RULES, &records());
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_tests_of_rules_name_documented_metrics_labels_and_values() {
    let complaints = Documented::read().complaints(RULE_TESTS, &records());
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn the_dashboard_names_documented_metrics_labels_and_values() {
    let documented = Documented::read();
    let dashboard: Value = serde_json::from_str(dashboard::TEXT).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables =
        variables.iter().filter_map(|v| v["definition"].as_str()).map(|q| ("a variable".to_owned(), q.into()));
    let panels = dashboard::panels().into_iter().flat_map(|p| p.queries.into_iter().map(move |q| (p.title.clone(), q)));
    let mut complaints = Vec::new();
    for (place, query) in panels.chain(variables) {
        complaints.extend(documented.complaints(&query, &BTreeSet::new()).into_iter().map(|c| format!("{place}: {c}")));
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_name_that_is_not_documented_is_found() {
    let documented = Documented::read();
    for wrong in [
        "sum(rate(tcpwatch_resets_total[2m]))",
        "tcpwatch_connections_bucket",
        "tcpwatch_connections{status=\"ESTABLISHED\"}",
        "tcpwatch_connections{state=\"OPEN\"}",
        "tcpwatch_events_lost_total{where=~\"ring|rong\"}",
        "sum by (instance, reasons) (tcpwatch_resets_sent_by_reason_total)",
        "service:tcpwatch_resets_sent:rate9m",
    ] {
        assert_eq!(documented.complaints(wrong, &records()).len(), 1, "{wrong}");
    }
    let right = "sum by (le) (rate(tcpwatch_rtt_seconds_bucket{service=~\"$service\",direction!=\"unknown\"}[1m]))";
    assert_eq!(documented.complaints(right, &records()), Vec::<String>::new());
}

#[test]
fn every_alert_is_tested_and_has_a_page_to_go_to() {
    assert!(alerts().len() >= 8, "{:?}", alerts());
    for alert in alerts() {
        let firing = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(RULE_TESTS.contains(&firing), "{alert} is never seen to fire");
        let ask = format!("- expr: ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}");
        let silent = RULE_TESTS.split(&ask).skip(1).any(|rest| {
            rest.lines().find_map(|line| line.trim().strip_prefix("exp_samples:")).is_some_and(|rest| rest == " []")
        });
        assert!(silent, "{alert} is never seen not to fire");
        assert!(ALERTS.lines().any(|line| line == format!("## {alert}")), "docs/ALERTS.md has no section {alert}");
        let link = format!("docs/ALERTS.md#{}", alert.to_lowercase());
        assert!(values_of("runbook:", RULES).contains(&&*link), "{alert} does not refer to {link}");
    }
    for key in ["summary:", "description:", "severity:", "runbook:"] {
        assert_eq!(values_of(key, RULES).len(), alerts().len(), "{key}");
    }
    for page in ALERTS.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(alerts().contains(&page), "docs/ALERTS.md has a section {page}, and there is no such alert");
    }
}

#[test]
fn every_panel_says_what_it_shows() {
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in dashboard::panels() {
        let (title, json) = (&panel.title, &panel.json);
        assert!(!title.is_empty() && !json["description"].as_str().unwrap_or_default().is_empty(), "{title}");
        assert!(json["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert!(ids.insert(json["id"].as_u64()), "{title}: the id is another panel's");
        assert_eq!(json["datasource"]["uid"], "${datasource}", "{title}");
        assert!(!panel.queries.is_empty(), "{title}");
        for target in json["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(!target["legendFormat"].as_str().unwrap_or_default().is_empty(), "{title} has no legend");
            assert!(target["expr"].as_str().unwrap().contains("$instance"), "{title} is of all instances");
        }
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| json["gridPos"][side].as_u64().unwrap());
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cell.0 < 24 && places.insert(cell), "{title} lies on another panel or beyond the edge");
        }
        let reason = json["description"].as_str().unwrap().split(dashboard::MAY_BE_EMPTY).nth(1);
        assert_eq!(panel.may_be_empty, reason.is_some_and(|reason| reason.len() > 10), "{title}");
    }
}
