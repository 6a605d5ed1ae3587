use super::*;
use proptest::prelude::*;
use tcpwatch_common::hist::{log2_bucket, rtt_bucket};

proptest! {
    #[test]
    fn rtt_edges_split_the_samples_exactly(samples in proptest::collection::vec(0_u32..40_000_000, 0..200)) {
        let mut fine = [0; RTT_BUCKETS];
        for &us in &samples {
            fine[rtt_bucket(us) as usize] += 1;
        }
        for (i, below) in rtt_below(&fine).enumerate() {
            let expected = samples.iter().filter(|&&us| u64::from(us) < RTT_FIRST_US << i).count() as u64;
            prop_assert_eq!(below, expected, "below {} µs", RTT_FIRST_US << i);
        }
    }

    #[test]
    fn powers_of_two_count_what_is_at_most_the_edge(samples in proptest::collection::vec(0_u32..600_000, 0..200)) {
        let metric = catalog::CATALOG.iter().find(|m| m.name == "tcpwatch_congestion_window_segments").unwrap();
        let mut counts = [0; LOG2_BUCKETS];
        for &v in &samples {
            counts[log2_bucket(v) as usize] += 1;
        }
        let mut series = Series::of(metric);
        series.log2_histogram(&["inbound"], Some(&counts), 1.5);
        let metrics = series.into_inner();
        let histogram = metrics[0].metric.get_histogram();
        prop_assert_eq!(histogram.get_sample_count(), samples.len() as u64);
        prop_assert_eq!(histogram.get_bucket().len(), LOG2_BUCKETS - 1);
        for bucket in histogram.get_bucket() {
            let expected = samples.iter().filter(|&&v| f64::from(v) <= bucket.upper_bound()).count() as u64;
            prop_assert_eq!(bucket.cumulative_count(), expected, "up to {}", bucket.upper_bound());
        }
    }
}
