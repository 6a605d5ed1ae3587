//! Short connections are judged together, by service: what each paid for being new.

use std::collections::{BTreeMap, BTreeSet};

use tcpwatch_common::close::{CloseCause, flag};
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::Direction;

use super::facts::{INITIAL_WINDOW, part, slow_start_rounds};
use super::rules::{millis, seconds};
use super::verdict::{Id, Verdict, evidence};
use crate::aggregate::snapshot::Service;

/// Peers by which it is told that a connection could have been used again.
const PEERS: usize = 16;
/// Round trips up to which a connection is short.
const SHORT_ROUNDS: u64 = 64;

macro_rules! sums {
    ($($(#[$meta:meta])* $name:ident,)+) => {
        /// Sums over the connections of a service that were closed. They only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub(crate) struct Sums { $($(#[$meta])* pub(super) $name: u64,)+ }

        impl Sums {
            /// Each sum with its counterpart, by `join`.
            fn with(&self, other: &Self, join: fn(u64, u64) -> u64) -> Self {
                Self { $($name: join(self.$name, other.$name),)+ }
            }
        }
    };
}

sums! {
    /// Connections whose life was seen from the SYN on.
    closed,
    /// Of these, over after a few round trips.
    brief,
    /// Of these, to or from a peer that one of the last few connections was with.
    repeated,
    /// From SYN to the close of the brief ones, µs.
    lasted_us,
    /// Of it, the handshake, µs.
    handshake_us,
    /// Of it, round trips of slow start beyond what an open window needs, µs.
    growing_us,
    /// Those round trips.
    growing_rounds,
    /// Payload of the direction that carried more.
    bytes,
    /// Sum of their RTTs, µs.
    rtt_us,
    /// Connections that reached ESTABLISHED with a SYN that was sent more than once.
    late,
    /// SYNs and SYN-ACKs sent again.
    syns,
    /// Connections that ended by timeout.
    timed_out,
    /// Attempts that nothing answered.
    unanswered,
    /// SYNs of those attempts.
    unanswered_syns,
}

/// What is known of the closed connections of a group slot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Short {
    pub(crate) sums: Sums,
    /// Addresses of the last few; zeros for none.
    peers: [[u8; 16]; PEERS],
    next: usize,
}

impl Short {
    /// Takes the last record of a connection.
    pub(crate) fn take(&mut self, record: &ConnRecord) {
        let [.., syn, syn_ack, _] = record.retrans;
        let syns = u64::from(syn) + u64::from(syn_ack);
        match CloseCause::from_u8(record.cause) {
            Some(CloseCause::Timeout) => self.sums.timed_out += 1,
            Some(CloseCause::FailedOpen) if syns > 0 => {
                self.sums.unanswered += 1;
                self.sums.unanswered_syns += syns + 1;
            }
            _ => {}
        }
        if record.established_ns == 0 || record.flags & flag::PARTIAL != 0 {
            return;
        }
        self.sums.closed += 1;
        self.sums.syns += syns;
        self.sums.late += u64::from(syns > 0);
        let known = |us: u32| (us > 0 && us != u32::MAX).then_some(u64::from(us));
        let rtt_us = known(record.handshake_us).or(known(record.min_rtt_us)).or(known(record.srtt_us)).unwrap_or(0);
        let lasted_us = record.header.ktime_ns.saturating_sub(record.started_ns) / 1000;
        if rtt_us == 0 || lasted_us > SHORT_ROUNDS * rtt_us {
            return;
        }
        let peer = record.key.remote;
        self.sums.brief += 1;
        self.sums.repeated += u64::from(self.peers.contains(&peer));
        if let Some(place) = self.peers.get_mut(self.next) {
            *place = peer;
        }
        self.next = (self.next + 1) % PEERS;
        let bytes = record.bytes_sent.max(record.bytes_received);
        // A window that is open takes it in one round trip, or in as many as it took without growing.
        let rounds = slow_start_rounds(bytes, u64::from(record.mss.max(1)), INITIAL_WINDOW).saturating_sub(1);
        self.sums.lasted_us += lasted_us;
        // The handshake is over before the established end counts; its other end sees it as a round trip all the same.
        self.sums.handshake_us += rtt_us;
        self.sums.growing_us += (rounds * rtt_us).min(lasted_us);
        self.sums.growing_rounds += rounds;
        self.sums.bytes += bytes;
        self.sums.rtt_us += rtt_us;
    }
}

impl Sums {
    /// Both together.
    pub(super) fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub)
    }
}

