//! From the newest snapshot to what Prometheus reads: the whole catalogue, in the format that was asked for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::TextEncoder;
use prometheus::proto::{MetricFamily, MetricType};
use tokio::sync::watch;

use super::catalog::CATALOG;
use super::model::{Metric, Type};
use super::monotone::{Monotone, Settled};
use super::negotiate::Format;
use super::process::Process;
use super::series::{One, Series, View};
use super::{openmetrics, protobuf};
use crate::aggregate::snapshot::Snapshot;
use crate::sys::{monotonic_ns, unix_ns};

/// A step of the wall clock that is larger is taken up in the times of exemplars.
const CLOCK_STEP_NS: i64 = 1_000_000_000;

/// Why metrics cannot be written: a mistake in the catalogue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// The plain text.
    #[error("metrics: {0}")]
    Text(#[from] prometheus::Error),
    /// The text of OpenMetrics.
    #[error("metrics: OpenMetrics: {0}")]
    OpenMetrics(#[from] std::fmt::Error),
}

/// Makes what a scrape reads. Cheap to share; scrapes may run at the same time.
#[derive(Debug)]
pub(crate) struct Exporter {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    monotone: Mutex<Monotone>,
    proc: PathBuf,
    /// Duration of the last scrape, ns; 0 before the first.
    scrape_ns: AtomicU64,
    disconnects: AtomicU64,
    /// What the wall clock is ahead of the monotonic one, ns. Kept, so that an exemplar has the same time in every scrape:
    /// Prometheus takes another time for another exemplar.
    ahead_ns: Mutex<i64>,
}

impl Exporter {
    /// Exports whatever snapshot is the newest.
    pub(crate) fn new(snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Self {
        Self {
            snapshots,
            monotone: Mutex::default(),
            proc: Path::new("/proc").to_owned(),
            scrape_ns: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
            ahead_ns: Mutex::default(),
        }
    }

    /// The body of a scrape. It takes milliseconds of CPU: not for the task that drains the ring buffer.
    pub(crate) fn encode(&self, format: Format) -> Result<Vec<u8>, MetricsError> {
        let began = monotonic_ns();
        let families = self.gather();
        let ahead = self.ahead_ns();
        let unix = |ktime_ns: u64| ktime_ns.saturating_add_signed(ahead);
        let body = match format {
            Format::Text => plain_text(families)?.into_bytes(),
            Format::OpenMetrics => openmetrics::text(&families, |ktime_ns| seconds(unix(ktime_ns)))?.into_bytes(),
            Format::Protobuf => protobuf::bytes(&families, unix),
        };
        // At least 1, since 0 stands for none.
        self.scrape_ns.store(monotonic_ns().saturating_sub(began).max(1), Ordering::Relaxed);
        Ok(body)
    }

    /// Counts a client that went away before it had its answer.
    pub(crate) fn count_disconnect(&self) {
        self.disconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// The plain text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.encode(Format::Text).unwrap()).unwrap()
    }

    fn gather(&self) -> Vec<Family> {
        let snapshot = self.snapshots.borrow().clone();
        let age_ns = snapshot.as_ref().map_or(0, |snapshot| monotonic_ns().saturating_sub(snapshot.ktime_ns));
        let settled = snapshot.map(|snapshot| {
            // A scrape that panicked has left words that were shown, which is all that this is about.
            self.monotone.lock().unwrap_or_else(PoisonError::into_inner).settle(&snapshot)
        });
        let scrape_ns = self.scrape_ns.load(Ordering::Relaxed);
        families(&View {
            settled: settled.as_ref(),
            snapshot_age_seconds: seconds(age_ns),
            process: Process::read(&self.proc),
            scrape_seconds: (scrape_ns > 0).then(|| seconds(scrape_ns)),
            disconnects: self.disconnects.load(Ordering::Relaxed),
        })
    }

    fn ahead_ns(&self) -> i64 {
        let now = (unix_ns() as i64).saturating_sub(monotonic_ns() as i64);
        let mut kept = self.ahead_ns.lock().unwrap_or_else(PoisonError::into_inner);
        if now.abs_diff(*kept) > CLOCK_STEP_NS as u64 {
            *kept = now;
        }
        *kept
    }
}

/// Metrics without those of the process: the same text for the same snapshots, wherever and
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
        plain_text(families_of(&view, |metric| !metric.of_process))
    }
}

/// A metric and its series.
#[derive(Debug)]
pub(crate) struct Family {
    /// What the catalogue says.
    pub(crate) metric: &'static Metric,
    /// At least one.
    pub(crate) series: Vec<One>,
}

/// Every metric of the catalogue that has series now.
fn families(view: &View<'_>) -> Vec<Family> {
    families_of(view, |_| true)
}

fn families_of(view: &View<'_>, wanted: impl Fn(&Metric) -> bool) -> Vec<Family> {
    let families = CATALOG.iter().filter(|metric| wanted(metric)).map(|metric| {
        let mut series = Series::of(metric);
        (metric.read)(view, &mut series);
        Family { metric, series: series.into_inner() }
    });
    families.filter(|family| !family.series.is_empty()).collect()
}

fn plain_text(families: Vec<Family>) -> Result<String, MetricsError> {
    let families: Vec<_> = families.into_iter().map(plain).collect();
    Ok(TextEncoder::new().encode_to_string(&families)?)
}

fn plain(Family { metric, series }: Family) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Type::Counter => MetricType::COUNTER,
        Type::Gauge => MetricType::GAUGE,
        Type::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(series.into_iter().map(|one| one.metric).collect());
    family
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
pub(crate) mod tests;
