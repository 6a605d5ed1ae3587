//! One reset: its evidence in words, and what it means.

use std::net::{IpAddr, SocketAddr};

use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::history;
use tcpwatch_common::record::{ConnRecord, Kind, ResetRecord};
use tcpwatch_common::reset::{ResetCause, known};
use tcpwatch_common::state::TcpState;

use super::{Reset, Segment, Socket, origin};
use crate::aggregate::owners::Names;
use crate::aggregate::resets::Evidence;
use crate::api::owner::Owner;
use crate::api::{Moment, ends, state_name};
use crate::meaning::{self, Around, Facts, Meaning};

/// Flag bits of a TCP header, from the lowest.
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// A reset, and what was seen beside its record.
pub(crate) struct Seen<'a> {
    /// Sent or received.
    pub(crate) kind: Kind,
    /// What the programs tell of it.
    pub(crate) record: &'a ResetRecord,
    /// The connection that it ended.
    pub(crate) connection: Option<&'a ConnRecord>,
    /// Whose it is.
    pub(crate) owner: Option<Owner>,
    /// What else explains it.
    pub(crate) around: &'a Around,
}

impl Reset {
    /// One that is kept.
    pub(crate) fn new(
        evidence: &Evidence,
        stack: Option<&str>,
        moment: Moment,
        reasons: &[String],
        names: &Names,
    ) -> Self {
        let Evidence { kind, record, connection, owner, around } = evidence;
        let owner = owner.as_ref().map(|owner| Owner::new(owner, names));
        let seen = Seen { kind: *kind, record, connection: connection.as_deref(), owner, around };
        Self { stack: stack.map(ToOwned::to_owned), ..Self::of(seen, moment, reasons) }
    }

    /// All but its stack.
    pub(crate) fn of(seen: Seen<'_>, moment: Moment, reasons: &[String]) -> Self {
        let Seen { kind, record, connection, owner, around } = seen;
        let reset = Self::facts(kind, record, connection, owner, moment, reasons);
        Self { meaning: reset.explained(around), ..reset }
    }

    /// What it means.
    fn explained(&self, around: &Around) -> Meaning {
        let end = |address: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(address?, port?));
        let word = |text: &'_ Option<String>| text.clone().unwrap_or_default();
        let (cause, reason, state) = (word(&self.cause), word(&self.reason), word(&self.state));
        meaning::of(&Facts {
            received: self.direction == "received",
            cause: &cause,
            reason: &reason,
            local: end(self.local_address, self.local_port),
            remote: end(self.remote_address, self.remote_port),
            state: &state,
            in_state_ms: self.in_state_ms,
            age_ms: self.age_ms,
            flags: self.segment.as_ref().map_or(&[], |segment| &segment.flags),
            socket: self.socket.as_ref().map(|socket| socket.facts(&state)),
            owner: self.owner.as_ref().map(|owner| meaning::Owner {
                comm: &owner.comm,
                pid: owner.pid,
                unit: owner.unit.as_deref(),
            }),
            limits: around.limits.as_deref(),
            listener: around.listener,
            sent_by_nobody: around.by_nobody,
        })
    }

    fn facts(
        kind: Kind,
        record: &ResetRecord,
        connection: Option<&ConnRecord>,
        owner: Option<Owner>,
        moment: Moment,
        reasons: &[String],
    ) -> Self {
        let sent = kind == Kind::Reset;
        let at_ns = record.header.ktime_ns;
        let history = trusted_history(record, connection);
        let states = history.map_or_else(Vec::new, |(history, _)| {
            history::states(history).map(|state| state.name().to_owned()).collect()
        });
        let started_ns = match (record.started_ns, connection) {
            (0, Some(connection)) => connection.started_ns,
            (started_ns, _) => started_ns,
        };
        let age_ms = (started_ns != 0).then(|| at_ns.saturating_sub(started_ns) / 1_000_000);
        let in_state_ms = history.and_then(|(_, since_ms)| {
            // The word wraps after 49 days.
            let short = age_ms.is_none_or(|age_ms| age_ms < u64::from(u32::MAX));
            let in_state_ms = u64::from(((at_ns / 1_000_000) as u32).wrapping_sub(since_ms));
            // Of the two ends of this span each was cut to whole milliseconds.
            (since_ms != 0 && short).then(|| age_ms.map_or(in_state_ms, |age_ms| age_ms.min(in_state_ms)))
        });
        let has_ends =
            record.key != ConnKey { netns: record.key.netns, ip_version: record.key.ip_version, ..ConnKey::EMPTY };
        let (local, remote) = ends(&record.key);
        Self {
            ktime_ns: at_ns,
            ago_ms: moment.ktime_ns.saturating_sub(at_ns) / 1_000_000,
            direction: if sent { "sent" } else { "received" }.to_owned(),
            origin: origin(record.origin).filter(|_| sent),
            cause: sent.then(|| ResetCause::from_u8(record.cause).unwrap_or(ResetCause::Unknown).name().to_owned()),
            reason: sent.then(|| reasons.get(record.reason as usize).map_or_else(|| "none".to_owned(), Clone::clone)),
            cookie: (record.cookie != 0).then_some(record.cookie),
            netns: record.key.netns,
            local_address: has_ends.then_some(local.ip()),
            local_port: has_ends.then_some(local.port()),
            remote_address: has_ends.then_some(remote.ip()),
            remote_port: has_ends.then_some(remote.port()),
            state: (record.state != 0).then(|| state_name(record.state).to_owned()),
            states,
            in_state_ms,
            age_ms,
            closed_first: history.and_then(|(history, _)| {
                let local = history::closed_first_locally(history)?;
                Some(if local { "local" } else { "remote" }.to_owned())
            }),
            segment: (record.known & known::SEGMENT != 0).then(|| Segment {
                sequence: record.seq,
                acknowledgement: record.ack,
                flags: (0..)
                    .zip(FLAGS)
                    .filter(|(bit, _)| record.tcp_flags >> bit & 1 != 0)
                    .map(|(_, f)| f.to_owned())
                    .collect(),
            }),
            socket: (record.known & known::SOCKET != 0).then(|| Socket::new(record, moment)),
            owner,
            stack: None,
            meaning: Meaning::default(),
        }
    }
}

