//! Resets beyond their counters: the newest with their evidence, their peers, their stacks and how fast they come.

pub(crate) mod stacks;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tcpwatch_common::counters::group;
use tcpwatch_common::record::{ConnRecord, Kind, ResetRecord};
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::state::STATES;

use self::stacks::Stacks;
use super::owners::{Names, Owner};
use super::snapshot::GroupTotals;
use super::top::Top;
use crate::meaning::Around;

/// Resets that are kept with their evidence.
pub(crate) const MOST: usize = 1024;
/// Resets sent by cause, and those received.
pub(crate) const CLASSES: usize = ResetCause::ALL.len() + 1;
/// The class of resets received.
pub(crate) const RECEIVED: usize = ResetCause::ALL.len();
/// Rates are over at most this long.
const WINDOW_NS: u64 = 60_000_000_000;
/// Readings that rates remember, however often somebody asks.
const READING_NS: u64 = 1_000_000_000;
/// Connections that ended last: a reset is mostly sent after the close of its socket.
const CLOSES: usize = 512;
/// Resets that may still be waiting for the close of their connection.
const WAITING: usize = 64;

/// Counts by origin and cause; the last word has the received ones.
pub(crate) const WORDS: usize = ResetOrigin::ALL.len() * ResetCause::ALL.len() + 1;
type Counts = [u64; WORDS];

/// The word of an origin and a cause.
pub(crate) const fn word(origin: ResetOrigin, cause: ResetCause) -> usize {
    origin as usize * ResetCause::ALL.len() + cause as usize
}

/// The class of a reset.
pub(crate) fn class_of(kind: Kind, record: &ResetRecord) -> usize {
    match kind {
        Kind::ResetReceived => RECEIVED,
        _ => ResetCause::from_u8(record.cause).unwrap_or(ResetCause::Unknown) as usize,
    }
}

/// A reset, and the connection that it ended when that is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evidence {
    /// Sent or received.
    pub(crate) kind: Kind,
    /// What was seen of it.
    pub(crate) record: ResetRecord,
    /// The newest record of the connection with the same cookie.
    pub(crate) connection: Option<Arc<ConnRecord>>,
    /// Who had the socket, or listened on the port.
    pub(crate) owner: Option<Owner>,
    /// What else explains it.
    pub(crate) around: Around,
}

/// How often each came in a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recent {
    /// Length of the window; 0 before there are two readings.
    pub(crate) window_ns: u64,
    /// Resets in it, by [`word`].
    pub(crate) counts: Vec<u64>,
}

/// What is known of resets at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetReport {
    /// The newest, by time, the newest first.
    pub(crate) newest: Vec<Arc<Evidence>>,
    /// Peers by class.
    pub(crate) peers: Vec<Top<IpAddr>>,
    /// Rates.
    pub(crate) recent: Recent,
    /// Fingerprints of the stacks of `newest`.
    pub(crate) fingerprints: Vec<Option<Arc<str>>>,
    /// Names of their owners.
    pub(crate) names: Arc<Names>,
}

/// The store.
pub(crate) struct Resets {
    classes: [VecDeque<Arc<Evidence>>; CLASSES],
    peers: [Top<IpAddr>; CLASSES],
    closes: LruCache<u64, Arc<ConnRecord>>,
    /// Cookie and class of those that came before the close of their connection.
    waiting: VecDeque<(u64, usize)>,
    /// What is known of stacks.
    pub(crate) stacks: Stacks,
    readings: VecDeque<(u64, Counts)>,
    now: (u64, Counts),
}

impl Default for Resets {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            peers: Default::default(),
            closes: LruCache::new(NonZeroUsize::new(CLOSES).unwrap_or(NonZeroUsize::MIN)),
            waiting: VecDeque::new(),
            stacks: Stacks::default(),
            readings: VecDeque::new(),
            now: (0, [0; WORDS]),
        }
    }
}

