//! The connection table: the newest record of each connection, bounded. It holds detail, never a total.

use std::num::NonZeroUsize;

use lru::LruCache;
use tcpwatch_common::record::ConnRecord;

use super::snapshot::TableStats;

/// Connections by cookie; the one heard of longest ago goes first.
pub(crate) struct ConnTable {
    connections: LruCache<u64, Box<ConnRecord>>,
    evicted: u64,
}

impl ConnTable {
    /// Holds up to `capacity` connections, at least one. Memory is taken as connections come.
    pub(crate) fn new(capacity: usize) -> Self {
        let mut connections = LruCache::unbounded();
        connections.resize(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN));
        Self { connections, evicted: 0 }
    }

    /// Keeps the newest reading of a connection.
    pub(crate) fn update(&mut self, record: &ConnRecord) {
        let full = self.connections.len() == self.connections.cap().get();
        if let Some(known) = self.connections.get_mut(&record.cookie) {
            **known = *record;
            return;
        }
        self.evicted += u64::from(full);
        self.connections.push(record.cookie, Box::new(*record));
    }

    /// Forgets a connection that ended.
    pub(crate) fn remove(&mut self, cookie: u64) {
        self.connections.pop(&cookie);
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
