use super::*;
use crate::metrics::model::{Type, Values};
use std::collections::BTreeSet;

#[test]
fn names_have_a_prefix_and_are_snake_case_and_unique() {
    let mut seen = BTreeSet::new();
    for metric in CATALOG {
        let name = metric.name;
        assert!(name.starts_with("tcpwatch_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_'), "{name}");
        assert!(!name.contains("__") && !name.ends_with('_'), "{name}");
        assert!(seen.insert(name), "{name} twice");
    }
}

#[test]
fn all_of_the_process_is_said_to_be_of_it() {
    for metric in CATALOG.iter().filter(|metric| metric.name.starts_with("process_")) {
        assert!(metric.of_process, "{}", metric.name);
    }
}

#[test]
fn names_say_type_and_base_unit() {
    for metric in CATALOG {
        let name = metric.name;
        assert_eq!(name.ends_with("_total"), metric.kind == Type::Counter, "{name}");
        assert_eq!(metric.buckets.is_some(), metric.kind == Type::Histogram, "{name}");
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let suffix = [
            (Unit::Seconds, "_seconds"),
            (Unit::Bytes, "_bytes"),
            (Unit::Segments, "_segments"),
            (Unit::Info, "_info"),
            (Unit::Ratio, "_ratio"),
        ];
        for (unit, suffix) in suffix {
            assert_eq!(stem.ends_with(suffix), metric.unit == unit, "{name} is in {:?}", metric.unit);
        }
        for other in [
            "_ms",
            "_us",
            "_ns",
            "_milliseconds",
            "_microseconds",
            "_kilobytes",
            "_percent",
            "_count",
            "_sum",
            "_bucket",
        ] {
            assert!(!stem.ends_with(other), "{name}");
        }
    }
}

#[test]
fn helps_are_sentences_of_one_line() {
    for metric in CATALOG {
        for text in [metric.help, metric.note] {
            assert!(text.is_empty() || text.ends_with('.'), "{}: {text}", metric.name);
            assert!(!text.contains('\n') && !text.contains("  "), "{}: {text}", metric.name);
        }
        assert!(metric.help.len() > 10 && metric.help.starts_with(char::is_uppercase), "{}", metric.name);
        assert!(!metric.area.is_empty() && !metric.since.is_empty(), "{}", metric.name);
    }
}

#[test]
fn labels_are_legal_unique_and_not_taken() {
    for metric in CATALOG {
        let names: BTreeSet<_> = metric.labels.iter().map(|label| label.name).collect();
        assert_eq!(names.len(), metric.labels.len(), "{}", metric.name);
        for label in metric.labels {
            assert!(label.name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{}", label.name);
            assert!(!["le", "quantile", "job", "instance"].contains(&label.name), "{}", metric.name);
            if let Values::Closed(values) = label.values {
                let distinct: BTreeSet<_> = values.iter().collect();
                assert!(!values.is_empty() && distinct.len() == values.len(), "{}", metric.name);
            }
        }
    }
}

#[test]
fn buckets_rise_and_have_a_reason() {
    for buckets in CATALOG.iter().filter_map(|metric| metric.buckets) {
        assert!(buckets.edges.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", buckets.edges);
        assert!(buckets.edges[0] > 0.0 && buckets.reason.ends_with('.'));
    }
    assert_eq!(RTT_SECONDS.first(), Some(&0.000_032));
    assert!(RTT_SECONDS.last() > Some(&8.0) && (18..24).contains(&RTT_EDGES));
}

#[test]
fn a_host_has_at_most_6000_series() {
    assert!(bound(16) <= 6000, "{}", bound(16));
    // Nobody can configure more: every slot has a label.
    assert!(bound(MOST_SERVICES) <= 6000, "{}", bound(MOST_SERVICES));
}
