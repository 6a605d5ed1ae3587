use super::*;
use crate::metrics::catalog::{FIXED_GROUPS, MOST_SERVICES, bound};
use crate::metrics::model::Values;
use crate::metrics::sample;
use std::collections::BTreeSet;

/// Everything that there can be.
pub(crate) fn all_families(snapshot: &Snapshot) -> Vec<Family> {
    let settled = Monotone::default().settle(snapshot);
    let process = Process {
        cpu_seconds: Some(12.5),
        resident_bytes: Some(20 << 20),
        virtual_bytes: Some(200 << 20),
        open_fds: Some(40),
        max_fds: Some(1024),
        threads: Some(2),
        start_time_seconds: Some(1.7e9),
    };
    families(&View {
        settled: Some(&settled),
        snapshot_age_seconds: 0.25,
        process,
        scrape_seconds: Some(0.002),
        disconnects: 3,
    })
}

fn text_of(snapshot: &Snapshot) -> String {
    plain_text(all_families(snapshot)).unwrap()
}

fn openmetrics_of(snapshot: &Snapshot) -> String {
    openmetrics::text(&all_families(snapshot), |ktime_ns| seconds(ktime_ns) + 1000.0).unwrap()
}

fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn a_scrape_is_as_agreed() {
    // What was compiled from what differs with every commit.
    let text = text_of(&sample::full(1));
    let stable: Vec<_> = text.lines().filter(|line| !line.starts_with("tcpwatch_build_info{")).collect();
    crate::golden::check("tests/golden/metrics.txt", &(stable.join("\n") + "\n"));
}

#[test]
fn openmetrics_is_as_agreed() {
    let text = openmetrics_of(&sample::full(1));
    let stable: Vec<_> = text.lines().filter(|line| !line.starts_with("tcpwatch_build_info{")).collect();
    crate::golden::check("tests/golden/openmetrics.txt", &(stable.join("\n") + "\n"));
}

#[test]
fn openmetrics_has_the_same_values() {
    let snapshot = sample::full(3);
    let (plain, open) = (text_of(&snapshot), openmetrics_of(&snapshot));
    let values = |text: &str| -> std::collections::BTreeMap<String, f64> {
        let lines = samples(text).into_iter().map(|line| line.split(" # ").next().unwrap());
        lines
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(s, v)| (s.replace(".0\"}", "\"}"), v.parse().unwrap()))
            .collect()
    };
    let (plain, values) = (values(&plain), values(&open));
    assert_eq!(plain.len(), values.len());
    for (series, value) in plain {
        assert_eq!(values.get(&series), Some(&value), "{series}");
    }
    assert!(open.ends_with("\n# EOF\n"));
    let exemplars: Vec<_> = open.lines().filter(|line| line.contains(" # {")).collect();
    assert!(exemplars.len() > 6, "{exemplars:?}");
    for line in exemplars {
        assert!(line.contains("_total{") || line.contains("_bucket{"), "{line}");
        let (_, exemplar) = line.split_once(" # ").unwrap();
        assert!(exemplar.starts_with("{cookie=\"") && exemplar.len() < 128, "{line}");
    }
}

#[test]
fn names_of_families_in_openmetrics_differ() {
    let text = openmetrics_of(&sample::full(1));
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    for line in text.lines().filter_map(|line| line.strip_prefix("# UNIT ")) {
        let (name, unit) = line.split_once(' ').unwrap();
        assert!(name.ends_with(&format!("_{unit}")), "{line}");
    }
}

#[test]
fn an_exemplar_has_the_same_time_in_every_scrape() {
    let (_sender, snapshots) = watch::channel(Some(Arc::new(sample::full(1))));
    let exporter = Exporter::new(snapshots);
    let times = || -> BTreeSet<String> {
        let text = String::from_utf8(exporter.encode(Format::OpenMetrics).unwrap()).unwrap();
        text.lines().filter_map(|line| line.split_once(" # ")?.1.rsplit_once(' ')).map(|(_, t)| t.to_owned()).collect()
    };
    let first = times();
    assert_eq!(first.len(), 1);
    assert_eq!(times(), first);
}

#[test]
fn the_whole_catalogue_and_nothing_else_is_in_a_scrape() {
    let text = text_of(&sample::full(1));
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(names, CATALOG.iter().map(|metric| metric.name).collect::<Vec<_>>());
}

