//! The most frequent of many values: a bounded sketch (space-saving). While it has room its counts are exact; after that a
//! newcomer takes over the smallest count, which then may be too large, by no more than that.

use std::collections::BTreeMap;

/// Values that are counted apart.
const MOST: usize = 32;

/// The most frequent values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Top<K> {
    counts: BTreeMap<K, u64>,
    /// A value has taken over the count of another.
    pub(crate) approximate: bool,
}

impl<K> Default for Top<K> {
    fn default() -> Self {
        Self { counts: BTreeMap::new(), approximate: false }
    }
}

impl<K: Ord + Clone> Top<K> {
    /// Counts one.
    pub(crate) fn add(&mut self, value: &K) {
        if let Some(count) = self.counts.get_mut(value) {
            *count += 1;
            return;
        }
        let mut taken = 0;
        if self.counts.len() >= MOST
            && let Some((least, count)) =
                self.counts.iter().min_by_key(|(_, count)| **count).map(|(k, c)| (k.clone(), *c))
        {
            self.counts.remove(&least);
            self.approximate = true;
            taken = count;
        }
        self.counts.insert(value.clone(), taken + 1);
    }

    /// The first `most`, those with most first.
    pub(crate) fn first(&self, most: usize) -> Vec<(K, u64)> {
        let mut all: Vec<_> = self.counts.iter().map(|(value, count)| (value.clone(), *count)).collect();
        all.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
        all.truncate(most);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn counts_are_exact_while_there_is_room() {
        let mut peers = Top::default();
        for n in [1, 2, 1, 3, 1, 2] {
            peers.add(&address(n));
        }
        assert_eq!(peers.first(2), [(address(1), 3), (address(2), 2)]);
        assert!(!peers.approximate);
    }

    #[test]
    fn who_is_frequent_stays_when_many_come_once() {
        let mut peers = Top::default();
        for n in 0..10_000 {
            peers.add(&address(if n % 3 == 0 { 7 } else { 1000 + n }));
        }
        let top = peers.first(1);
        assert_eq!(top[0].0, address(7));
        // Never too small, and too large by the smallest count at most.
        assert!((3334..=3334 + 10_000 / 32).contains(&(top[0].1 as usize)), "{top:?}");
        assert!(peers.approximate && peers.counts.len() == MOST);
    }

    #[test]
    fn counts_are_exact_while_there_is_room_and_bounded_after() {
        let mut top = Top::default();
        for port in [1_u16, 2, 1, 3, 1, 2] {
            top.add(&port);
        }
        assert_eq!((top.first(2), top.approximate), (vec![(1, 3), (2, 2)], false));
        for port in 100..10_000 {
            top.add(&if port % 3 == 0 { 7 } else { port });
        }
        assert!(top.approximate && top.counts.len() == MOST);
        let (port, count) = top.first(1)[0];
        // Never too small, and too large by the smallest count at most.
        assert!(port == 7 && (3300..3300 + 10_000 / MOST as u64).contains(&count), "{port} {count}");
    }
}