impl Resets {
    /// Takes a reset; `connection` is what the table has under its cookie.
    pub(crate) fn take(
        &mut self,
        kind: Kind,
        record: &ResetRecord,
        connection: Option<Arc<ConnRecord>>,
        owner: Option<Owner>,
        around: Around,
    ) {
        let class = class_of(kind, record);
        let closed = if record.cookie == 0 { None } else { self.closes.get(&record.cookie).cloned() };
        if closed.is_none() && record.cookie != 0 {
            if self.waiting.len() >= WAITING {
                self.waiting.pop_front();
            }
            self.waiting.push_back((record.cookie, class));
        }
        if let Some(peers) = self.peers.get_mut(class) {
            peers.add(&Ipv6Addr::from(record.key.remote).to_canonical());
        }
        let evidence = Arc::new(Evidence { kind, record: *record, connection: closed.or(connection), owner, around });
        if self.classes.iter().map(VecDeque::len).sum::<usize>() >= MOST {
            self.make_room();
        }
        if let Some(class) = self.classes.get_mut(class) {
            class.push_back(evidence);
        }
    }

    /// The one that was taken last, of the class of this one.
    pub(crate) fn newest_of(&self, kind: Kind, record: &ResetRecord) -> Option<&Evidence> {
        self.classes.get(class_of(kind, record))?.back().map(|evidence| &**evidence)
    }

    /// The largest class gives up its oldest: a storm of one cause does not push out the others.
    fn make_room(&mut self) {
        if let Some(largest) = self.classes.iter_mut().max_by_key(|class| class.len()) {
            largest.pop_front();
        }
    }

    /// Takes the end of a connection.
    pub(crate) fn closed(&mut self, conn: &ConnRecord) {
        let conn = Arc::new(*conn);
        self.closes.push(conn.cookie, Arc::clone(&conn));
        let Some(at) = self.waiting.iter().position(|(cookie, _)| *cookie == conn.cookie) else { return };
        let Some((cookie, class)) = self.waiting.remove(at) else { return };
        let class = self.classes.get_mut(class).into_iter().flatten();
        if let Some(evidence) = class.rev().find(|evidence| evidence.record.cookie == cookie) {
            let evidence = Arc::make_mut(evidence);
            evidence.owner = Some(Owner::of(&conn));
            evidence.connection = Some(conn);
        }
    }

    /// Takes the counters of a moment.
    pub(crate) fn read(&mut self, ktime_ns: u64, groups: &[GroupTotals]) {
        let mut counts = [0_u64; WORDS];
        for group in groups {
            let mut add = |to: usize, from: usize| {
                if let (Some(sum), Some(word)) = (counts.get_mut(to), group.words.get(from)) {
                    *sum = sum.wrapping_add(*word);
                }
            };
            for origin in ResetOrigin::ALL {
                for cause in ResetCause::ALL {
                    add(word(origin, cause), group::resets(origin, cause));
                }
            }
            for state in 0..STATES as u8 {
                add(WORDS - 1, group::received(state));
            }
        }
        self.now = (ktime_ns, counts);
        if self.readings.back().is_some_and(|(last, _)| ktime_ns.saturating_sub(*last) < READING_NS) {
            return;
        }
        self.readings.push_back(self.now);
        while self.readings.len() > 1
            && self.readings.front().is_some_and(|(t, _)| ktime_ns.saturating_sub(*t) > WINDOW_NS)
        {
            self.readings.pop_front();
        }
    }

    fn recent(&self) -> Recent {
        let (now, counts) = &self.now;
        let Some((then, before)) = self.readings.front() else { return Recent::default() };
        let counts = counts.iter().zip(before).map(|(now, before)| {
            let more = now.wrapping_sub(*before);
            // A count that was taken back in between.
            if more > i64::MAX as u64 { 0 } else { more }
        });
        Recent { window_ns: now.saturating_sub(*then), counts: counts.collect() }
    }