#[test]
fn every_series_has_the_labels_and_values_of_the_catalogue() {
    let settled = Monotone::default().settle(&sample::full(16));
    let view = View {
        settled: Some(&settled),
        snapshot_age_seconds: 0.0,
        process: Process::default(),
        scrape_seconds: None,
        disconnects: 0,
    };
    for metric in CATALOG {
        let mut series = Series::of(metric);
        (metric.read)(&view, &mut series);
        let mut seen = BTreeSet::new();
        for One { metric: one, .. } in series.into_inner() {
            let pairs: Vec<_> =
                one.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect();
            assert_eq!(pairs.len(), metric.labels.len(), "{}", metric.name);
            for (label, (name, value)) in metric.labels.iter().zip(&pairs) {
                assert_eq!(label.name, name);
                if let Values::Closed(values) = label.values {
                    assert!(values.contains(&value.as_str()), "{}: {name}={value}", metric.name);
                }
            }
            assert!(seen.insert(pairs.clone()), "{}: {pairs:?} twice", metric.name);
        }
        assert!(seen.len() <= metric.bound(16 + FIXED_GROUPS), "{} has {} series", metric.name, seen.len());
    }
}

#[test]
fn a_host_with_everything_stays_below_the_computed_bound() {
    for services in [1, 16, MOST_SERVICES as u16] {
        let (count, most) = (samples(&text_of(&sample::full(services))).len(), bound(services.into()));
        assert!(count <= most, "{count} series, and {most} computed, for {services} services");
        // With one service the sample has few listeners and namespaces too.
        assert!(services == 1 || count * 2 > most, "{most} for {services} services is no estimate of {count}");
    }
}

/// The sizes that docs/FLEET.md gives for a host where everything that can have a series has one.
#[test]
fn a_scrape_of_a_full_host_is_as_large_as_documented() {
    let families = all_families(&sample::full(16));
    let text = openmetrics::text(&families, |_| 1.7e9).unwrap();
    let protobuf = protobuf::bytes(&families, |ktime_ns| ktime_ns);
    let plain = plain_text(families).unwrap();
    let sizes = [samples(&plain).len(), plain.len() / 1000, text.len() / 1000, protobuf.len() / 1000];
    println!("series, kB of plain text, OpenMetrics and protobuf: {sizes:?}");
    let most = [3428, 300, 310, 230];
    assert!(sizes.iter().zip(most).all(|(size, most)| *size <= most), "{sizes:?}");
}

#[test]
fn causes_begin_at_zero_in_every_group() {
    let text = text_of(&sample::empty());
    for line in [
        "tcpwatch_connections_closed_total{direction=\"inbound\",service=\"443\",cause=\"timeout\"} 0",
        "tcpwatch_retransmitted_segments_total{direction=\"inbound\",service=\"443\",cause=\"tail_loss_probe\"} 0",
        "tcpwatch_resets_sent_total{direction=\"unknown\",service=\"none\",origin=\"passive\",cause=\"no_listener\"} 0",
        "tcpwatch_events_lost_total{where=\"ring\",program=\"tcp_probe\"} 0",
        "tcpwatch_decode_errors_total{reason=\"too_short\"} 0",
    ] {
        assert!(samples(&text).contains(&line), "no {line}");
    }
}

#[test]
fn before_the_first_snapshot_there_is_only_the_daemon_itself() {
    let (sender, snapshots) = watch::channel(None);
    let exporter = Exporter::new(snapshots);
    exporter.count_disconnect();
    let text = exporter.text();
    assert!(text.contains("\ntcpwatch_http_disconnects_total 1\n") && text.contains("\nprocess_threads "), "{text}");
    assert!(!text.contains("tcpwatch_connections") && !text.contains("tcpwatch_scrape_duration_seconds"), "{text}");
    sender.send_replace(Some(Arc::new(sample::empty())));
    let text = exporter.text();
    assert!(text.contains("tcpwatch_connections{") && text.contains("tcpwatch_scrape_duration_seconds "), "{text}");
}

#[test]
fn scrapes_never_go_back_when_the_snapshot_does() {
    let mut snapshot = sample::full(1);
    let (sender, snapshots) = watch::channel(Some(Arc::new(snapshot.clone())));
    let exporter = Exporter::new(snapshots);
    let counters = |text: &str| -> Vec<String> {
        samples(text).into_iter().filter(|line| line.contains("_total{")).map(ToOwned::to_owned).collect()
    };
    let before = counters(&exporter.text());
    for totals in &mut snapshot.groups {
        totals.words.iter_mut().for_each(|word| *word = word.wrapping_sub(1));
    }
    sender.send_replace(Some(Arc::new(snapshot)));
    assert_eq!(counters(&exporter.text()), before);
}
