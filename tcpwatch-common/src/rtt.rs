//! The raw RTT sample that an ACK brought.
//!
//! From one ACK the kernel takes two times (`tcp_clean_rtx_queue`, net/ipv4/tcp_input.c): that of the OLDEST segment that it
//! newly acknowledges goes into `srtt_us`, that of the NEWEST into `min_rtt` and congestion control. The oldest has waited
//! for its ACK while the others were sent, so the newest is the time of the path, and what we count. With SACK the kernel
//! keeps it in `rack.rtt_us`; without, it is not kept, and the oldest stands in: the same where an ACK covers one burst.
//!
//! The kernel keeps `srtt_us` shifted left by 3 and folds each sample `m` in with `srtt += m - (srtt >> 3)`
//! (`tcp_rtt_estimator`, net/ipv4/tcp_input.c; RFC 6298 section 2), so that the sample can be had back from two readings.

/// The sample in µs that turned the stored `old` into the stored `new`; `None` when no sample can have done so.
#[inline(always)]
pub const fn raw_sample(old: u32, new: u32) -> Option<u32> {
    if new == 0 {
        return None;
    }
    if old == 0 {
        return Some(new >> 3);
    }
    let m = new.wrapping_sub(old).wrapping_add(old >> 3);
    // A sample is at most as large as the result; anything else is not one sample but a reset of the estimator.
    if m > new { None } else { Some(m) }
}

/// The sample behind two stored `srtt_us`: `newest` where the kernel keeps it (0: no SACK), else what was folded in.
#[inline(always)]
pub const fn sample(newest: u32, old: u32, new: u32) -> Option<u32> {
    if newest != 0 && new != 0 {
        return Some(newest);
    }
    raw_sample(old, new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The kernel's estimator, without the variance.
    fn fold(srtt: u32, m: u32) -> u32 {
        if srtt == 0 { (m << 3).max(1) } else { (i64::from(srtt) + i64::from(m) - i64::from(srtt >> 3)).max(1) as u32 }
    }

    proptest! {
        #[test]
        fn the_sample_comes_back(old in 0_u32..(60_000_000 << 3), m in 1_u32..60_000_000) {
            prop_assert_eq!(raw_sample(old, fold(old, m)), Some(m));
        }
    }

    #[test]
    fn the_newest_segment_goes_before_what_was_folded_in() {
        assert_eq!(sample(150, 80_000, fold(80_000, 900)), Some(150));
        assert_eq!(sample(0, 80_000, fold(80_000, 900)), Some(900));
        assert_eq!(sample(150, 80_000, 0), None);
    }

    #[test]
    fn an_estimator_that_was_cleared_gives_no_sample() {
        assert_eq!(raw_sample(800, 0), None);
        assert_eq!(raw_sample(80_000, 8), None);
    }
}
