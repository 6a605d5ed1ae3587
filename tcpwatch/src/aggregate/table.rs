//! The connection table: the newest record of each connection, bounded. It holds detail, never a total.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use tcpwatch_common::owner::flag::ORPHAN;
use tcpwatch_common::record::ConnRecord;

use super::kept::{Kept, Packer};
use super::snapshot::TableStats;

/// Connections by cookie; the one heard of longest ago goes first.
pub(crate) struct ConnTable {
    connections: HashMap<u64, Entry, FixedState>,
    capacity: usize,
    packer: Packer,
    /// Records so far: who was heard of later has a higher number.
    heard: u64,
    /// Some of those heard of longest ago, the last of them first, with the number that each had then. No list in order of all
    /// of them: it would have to be mended with every record, in three places of memory.
    oldest: Vec<(u64, u64)>,
    /// The owners of those that no process holds any more, by cookie: few, and asked for every second.
    orphans: HashMap<u64, u32>,
    evicted: u64,
}

/// A connection.
struct Entry {
    kept: Kept,
    heard: u64,
    /// Of the record: what is asked for with every one that follows.
    rtt_samples: u32,
    orphan: bool,
}

/// Of so many connections, one is looked for whenever the one heard of longest ago has to go.
const OLDEST: usize = 64;

impl ConnTable {
    /// Holds up to `capacity` connections, at least one. Memory is taken as connections come.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            // Cookies are numbers of the kernel's, which nobody chooses.
            connections: HashMap::default(),
            capacity: capacity.max(1),
            packer: Packer::default(),
            heard: 0,
            oldest: Vec::new(),
            orphans: HashMap::new(),
            evicted: 0,
        }
    }

    /// Keeps the newest reading of a connection. Returns how many RTT samples the one before had counted.
    pub(crate) fn update(&mut self, record: &ConnRecord) -> u32 {
        self.heard += 1;
        let orphan = record.owner_flags & ORPHAN != 0;
        if orphan {
            self.orphans.insert(record.cookie, record.pid);
        }
        if let Some(known) = self.connections.get_mut(&record.cookie) {
            known.kept.update(record, &mut self.packer);
            known.heard = self.heard;
            if known.orphan && !orphan {
                self.orphans.remove(&record.cookie);
            }
            known.orphan = orphan;
            return std::mem::replace(&mut known.rtt_samples, record.rtt_samples);
        }
        if self.connections.len() >= self.capacity {
            self.evict();
        }
        let entry = Entry { kept: Kept::new(record), heard: self.heard, rtt_samples: record.rtt_samples, orphan };
        self.connections.insert(record.cookie, entry);
        0
    }

    /// Forgets the one heard of longest ago.
    fn evict(&mut self) {
        loop {
            let Some((heard, cookie)) = self.oldest.pop() else {
                self.find_oldest();
                continue;
            };
            // Who was heard of since is not among the oldest any more.
            if self.connections.get(&cookie).is_some_and(|entry| entry.heard == heard) {
                self.remove(cookie);
                self.evicted += 1;
                return;
            }
        }
    }

    /// There is at least one.
    fn find_oldest(&mut self) {
        self.oldest.extend(self.connections.iter().map(|(cookie, entry)| (entry.heard, *cookie)));
        let some = self.oldest.len() / OLDEST;
        self.oldest.select_nth_unstable(some);
        self.oldest.truncate(some + 1);
        self.oldest.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// The newest record of a connection.
    pub(crate) fn get(&self, cookie: u64) -> Option<ConnRecord> {
        self.connections.get(&cookie).map(|entry| entry.kept.record())
    }

    /// Forgets a connection that ended. Returns how many RTT samples it had counted when it was heard of last.
    pub(crate) fn remove(&mut self, cookie: u64) -> u32 {
        let entry = self.connections.remove(&cookie);
        if entry.as_ref().is_some_and(|entry| entry.orphan) {
            self.orphans.remove(&cookie);
        }
        entry.map_or(0, |entry| entry.rtt_samples)
    }

    /// The owners of connections that no process holds any more.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = u32> {
        self.orphans.values().copied()
    }

    /// The connections, by cookie.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = u64> {
        self.connections.keys().copied()
    }

    /// The newest record of each, the one that came last first.
    pub(crate) fn records(&self) -> Vec<Kept> {
        let mut all: Vec<_> = self.connections.values().collect();
        all.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.heard));
        all.into_iter().map(|entry| entry.kept.clone()).collect()
    }

    /// How full it is.
    pub(crate) fn stats(&self) -> TableStats {
        TableStats { entries: self.connections.len() as u64, capacity: self.capacity as u64, evicted: self.evicted }
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
        assert_eq!((before[0].record().srtt_us, table.records()[0].record().srtt_us), (0, 5));
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
        assert!(table.get(1).is_some() && table.get(2).is_none());
        table.remove(1);
        assert_eq!(table.stats().entries, 1);
    }

    #[test]
    fn with_many_the_oldest_goes_too_whoever_is_heard_of_meanwhile() {
        const ROOM: u64 = 1000;
        let mut table = ConnTable::new(ROOM as usize);
        let mut truth: std::collections::VecDeque<u64> = std::collections::VecDeque::new();
        let mut random = 1_u64;
        for new in 0..4 * ROOM {
            // One that comes for the first time, and one that comes again.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let again = truth.get(random as usize % truth.len().max(1)).copied();
            for cookie in again.into_iter().chain([new]) {
                truth.retain(|other| *other != cookie);
                truth.push_back(cookie);
                truth.drain(..truth.len().saturating_sub(ROOM as usize));
                table.update(&conn_record(cookie));
            }
        }
        let mut cookies: Vec<_> = table.cookies().collect();
        cookies.sort_unstable();
        let mut truth = Vec::from(truth);
        truth.sort_unstable();
        assert_eq!(cookies, truth);
        assert_eq!(table.stats().evicted, 3 * ROOM);
    }
}
