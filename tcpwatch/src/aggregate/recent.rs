//! RTT quantiles of the last minute, from the fine buckets that the kernel counts.

use tcpwatch_common::counters::dist;
use tcpwatch_common::hist::{RTT_BUCKETS, quantile, rtt_lower};
use tcpwatch_common::state::Direction;

use super::snapshot::{GroupTotals, RttQuantiles};

/// The quantiles are of at least this long, once the daemon runs that long, and of at most twice as long.
const WINDOW_NS: u64 = 30_000_000_000;

/// No bucket counts more in a minute; a recording may say so all the same, and sums must stay sums.
const MOST: u64 = 1 << 48;

type Counts = [[u64; RTT_BUCKETS]; Direction::ALL.len()];

/// Counts at the beginning of the window that is filling, and of the one before it.
pub(crate) struct RecentRtt {
    previous: Box<Counts>,
    current: Box<Counts>,
    current_since_ns: u64,
}

impl RecentRtt {
    /// Begins at `now_ns` with nothing counted.
    pub(crate) fn new(now_ns: u64) -> Self {
        let nothing = || Box::new([[0; RTT_BUCKETS]; Direction::ALL.len()]);
        Self { previous: nothing(), current: nothing(), current_since_ns: now_ns }
    }

    /// The quantiles by direction; none for a direction without samples in the window.
    pub(crate) fn quantiles(&mut self, groups: &[GroupTotals], now_ns: u64) -> Vec<RttQuantiles> {
        let mut now: Box<Counts> = Box::new([[0; RTT_BUCKETS]; Direction::ALL.len()]);
        for group in groups {
            let Some(counts) = now.get_mut(group.direction as usize) else { continue };
            for (sum, count) in counts.iter_mut().zip(group.dist.iter().skip(dist::RTT)) {
                *sum = sum.wrapping_add(*count);
            }
        }
        let all = Direction::ALL
            .into_iter()
            .filter_map(|direction| {
                let (now, then) = (now.get(direction as usize)?, self.previous.get(direction as usize)?);
                let counts = now.iter().zip(then).map(|(now, then)| now.saturating_sub(*then).min(MOST));
                let at = |q| Some(quantile(counts.clone(), rtt_lower, q)? / 1e6);
                Some(RttQuantiles {
                    direction,
                    samples: counts.clone().sum(),
                    p50_seconds: at(0.5)?,
                    p90_seconds: at(0.9)?,
                    p99_seconds: at(0.99)?,
                })
            })
            .collect();
        if now_ns.saturating_sub(self.current_since_ns) >= WINDOW_NS {
            self.previous = std::mem::replace(&mut self.current, now);
            self.current_since_ns = now_ns;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::counters::group;
    use tcpwatch_common::hist::rtt_bucket;

    use super::*;
    use crate::aggregate::snapshot::Service;

    fn group(ms: u32, count: u64) -> GroupTotals {
        let mut totals = GroupTotals {
            direction: Direction::Outbound,
            service: Service::Other,
            words: [0; group::WORDS],
            dist: [0; dist::WORDS],
        };
        totals.dist[dist::RTT + rtt_bucket(ms * 1000) as usize] = count;
        totals
    }

    #[test]
    fn the_median_is_within_3_percent_and_old_samples_leave() {
        let mut recent = RecentRtt::new(0);
        assert_eq!(recent.quantiles(&[], 1), []);
        let first = recent.quantiles(&[group(40, 10)], 2);
        assert_eq!((first.len(), first[0].direction, first[0].samples), (1, Direction::Outbound, 10));
        assert!((first[0].p50_seconds / 0.040 - 1.0).abs() < 0.032, "{first:?}");
        recent.quantiles(&[group(40, 10)], WINDOW_NS);
        assert_eq!(recent.quantiles(&[group(40, 10)], WINDOW_NS + 1).len(), 1, "still in the window before");
        recent.quantiles(&[group(40, 10)], 2 * WINDOW_NS);
        assert_eq!(recent.quantiles(&[group(40, 10)], 2 * WINDOW_NS + 1), [], "a minute ago");
    }
}