/// What closed since `before`, by service: several slots of the kernel's counters may share a label.
pub(super) fn by_service(
    now: &[Sums],
    before: Option<&[Sums]>,
    shown: impl Fn(usize) -> Option<(Direction, Service)>,
) -> BTreeMap<(Direction, Service), Sums> {
    let nothing = Sums::default();
    let mut sums: BTreeMap<(Direction, Service), Sums> = BTreeMap::new();
    for (slot, now) in now.iter().enumerate() {
        let Some(group) = shown(slot).filter(|(direction, _)| *direction != Direction::Unknown) else { continue };
        let before = before.and_then(|before| before.get(slot)).unwrap_or(&nothing);
        let sum = sums.entry(group).or_default();
        *sum = sum.plus(&now.since(before));
    }
    sums
}

/// What is said of services in metrics: of the last minute or two, as what was long ago should not alert for ever.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    /// The sums of earlier moments, the older first: one is at least [`RECENT_NS`] old.
    earlier: [(u64, Vec<Sums>); 2],
}

/// The shortest time that a verdict of the metrics stands on, ns, once so much is known; the longest is twice that.
const RECENT_NS: u64 = 60_000_000_000;

/// Verdicts on services, by what they are about.
pub(crate) type ServiceVerdicts = BTreeSet<(Direction, Service, Id)>;

impl Recent {
    /// Of a time in which nothing is known before `now_ns`.
    pub(crate) fn new(now_ns: u64) -> Self {
        Self { earlier: [(now_ns, Vec::new()), (now_ns, Vec::new())] }
    }

    /// The verdicts of this moment.
    pub(crate) fn judge(
        &mut self,
        now_ns: u64,
        now: &[Short],
        shown: impl Fn(usize) -> Option<(Direction, Service)>,
    ) -> ServiceVerdicts {
        let now: Vec<Sums> = now.iter().map(|short| short.sums).collect();
        let [older, newer] = &mut self.earlier;
        let sums = by_service(&now, Some(&older.1), shown);
        if now_ns.saturating_sub(newer.0) >= RECENT_NS {
            *older = std::mem::replace(newer, (now_ns, now));
        }
        let each = sums.into_iter().flat_map(|((direction, service), sums)| {
            judge(&sums).into_iter().map(move |verdict| (direction, service, verdict.id))
        });
        each.collect()
    }
}

/// What may be said of a service.
pub(crate) const IDS: [Id; 3] = [Id::NotReused, Id::SynLost, Id::PeerVanished];

/// Verdicts on a service; none when there is nothing to say.
pub(super) fn judge(s: &Sums) -> Vec<Verdict> {
    [not_reused(s), syn_lost(s), peer_vanished(s)].into_iter().flatten().collect()
}

/// S1: each transfer pays for a handshake and for slow start, and the peer was the same.
fn not_reused(s: &Sums) -> Option<Verdict> {
    if s.brief < 3 || s.brief * 10 < s.closed * 8 || s.repeated * 2 < s.brief {
        return None;
    }
    let paid_us = s.handshake_us + s.growing_us;
    let (share, saved_us) = (part(paid_us, s.lasted_us), paid_us / s.brief);
    if share < 0.3 || saved_us < 2_000 {
        return None;
    }
    let rtt_us = s.rtt_us / s.brief;
    let rounds = (s.lasted_us / s.brief).checked_div(rtt_us).unwrap_or(0);
    Some(Verdict {
        id: Id::NotReused,
        confidence: 0.85,
        share: Some(share),
        evidence: evidence! {
            connections: s.brief,
            repeated_peers: s.repeated,
            bytes_per_connection: s.bytes / s.brief,
            duration_us: s.lasted_us / s.brief,
            rtt_us: rtt_us,
            rounds: rounds,
            slow_start_rounds: s.growing_rounds / s.brief,
            handshake_share: part(s.handshake_us, s.lasted_us),
            slow_start_share: part(s.growing_us, s.lasted_us),
            saved_per_request_us: saved_us,
        },
        sentence: format!(
            "connections are not used again: {} with the same few peers lasted {} each, of which the handshake took {:.0} % and slow \
             start {:.0} % ({} of about {rounds} round trips of {} spent growing from {INITIAL_WINDOW} segments)",
            s.brief,
            seconds(s.lasted_us / s.brief),
            part(s.handshake_us, s.lasted_us) * 100.0,
            part(s.growing_us, s.lasted_us) * 100.0,
            s.growing_rounds / s.brief,
            millis(rtt_us),
        ),
        remedy: format!(
            "keep connections open and use them again (HTTP keep-alive, a connection pool): it would save about {} a request",
            seconds(saved_us)
        ),
    })
}

