//! Who and where: counts of what the details of a storm have in common, each in a bounded sketch (space-saving). While
//! it has room its counts are exact; after that a newcomer takes over the smallest, which may then be too large.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Values that are counted apart.
const MOST: usize = 32;

/// One reset as it was reported.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    /// The other end.
    pub(crate) peer: IpAddr,
    /// The port of the service: ours, or that of the peer that we connected to.
    pub(crate) port: u16,
    /// Whose socket it was, as far as that is known.
    pub(crate) owner: Option<Process>,
}

/// Who owns a socket, without what differs from one process of a service to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// Name of the process.
    pub(crate) comm: String,
    /// Unit of systemd.
    pub(crate) unit: Option<String>,
    /// Container.
    pub(crate) container: Option<String>,
}

/// What details have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Evidence {
    /// Details seen.
    pub(crate) details: u64,
    /// Other ends.
    pub(crate) peers: Top<IpAddr>,
    /// Ports of the service.
    pub(crate) ports: Top<u16>,
    /// Owners of the sockets, of those resets where one is known.
    pub(crate) owners: Top<Process>,
}

impl Evidence {
    /// Takes one.
    pub(crate) fn add(&mut self, detail: &Detail) {
        self.details += 1;
        self.peers.add(&detail.peer);
        self.ports.add(&detail.port);
        detail.owner.iter().for_each(|owner| self.owners.add(owner));
    }
}

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
    use super::*;

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
