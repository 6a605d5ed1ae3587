//! Pure aggregation: records and counter readings in, snapshots out. No clock, no kernel, no I/O.

pub(crate) mod exemplars;
pub(crate) mod kept;
pub(crate) mod listeners;
pub(crate) mod owners;
pub(crate) mod recent;
pub(crate) mod resets;
pub(crate) mod services;
pub(crate) mod snapshot;
pub(crate) mod table;
pub(crate) mod top;

use std::collections::BTreeMap;
use std::sync::Arc;

use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::counters::slot;
use tcpwatch_common::owner::OwnerKind;
use tcpwatch_common::record::{ConnRecord, DecodeError, Kind, Record, ResetRecord};
use tcpwatch_common::state::{Direction, STATES, TcpState};

use self::exemplars::Newest;
use self::listeners::Listeners;
use self::owners::{Named, Owner, Owners, Wanted};
use self::recent::RecentRtt;
use self::resets::{ResetReport, Resets};
use self::services::{Grant, Services};
use self::snapshot::{
    Compared, Facts, Governed, GroupTotals, NamespaceStats, ProgramStats, SelfStats, Service, Snapshot,
};
use self::table::ConnTable;
use crate::api::{self, Listing, Moment};
use crate::explain::{Picture, Recent as RecentVerdicts, Short};
use crate::kernel::maps::{Counters, SlotCounters};
use crate::meaning::lately::SentLately;
use crate::meaning::{Around, Limits, Meaning};
use crate::recording::ResetStack;
use crate::storm::evidence::{Detail, Process};
use crate::storm::{self, Rules, Storms};

/// Reasons for which a record cannot be decoded, in the order of [`Aggregator::errors`].
const DECODE_REASONS: [&str; 3] = ["too_short", "abi_mismatch", "unknown_kind"];

/// What the daemon knows beyond the counters when it asks for a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// What the kernel says of the programs.
    pub(crate) programs: Vec<ProgramStats>,
    /// Size of the ring buffer, bytes.
    pub(crate) ring_bytes: u64,
    /// Most bytes found waiting in it since the last reading.
    pub(crate) ring_used_bytes: u64,
    /// Memory of all maps, bytes.
    pub(crate) map_bytes: u64,
    /// Interval of periodic records, seconds.
    pub(crate) sample_interval_seconds: f64,
    /// What the kernel counts in each network namespace.
    pub(crate) namespaces: Vec<NamespaceStats>,
    /// The kernel's counters beside ours, of all namespaces, ended ones included.
    pub(crate) compared: Compared,
    /// Namespaces where something was counted that cannot be read.
    pub(crate) unreadable_namespaces: u64,
}

/// Everything that records and counters add up to.
pub(crate) struct Aggregator {
    facts: Arc<Facts>,
    services: Services,
    table: ConnTable,
    listeners: Listeners,
    owners: Owners,
    recent: RecentRtt,
    resets: Resets,
    storms: Storms,
    exemplars: Newest,
    events: [u64; Kind::ALL.len()],
    errors: [u64; DECODE_REASONS.len()],
    began_ns: u64,
    /// Closed connections in sum, by group slot.
    short: Vec<Short>,
    /// Settings by network namespace, which explain resets.
    settings: BTreeMap<u32, Arc<Limits>>,
    sent_lately: SentLately,
    verdicts: RecentVerdicts,
    governed: Option<Governed>,
    accepted: u64,
}

/// Namespaces whose settings are kept; a recording may not have more either.
const MOST_SETTINGS: usize = 4096;

impl Aggregator {
    /// Begins with nothing, at `now_ns` of CLOCK_MONOTONIC.
    pub(crate) fn new(facts: Arc<Facts>, services: Services, table: ConnTable, storms: Rules, now_ns: u64) -> Self {
        Self {
            facts,
            services,
            table,
            listeners: Listeners::default(),
            owners: Owners::default(),
            recent: RecentRtt::new(now_ns),
            resets: Resets::default(),
            storms: Storms::new(storms),
            exemplars: Newest::default(),
            events: [0; Kind::ALL.len()],
            errors: [0; DECODE_REASONS.len()],
            began_ns: now_ns,
            short: vec![Short::default(); slot::COUNT],
            settings: BTreeMap::new(),
            sent_lately: SentLately::default(),
            verdicts: RecentVerdicts::new(now_ns),
            governed: None,
            accepted: 0,
        }
    }

