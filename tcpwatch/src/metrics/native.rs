//! Round-trip times as a native histogram: buckets that grow by the eighth root of two, of which only those are written
//! that have counted something.
//!
//! The kernel counts in 16 linear buckets an octave of µs (`tcpwatch_common::hist`), and native buckets are powers of a root of
//! two of seconds, so the edges do not coincide. A fine bucket goes whole into the native one that has its middle: no
//! sample is counted twice or split, and none moves further than half a fine bucket, 3.1 %. Schema 3 is the finest whose
//! buckets (9 %) are all wider than the fine ones (at most 6.3 %): with schema 4 some would never count anything. Custom
//! edges would be exact, and cannot be exposed: Prometheus makes them of classic buckets only.

use std::collections::BTreeMap;

use tcpwatch_common::hist::rtt_lower;

/// 2^3 buckets an octave.
pub(crate) const SCHEMA: i32 = 3;
/// Round trips are counted in µs; what is below one counts as zero.
pub(crate) const ZERO_THRESHOLD: f64 = 1.0 / (1 << 20) as f64;

/// A native histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Native {
    /// Samples at most as large as [`ZERO_THRESHOLD`].
    pub(crate) zero: u64,
    /// Counts by index: bucket `i` ends at 2^(i/8) s.
    pub(crate) buckets: BTreeMap<i32, u64>,
}

/// The native bucket of a fine one; none for that of zero.
fn index_of(fine: usize) -> Option<i32> {
    let (lower, next) = (rtt_lower(fine), rtt_lower(fine + 1));
    // Samples are whole µs, so that the largest of a bucket is one below the next.
    let middle_us = f64::midpoint(lower as f64, next.saturating_sub(1) as f64);
    (middle_us > 0.0).then(|| ((middle_us / 1e6).log2() * f64::from(1 << SCHEMA)).ceil() as i32)
}

/// The histogram of fine buckets.
pub(crate) fn of_rtt(fine: &[u64]) -> Native {
    let mut native = Native::default();
    for (bucket, count) in fine.iter().enumerate().filter(|(_, count)| **count > 0) {
        let place = index_of(bucket).map_or(&mut native.zero, |index| native.buckets.entry(index).or_default());
        *place = place.saturating_add(*count);
    }
    native
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tcpwatch_common::hist::{RTT_BUCKETS, rtt_bucket};

    fn upper(index: i32) -> f64 {
        2_f64.powf(f64::from(index) / f64::from(1 << SCHEMA))
    }

    #[test]
    fn zero_has_a_bucket_of_its_own_and_indices_rise() {
        let mut fine = [0; RTT_BUCKETS];
        (fine[0], fine[1], fine[335]) = (3, 2, 1);
        let native = of_rtt(&fine);
        assert_eq!((native.zero, native.buckets.values().sum::<u64>()), (3, 3));
        assert!(ZERO_THRESHOLD < 1e-6 && upper(index_of(1).unwrap()) >= 1e-6);
        let indices: Vec<_> = (1..RTT_BUCKETS).filter_map(index_of).collect();
        assert!(indices.is_sorted());
        // From 12 µs on no native bucket stays empty for want of a fine one.
        let from = indices.partition_point(|index| upper(*index) < 12e-6);
        assert!(indices[from..].windows(2).all(|pair| pair[1] - pair[0] <= 1));
    }

    proptest! {
        #[test]
        fn a_sample_is_within_half_a_fine_bucket_of_its_native_one(us in 16_u32..16_000_000) {
            let mut fine = [0; RTT_BUCKETS];
            fine[rtt_bucket(us) as usize] = 1;
            let (index, count) = of_rtt(&fine).buckets.into_iter().next().unwrap();
            let seconds = f64::from(us) / 1e6;
            prop_assert_eq!(count, 1);
            prop_assert!(seconds > upper(index - 1) / 1.032 && seconds <= upper(index) * 1.032, "{} in {}", seconds, index);
        }
    }
}
