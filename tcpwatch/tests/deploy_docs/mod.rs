//! docs/METRICS.md as data, and texts with PromQL in them held against it.

use std::collections::{BTreeMap, BTreeSet};

const METRICS: &str = include_str!("../../../docs/METRICS.md");
/// Labels that Prometheus, its alerts and its histograms have.
const FOREIGN_LABELS: [&str; 4] = ["job", "instance", "le", "alertname"];

/// A metric as it is documented.
#[derive(Default)]
struct Metric {
    histogram: bool,
    /// Labels; where the page lists them all, their values.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// All metrics.
pub(crate) struct Documented(BTreeMap<String, Metric>);

impl Documented {
    /// Reads the page, whose form is that of `tcpwatch docs metrics`.
    pub(crate) fn read() -> Self {
        let mut all: BTreeMap<String, Metric> = BTreeMap::new();
        let mut name = String::new();
        for line in METRICS.lines() {
            if let Some(heading) = line.strip_prefix("### `") {
                heading.trim_end_matches('`').clone_into(&mut name);
                all.entry(name.clone()).or_default();
            } else if let (Some(metric), Some(item)) = (all.get_mut(&name), line.strip_prefix("- ")) {
                metric.histogram |= item.starts_with("Histogram");
                if let Some((label, values)) = item.strip_prefix('`').and_then(|item| item.split_once("`: ")) {
                    metric.labels.insert(label.to_owned(), listed(values));
                }
            }
        }
        assert!(all.len() > 40, "docs/METRICS.md is not what it was: {} metrics", all.len());
        Self(all)
    }

    /// What `text` names and this page does not know; `records` are the names of recording rules.
    pub(crate) fn complaints(&self, text: &str, records: &BTreeSet<&str>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (word, rest) in words(text) {
            if word.contains(':') {
                if word.contains("tcpwatch_") && !records.contains(word) {
                    complaints.push(format!("no rule records {word}"));
                }
            } else if word.starts_with("tcpwatch_") || word.starts_with("process_") {
                match self.metric(word) {
                    None => complaints.push(format!("{word} is not in docs/METRICS.md")),
                    Some(metric) => complaints.extend(matchers(rest).filter_map(|m| metric.complaint(word, m))),
                }
            } else if matches!(word, "by" | "on" | "group_left") && rest.trim_start().starts_with('(') {
                let inside = rest.trim_start()[1..].split(')').next().unwrap_or_default();
                let labels = inside.split(',').map(str::trim).filter(|label| !label.is_empty());
                complaints.extend(labels.filter(|l| !self.has_label(l)).map(|l| format!("{l} is no label")));
            }
        }
        complaints
    }

    fn metric(&self, word: &str) -> Option<&Metric> {
        let of_histogram = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| word.strip_suffix(end));
        self.0.get(word).or_else(|| self.0.get(of_histogram?).filter(|metric| metric.histogram))
    }

    fn has_label(&self, label: &str) -> bool {
        FOREIGN_LABELS.contains(&label) || self.0.values().any(|metric| metric.labels.contains_key(label))
    }
}

impl Metric {
    /// What is wrong with `label="value"`, `label=~"value|value"` and their negations.
    fn complaint(&self, name: &str, matcher: &str) -> Option<String> {
        let (label, value) = matcher.split_once(['=', '!'])?;
        let label = label.trim();
        if FOREIGN_LABELS.contains(&label) {
            return None;
        }
        let Some(values) = self.labels.get(label) else {
            return Some(format!("{name} has no label {label}"));
        };
        let regex = value.starts_with('~');
        let value = value.trim_start_matches(['=', '~']).trim_matches('"');
        let mut wanted = value.split(|c| regex && c == '|').filter(|value| !value.starts_with('$'));
        let unknown = wanted.find(|value| !values.is_empty() && !values.contains(*value))?;
        Some(format!("the label {label} of {name} is never {unknown}"))
    }
}

/// The values of a label where the page lists nothing but values; else none.
fn listed(text: &str) -> BTreeSet<String> {
    let values = text.split(", ").map(|value| value.strip_prefix('`')?.strip_suffix('`').map(str::to_owned));
    values.collect::<Option<_>>().unwrap_or_default()
}

/// The words that could be names in PromQL, each with what follows it.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(part)?..];
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        // A key of YAML or the end of a sentence.
        Some((word.trim_end_matches(':'), after))
    })
}

/// `label="value"` of the braces that follow a name at once.
fn matchers(rest: &str) -> impl Iterator<Item = &str> {
    let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
    inside.split(',').filter(|matcher| !matcher.trim().is_empty())
}

/// docs/DASHBOARDS.md: the pictures, and what each panel shows in its own words.
pub(crate) fn page_of_dashboards(boards: &[crate::dashboard::Dashboard]) -> String {
    let mut page = "# Dashboards\n\n\
         <!-- Written from deploy/grafana by `TCPWATCH_BLESS=1 cargo test --package tcpwatch --test deploy`; do not edit. -->\n\n\
         What [deploy/grafana](../deploy/grafana) shows of a host with losses, resets of many kinds and a storm of them. The \
         pictures are drawn by the tests from the queries of the panels, asked of a real Prometheus that scrapes a real \
         daemon (`TCPWATCH_DRAW=docs/dashboards`, tests/kernel/prometheus/pictures.rs); Grafana draws them finer.\n\n\
         **Install:** import the files in Grafana 10 or newer, or let it find them as \
         [provisioning](../deploy/grafana/provisioning) says. Each asks for its data source; variables choose hosts and \
         services, and a menu leads from one to another.\n"
        .to_owned();
    for board in boards {
        let text = |key: &str| board.json[key].as_str().unwrap_or_default().to_owned();
        let (title, about) = (text("title"), text("description"));
        let lines = [
            format!("\n## {title}\n\n{about}\n"),
            format!("![{title}](dashboards/{}.svg)\n", board.name),
            "| panel | shows |\n|---|---|".to_owned(),
        ];
        page.push_str(&lines.join("\n"));
        for panel in &board.panels {
            let shows = panel.json["description"].as_str().unwrap_or_default().replace('|', "\\|");
            page.push_str(&["\n| ", &panel.title, " | ", &shows, " |"].concat());
        }
        page.push('\n');
    }
    page
}