    /// Takes one record from the kernel; a grant is to be told to the kernel programs.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Option<Grant> {
        match tcpwatch_common::record::decode(bytes) {
            Ok(record) => self.apply(&record),
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    fn refuse(&mut self, error: DecodeError) {
        let index = DECODE_REASONS.iter().position(|reason| *reason == error.name());
        if let Some(count) = index.and_then(|i| self.errors.get_mut(i)) {
            *count += 1;
        }
    }

    /// Takes one decoded record.
    pub(crate) fn apply(&mut self, record: &Record) -> Option<Grant> {
        match record {
            Record::Conn(kind, conn) => {
                self.count(*kind);
                self.connection(*kind, conn)
            }
            Record::Retransmit(_) => {
                self.count(Kind::Retransmit);
                None
            }
            Record::Reset(kind, reset) => {
                self.count(*kind);
                self.exemplars.reset(*kind, reset);
                if *kind == Kind::Reset {
                    self.sent_lately.sent(reset.header.ktime_ns, reset.key);
                }
                let owner = self.owner_of(reset.cookie, &reset.key).or_else(|| Owner::of_socket(reset));
                if let Some(owner) = &owner {
                    self.owners.note(owner, reset.header.ktime_ns);
                }
                let connection = self.table.get(reset.cookie).map(Arc::new);
                let around = self.around(*kind, reset);
                self.resets.take(*kind, reset, connection, owner, around);
                self.reset(*kind, reset);
                None
            }
            Record::Listener(listener) => {
                self.count(Kind::Listener);
                self.listeners.update(listener);
                let owner = Owner::of_listener(listener);
                if listener.up == 1 {
                    self.owners.note(&owner, listener.header.ktime_ns);
                } else if owner.pid != 0 {
                    self.owners.closed(listener.cookie, owner);
                }
                (listener.up == 1).then(|| self.services.listening(listener.key.local_port)).flatten()
            }
        }
    }

    fn count(&mut self, kind: Kind) {
        if let Some(count) = self.events.get_mut(kind as usize - 1) {
            *count += 1;
        }
    }

    /// What explains a reset, beyond its record.
    pub(crate) fn around(&self, kind: Kind, reset: &ResetRecord) -> Around {
        Around {
            limits: self.settings.get(&reset.key.netns).cloned(),
            listener: self.listener(&reset.key),
            by_nobody: kind == Kind::ResetReceived && self.sent_lately.by_nobody(reset.header.ktime_ns, &reset.key),
        }
    }

    /// Takes the settings of a namespace; `None` when it has ended.
    pub(crate) fn settings(&mut self, netns: u32, limits: Option<&Arc<Limits>>) {
        match limits {
            Some(limits) if self.settings.len() < MOST_SETTINGS || self.settings.contains_key(&netns) => {
                self.settings.insert(netns, Arc::clone(limits));
            }
            Some(_) => {}
            None => {
                self.settings.remove(&netns);
            }
        }
    }

    /// The settings that it was given.
    pub(crate) fn all_settings(&self) -> &BTreeMap<u32, Arc<Limits>> {
        &self.settings
    }

    fn reset(&mut self, kind: Kind, reset: &ResetRecord) {
        let cause = if kind == Kind::ResetReceived { storm::RECEIVED } else { usize::from(reset.cause) };
        let service = self.services.shown(reset.slot);
        // It takes a while to find: only for those that may belong to a storm.
        let high = self.storms.high(service, cause);
        let owner = if high { self.owner(reset.cookie, &reset.key) } else { None };
        let example = if high && !self.storms.has_example(service, cause) { self.explained(kind, reset) } else { None };
        let detail = Detail {
            stack: reset.stack,
            example,
            peer: storm::peer(reset.key.remote),
            port: if service.0 == Direction::Outbound { reset.key.remote_port } else { reset.key.local_port },
            owner: owner.map(|owner| Process { comm: owner.comm, unit: owner.unit, container: owner.container }),
        };
        self.storms.observe(service, cause, &detail);
    }

    fn connection(&mut self, kind: Kind, conn: &ConnRecord) -> Option<Grant> {
        let mut conn = *conn;
        if conn.pid == 0 {
            self.inherit(&mut conn);
        }
        let owner = Owner::of(&conn);
        self.owners.note(&owner, conn.header.ktime_ns);
        if kind == Kind::Close {
            self.resets.closed(&conn);
            let samples = self.table.remove(conn.cookie);
            self.exemplars.connection(&conn, samples);
            if let Some(short) = self.short.get_mut(conn.slot as usize) {
                short.take(&conn);
            }
            self.owners.closed(conn.cookie, owner);
            return None;
        }
        let samples = self.table.update(&conn);
        self.exemplars.connection(&conn, samples);
        if kind == Kind::Open && conn.direction == Direction::Inbound as u8 {
            self.accepted += 1;
        }
        match Direction::from_u8(conn.direction) {
            Direction::Outbound => self.services.outbound(conn.key.remote_port, conn.header.ktime_ns),
            Direction::Inbound | Direction::Unknown => None,
        }
    }

    /// The owner of a connection that has none of its own yet: the one told before, or that of the listener.
    fn inherit(&self, conn: &mut ConnRecord) {
        if let Some(known) = self.table.get(conn.cookie)
            && known.pid != 0
        {
            Owner::of(&known).inherit(conn, OwnerKind::from_u8(known.owner_kind));
        } else if conn.direction == Direction::Inbound as u8
            && let Some(listener) = self.listeners.at(&conn.key)
            && listener.pid != 0
        {
            Owner::of_listener(listener).inherit(conn, OwnerKind::Listener);
        }
    }

    /// Who owns the socket with this cookie, also for a while after it closed. Without such a socket, who listens at the
    /// local end of `key`.
    pub(crate) fn owner(&self, cookie: u64, key: &ConnKey) -> Option<api::owner::Owner> {
        Some(api::owner::Owner::new(&self.owner_of(cookie, key)?, self.owners.names()))
    }

    fn owner_of(&self, cookie: u64, key: &ConnKey) -> Option<Owner> {
        let listener = || {
            let listener = self.listeners.at(key).filter(|listener| listener.pid != 0)?;
            let kind = if listener.cookie == cookie { listener.owner_kind } else { OwnerKind::Listener as u32 };
            Some(Owner { kind: OwnerKind::from_u8(kind as u8), ..Owner::of_listener(listener) })
        };
        let open = self.table.get(cookie).map(|record| Owner::of(&record));
        open.or_else(|| self.owners.of_closed(cookie)).or_else(listener)
    }

    /// What the reset means that was taken last.
    fn explained(&self, kind: Kind, reset: &ResetRecord) -> Option<Arc<Meaning>> {
        let evidence = self.resets.newest_of(kind, reset)?;
        let moment = Moment { ktime_ns: reset.header.ktime_ns, ticks_per_second: self.facts.ticks_per_second };
        let told = api::resets::Reset::new(evidence, None, moment, &self.facts.reasons, self.owners.names());
        Some(Arc::new(told.meaning))
    }

    /// Who listens at the local end of `key`.
    pub(crate) fn listener(&self, key: &ConnKey) -> Option<crate::meaning::Listener> {
        let listener = self.listeners.at(key)?;
        Some(crate::meaning::Listener { queue: listener.queue, limit: listener.backlog })
    }

    /// Records of connections that came to a listener.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The connections that are known, by cookie.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = u64> {
        self.table.cookies()
    }

