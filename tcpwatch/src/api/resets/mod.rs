//! `/api/v1/resets`: what ends connections here, by cause, stack and peer, and the newest with their evidence.
//!
//! What is not known is not there: a reset without a socket has no bytes, which is not the same as 0 bytes.

mod one;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tcpwatch_common::conn::COMM_LEN;
use tcpwatch_common::counters::{Loss, group, reason};
use tcpwatch_common::reset::{REASONS, ResetCause, ResetOrigin};
use tcpwatch_common::state::STATES;

pub(crate) use one::Seen;

use super::Moment;
use super::owner::Owner;
use crate::aggregate::owners;
use crate::aggregate::resets::{Evidence, RECEIVED, ResetReport, WORDS, class_of, word};
use crate::aggregate::snapshot::Snapshot;
use crate::meaning::Meaning;

/// Peers that are shown of each cause.
const PEERS: usize = 5;
/// Owners that are shown of each cause.
const OWNERS: usize = 5;

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
    /// Probes, of keepalive or of a zero window, that went unanswered.
    pub(crate) unanswered_probes: u8,
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
    /// What it means.
    #[serde(flatten)]
    pub(crate) meaning: Meaning,
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
