//! docs/METRICS.md, from the catalogue.

use super::catalog::{CATALOG, FIXED_GROUPS, bound};
use super::model::{Label, Metric, Type, Unit, Values};
use crate::config::Config;

/// The page.
pub(crate) fn page() -> String {
    let services = Config::default().services as usize;
    let for_host: usize = CATALOG.iter().map(|metric| metric.bound(0)).sum();
    let for_group: usize = CATALOG.iter().map(|metric| metric.bound(1) - metric.bound(0)).sum();
    let mut parts = vec![format!(
        "# Metrics\n\n\
         <!-- Written by `tcpwatch docs metrics` from tcpwatch/src/metrics/catalog/mod.rs; do not edit. -->\n\n\
         What `/metrics` shows. A host has at most {} series with the default of {services} services, computed from \
         this list: {for_host} for the host, and {for_group} for each service and each of the {FIXED_GROUPS} groups that \
         always exist.\n\n\
         Counters count from the start of the daemon and never go back while it runs. Counters by cause begin at 0 as \
         soon as their group is shown, so that `increase()` sees the first burst of each; the group itself is shown \
         with the first thing that it counts, or from the start for `service_ports`. A port that listens \
         here is a service, and so is a remote port once traffic to it lasts. The first that count something get series \
         of their own, up to the setting `services`, and keep them; the others share `service=\"other\"`.\n\n\
         Who asks for it by `Accept`, as Prometheus does, gets OpenMetrics 1.0.0 in place of the plain text, with units, and with \
         exemplars on the buckets of `tcpwatch_rtt_seconds` and on counters of resets: the `cookie` of a connection, and the \
         fingerprint of a `stack`, of the last ten minutes. Who asks for protobuf gets `tcpwatch_rtt_seconds` as a native \
         histogram too, beside its classic buckets: [FLEET.md](FLEET.md#native-histograms).\n",
        bound(services),
    )];
    let mut area = "";
    for metric in CATALOG {
        if metric.area != area {
            area = metric.area;
            parts.push(format!("\n## {area}\n"));
        }
        parts.extend(section(metric));
    }
    parts.concat()
}

fn section(metric: &Metric) -> Vec<String> {
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
        Unit::Ratio => ", ratio",
        Unit::Flag => ", 1 or 0",
        Unit::Info => ", always 1",
    };
    let space = if metric.note.is_empty() { "" } else { " " };
    let mut parts = vec![
        format!("\n### `{}`\n\n{}{space}{}\n\n", metric.name, metric.help, metric.note),
        format!("- {kind}{unit}; since {}\n", metric.since),
    ];
    parts.extend(metric.labels.iter().map(label_line));
    if let Some(buckets) = metric.buckets {
        let edges: Vec<_> = buckets.edges.iter().map(ToString::to_string).collect();
        parts.push(format!("- buckets: {}\n- {}\n", edges.join(", "), buckets.reason));
    }
    parts
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
