use super::*;
use crate::metrics::export::tests::all_families;
use crate::metrics::sample;
use proptest::prelude::*;

fn decoded(families: &[Family]) -> Vec<MetricFamily> {
    let bytes = bytes(families, |ktime_ns| ktime_ns + 5_000_000_000);
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    all
}

#[test]
fn every_series_is_there_with_its_value() {
    let families = all_families(&sample::full(4));
    for (family, written) in families.iter().zip(decoded(&families)) {
        assert_eq!(Some(family.metric.name), written.name.as_deref());
        assert_eq!(family.series.len(), written.metric.len());
        for (one, metric) in family.series.iter().zip(written.metric) {
            assert_eq!(one.metric.get_label().len(), metric.label.len());
            match family.metric.kind {
                Type::Counter => assert_eq!(metric.counter.unwrap().value, Some(one.metric.get_counter().get_value())),
                Type::Gauge => assert_eq!(metric.gauge.unwrap().value, Some(one.metric.get_gauge().get_value())),
                Type::Histogram => {
                    let histogram = metric.histogram.unwrap();
                    assert_eq!(histogram.bucket.len(), family.metric.buckets.unwrap().edges.len());
                    assert_eq!(histogram.schema.is_some(), family.metric.name == "tcpwatch_rtt_seconds");
                }
            }
        }
    }
}

#[test]
fn exemplars_name_sockets_and_stacks_in_the_order_of_time() {
    let families = all_families(&sample::full(1));
    let written = decoded(&families);
    let of = |name: &str| written.iter().find(|family| family.name.as_deref() == Some(name)).unwrap();
    let resets = of("tcpwatch_resets_sent_total").metric.iter().filter_map(|m| m.counter.as_ref()?.exemplar.as_ref());
    let labels: Vec<_> = resets.flat_map(|e| &e.label).filter_map(|pair| pair.value.as_deref()).collect();
    assert!(labels.contains(&"4711") && labels.contains(&"513e0a78401df377"), "{labels:?}");
    let rtt = of("tcpwatch_rtt_seconds").metric.iter().find_map(|m| m.histogram.as_ref()).unwrap();
    assert_eq!(rtt.exemplars.len(), 1, "the one on an edge belongs to no bucket: {rtt:?}");
    assert_eq!(rtt.exemplars[0].timestamp, Some(Timestamp { seconds: 5, nanos: 900_000_000 }));
}

proptest! {
    /// Reads spans and deltas as a scraper does.
    #[test]
    fn spans_and_deltas_tell_every_bucket(
        buckets in proptest::collection::btree_map(-200_i32..50, 1_u64..1_000_000, 0..60),
    ) {
        let (spans, deltas) = spans(&Native { zero: 0, buckets: buckets.clone() });
        let (mut index, mut count, mut deltas) = (0, 0, deltas.into_iter());
        let mut read = std::collections::BTreeMap::new();
        for (i, span) in spans.iter().enumerate() {
            prop_assert!(i == 0 || span.offset > Some(0), "runs that touch are one");
            index += span.offset.unwrap();
            for _ in 0..span.length.unwrap() {
                count += deltas.next().unwrap();
                read.insert(index, count as u64);
                index += 1;
            }
        }
        prop_assert_eq!(deltas.next(), None);
        prop_assert_eq!(read, buckets);
    }
}
