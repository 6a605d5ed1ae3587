//! The connection table: the newest record of each connection, bounded. It holds detail, never a total.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tcpwatch_common::owner::flag::ORPHAN;
use tcpwatch_common::record::ConnRecord;

use super::snapshot::TableStats;

/// Connections by cookie; the one heard of longest ago goes first.
pub(crate) struct ConnTable {
    connections: LruCache<u64, Arc<ConnRecord>>,
    /// The owners of those that no process holds any more, by cookie: few, and asked for every second.
    orphans: HashMap<u64, u32>,
    evicted: u64,
}

impl ConnTable {
    /// Holds up to `capacity` connections, at least one. Memory is taken as connections come.
    pub(crate) fn new(capacity: usize) -> Self {
        let mut connections = LruCache::unbounded();
        connections.resize(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN));
        Self { connections, orphans: HashMap::new(), evicted: 0 }
    }

    /// Keeps the newest reading of a connection.
    pub(crate) fn update(&mut self, record: &ConnRecord) {
        if record.owner_flags & ORPHAN == 0 {
            self.orphans.remove(&record.cookie);
        } else {
            self.orphans.insert(record.cookie, record.pid);
        }
        if let Some(known) = self.connections.get_mut(&record.cookie) {
            match Arc::get_mut(known) {
                Some(known) => *known = *record,
                // Somebody who asked for the connections still reads it.
                None => *known = Arc::new(*record),
            }
            return;
        }
        if let Some((evicted, _)) = self.connections.push(record.cookie, Arc::new(*record)) {
            self.orphans.remove(&evicted);
            self.evicted += 1;
        }
    }

    /// The newest record of a connection.
    pub(crate) fn get(&self, cookie: u64) -> Option<&Arc<ConnRecord>> {
        self.connections.peek(&cookie)
    }

    /// Forgets a connection that ended.
    pub(crate) fn remove(&mut self, cookie: u64) {
        self.connections.pop(&cookie);
        self.orphans.remove(&cookie);
    }

    /// The owners of connections that no process holds any more.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = u32> {
        self.orphans.values().copied()
    }

    /// The connections, by cookie.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = u64> {
        self.connections.iter().map(|(cookie, _)| *cookie)
    }

    /// The newest record of each, shared and not copied.
    pub(crate) fn records(&self) -> Vec<Arc<ConnRecord>> {
        self.connections.iter().map(|(_, record)| Arc::clone(record)).collect()
    }

    /// How full it is.
    pub(crate) fn stats(&self) -> TableStats {
        TableStats {
            entries: self.connections.len() as u64,
            capacity: self.connections.cap().get() as u64,
            evicted: self.evicted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::conn_record;

    #[test]
    fn a_list_that_was_given_out_does_not_change() {
        let mut table = ConnTable::new(2);
        table.update(&conn_record(1));
        let before = table.records();
        let mut newer = conn_record(1);
        newer.srtt_us = 5;
        table.update(&newer);
        assert_eq!((before[0].srtt_us, table.records()[0].srtt_us), (0, 5));
    }

    #[test]
    fn orphans_leave_with_their_connection_and_when_somebody_holds_it_again() {
        let mut table = ConnTable::new(2);
        let orphan = |cookie, pid| {
            let mut record = conn_record(cookie);
            (record.pid, record.owner_flags) = (pid, ORPHAN);
            record
        };
        let pids = |table: &ConnTable| {
            let mut pids: Vec<_> = table.orphans().collect();
            pids.sort_unstable();
            pids
        };
        table.update(&orphan(1, 11));
        table.update(&orphan(2, 12));
        assert_eq!(pids(&table), [11, 12]);
        table.update(&orphan(3, 13));
        assert_eq!(pids(&table), [12, 13], "the first was evicted");
        table.update(&conn_record(2));
        assert_eq!(pids(&table), [13]);
        table.remove(3);
        assert_eq!(pids(&table), [0_u32; 0]);
    }

    #[test]
    fn the_oldest_goes_when_it_is_full_and_is_counted() {
        let mut table = ConnTable::new(2);
        for cookie in [1, 2, 1, 3] {
            table.update(&conn_record(cookie));
        }
        assert_eq!(table.stats(), TableStats { entries: 2, capacity: 2, evicted: 1 });
        assert!(table.connections.contains(&1) && !table.connections.contains(&2));
        table.remove(1);
        assert_eq!(table.stats().entries, 1);
    }
}
