//! Listening sockets: the newest reading of each, bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::ListenerRecord;

use super::snapshot::ListenerStats;

/// Listeners that are kept; those beyond are known to the kernel programs all the same.
const MOST: usize = 4096;

const ANY_V6: [u8; 16] = Ipv6Addr::UNSPECIFIED.octets();
const ANY_V4: [u8; 16] = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();

/// Listeners by cookie.
#[derive(Default)]
pub(crate) struct Listeners {
    known: BTreeMap<u64, ListenerRecord>,
    /// The same by namespace and port.
    by_port: BTreeSet<(u32, u16, u64)>,
}

impl Listeners {
    /// Takes a reading; false when there is no more room.
    pub(crate) fn update(&mut self, record: &ListenerRecord) -> bool {
        let place = (record.key.netns, record.key.local_port, record.cookie);
        if record.up == 0 {
            self.known.remove(&record.cookie);
            self.by_port.remove(&place);
            return true;
        }
        if self.known.len() >= MOST && !self.known.contains_key(&record.cookie) {
            return false;
        }
        let before = self.known.insert(record.cookie, *record);
        if let Some(before) = before
            && before.key != record.key
        {
            self.by_port.remove(&(before.key.netns, before.key.local_port, before.cookie));
        }
        self.by_port.insert(place);
        true
    }

    /// What listens at the local end of `key`: at its very address before any address, of several the oldest.
    pub(crate) fn at(&self, key: &ConnKey) -> Option<&ListenerRecord> {
        let place = (key.netns, key.local_port);
        let here = self.by_port.range((place.0, place.1, 0)..=(place.0, place.1, u64::MAX));
        let here = here.filter_map(|(_, _, cookie)| self.known.get(cookie));
        // A socket of any IPv6 address may take IPv4 as well.
        let any = |local: [u8; 16]| local == ANY_V6 || (local == ANY_V4 && key.ip_version == 4);
        here.filter(|record| record.key.local == key.local || any(record.key.local))
            .min_by_key(|record| (record.key.local != key.local, record.key.local != ANY_V4, record.cookie))
    }

    /// All of them.
    pub(crate) fn records(&self) -> impl Iterator<Item = &ListenerRecord> {
        self.known.values()
    }

    /// Handshakes under way at all of them.
    pub(crate) fn half_open(&self) -> u64 {
        self.known.values().map(|record| u64::from(record.half_open)).sum()
    }

    /// All of them, those that share an address as one, ordered by address.
    pub(crate) fn stats(&self) -> Vec<ListenerStats> {
        let mut by_address: BTreeMap<(u16, [u8; 16]), ListenerStats> = BTreeMap::new();
        for record in self.known.values() {
            let stats = by_address.entry((record.key.local_port, record.key.local)).or_insert_with(|| ListenerStats {
                address: address(record.key.local, record.key.local_port),
                queue: 0,
                limit: 0,
                drops: 0,
                half_open: 0,
            });
            stats.queue = stats.queue.saturating_add(record.queue);
            stats.limit = stats.limit.saturating_add(record.backlog);
            stats.drops = stats.drops.saturating_add(record.drops);
            stats.half_open = stats.half_open.saturating_add(record.half_open);
        }
        by_address.into_values().collect()
    }
}

fn address(ip: [u8; 16], port: u16) -> String {
    let ip = Ipv6Addr::from(ip);
    match ip.to_ipv4_mapped() {
        Some(v4) => format!("{v4}:{port}"),
        None => format!("[{ip}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::conn::ConnKey;
    use tcpwatch_common::record::{ABI, Header, Kind};

    use super::*;

    fn record(cookie: u64, port: u16, up: u32) -> ListenerRecord {
        let header = Header { kind: Kind::Listener as u16, abi: ABI, len: 128, ktime_ns: 0 };
        let key = ConnKey { local_port: port, ..ConnKey::EMPTY };
        ListenerRecord {
            header,
            cookie,
            key,
            backlog: 128,
            queue: 3,
            drops: 1,
            half_open: 0,
            periodic: 0,
            up,
            pid: 1,
            cgroup: 0,
            owner_uid: 0,
            owner_kind: 4,
            comm: [0; 16],
        }
    }

    #[test]
    fn a_connection_finds_its_listener_by_address() {
        let v4 = |last| Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets();
        let at = |cookie, local, netns| {
            let mut record = record(cookie, 80, 1);
            (record.key.local, record.key.netns) = (local, netns);
            record
        };
        let mut listeners = Listeners::default();
        for one in [at(4, v4(1), 1), at(3, ANY_V4, 1), at(2, ANY_V6, 1), at(1, v4(1), 2)] {
            listeners.update(&one);
        }
        let mut key = ConnKey { local_port: 80, netns: 1, ip_version: 4, ..ConnKey::EMPTY };
        let mut found = |ip_version, local, port| {
            (key.ip_version, key.local, key.local_port) = (ip_version, local, port);
            listeners.at(&key).map(|listener| listener.cookie)
        };
        assert_eq!(found(4, v4(1), 80), Some(4));
        assert_eq!(found(4, v4(2), 80), Some(3));
        assert_eq!(found(6, [9; 16], 80), Some(2));
        assert_eq!(found(4, v4(1), 81), None);
    }

    #[test]
    fn sockets_that_share_a_port_are_shown_as_one_and_leave_one_by_one() {
        let mut listeners = Listeners::default();
        assert!(listeners.update(&record(1, 80, 1)) && listeners.update(&record(2, 80, 1)));
        let shown = listeners.stats();
        assert_eq!((shown.len(), shown[0].address.as_str()), (1, "[::]:80"));
        assert_eq!((shown[0].queue, shown[0].limit, shown[0].drops), (6, 256, 2));
        listeners.update(&record(1, 80, 0));
        assert_eq!(listeners.stats()[0].limit, 128);
        listeners.update(&record(2, 80, 0));
        assert_eq!(listeners.stats(), []);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut listeners = Listeners::default();
        let kept = (0..MOST as u64 + 10).filter(|cookie| listeners.update(&record(*cookie, 80, 1))).count();
        assert_eq!(kept, MOST);
        assert_eq!(address(*b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x01", 80), "127.0.0.1:80");
    }
}