    /// Forgets a connection whose end was not heard of: what it did is in the counters, and no more will come.
    pub(crate) fn gone(&mut self, cookie: u64) {
        if let Some(conn) = self.table.get(cookie) {
            self.owners.closed(cookie, Owner::of(&conn));
            self.table.remove(cookie);
        }
    }

    /// Takes the name of a user or control group, or that a process has ended.
    pub(crate) fn named(&mut self, what: Named, number: u64, name: &[u8]) {
        self.owners.named(what, number, name);
    }

    /// The names that are missing; each is told once.
    pub(crate) fn wanted(&mut self) -> Vec<Wanted> {
        self.owners.wanted()
    }

    /// The owners of connections that no process holds any more, and that are not known to have ended.
    pub(crate) fn owners_of_orphans(&self) -> std::collections::BTreeSet<u32> {
        self.table.orphans().filter(|pid| *pid != 0 && !self.owners.names().ended(*pid)).collect()
    }

    /// The listeners, with their owners.
    pub(crate) fn listeners(&self) -> Vec<api::listener::Listener> {
        let names = self.owners.names();
        self.listeners.records().map(|record| api::listener::Listener::new(record, names)).collect()
    }

    /// Something listened on `port` before the daemon.
    pub(crate) fn listening(&mut self, port: u16) -> Option<Grant> {
        self.services.listening(port)
    }

    /// Takes a kernel stack that was not seen before.
    pub(crate) fn stack(&mut self, stack: &ResetStack) {
        self.resets.stacks.tell(stack);
    }

    /// Takes what the governor holds back from now on.
    pub(crate) fn governed(&mut self, governed: Governed) {
        self.governed = Some(governed);
    }

    /// What it was told that the governor holds back.
    pub(crate) fn is_governed(&self) -> Option<Governed> {
        self.governed
    }

    /// What is known of resets beyond their counters.
    pub(crate) fn resets(&self) -> ResetReport {
        self.resets.report(Arc::clone(self.owners.names()))
    }

