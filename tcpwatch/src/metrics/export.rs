//! From the newest snapshot to the text that Prometheus reads: one collector for the whole catalogue.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};
use tokio::sync::watch;

use super::catalog::CATALOG;
use super::model::{Metric, Type};
use super::monotone::{Monotone, Settled};
use super::process::Process;
use super::series::{Series, View};
use crate::aggregate::snapshot::Snapshot;
use crate::sys::monotonic_ns;

/// The content type of the text format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why metrics cannot be registered or written: a mistake in the catalogue.
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub(crate) struct MetricsError(#[from] prometheus::Error);

/// Makes the text of a scrape. Cheap to share; scrapes may run at the same time.
#[derive(Debug)]
pub(crate) struct Exporter {
    registry: Registry,
    source: Arc<Source>,
}

/// What a scrape reads.
#[derive(Debug)]
struct Source {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    monotone: Mutex<Monotone>,
    proc: PathBuf,
    /// Duration of the last scrape, ns; 0 before the first.
    scrape_ns: AtomicU64,
    disconnects: AtomicU64,
}

impl Exporter {
    /// Exports whatever snapshot is the newest.
    pub(crate) fn new(snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Result<Self, MetricsError> {
        let source = Arc::new(Source {
            snapshots,
            monotone: Mutex::default(),
            proc: Path::new("/proc").to_owned(),
            scrape_ns: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
        });
        let registry = Registry::new();
        let descriptions = CATALOG.iter().map(|metric| {
            let labels = metric.labels.iter().map(|label| label.name.to_owned()).collect();
            Desc::new(metric.name.to_owned(), metric.help.to_owned(), labels, HashMap::new())
        });
        let descriptions = descriptions.collect::<Result<_, _>>()?;
        registry.register(Box::new(Catalogue { descriptions, source: Arc::clone(&source) }))?;
        Ok(Self { registry, source })
    }

    /// The text of a scrape. It takes milliseconds of CPU: not for the task that drains the ring buffer.
    pub(crate) fn encode(&self) -> Result<String, MetricsError> {
        let began = monotonic_ns();
        let text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        // At least 1, since 0 stands for none.
        self.source.scrape_ns.store(monotonic_ns().saturating_sub(began).max(1), Ordering::Relaxed);
        Ok(text)
    }

    /// Counts a client that went away before it had its answer.
    pub(crate) fn count_disconnect(&self) {
        self.source.disconnects.fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything in the catalogue, as one collector of the registry.
#[derive(Debug)]
struct Catalogue {
    descriptions: Vec<Desc>,
    source: Arc<Source>,
}

impl Collector for Catalogue {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let source = &self.source;
        let snapshot = source.snapshots.borrow().clone();
        let age_ns = snapshot.as_ref().map_or(0, |snapshot| monotonic_ns().saturating_sub(snapshot.ktime_ns));
        let settled = snapshot.map(|snapshot| {
            // A scrape that panicked has left words that were shown, which is all that this is about.
            source.monotone.lock().unwrap_or_else(PoisonError::into_inner).settle(&snapshot)
        });
        let scrape_ns = source.scrape_ns.load(Ordering::Relaxed);
        families(&View {
            settled: settled.as_ref(),
            snapshot_age_seconds: seconds(age_ns),
            process: Process::read(&source.proc),
            scrape_seconds: (scrape_ns > 0).then(|| seconds(scrape_ns)),
            disconnects: source.disconnects.load(Ordering::Relaxed),
        })
    }
}

/// Metrics without a registry and without those of the process: the same text for the same snapshots, wherever and
/// whenever. As of a scraper that saw every snapshot it was shown.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    monotone: Monotone,
    settled: Option<Settled>,
}

impl Recorded {
    /// Sees a snapshot.
    pub(crate) fn take(&mut self, snapshot: &Snapshot) {
        self.settled = Some(self.monotone.settle(snapshot));
    }

    /// The text of the newest; empty before the first.
    pub(crate) fn text(&self) -> Result<String, MetricsError> {
        let Some(settled) = &self.settled else { return Ok(String::new()) };
        let view = View {
            settled: Some(settled),
            snapshot_age_seconds: 0.0,
            process: Process::default(),
            scrape_seconds: None,
            disconnects: 0,
        };
        let families = families_of(&view, |metric| !metric.of_process);
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }
}

/// Every metric of the catalogue that has series now.
fn families(view: &View<'_>) -> Vec<MetricFamily> {
    families_of(view, |_| true)
}

fn families_of(view: &View<'_>, wanted: impl Fn(&Metric) -> bool) -> Vec<MetricFamily> {
    let families = CATALOG.iter().filter(|metric| wanted(metric)).map(|metric| {
        let mut series = Series::of(metric);
        (metric.read)(view, &mut series);
        let mut family = MetricFamily::default();
        family.set_name(metric.name.to_owned());
        family.set_help(metric.help.to_owned());
        family.set_field_type(match metric.kind {
            Type::Counter => MetricType::COUNTER,
            Type::Gauge => MetricType::GAUGE,
            Type::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(series.into_inner());
        family
    });
    families.filter(|family: &MetricFamily| !<[proto::Metric]>::is_empty(family.get_metric())).collect()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{FIXED_GROUPS, MOST_SERVICES, bound};
    use super::super::model::Values;
    use super::super::sample;
    use super::*;
    use std::collections::BTreeSet;

    fn text_of(snapshot: &Snapshot) -> String {
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
        let view = View {
            settled: Some(&settled),
            snapshot_age_seconds: 0.25,
            process,
            scrape_seconds: Some(0.002),
            disconnects: 3,
        };
        TextEncoder::new().encode_to_string(&families(&view)).unwrap()
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
            for one in series.into_inner() {
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
        let exporter = Exporter::new(snapshots).unwrap();
        exporter.count_disconnect();
        let text = exporter.encode().unwrap();
        assert!(
            text.contains("\ntcpwatch_http_disconnects_total 1\n") && text.contains("\nprocess_threads "),
            "{text}"
        );
        assert!(!text.contains("tcpwatch_connections") && !text.contains("tcpwatch_scrape_duration_seconds"), "{text}");
        sender.send_replace(Some(Arc::new(sample::empty())));
        let text = exporter.encode().unwrap();
        assert!(text.contains("tcpwatch_connections{") && text.contains("tcpwatch_scrape_duration_seconds "), "{text}");
    }

    #[test]
    fn scrapes_never_go_back_when_the_snapshot_does() {
        let mut snapshot = sample::full(1);
        let (sender, snapshots) = watch::channel(Some(Arc::new(snapshot.clone())));
        let exporter = Exporter::new(snapshots).unwrap();
        let counters = |text: &str| -> Vec<String> {
            samples(text).into_iter().filter(|line| line.contains("_total{")).map(ToOwned::to_owned).collect()
        };
        let before = counters(&exporter.encode().unwrap());
        for totals in &mut snapshot.groups {
            totals.words.iter_mut().for_each(|word| *word = word.wrapping_sub(1));
        }
        sender.send_replace(Some(Arc::new(snapshot)));
        assert_eq!(counters(&exporter.encode().unwrap()), before);
    }
}
