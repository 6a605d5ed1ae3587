//! The protobuf format: `io.prometheus.client.MetricFamily`, each after its length. The messages are those of
//! <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>, less what is never written
//! here; prost derives how they are encoded, so that no build needs protoc.

use prost::Message;

use super::export::Family;
use super::model::Type;
use super::native::{Native, SCHEMA, ZERO_THRESHOLD};
use super::series::{Mark, One};

/// The bytes of these families. `unix_ns` turns the time of an exemplar into that of the wall clock.
pub(crate) fn bytes(families: &[Family], unix_ns: impl Fn(u64) -> u64 + Copy) -> Vec<u8> {
    // Each message allocates its length anew, and there are few.
    families.iter().flat_map(|family| message(family, unix_ns).encode_length_delimited_to_vec()).collect()
}

fn message(family: &Family, unix_ns: impl Fn(u64) -> u64 + Copy) -> MetricFamily {
    let kind = family.metric.kind;
    MetricFamily {
        name: Some(family.metric.name.to_owned()),
        help: Some(family.metric.help.to_owned()),
        r#type: Some(match kind {
            Type::Counter => 0,
            Type::Gauge => 1,
            Type::Histogram => 4,
        }),
        metric: family.series.iter().map(|one| metric(kind, one, unix_ns)).collect(),
    }
}

fn metric(kind: Type, one: &One, unix_ns: impl Fn(u64) -> u64 + Copy) -> Metric {
    let exemplar = |mark: &Mark| exemplar(mark, unix_ns);
    let label = one.metric.get_label().iter().map(|pair| label(pair.name(), pair.value())).collect();
    let mut metric = Metric { label, ..Metric::default() };
    match kind {
        Type::Counter => {
            let exemplar = one.marks.first().map(|(_, mark)| exemplar(mark));
            metric.counter = Some(Counter { value: Some(one.metric.get_counter().get_value()), exemplar });
        }
        Type::Gauge => metric.gauge = Some(Gauge { value: Some(one.metric.get_gauge().get_value()) }),
        Type::Histogram => metric.histogram = Some(histogram(one, exemplar)),
    }
    metric
}

fn histogram(one: &One, exemplar: impl Fn(&Mark) -> Exemplar) -> Histogram {
    let classic = one.metric.get_histogram();
    let of = |bucket: usize| one.marks.iter().find(|(place, _)| *place == bucket).map(|(_, mark)| exemplar(mark));
    let bucket = classic.get_bucket().iter().enumerate().map(|(i, bucket)| Bucket {
        cumulative_count: Some(bucket.cumulative_count()),
        upper_bound: Some(bucket.upper_bound()),
        // Those of a native histogram stand together, by time: Prometheus takes them in that order only.
        exemplar: if one.native.is_none() { of(i) } else { None },
    });
    let mut histogram = Histogram {
        sample_count: Some(classic.get_sample_count()),
        sample_sum: Some(classic.get_sample_sum()),
        bucket: bucket.collect(),
        ..Histogram::default()
    };
    if let Some(native) = &one.native {
        let (positive_span, positive_delta) = spans(native);
        let mut marks: Vec<_> = one.marks.iter().map(|(_, mark)| mark).collect();
        marks.sort_by_key(|mark| mark.ktime_ns);
        histogram = Histogram {
            schema: Some(SCHEMA),
            zero_threshold: Some(ZERO_THRESHOLD),
            zero_count: Some(native.zero),
            positive_span,
            positive_delta,
            exemplars: marks.into_iter().map(exemplar).collect(),
            ..histogram
        };
    }
    histogram
}

/// Runs of neighbouring buckets, and the difference of each count to the one before.
fn spans(native: &Native) -> (Vec<BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::new());
    let (mut next, mut last) = (0, 0);
    for (&index, &count) in &native.buckets {
        match spans.last_mut() {
            Some(span) if index == next => span.length = span.length.map(|length| length + 1),
            _ => spans.push(BucketSpan { offset: Some(index - next), length: Some(1) }),
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        deltas.push(count - last);
        (next, last) = (index + 1, count);
    }
    (spans, deltas)
}

fn exemplar(mark: &Mark, unix_ns: impl Fn(u64) -> u64) -> Exemplar {
    let ns = unix_ns(mark.ktime_ns);
    let (seconds, nanos) = ((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i32);
    Exemplar {
        label: mark.labels.iter().map(|(name, value)| label(name, value)).collect(),
        value: Some(mark.value),
        timestamp: Some(Timestamp { seconds, nanos }),
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) }
}

/// All series of a name.
#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    help: Option<String>,
    /// COUNTER 0, GAUGE 1, HISTOGRAM 4.
    #[prost(int32, optional, tag = "3")]
    r#type: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Gauge>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Counter>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct Counter {
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<Exemplar>,
}

/// Classic buckets, and the native ones from `schema` on.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, packed = "false", tag = "13")]
    positive_delta: Vec<i64>,
    #[prost(message, repeated, tag = "16")]
    exemplars: Vec<Exemplar>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    upper_bound: Option<f64>,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Exemplar>,
}

/// A run of buckets: the first is `offset` after the end of the run before.
#[derive(Clone, Copy, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, optional, tag = "2")]
    value: Option<f64>,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests;
