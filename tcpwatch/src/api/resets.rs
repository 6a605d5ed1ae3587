//! `/api/v1/resets`: what ends connections here, by cause, stack and peer, and the newest with their evidence.
//!
//! What is not known is not there: a reset without a socket has no bytes, which is not the same as 0 bytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tcpwatch_common::conn::{COMM_LEN, ConnKey};
use tcpwatch_common::counters::{Loss, group, reason};
use tcpwatch_common::history;
use tcpwatch_common::record::Kind;
use tcpwatch_common::reset::{REASONS, ResetCause, ResetOrigin, known};
use tcpwatch_common::state::{STATES, TcpState};

use super::owner::Owner;
use super::{Moment, ends, state_name};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::resets::{Evidence, RECEIVED, ResetReport, WORDS, class_of, word};
use crate::aggregate::snapshot::Snapshot;

/// Peers that are shown of each cause.
const PEERS: usize = 5;
/// Owners that are shown of each cause.
const OWNERS: usize = 5;
/// Flag bits of a TCP header, from the lowest.
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// All of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Resets {
    /// When the counters were read, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// The time over which rates are.
    pub(crate) window_ms: u64,
    /// Why stacks have no names of functions; null when they have.
    pub(crate) no_symbols: Option<String>,
    /// Resets of which only the counters tell: over the limit, or without room in the ring buffer.
    pub(crate) without_evidence: u64,
    /// Resets whose stack could not be kept.
    pub(crate) without_stack: u64,
    /// By origin and cause, those that are most first.
    pub(crate) causes: Vec<CauseTotal>,
    /// By the kernel's reason.
    pub(crate) reasons: Vec<ReasonTotal>,
    /// By kernel stack, those that are most first.
    pub(crate) stacks: Vec<StackTotal>,
    /// The newest with their evidence, the newest first.
    pub(crate) newest: Vec<Reset>,
}

/// Resets of one cause.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CauseTotal {
    /// `sent` or `received`.
    pub(crate) direction: String,
    /// `active` or `passive`; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<String>,
    /// Ours; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// Since the daemon began.
    pub(crate) count: u64,
    /// In the window; absent while that is shorter than a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_second: Option<f64>,
    /// By service.
    pub(crate) services: Vec<ServiceCount>,
    /// Peers with most of those that have evidence; of the cause, whatever its origin.
    pub(crate) peers: Vec<Peer>,
    /// There were more peers than are counted: counts may be too large.
    pub(crate) peers_approximate: bool,
    /// Owners of most of those in `newest`.
    pub(crate) owners: Vec<OwnerCount>,
}

/// Resets of a service.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ServiceCount {
    /// Direction of its connections.
    pub(crate) direction: String,
    /// Its port, `other` or `none`.
    pub(crate) service: String,
    /// How many.
    pub(crate) count: u64,
}

/// Resets with a peer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: IpAddr,
    /// How many.
    pub(crate) count: u64,
}

/// Resets sent for one of the kernel's reasons.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ReasonTotal {
    /// `active` or `passive`.
    pub(crate) origin: String,
    /// The kernel's name.
    pub(crate) reason: String,
    /// `ipv4` or `ipv6`.
    pub(crate) family: String,
    /// How many.
    pub(crate) count: u64,
}

/// Resets sent with one kernel stack.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StackTotal {
    /// Fingerprint, the label of `tcpwatch_reset_stacks_total`.
    pub(crate) stack: String,
    /// `active` or `passive`; absent for `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<String>,
    /// The cause; absent for `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// How many.
    pub(crate) count: u64,
    /// Functions, the innermost first; empty where the kernel hides them.
    pub(crate) frames: Vec<String>,
}

/// Who has, or had, sockets that were reset, or listens on their port.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct OwnerCount {
    /// Process.
    pub(crate) pid: u32,
    /// Its name, made printable.
    pub(crate) comm: String,
    /// The innermost systemd unit of its control group.
    pub(crate) unit: Option<String>,
    /// Id of its container.
    pub(crate) container: Option<String>,
    /// How many.
    pub(crate) count: u64,
}

/// The segment that made this host send a reset.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Segment {
    /// Sequence number.
    pub(crate) sequence: u32,
    /// Acknowledgement number.
    pub(crate) acknowledgement: u32,
    /// Flags.
    pub(crate) flags: Vec<String>,
}

