//! The files of deploy/ against docs/METRICS.md, which is made from the catalogue: a metric, label or value that is
//! renamed fails here at once, on any machine. What the queries return is seen in tests/kernel/prometheus.

#[path = "kernel/dashboard.rs"]
mod dashboard;
mod deploy_docs;

use std::collections::BTreeSet;

use deploy_docs::Documented;

const RULES: &str = include_str!("../../deploy/prometheus/tcpwatch.rules.yml");
const RULE_TESTS: &str = include_str!("../../deploy/prometheus/tcpwatch.rules.test.yml");
const FLEET: &str = include_str!("../../deploy/prometheus/tcpwatch.fleet.rules.yml");
const FLEET_TESTS: &str = include_str!("../../deploy/prometheus/tcpwatch.fleet.rules.test.yml");
const ALERTS: &str = include_str!("../../docs/ALERTS.md");

/// What the lines that begin with this key say, in a file of rules.
fn values_of<'a>(key: &str, text: &'a str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

fn records() -> BTreeSet<&'static str> {
    [RULES, FLEET].into_iter().flat_map(|text| values_of("record:", text)).collect()
}

fn alerts() -> Vec<&'static str> {
    values_of("alert:", RULES)
}

#[test]
fn rules_name_documented_metrics_labels_and_values() {
    for text in [RULES, FLEET] {
        let complaints = Documented::read().complaints(text, &records());
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

#[test]
fn the_tests_of_rules_name_documented_metrics_labels_and_values() {
    for text in [RULE_TESTS, FLEET_TESTS] {
        let complaints = Documented::read().complaints(text, &records());
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

#[test]
fn dashboards_name_documented_metrics_labels_and_values() {
    let documented = Documented::read();
    let mut complaints = Vec::new();
    for board in dashboard::all() {
        let variables = board.definitions().into_iter().map(|query| ("a variable", query));
        let panels = board.panels.iter().flat_map(|p| p.queries.iter().map(|query| (p.title.as_str(), query.as_str())));
        for (place, query) in panels.chain(variables) {
            let all = documented.complaints(query, &records()).into_iter();
            complaints.extend(all.map(|c| format!("{}, {place}: {c}", board.name)));
        }
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
    for board in dashboard::all() {
        let mut ids = BTreeSet::new();
        for panel in &board.panels {
            let (title, json) = (format!("{}, {}", board.name, panel.title), &panel.json);
            let defaults = &json["fieldConfig"]["defaults"];
            assert!(!panel.title.is_empty() && !json["description"].as_str().unwrap_or_default().is_empty(), "{title}");
            assert!(defaults["unit"].is_string(), "{title} has no unit");
            let steps = defaults["thresholds"]["steps"].as_array().unwrap();
            assert!(steps.first().is_some_and(|step| step["value"].is_null()), "{title} has no thresholds");
            assert!(steps.iter().all(|step| step["color"].is_string()), "{title}");
            let rising: Vec<_> = steps.iter().filter_map(|step| step["value"].as_f64()).collect();
            assert!(rising.is_sorted(), "{title}: {rising:?}");
            assert!(ids.insert(json["id"].as_u64()), "{title}: the id is another panel's");
            assert_eq!(json["datasource"]["uid"], "${datasource}", "{title}");
            assert!(!panel.queries.is_empty() && panel.queries.len() == panel.legends().count(), "{title}");
            assert!(panel.legends().all(|legend| !legend.is_empty()), "{title} has no legend");
            for target in json["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
                assert!(target["expr"].as_str().unwrap().contains("$instance"), "{title} is of all hosts");
            }
            let reason = json["description"].as_str().unwrap().split(dashboard::MAY_BE_EMPTY).nth(1);
            assert_eq!(panel.may_be_empty, reason.is_some_and(|reason| reason.len() > 10), "{title}");
        }
    }
}

#[test]
fn panels_of_a_dashboard_lie_side_by_side() {
    for board in dashboard::all() {
        let mut places = BTreeSet::new();
        for panel in board.json["panels"].as_array().unwrap() {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                let free = cell.0 < 24 && places.insert(cell);
                assert!(free, "{}: {} lies on another panel or beyond the edge", board.name, panel["title"]);
            }
        }
    }
}

#[test]
fn panels_that_an_alert_watches_show_where_it_fires() {
    let boards = dashboard::all();
    for (name, title, limit) in [
        ("overview", "Segments lost", 0.05),
        ("overview", "Listen drops", 0.1),
        ("resets", "Connections ended by a reset", 0.25),
        ("services", "Connections at a zero window", 1.0),
        ("itself", "Totals over the kernel's own", 0.98),
    ] {
        let board = boards.iter().find(|board| board.name == name).unwrap();
        let shown = board.panels.iter().filter(|panel| panel.title == title).any(|panel| {
            let steps = panel.json["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().unwrap();
            steps.iter().any(|step| step["value"] == limit)
        });
        assert!(shown, "{name}, {title} does not show {limit}");
    }
}

#[test]
fn every_dashboard_can_be_provisioned_beside_the_others() {
    let boards = dashboard::all();
    let uids: BTreeSet<_> = boards.iter().map(|board| board.json["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), boards.len());
    for board in &boards {
        assert_eq!(board.json["uid"], format!("tcpwatch-{}", board.name));
        let variables = board.json["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        assert!(names.starts_with(&["datasource", "instance"]), "{}: {names:?}", board.name);
        let of_services = board.panels.iter().flat_map(|panel| &panel.queries).any(|query| query.contains("$service"));
        assert_eq!(names.contains(&"service"), of_services, "{}", board.name);
    }
}

#[test]
fn the_page_of_dashboards_is_up_to_date() {
    let page = deploy_docs::page_of_dashboards(&dashboard::all());
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/DASHBOARDS.md");
    if std::env::var_os("TCPWATCH_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "docs/DASHBOARDS.md is out of date: TCPWATCH_BLESS=1 cargo test --package tcpwatch --test deploy"
    );
}

#[test]
fn every_dashboard_has_a_picture_with_its_panels() {
    for board in dashboard::all() {
        let path = format!("{}/../docs/dashboards/{}.svg", env!("CARGO_MANIFEST_DIR"), board.name);
        let picture = std::fs::read_to_string(&path).unwrap();
        for panel in &board.panels {
            let title = panel.title.replace('\'', "&apos;");
            assert!(picture.contains(&title), "{title} is not in docs/dashboards/{}.svg", board.name);
        }
    }
}
