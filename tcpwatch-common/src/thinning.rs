//! Which RTT samples enter the histograms while they are thinned: all of some jiffies, none of the others.
//!
//! Whole jiffies, because whether one counts is known without any state, and by their number alone: what a sample says
//! cannot change its chance. They are chosen by a hash, so that traffic that comes in a beat of its own is neither always
//! left out nor always taken.

/// At most one jiffy in 2 to the power of this counts.
pub const MOST_SHIFT: u32 = 6;

/// Whether samples of a jiffy count; `mask` is [`mask`] of the shift.
#[inline(always)]
pub const fn counts(jiffy: u64, mask: u32) -> bool {
    rest(jiffy, mask) == 0
}

/// The same as a number, 1 or 0, without a branch: programs that read in many places have no room for another one in each,
/// as the verifier follows all of their combinations.
#[inline(always)]
pub const fn weight(jiffy: u64, mask: u32) -> u64 {
    (rest(jiffy, mask) as u64).wrapping_sub(1) >> 63
}

#[inline(always)]
const fn rest(jiffy: u64, mask: u32) -> u32 {
    // An integer hash of which every bit of the result depends on every bit of the number.
    let mut x = jiffy as u32;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    (x ^ (x >> 16)) & mask
}

/// What the kernel programs are told so that one jiffy in `1 << shift` counts: 0 for every one.
pub const fn mask(shift: u32) -> u32 {
    (1 << if shift < MOST_SHIFT { shift } else { MOST_SHIFT }) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_thinning_everything_counts() {
        assert_eq!(mask(0), 0);
        assert!((0..1000).all(|jiffy| counts(jiffy, mask(0)) && weight(jiffy, mask(0)) == 1));
        assert_eq!(mask(MOST_SHIFT + 5), mask(MOST_SHIFT));
    }

    proptest! {
        #[test]
        fn the_share_is_right_whatever_the_beat(
            shift in 1..=MOST_SHIFT, start in any::<u32>(), beat in 1..600_u64,
        ) {
            let jiffies = 2_000 << shift;
            prop_assert!((0..100).all(|i| weight(i * beat, mask(shift)) == u64::from(counts(i * beat, mask(shift)))));
            let taken = (0..jiffies).filter(|i| counts(u64::from(start) + i * beat, mask(shift))).count();
            prop_assert!((1_600..2_400).contains(&taken), "{taken} of {jiffies}");
        }
    }
}