/// R5, R6.
fn syn_lost(s: &Sums) -> Option<Verdict> {
    if s.unanswered > 0 {
        return Some(Verdict {
            id: Id::SynLost,
            confidence: 0.95,
            share: None,
            evidence: evidence! { unanswered: s.unanswered, syns: s.unanswered_syns },
            sentence: format!(
                "{} attempts to connect got no answer at all ({} SYNs): failed to open, by timeout and not by a reset",
                s.unanswered, s.unanswered_syns
            ),
            remedy: "check the address, the route and the firewalls on the way".to_owned(),
        });
    }
    if s.late == 0 || s.late * 20 < s.closed {
        return None;
    }
    Some(Verdict {
        id: Id::SynLost,
        confidence: 0.9,
        share: Some(part(s.late, s.closed)),
        evidence: evidence! { late_connections: s.late, connections: s.closed, syn_retransmits: s.syns },
        sentence: format!(
            "{} of {} connections needed more than one SYN or SYN-ACK ({} sent again), each a second or more late",
            s.late, s.closed, s.syns
        ),
        remedy: "look for loss on the path and for a full SYN or accept queue at the listening end".to_owned(),
    })
}

/// R1, after its end.
fn peer_vanished(s: &Sums) -> Option<Verdict> {
    (s.timed_out > 0).then(|| Verdict {
        id: Id::PeerVanished,
        confidence: 0.95,
        share: None,
        evidence: evidence! { timed_out: s.timed_out, closed: s.closed },
        sentence: format!("{} connections ended by timeout (ETIMEDOUT): nothing came back any more", s.timed_out),
        remedy: "look at the peers and the path; what was not acknowledged is lost to the application".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::conn_record;

    /// A transfer over a path of 200 ms on a connection of its own.
    fn upload(bytes: u64, duration_ms: u64) -> ConnRecord {
        let mut record = conn_record(1);
        (record.started_ns, record.established_ns) = (1_000_000_000, 1_200_000_000);
        record.header.ktime_ns = 1_000_000_000 + duration_ms * 1_000_000;
        (record.handshake_us, record.mss, record.bytes_sent) = (200_000, 1448, bytes);
        record.cause = CloseCause::FinLocal as u8;
        record
    }

    #[test]
    fn five_uploads_on_connections_of_their_own_should_be_one() {
        let mut short = Short::default();
        (0..5).for_each(|_| short.take(&upload(1_000_000, 2_000)));
        let verdicts = judge(&short.sums);
        assert_eq!(verdicts.iter().map(|v| v.id).collect::<Vec<_>>(), [Id::NotReused]);
        let evidence = &verdicts[0].evidence;
        assert_eq!((&evidence["connections"], &evidence["slow_start_rounds"]), (&5.into(), &6.into()));
        assert_eq!(evidence["saved_per_request_us"], 1_400_000);
        assert_eq!(judge(&short.sums.since(&short.sums)), []);
    }

    #[test]
    fn long_connections_and_those_of_a_near_peer_are_left_alone() {
        let mut short = Short::default();
        (0..5).for_each(|_| short.take(&upload(100_000_000, 60_000)));
        assert_eq!(judge(&short.sums), []);
        let mut near = Short::default();
        for _ in 0..100 {
            let mut record = upload(1000, 1);
            record.handshake_us = 50;
            near.take(&record);
        }
        assert_eq!(judge(&near.sums), []);
    }

    #[test]
    fn metrics_tell_of_the_last_minutes_and_of_no_more() {
        let mut recent = Recent::new(0);
        let shown = |slot: usize| (slot < 2).then_some((Direction::Outbound, Service::Port(443)));
        let mut short = vec![Short::default(); 3];
        (0..5).for_each(|_| short[1].take(&upload(1_000_000, 2_000)));
        let said = [(Direction::Outbound, Service::Port(443), Id::NotReused)].into();
        for second in 1..=119 {
            assert_eq!(recent.judge(second * 1_000_000_000, &short, shown), said, "{second}");
        }
        assert!((120..=125).any(|second| recent.judge(second * 1_000_000_000, &short, shown).is_empty()));
        (0..3).for_each(|_| short[0].take(&upload(1_000_000, 2_000)));
        assert_eq!(recent.judge(126_000_000_000, &short, shown), said, "it begins again");
        assert!(IDS.iter().all(|id| {
            judge(&Sums {
                timed_out: 1,
                late: 1,
                closed: 1,
                brief: 3,
                repeated: 3,
                lasted_us: 9_000,
                handshake_us: 9_000,
                ..Sums::default()
            })
            .iter()
            .any(|verdict| verdict.id == *id)
        }));
    }

    #[test]
    fn attempts_that_nothing_answers_are_no_resets() {
        let mut short = Short::default();
        let mut record = conn_record(1);
        (record.cause, record.retrans[3]) = (CloseCause::FailedOpen as u8, 2);
        short.take(&record);
        let verdicts = judge(&short.sums);
        assert_eq!((verdicts.len(), verdicts[0].id), (1, Id::SynLost));
        assert_eq!(verdicts[0].evidence["syns"], 3);
    }
}