/// What the socket said when it was reset.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Socket {
    /// Received and not read by the application.
    pub(crate) unread_bytes: u32,
    /// Written and not sent; a FIN counts as one.
    pub(crate) unsent_bytes: u32,
    /// Sent and not acknowledged; a FIN counts as one.
    pub(crate) unacked_bytes: u32,
    /// Payload sent, retransmissions included.
    pub(crate) sent_bytes: u64,
    /// Payload received in order.
    pub(crate) received_bytes: u64,
    /// Smoothed RTT; null before the first sample.
    pub(crate) srtt_us: Option<u32>,
    /// Congestion window.
    pub(crate) cwnd_segments: u32,
    /// Segments sent again.
    pub(crate) retransmits_total: u32,
    /// Consecutive doublings of the retransmission timeout.
    pub(crate) rto_backoff: u8,
    /// SO_LINGER is on, with this time; null when it is off.
    pub(crate) linger_ms: Option<u64>,
    /// No process held it any more, or none had accepted it yet.
    pub(crate) orphan: bool,
}

/// A reset with its evidence.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Reset {
    /// When, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// How long ago.
    pub(crate) ago_ms: u64,
    /// `sent` or `received`.
    pub(crate) direction: String,
    /// `active` or `passive`; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<String>,
    /// Ours; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<String>,
    /// The kernel's reason, as it is; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The kernel's cookie of the socket; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cookie: Option<u64>,
    /// Inode number of the network namespace.
    pub(crate) netns: u32,
    /// Our address; absent where neither socket nor segment tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) local_address: Option<IpAddr>,
    /// Our port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) local_port: Option<u16>,
    /// The peer's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_address: Option<IpAddr>,
    /// The peer's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remote_port: Option<u16>,
    /// State before it; absent without a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<String>,
    /// The states before, the newest first; absent when they were not seen.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) states: Vec<String>,
    /// How long it had been in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) in_state_ms: Option<u64>,
    /// Since the SYN was sent, or the connection was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age_ms: Option<u64>,
    /// `local` or `remote`: whose FIN came first; absent when there was none, or when that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) closed_first: Option<String>,
    /// The segment that caused it; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) segment: Option<Segment>,
    /// The socket; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<Socket>,
    /// Who has or had the socket, or listens on the port; absent when nothing of that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<Owner>,
    /// Fingerprint of the kernel stack; absent for received ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stack: Option<String>,
}

impl Resets {
    /// What a snapshot and the store of the same moment say.
    pub(crate) fn new(snapshot: &Snapshot, report: &ResetReport) -> Self {
        let losses = |wanted: &[Loss]| -> u64 {
            let counts = Loss::ALL.iter().zip(snapshot.own.losses).filter(|(loss, _)| wanted.contains(loss));
            counts.fold(0, |sum, (_, count)| sum.saturating_add(count))
        };
        let moment = Moment { ktime_ns: snapshot.ktime_ns, ticks_per_second: snapshot.facts.ticks_per_second };
        let newest = report.newest.iter().zip(&report.fingerprints);
        Self {
            ktime_ns: snapshot.ktime_ns,
            window_ms: report.recent.window_ns / 1_000_000,
            no_symbols: snapshot.facts.no_symbols.clone(),
            without_evidence: losses(&[
                Loss::ThrottledReset,
                Loss::ThrottledReceived,
                Loss::RingReset,
                Loss::RingReceived,
            ]),
            without_stack: losses(&[Loss::MapStack]),
            causes: causes(snapshot, report),
            reasons: reasons(snapshot),
            stacks: stacks(snapshot),
            newest: newest
                .map(|(evidence, stack)| {
                    Reset::new(evidence, stack.as_deref(), moment, &snapshot.facts.reasons, &report.names)
                })
                .collect(),
        }
    }
}

fn causes(snapshot: &Snapshot, report: &ResetReport) -> Vec<CauseTotal> {
    let one = |direction: &str,
               origin: Option<ResetOrigin>,
               cause: Option<ResetCause>,
               words: &[usize],
               at: usize,
               class: usize| {
        let services: Vec<_> = snapshot
            .groups
            .iter()
            .map(|totals| ServiceCount {
                direction: totals.direction.name().to_owned(),
                service: totals.service.label(),
                count: words
                    .iter()
                    .filter_map(|w| totals.words.get(*w))
                    .fold(0, |sum, word| sum.saturating_add(counted(*word))),
            })
            .filter(|service| service.count > 0)
            .collect();
        let peers = report.peers.get(class);
        let seconds = report.recent.window_ns as f64 / 1e9;
        let recent = report.recent.counts.get(at).filter(|_| seconds >= 1.0);
        CauseTotal {
            direction: direction.to_owned(),
            origin: origin.map(|origin| origin.name().to_owned()),
            cause: cause.map(|cause| cause.name().to_owned()),
            count: services.iter().fold(0, |sum, service| sum.saturating_add(service.count)),
            per_second: recent.map(|count| *count as f64 / seconds),
            services,
            peers: peers.map_or_else(Vec::new, |peers| {
                peers.first(PEERS).into_iter().map(|(address, count)| Peer { address, count }).collect()
            }),
            peers_approximate: peers.is_some_and(|peers| peers.approximate),
            owners: owners(report, origin, class),
        }
    };
    let sent = ResetOrigin::ALL.into_iter().flat_map(|origin| ResetCause::ALL.map(|cause| (origin, cause)));
    let mut all: Vec<_> = sent
        .map(|(origin, cause)| {
            one("sent", Some(origin), Some(cause), &[group::resets(origin, cause)], word(origin, cause), cause as usize)
        })
        .collect();
    let received: Vec<_> = (0..STATES as u8).map(group::received).collect();
    all.push(one("received", None, None, &received, WORDS - 1, RECEIVED));
    all.retain(|cause| cause.count > 0);
    all.sort_by_key(|cause| Reverse(cause.count));
    all
}