    /// All of it.
    pub(crate) fn report(&self, names: Arc<Names>) -> ResetReport {
        let mut newest: Vec<_> = self.classes.iter().flatten().cloned().collect();
        newest.sort_by_key(|evidence| std::cmp::Reverse(evidence.record.header.ktime_ns));
        let fingerprints = newest.iter().map(|evidence| self.stacks.fingerprint(evidence.record.stack)).collect();
        ResetReport { newest, peers: self.peers.to_vec(), recent: self.recent(), fingerprints, names }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tcpwatch_common::record::{ABI, Header, Record};

    use super::*;
    use crate::aggregate::tests::conn_record;

    pub(crate) fn reset_record(kind: Kind, cookie: u64, cause: ResetCause, ktime_ns: u64) -> ResetRecord {
        let mut bytes = vec![0_u8; size_of::<ResetRecord>()];
        let header = Header { kind: kind as u16, abi: ABI, len: bytes.len() as u32, ktime_ns };
        tcpwatch_common::record::encode(&header, &mut bytes).unwrap();
        let Ok(Record::Reset(_, mut record)) = tcpwatch_common::record::decode(&bytes) else { panic!("not a reset") };
        (record.cookie, record.cause) = (cookie, cause as u8);
        record
    }

    #[test]
    fn a_storm_of_one_cause_leaves_the_others() {
        let mut resets = Resets::default();
        for at in 0..10 {
            resets.take(
                Kind::Reset,
                &reset_record(Kind::Reset, 1, ResetCause::LingerZero, at),
                None,
                None,
                Around::default(),
            );
            resets.take(
                Kind::ResetReceived,
                &reset_record(Kind::ResetReceived, 1, ResetCause::Unknown, at),
                None,
                None,
                Around::default(),
            );
        }
        for at in 10..5000 {
            resets.take(
                Kind::Reset,
                &reset_record(Kind::Reset, 0, ResetCause::NoListener, at),
                None,
                None,
                Around::default(),
            );
        }
        let newest = resets.report(Arc::default()).newest;
        assert_eq!(newest.len(), MOST);
        let of = |cause: ResetCause| newest.iter().filter(|e| e.record.cause == cause as u8).count();
        assert_eq!((of(ResetCause::LingerZero), of(ResetCause::Unknown)), (10, 10));
        assert_eq!(newest[0].record.header.ktime_ns, 4999);
    }

    #[test]
    fn a_reset_finds_its_connection_whichever_comes_first() {
        let mut resets = Resets::default();
        let mut conn = conn_record(7);
        conn.pid = 70;
        resets.closed(&conn);
        resets.take(
            Kind::Reset,
            &reset_record(Kind::Reset, 7, ResetCause::LingerZero, 1),
            None,
            None,
            Around::default(),
        );
        resets.take(
            Kind::Reset,
            &reset_record(Kind::Reset, 8, ResetCause::Destroyed, 2),
            None,
            None,
            Around::default(),
        );
        conn = conn_record(8);
        conn.pid = 80;
        resets.closed(&conn);
        resets.take(
            Kind::Reset,
            &reset_record(Kind::Reset, 0, ResetCause::NoListener, 3),
            None,
            None,
            Around::default(),
        );
        let pids: Vec<_> =
            resets.report(Arc::default()).newest.iter().map(|e| e.connection.as_ref().map(|conn| conn.pid)).collect();
        assert_eq!(pids, [None, Some(80), Some(70)]);
    }

    #[test]
    fn rates_are_over_the_last_minute() {
        let mut resets = Resets::default();
        let mut totals = crate::metrics::sample::empty().groups;
        let place = group::resets(ResetOrigin::Passive, ResetCause::NoListener);
        for second in 0..100 {
            totals[0].words[place] = second * 10;
            resets.read(second * 1_000_000_000, &totals);
        }
        let recent = resets.recent();
        assert_eq!(recent.window_ns, 60_000_000_000);
        assert_eq!(recent.counts[word(ResetOrigin::Passive, ResetCause::NoListener)], 600);
    }
}