    /// Periodic records so far.
    pub(crate) fn samples(&self) -> u64 {
        self.events.get(Kind::Sample as usize - 1).copied().unwrap_or(0)
    }

    /// How many slots the kernel counts in.
    pub(crate) fn slots_used(&self) -> u32 {
        self.services.used()
    }

    /// What a slot is shown as.
    pub(crate) fn service(&self, slot: u32) -> Service {
        self.services.shown(slot).1
    }

    /// The newest record of a connection, if it is in the table.
    pub(crate) fn connection_of(&self, cookie: u64) -> Option<Arc<ConnRecord>> {
        self.table.get(cookie).map(Arc::new)
    }

    /// The connections of the table.
    pub(crate) fn listing(&self, ktime_ns: u64) -> Listing {
        let services = (0..self.slots_used()).map(|slot| self.services.shown(slot)).collect();
        let names = Arc::clone(self.owners.names());
        Listing { ktime_ns, records: self.table.records(), services, names }
    }

    /// What `explain` looks at; `namespaces` are as they were read last.
    pub(crate) fn picture(&self, ktime_ns: u64, namespaces: Vec<NamespaceStats>) -> Picture {
        Picture {
            listing: self.listing(ktime_ns),
            began_ns: self.began_ns,
            closed: self.short.iter().map(|short| short.sums).collect(),
            listeners: self.listeners.stats(),
            namespaces,
        }
    }

    /// A picture of now.
    pub(crate) fn snapshot(&mut self, counters: &Counters, reading: Reading) -> Snapshot {
        let counted = |slot: u32| counters.slots.get(slot as usize).is_some_and(|c| *c != SlotCounters::ZERO);
        self.services.label(counted);
        let mut states = [0; STATES];
        for (state, gauge) in states.iter_mut().zip(counters.gauges) {
            // Up and down are counted on different CPUs: a reading in between may be below zero.
            *state = if gauge > i64::MAX as u64 { 0 } else { gauge };
        }
        let groups = self.groups(counters);
        self.resets.read(reading.ktime_ns, &groups);
        let stacks = self.resets.stacks.count(&counters.stacks);
        let rtt = self.recent.quantiles(&groups, reading.ktime_ns);
        let storms = self.storms.read(reading.ktime_ns, &groups, &self.resets.stacks);
        let (services, known) = (&self.services, &self.resets.stacks);
        let exemplars =
            self.exemplars.shown(reading.ktime_ns, |slot| services.shown(slot), |key| known.fingerprint(key));
        let verdicts =
            self.verdicts.judge(reading.ktime_ns, &self.short, |slot| Some(self.services.shown(slot as u32)));
        // Minisocks are not sockets that we could follow.
        if let Some(time_wait) = states.get_mut(TcpState::TimeWait as usize) {
            *time_wait = reading.namespaces.iter().fold(0, |sum, n| n.time_wait.saturating_add(sum));
        }
        if let Some(half_open) = states.get_mut(TcpState::SynRecv as usize) {
            *half_open = half_open.saturating_add(self.listeners.half_open());
        }
        Snapshot {
            ktime_ns: reading.ktime_ns,
            facts: Arc::clone(&self.facts),
            groups,
            rtt,
            listeners: self.listeners.stats(),
            namespaces: reading.namespaces,
            compared: reading.compared,
            unreadable_namespaces: reading.unreadable_namespaces,
            states,
            reasons: counters.reasons.clone(),
            stacks,
            storms,
            exemplars,
            verdicts,
            own: SelfStats {
                events: self.events,
                losses: counters.losses,
                decode_errors: DECODE_REASONS.into_iter().zip(self.errors).collect(),
                programs: reading.programs,
                ring_bytes: reading.ring_bytes,
                ring_used_bytes: reading.ring_used_bytes,
                map_bytes: reading.map_bytes,
                table: self.table.stats(),
                sample_interval_seconds: reading.sample_interval_seconds,
                governed: self.governed,
            },
        }
    }

    fn groups(&self, counters: &Counters) -> Vec<GroupTotals> {
        let mut groups: BTreeMap<(Direction, Service), SlotCounters> = BTreeMap::new();
        for fixed in 0..slot::FIRST_FREE {
            groups.insert(self.services.shown(fixed), SlotCounters::ZERO);
        }
        for (slot, counted) in counters.slots.iter().enumerate() {
            let total = groups.entry(self.services.shown(slot as u32)).or_insert(SlotCounters::ZERO);
            add(&mut total.words, &counted.words);
            add(&mut total.dist, &counted.dist);
        }
        groups
            .into_iter()
            .map(|((direction, service), total)| GroupTotals {
                direction,
                service,
                words: total.words,
                dist: total.dist,
            })
            .collect()
    }
}

