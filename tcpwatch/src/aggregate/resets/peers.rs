//! The peers that a cause has most resets with: a bounded sketch (space-saving). While it has room its counts are exact;
//! after that a newcomer takes over the smallest count, which then may be too large, by no more than that.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Peers that are counted for each cause.
const MOST: usize = 32;

/// Counts by peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    counts: BTreeMap<IpAddr, u64>,
    /// Somebody has taken over a count.
    pub(crate) approximate: bool,
}

impl Peers {
    /// Counts one.
    pub(crate) fn add(&mut self, peer: IpAddr) {
        if let Some(count) = self.counts.get_mut(&peer) {
            *count += 1;
            return;
        }
        let mut taken = 0;
        if self.counts.len() >= MOST
            && let Some((smallest, count)) = self.counts.iter().min_by_key(|(_, count)| **count).map(|(p, c)| (*p, *c))
        {
            self.counts.remove(&smallest);
            self.approximate = true;
            taken = count;
        }
        self.counts.insert(peer, taken + 1);
    }

    /// The first `most` of them, those with most first.
    pub(crate) fn top(&self, most: usize) -> Vec<(IpAddr, u64)> {
        let mut all: Vec<_> = self.counts.iter().map(|(peer, count)| (*peer, *count)).collect();
        all.sort_by_key(|(peer, count)| (std::cmp::Reverse(*count), *peer));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn counts_are_exact_while_there_is_room() {
        let mut peers = Peers::default();
        for n in [1, 2, 1, 3, 1, 2] {
            peers.add(address(n));
        }
        assert_eq!(peers.top(2), [(address(1), 3), (address(2), 2)]);
        assert!(!peers.approximate);
    }

    #[test]
    fn who_is_frequent_stays_when_many_come_once() {
        let mut peers = Peers::default();
        for n in 0..10_000 {
            peers.add(address(if n % 3 == 0 { 7 } else { 1000 + n }));
        }
        let top = peers.top(1);
        assert_eq!(top[0].0, address(7));
        // Never too small, and too large by the smallest count at most.
        assert!((3334..=3334 + 10_000 / 32).contains(&(top[0].1 as usize)), "{top:?}");
        assert!(peers.approximate && peers.counts.len() == MOST);
    }
}