/// The states that the reset itself has seen, or those of its connection when they lead to the same one.
fn trusted_history(record: &ResetRecord, connection: Option<&ConnRecord>) -> Option<(u32, u32)> {
    if record.history != 0 {
        return Some((record.history, record.state_since_ms));
    }
    let connection = connection?;
    let newest = history::states(connection.history).next()?;
    (newest as u8 == record.state).then_some((connection.history, connection.state_since_ms))
}

impl Socket {
    /// For a sentence: our FIN, which is the last byte that was written, is none that anybody misses.
    fn facts(&self, state: &str) -> meaning::Socket {
        let fin = u32::from(["FIN_WAIT1", "CLOSING", "LAST_ACK"].contains(&state));
        let (unsent, unacked) = match self.unsent_bytes {
            0 => (0, self.unacked_bytes.saturating_sub(fin)),
            unsent => (unsent.saturating_sub(fin), self.unacked_bytes),
        };
        meaning::Socket {
            unread_bytes: self.unread_bytes,
            unsent_bytes: Some(unsent),
            unacked_bytes: unacked,
            sent_bytes: Some(self.sent_bytes),
            received_bytes: Some(self.received_bytes),
            srtt_us: self.srtt_us,
            linger_ms: self.linger_ms,
            probes: Some(self.unanswered_probes),
        }
    }

    fn new(record: &ResetRecord, moment: Moment) -> Self {
        // A SYN counts as a byte, and carries none.
        let syn = u32::from(record.state == TcpState::SynSent as u8);
        let ticks = u64::from(moment.ticks_per_second.max(1));
        let linger_ms = (u128::from(record.linger_jiffies) * 1000 / u128::from(ticks)).min(u128::from(u64::MAX)) as u64;
        Self {
            unread_bytes: record.unread_bytes,
            unsent_bytes: record.unsent_bytes,
            unacked_bytes: record.unacked_bytes.saturating_sub(syn),
            sent_bytes: record.bytes_sent,
            received_bytes: record.bytes_received,
            srtt_us: (record.srtt_us != 0).then_some(record.srtt_us),
            cwnd_segments: record.snd_cwnd,
            retransmits_total: record.total_retrans,
            rto_backoff: record.backoff,
            unanswered_probes: record.probes_out,
            linger_ms: (record.known & known::LINGER != 0).then_some(linger_ms),
            orphan: record.known & known::ORPHAN != 0,
        }
    }
}
