//! docs/METRICS.md, from the catalogue.

use super::catalog::{CATALOG, FIXED_GROUPS, bound};
use super::model::{Label, Metric, Type, Unit, Values};
use crate::config::Config;

/// The page.
pub(crate) fn page() -> String {
    let services = Config::default().services as usize;
    let mut text = format!(
        "# Metrics\n\n\
         <!-- Written by `tcpwatch docs metrics` from tcpwatch/src/metrics/catalog.rs; do not edit. -->\n\n\
         What `/metrics` shows. A host has at most {} series with the default of {services} services, computed from \
         this list: {} for the host and {} for each service and the {FIXED_GROUPS} groups that always exist.\n\n\
         Counters count from the start of the daemon and never go back while it runs. Counters by cause begin at 0 as \
         soon as their group exists, so that `increase()` sees the first burst. A service gets series of its own when it \
         has been busy for a while, up to the setting `services`; the others share `service=\"other\"`.\n",
        bound(services),
        CATALOG.iter().map(|metric| metric.bound(0)).sum::<usize>(),
        CATALOG.iter().map(|metric| metric.bound(1) - metric.bound(0)).sum::<usize>(),
    );
    let mut area = "";
    for metric in CATALOG {
        if metric.area != area {
            area = metric.area;
            text.push_str(&format!("\n## {area}\n"));
        }
        text.push_str(&section(metric));
    }
    text
}

fn section(metric: &Metric) -> String {
    let mut text = format!("\n### `{}`\n\n{}", metric.name, metric.help);
    if !metric.note.is_empty() {
        text.push(' ');
        text.push_str(metric.note);
    }
    let kind = match metric.kind {
        Type::Counter => "Counter",
        Type::Gauge => "Gauge",
        Type::Histogram => "Histogram",
    };
    let unit = match metric.unit {
        Unit::Seconds => ", seconds",
        Unit::Bytes => ", bytes",
        Unit::Segments => ", segments",
        Unit::Count => "",
        Unit::Flag => ", 1 or 0",
        Unit::Info => ", always 1",
    };
    text.push_str(&format!("\n\n- {kind}{unit}; since {}\n", metric.since));
    metric.labels.iter().for_each(|label| text.push_str(&label_line(label)));
    if let Some(buckets) = metric.buckets {
        let edges: Vec<_> = buckets.edges.iter().map(ToString::to_string).collect();
        text.push_str(&format!("- buckets: {}\n- {}\n", edges.join(", "), buckets.reason));
    }
    text
}

fn label_line(label: &Label) -> String {
    match label.values {
        Values::Closed(values) => format!("- `{}`: `{}`\n", label.name, values.join("`, `")),
        Values::Open(words) => format!("- `{}`: {words}\n", label.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_section_for_every_metric_and_no_heading_twice() {
        let page = page();
        for metric in CATALOG {
            let heading = format!("\n### `{}`\n\n{}", metric.name, metric.help);
            assert_eq!(page.matches(&heading).count(), 1, "{}", metric.name);
        }
        let headings: Vec<_> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert!(headings.iter().enumerate().all(|(i, heading)| !headings[..i].contains(heading)), "{headings:?}");
        assert!(page.ends_with('\n') && !page.ends_with("\n\n"));
    }
}