fn add<const N: usize>(total: &mut [u64; N], more: &[u64; N]) {
    for (sum, word) in total.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*word);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tcpwatch_common::conn::ConnKey;
    use tcpwatch_common::counters::{GAUGE_WORDS, Loss, group, reason};
    use tcpwatch_common::record::{ABI, Header, ListenerRecord};

    use super::*;

    pub(crate) fn conn_record(cookie: u64) -> ConnRecord {
        let mut bytes = vec![0_u8; size_of::<ConnRecord>()];
        let header = Header { kind: Kind::Sample as u16, abi: ABI, len: bytes.len() as u32, ktime_ns: 1_000 };
        tcpwatch_common::record::encode(&header, &mut bytes).unwrap();
        let Ok(Record::Conn(_, mut record)) = tcpwatch_common::record::decode(&bytes) else { panic!("not a record") };
        record.cookie = cookie;
        record
    }

    fn aggregator() -> Aggregator {
        Aggregator::new(Arc::default(), Services::new(16, &[]), ConnTable::new(10), Rules::default(), 0)
    }

    fn counters(slots: u32) -> Counters {
        Counters {
            slots: vec![SlotCounters::ZERO; slots as usize],
            reasons: vec![0; reason::WORDS],
            losses: [0; Loss::ALL.len()],
            gauges: [0; GAUGE_WORDS],
            stacks: Vec::new(),
        }
    }

    #[test]
    fn a_listener_becomes_a_group_when_it_counts() {
        let mut aggregator = aggregator();
        let mut key = ConnKey::EMPTY;
        key.local_port = 443;
        let header = Header { kind: Kind::Listener as u16, abi: ABI, len: 128, ktime_ns: 0 };
        let listener = ListenerRecord {
            header,
            cookie: 1,
            key,
            backlog: 128,
            queue: 0,
            drops: 0,
            half_open: 0,
            periodic: 0,
            up: 1,
            pid: 1,
            cgroup: 0,
            owner_uid: 0,
            owner_kind: 4,
            comm: [0; 16],
        };
        let grant = aggregator.apply(&Record::Listener(listener)).unwrap();
        let mut counters = counters(aggregator.slots_used());
        let quiet = aggregator.snapshot(&counters, Reading::default());
        assert!(quiet.groups.iter().all(|g| g.service != Service::Port(443)));
        counters.slots[grant.slot as usize].words[group::OPENED] = 3;
        let busy = aggregator.snapshot(&counters, Reading::default());
        let group = busy.groups.iter().find(|g| g.service == Service::Port(443)).unwrap();
        assert_eq!((group.direction, group.words[group::OPENED]), (Direction::Inbound, 3));
        assert_eq!(busy.own.events[Kind::Listener as usize - 1], 1);
    }

    #[test]
    fn what_has_no_label_is_in_other_and_nothing_is_lost() {
        let mut aggregator =
            Aggregator::new(Arc::default(), Services::new(1, &[]), ConnTable::new(10), Rules::default(), 0);
        for port in [1, 2, 3] {
            aggregator.listening(port).unwrap();
        }
        let mut counters = counters(aggregator.slots_used());
        for slot in &mut counters.slots {
            slot.words[group::OPENED] = 1;
        }
        let snapshot = aggregator.snapshot(&counters, Reading::default());
        let total: u64 = snapshot.groups.iter().map(|g| g.words[group::OPENED]).sum();
        assert_eq!(total, counters.slots.len() as u64);
        let other = snapshot.groups.iter().find(|g| (g.direction, g.service) == (Direction::Inbound, Service::Other));
        assert_eq!(other.map(|g| g.words[group::OPENED]), Some(3));
    }

    #[test]
    fn bytes_that_are_no_record_are_counted_by_reason() {
        let mut aggregator = aggregator();
        assert_eq!(aggregator.take(&[]), None);
        assert_eq!(aggregator.take(&[9, 0, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        let snapshot = aggregator.snapshot(&counters(4), Reading::default());
        assert_eq!(snapshot.own.decode_errors, [("too_short", 1), ("abi_mismatch", 0), ("unknown_kind", 1)]);
    }

    #[test]
    fn a_gauge_below_zero_shows_as_zero() {
        let mut aggregator = aggregator();
        let mut counters = counters(4);
        counters.gauges[1] = u64::MAX;
        counters.gauges[2] = 5;
        let snapshot = aggregator.snapshot(&counters, Reading::default());
        assert_eq!((snapshot.states[1], snapshot.states[2]), (0, 5));
    }
}