/// Those that own most of the resets of a class that are kept.
fn owners(report: &ResetReport, of: Option<ResetOrigin>, class: usize) -> Vec<OwnerCount> {
    let mut counts: BTreeMap<(u32, [u8; COMM_LEN]), (u64, &owners::Owner)> = BTreeMap::new();
    for evidence in &report.newest {
        let Evidence { kind, record, owner, .. } = &**evidence;
        let same = class_of(*kind, record) == class && of.is_none_or(|origin| record.origin == origin as u8);
        if let Some(owner) = owner.as_ref().filter(|owner| same && owner.pid != 0) {
            counts.entry((owner.pid, owner.comm)).or_insert((0, owner)).0 += 1;
        }
    }
    let mut all: Vec<_> = counts.into_values().collect();
    all.sort_by_key(|(count, owner)| (Reverse(*count), owner.pid));
    all.truncate(OWNERS);
    let shown = all.into_iter().map(|(count, owner)| {
        let Owner { pid, comm, unit, container, .. } = Owner::new(owner, &report.names);
        OwnerCount { pid: pid.unwrap_or_default(), comm, unit, container, count }
    });
    shown.collect()
}

/// A count that was taken back on one CPU before it was seen on another is none.
fn counted(word: u64) -> u64 {
    if word > i64::MAX as u64 { 0 } else { word }
}

fn reasons(snapshot: &Snapshot) -> Vec<ReasonTotal> {
    let numbers =
        ResetOrigin::ALL.into_iter().flat_map(|origin| (0..REASONS as u32).map(move |number| (origin, number)));
    let all = numbers.flat_map(|(origin, number)| [(origin, number, "ipv4", 4), (origin, number, "ipv6", 6)]);
    all.filter_map(|(origin, number, family, version)| {
        let count = *snapshot.reasons.get(reason::index(origin, number, version)).filter(|count| **count > 0)?;
        let name = snapshot.facts.reasons.get(number as usize);
        Some(ReasonTotal {
            origin: origin.name().to_owned(),
            reason: name.map_or_else(|| format!("number_{number}"), Clone::clone),
            family: family.to_owned(),
            count,
        })
    })
    .collect()
}

fn stacks(snapshot: &Snapshot) -> Vec<StackTotal> {
    let mut all: Vec<_> = snapshot
        .stacks
        .iter()
        .map(|stack| StackTotal {
            stack: stack.fingerprint.to_string(),
            origin: origin(stack.origin),
            cause: ResetCause::from_u8(stack.cause).map(|cause| cause.name().to_owned()),
            count: stack.count,
            frames: stack.frames.to_vec(),
        })
        .collect();
    all.sort_by(|a, b| (b.count, &a.stack).cmp(&(a.count, &b.stack)));
    all
}

fn origin(number: u8) -> Option<String> {
    ResetOrigin::ALL.get(usize::from(number)).map(|origin| origin.name().to_owned())
}

impl Reset {
    fn new(evidence: &Evidence, stack: Option<&str>, moment: Moment, reasons: &[String], names: &Names) -> Self {
        let Evidence { kind, record, connection, owner } = evidence;
        let sent = *kind == Kind::Reset;
        let at_ns = record.header.ktime_ns;
        let history = trusted_history(evidence);
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
            socket: (record.known & known::SOCKET != 0).then(|| Socket::new(evidence, moment)),
            owner: owner.as_ref().map(|owner| Owner::new(owner, names)),
            stack: stack.map(ToOwned::to_owned),
        }
    }
}

/// The states that the reset itself has seen, or those of its connection when they lead to the same one.
fn trusted_history(evidence: &Evidence) -> Option<(u32, u32)> {
    let Evidence { record, connection, .. } = evidence;
    if record.history != 0 {
        return Some((record.history, record.state_since_ms));
    }
    let connection = connection.as_ref()?;
    let newest = history::states(connection.history).next()?;
    (newest as u8 == record.state).then_some((connection.history, connection.state_since_ms))
}

impl Socket {
    fn new(evidence: &Evidence, moment: Moment) -> Self {
        let record = &evidence.record;
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
            linger_ms: (record.known & known::LINGER != 0).then_some(linger_ms),
            orphan: record.known & known::ORPHAN != 0,
        }
    }
}
