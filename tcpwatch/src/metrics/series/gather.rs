//! The series of one metric as they are gathered, with what only some of the formats can carry.

use prometheus::proto;

use super::super::model::{Buckets, Metric};
use super::super::native::Native;
use super::total;
use crate::aggregate::exemplars::Exemplar;

/// One series.
#[derive(Debug, Default)]
pub(crate) struct One {
    /// What every format has.
    pub(crate) metric: proto::Metric,
    /// Exemplars: of a histogram by the number of the bucket, else the only one under 0.
    pub(crate) marks: Vec<(usize, Mark)>,
    /// A histogram once more in finer buckets.
    pub(crate) native: Option<Native>,
}

/// An exemplar.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mark {
    /// What leads to the connection.
    pub(crate) labels: Vec<(&'static str, String)>,
    /// The value that was counted.
    pub(crate) value: f64,
    /// When, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
}

impl Mark {
    /// Names the socket and the stack, and no address.
    pub(crate) fn of(exemplar: &Exemplar, value: f64) -> Self {
        let cookie = (exemplar.cookie != 0).then(|| ("cookie", exemplar.cookie.to_string()));
        let stack = exemplar.stack.as_ref().map(|stack| ("stack", stack.to_string()));
        Self { labels: cookie.into_iter().chain(stack).collect(), value, ktime_ns: exemplar.ktime_ns }
    }
}

/// The series of one metric, as they are gathered.
#[derive(Debug)]
pub(crate) struct Series {
    metric: &'static Metric,
    series: Vec<One>,
}

impl Series {
    /// None yet.
    pub(crate) fn of(metric: &'static Metric) -> Self {
        Self { metric, series: Vec::new() }
    }

    /// All of them.
    pub(crate) fn into_inner(self) -> Vec<One> {
        self.series
    }

    /// Gives the newest series its exemplars. One of a series that counted nothing has come before its counter was read.
    pub(super) fn mark(&mut self, marks: impl IntoIterator<Item = (usize, Mark)>) {
        let Some(one) = self.series.last_mut() else { return };
        let histogram = one.metric.get_histogram();
        let buckets = histogram.get_bucket();
        let up_to =
            |bucket: usize| buckets.get(bucket).map_or(histogram.get_sample_count(), proto::Bucket::cumulative_count);
        let counted = |bucket: usize| match bucket.checked_sub(1) {
            _ if buckets.is_empty() => one.metric.get_counter().get_value() > 0.0,
            None => up_to(0) > 0,
            Some(below) => up_to(bucket) > up_to(below),
        };
        let marks = marks.into_iter().filter(|(bucket, _)| counted(*bucket)).collect();
        one.marks = marks;
    }

    /// Gives the newest series its finer buckets.
    pub(super) fn native(&mut self, native: Native) {
        if let Some(one) = self.series.last_mut() {
            one.native = Some(native);
        }
    }

    fn labelled(&self, values: &[&str]) -> proto::Metric {
        let pairs = self.metric.labels.iter().zip(values).map(|(label, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(label.name.to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        proto::Metric::from_label(pairs.collect())
    }

    /// A counter or gauge: the encoder takes the one of the family's type.
    pub(super) fn value(&mut self, labels: &[&str], value: f64) {
        let mut metric = self.labelled(labels);
        let (mut counter, mut gauge) = (proto::Counter::default(), proto::Gauge::default());
        counter.set_value(value);
        gauge.set_value(value);
        metric.set_counter(counter);
        metric.set_gauge(gauge);
        self.series.push(One { metric, ..One::default() });
    }

    pub(super) fn count(&mut self, labels: &[&str], value: u64) {
        self.value(labels, value as f64);
    }

    pub(super) fn flag(&mut self, labels: &[&str], holds: bool) {
        self.value(labels, f64::from(u8::from(holds)));
    }

    /// A histogram: `below` has the number of samples below each finite edge.
    pub(super) fn histogram(&mut self, labels: &[&str], below: impl Iterator<Item = u64>, total: u64, sum: f64) {
        let Some(Buckets { edges, .. }) = self.metric.buckets else { return };
        let mut histogram = proto::Histogram::default();
        let buckets = edges.iter().zip(below).map(|(edge, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*edge);
            bucket.set_cumulative_count(count);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum);
        let mut metric = self.labelled(labels);
        metric.set_histogram(histogram);
        self.series.push(One { metric, ..One::default() });
    }

    /// A histogram in powers of two: a count for each edge, and one for what lies beyond the last.
    pub(super) fn log2_histogram(&mut self, labels: &[&str], counts: Option<&[u64]>, sum: f64) {
        let counts = counts.unwrap_or_default();
        let below = counts.iter().scan(0, |sum: &mut u64, count| {
            *sum = count.saturating_add(*sum);
            Some(*sum)
        });
        self.histogram(labels, below, total(counts), sum);
    }
}
