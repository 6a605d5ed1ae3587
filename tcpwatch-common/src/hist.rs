//! Bucket arithmetic of the histograms, for the kernel that counts and for the daemon that reads.
//!
//! RTT is counted in 16 buckets an octave from 16 µs, so that the middle of a bucket is off by at most 3 %. The edges at
//! powers of two are exact in every coarser histogram made from it.

/// Fine RTT buckets: 16 of 1 µs below 16 µs, then 16 an octave up to 16.8 s; longer ones land in the last.
pub const RTT_BUCKETS: usize = 336;
/// Coarse RTT buckets kept per socket: two an octave, up to 8.4 s.
pub const SKETCH_BUCKETS: usize = 40;
/// Buckets of powers of two: 1, 2, 4 … 2^18, and one for all above.
pub const LOG2_BUCKETS: usize = 20;

/// Position of the highest set bit; 0 for 0. BPF has no instruction for it, hence the halving.
#[inline(always)]
pub const fn log2(mut v: u32) -> u32 {
    let mut e = 0;
    if v >= 1 << 16 {
        v >>= 16;
        e += 16;
    }
    if v >= 1 << 8 {
        v >>= 8;
        e += 8;
    }
    if v >= 1 << 4 {
        v >>= 4;
        e += 4;
    }
    if v >= 1 << 2 {
        v >>= 2;
        e += 2;
    }
    if v >= 1 << 1 {
        e += 1;
    }
    e
}

/// The same without a branch, of which the verifier would follow both ways each time: for programs that are cold and long.
#[inline(always)]
pub const fn log2_straight(v: u32) -> u32 {
    (v | 1).ilog2()
}

/// The fine bucket of an RTT in µs.
#[inline(always)]
pub const fn rtt_bucket(us: u32) -> u32 {
    rtt_bucket_of(us, log2(us))
}

/// The same by [`log2_straight`].
#[inline(always)]
pub const fn rtt_bucket_straight(us: u32) -> u32 {
    rtt_bucket_of(us, log2_straight(us))
}

#[inline(always)]
const fn rtt_bucket_of(us: u32, e: u32) -> u32 {
    if us < 16 {
        return us;
    }
    // e is at least 4 and at most 31, so neither shift nor subtraction wraps.
    let index = ((e - 3) << 4) + ((us >> (e - 4)) & 15);
    if index >= RTT_BUCKETS as u32 { RTT_BUCKETS as u32 - 1 } else { index }
}

/// The smallest RTT in µs that falls into a fine bucket.
pub const fn rtt_lower(bucket: usize) -> u64 {
    if bucket < 16 {
        return bucket as u64;
    }
    (16 + (bucket % 16) as u64) << (bucket / 16 - 1)
}

/// The coarse bucket that a fine one belongs to.
#[inline(always)]
pub const fn sketch_bucket(rtt_bucket: u32) -> u32 {
    let index = rtt_bucket >> 3;
    if index >= SKETCH_BUCKETS as u32 { SKETCH_BUCKETS as u32 - 1 } else { index }
}

/// The smallest RTT in µs that falls into a coarse bucket.
pub const fn sketch_lower(bucket: usize) -> u64 {
    rtt_lower(bucket * 8)
}

/// The bucket whose upper edge is the next power of two: values up to 2^i lie in bucket i or below. By
/// [`log2_straight`]: only cold code wants it.
#[inline(always)]
pub const fn log2_bucket(v: u32) -> u32 {
    if v <= 1 {
        return 0;
    }
    let index = log2_straight(v.wrapping_sub(1)) + 1;
    if index >= LOG2_BUCKETS as u32 { LOG2_BUCKETS as u32 - 1 } else { index }
}

/// Inclusive upper edge of a power-of-two bucket; `None` for the last, which has none.
pub const fn log2_upper(bucket: usize) -> Option<u64> {
    if bucket + 1 < LOG2_BUCKETS { Some(1 << bucket) } else { None }
}

/// The middle of the bucket in which the value lies below which the share `q` of the counted samples is; `None` when nothing
/// was counted. `lower(i)` is the smallest value of bucket `i`. The middle and no interpolation: wherever samples crowd in a
/// bucket, it is off by at most half of its width, 3.1 % of a fine one.
pub fn quantile(counts: impl Iterator<Item = u64> + Clone, lower: impl Fn(usize) -> u64, q: f64) -> Option<f64> {
    let total: u64 = counts.clone().sum();
    if total == 0 {
        return None;
    }
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let mut below = 0_u64;
    let mut last = 0;
    for (i, n) in counts.enumerate() {
        if n == 0 {
            continue;
        }
        last = i;
        if (below + n) as f64 >= rank {
            return Some(f64::midpoint(lower(i) as f64, lower(i + 1) as f64));
        }
        below += n;
    }
    Some(lower(last + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_bucket_starts_where_its_lower_edge_says() {
        for bucket in 0..RTT_BUCKETS {
            let lower = rtt_lower(bucket) as u32;
            assert_eq!(rtt_bucket(lower), bucket as u32, "lower edge {lower}");
            if bucket > 0 {
                assert_eq!(rtt_bucket(lower - 1), bucket as u32 - 1, "below {lower}");
            }
        }
        assert_eq!(rtt_bucket(u32::MAX), RTT_BUCKETS as u32 - 1);
        assert_eq!(sketch_bucket(u32::MAX), SKETCH_BUCKETS as u32 - 1);
    }

    #[test]
    fn powers_of_two_close_their_bucket() {
        for (v, bucket) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 18, 18), ((1 << 18) + 1, 19)] {
            assert_eq!(log2_bucket(v), bucket, "{v}");
        }
        assert_eq!(log2_bucket(u32::MAX), 19);
        assert_eq!(log2_upper(3), Some(8));
        assert_eq!(log2_upper(LOG2_BUCKETS - 1), None);
    }

    #[test]
    fn quantile_of_nothing_is_none_and_of_one_value_lies_in_its_bucket() {
        assert_eq!(quantile([0, 0].into_iter(), rtt_lower, 0.5), None);
        let mut counts = [0; RTT_BUCKETS];
        counts[rtt_bucket(40_000) as usize] = 10;
        let p50 = quantile(counts.into_iter(), rtt_lower, 0.5).unwrap();
        assert!((p50 / 40_000.0 - 1.0).abs() < 0.032, "{p50}");
    }

    proptest! {
        #[test]
        fn a_bucket_is_never_wider_than_a_sixteenth(us in 16_u32..16_000_000) {
            let b = rtt_bucket(us) as usize;
            let (from, to) = (rtt_lower(b), rtt_lower(b + 1));
            prop_assert!(from <= u64::from(us) && u64::from(us) < to);
            prop_assert!((to - from) * 16 <= from);
            prop_assert!(sketch_lower(sketch_bucket(b as u32) as usize) <= from);
        }

        #[test]
        fn quantiles_of_samples_that_crowd_anywhere_are_within_a_thirtieth(us in 16_u32..16_000_000, q in 0.0_f64..1.0) {
            let mut counts = [0; RTT_BUCKETS];
            counts[rtt_bucket(us) as usize] = 7;
            let found = quantile(counts.into_iter(), rtt_lower, q).unwrap();
            prop_assert!((found / f64::from(us) - 1.0).abs() <= 0.0313, "{found}");
        }

        #[test]
        fn quantiles_rise(counts in proptest::collection::vec(0_u64..1000, RTT_BUCKETS), a in 0.0_f64..1.0, b in 0.0_f64..1.0) {
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            if let Some(x) = quantile(counts.iter().copied(), rtt_lower, low) {
                prop_assert!(x <= quantile(counts.iter().copied(), rtt_lower, high).unwrap());
            }
        }
    }
}
