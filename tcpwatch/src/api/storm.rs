//! Storms as `/api/v1/storms`, `/api/v1/status` and the events tell of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::line;
use super::text::time;
use crate::meaning::Meaning;
use crate::storm::evidence::{Process, StackShare};
use crate::storm::{self, CAUSES, Change, Muted, Report};

/// The cause of storms of resets received.
const RECEIVED_NAME: &str = CAUSES[storm::RECEIVED];

/// Peers and ports that are listed of a storm.
const MOST_LISTED: usize = 10;

/// `/api/v1/storms`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Storms {
    /// Those under way.
    pub(crate) active: Vec<Storm>,
    /// The last that ended, the newest first.
    pub(crate) ended: Vec<Storm>,
    /// Resets that make none because the configuration mutes them.
    pub(crate) muted: Vec<MutedResets>,
}

/// A storm.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Storm {
    /// The same in the log, the events and the hooks.
    pub(crate) id: String,
    /// Which end opened the connections.
    pub(crate) direction: String,
    /// The service, as the metrics have it.
    pub(crate) service: String,
    /// The cause.
    pub(crate) cause: String,
    /// Still under way.
    pub(crate) active: bool,
    /// When it began, by the wall clock.
    pub(crate) start_unix_ms: u64,
    /// When it ended; null while it is under way.
    pub(crate) end_unix_ms: Option<u64>,
    /// From its beginning to when the rate was last high.
    pub(crate) duration_ms: u64,
    /// In the newest second.
    pub(crate) rate_per_second: f64,
    /// What was usual before it.
    pub(crate) usual_rate_per_second: f64,
    /// In its worst second.
    pub(crate) peak_rate_per_second: f64,
    /// Exact, however many were reported one by one.
    pub(crate) resets: u64,
    /// Resets of this service meanwhile; causes without any are left out.
    pub(crate) resets_by_cause: BTreeMap<String, u64>,
    /// How many were reported one by one: what follows is of those.
    pub(crate) details: u64,
    /// Those with most.
    pub(crate) peers: Vec<Peer>,
    /// There were more peers than can be counted apart: the counts may be too large.
    pub(crate) peers_approximate: bool,
    /// Ports of the service, ours or those that we connect to, those with most first.
    pub(crate) ports: Vec<Port>,
    /// Whose sockets they were, where that is known.
    pub(crate) owners: Vec<Owner>,
    /// Kernel stacks that sent them, those with most first; none of resets received.
    pub(crate) stacks: Vec<StackResets>,
    /// What happened, in words.
    pub(crate) sentence: String,
    /// What to do about it; null while none of them was reported one by one.
    pub(crate) remedy: Option<String>,
    /// What one of them meant; likewise.
    pub(crate) example: Option<Meaning>,
}

/// Resets of one kernel stack.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct StackResets {
    /// Fingerprint, the label of `tcpwatch_reset_stacks_total`.
    pub(crate) stack: String,
    /// How many.
    pub(crate) resets: u64,
    /// Functions, the innermost first; empty where the kernel hides them.
    pub(crate) frames: Vec<String>,
}

/// Resets with one peer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: IpAddr,
    /// How many.
    pub(crate) resets: u64,
}

/// Resets of one port.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Port {
    /// Its number.
    pub(crate) port: u16,
    /// How many.
    pub(crate) resets: u64,
}

/// Resets of the sockets of one owner.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Owner {
    /// Name of the process, made printable.
    pub(crate) comm: String,
    /// Its unit of systemd.
    pub(crate) unit: Option<String>,
    /// Its container.
    pub(crate) container: Option<String>,
    /// How many.
    pub(crate) resets: u64,
}

/// Resets that are muted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MutedResets {
    /// Which end opened the connections.
    pub(crate) direction: String,
    /// The service.
    pub(crate) service: String,
    /// The cause.
    pub(crate) cause: String,
    /// `cause`, `port`, or `detail` for those whose peer or port was told by their details.
    pub(crate) by: String,
    /// Since the daemon started.
    pub(crate) resets: u64,
}

impl Storms {
    /// All of a report, at a moment of both clocks.
    pub(crate) fn new(report: &Report, ktime_ns: u64, unix_ns: u64) -> Self {
        let list = |storms: &[Arc<storm::Storm>]| storms.iter().map(|s| Storm::new(s, ktime_ns, unix_ns)).collect();
        Self {
            active: list(&report.active),
            ended: list(&report.ended),
            muted: report.muted.iter().map(MutedResets::new).collect(),
        }
    }
}

impl Storm {
    /// One of them.
    pub(crate) fn new(storm: &storm::Storm, ktime_ns: u64, unix_ns: u64) -> Self {
        let unix_ms = |at_ns: u64| unix_ns.saturating_sub(ktime_ns.saturating_sub(at_ns)) / 1_000_000;
        let (direction, service, _) = storm.pair;
        let by_cause = CAUSES.iter().zip(storm.by_cause).filter(|(_, count)| *count > 0);
        let evidence = &storm.evidence;
        let example = evidence.example.as_deref().cloned();
        let mut told = Self {
            id: storm.id(),
            direction: direction.name().to_owned(),
            service: service.label(),
            cause: storm.cause().to_owned(),
            active: !storm.over,
            start_unix_ms: unix_ms(storm.start_ns),
            end_unix_ms: storm.over.then(|| unix_ms(storm.last_ns)),
            duration_ms: storm.last_ns.saturating_sub(storm.start_ns) / 1_000_000,
            rate_per_second: rounded(storm.rate),
            usual_rate_per_second: rounded(storm.usual_rate),
            peak_rate_per_second: rounded(storm.peak_rate),
            resets: storm.resets,
            resets_by_cause: by_cause.map(|(cause, count)| ((*cause).to_owned(), count)).collect(),
            details: evidence.details,
            peers: evidence
                .peers
                .first(MOST_LISTED)
                .into_iter()
                .map(|(address, resets)| Peer { address, resets })
                .collect(),
            peers_approximate: evidence.peers.approximate,
            ports: evidence.ports.first(MOST_LISTED).into_iter().map(|(port, resets)| Port { port, resets }).collect(),
            owners: evidence.owners.first(MOST_LISTED).into_iter().map(Owner::new).collect(),
            stacks: storm.by_stack.iter().take(MOST_LISTED).map(StackResets::new).collect(),
            sentence: String::new(),
            remedy: example.as_ref().map(|example| example.remedy.clone()),
            example,
        };
        told.sentence = told.in_words();
        told
    }

    /// What happened.
    fn in_words(&self) -> String {
        let Self { cause, resets, duration_ms, peak_rate_per_second, usual_rate_per_second, .. } = self;
        let whose = match (self.direction.as_str(), self.service.as_str()) {
            (_, "none") => "without a service".to_owned(),
            ("unknown", service) => format!("of service {service}"),
            (direction, service) => format!("of {direction} service {service}"),
        };
        let which = if cause == RECEIVED_NAME { "received".to_owned() } else { format!("sent, cause {cause}") };
        let mut parts = vec![format!(
            "{resets} resets {which}, {whose}, in {}: {peak_rate_per_second:.0} a second at most, where \
             {usual_rate_per_second:.0} were usual",
            time(*duration_ms)
        )];
        let sum: u64 = self.resets_by_cause.values().sum();
        let own = self.resets_by_cause.get(cause).copied().unwrap_or_default();
        if let Some(share) = percent(own, sum).filter(|share| *share < 100) {
            parts.push(format!("{share} % of all resets of that service meanwhile"));
        }
        let listed = |count| percent(count, self.details).unwrap_or_default();
        if let Some(peer) = self.peers.first() {
            let about = if self.peers_approximate { "at most " } else { "" };
            parts.push(format!("most with {} ({about}{} %)", peer.address, listed(peer.resets)));
        }
        if let Some(stack) = self.stacks.first() {
            let from = stack.frames.first().map_or_else(String::new, |frame| format!(" in {frame}"));
            parts.push(format!("{} % from kernel stack {}{from}", listed(stack.resets), stack.stack));
        }
        parts.join("; ") + "."
    }
}

/// The share in whole percent.
fn percent(part: u64, whole: u64) -> Option<u64> {
    (u128::from(part) * 100).checked_div(whole.into()).and_then(|share| u64::try_from(share.min(100)).ok())
}

impl StackResets {
    fn new(share: &StackShare) -> Self {
        Self { stack: share.fingerprint.to_string(), resets: share.resets, frames: share.frames.to_vec() }
    }
}

/// A storm that is under way, for those who may not see whom this host talks to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Brief {
    /// As [`Storm::id`].
    pub(crate) id: String,
    /// Which end opened the connections.
    pub(crate) direction: String,
    /// The service.
    pub(crate) service: String,
    /// The cause.
    pub(crate) cause: String,
    /// When it began, by the wall clock.
    pub(crate) start_unix_ms: u64,
    /// In the newest second.
    pub(crate) rate_per_second: f64,
    /// In its worst second.
    pub(crate) peak_rate_per_second: f64,
    /// So far.
    pub(crate) resets: u64,
}

impl From<Storm> for Brief {
    fn from(storm: Storm) -> Self {
        let Storm { id, direction, service, cause, start_unix_ms, rate_per_second, .. } = storm;
        let Storm { peak_rate_per_second, resets, .. } = storm;
        Self { id, direction, service, cause, start_unix_ms, rate_per_second, peak_rate_per_second, resets }
    }
}

impl Owner {
    fn new((Process { comm, unit, container }, resets): (Process, u64)) -> Self {
        Self { comm, unit, container, resets }
    }
}

/// To thousandths: more digits say nothing, and differ from machine to machine.
fn rounded(rate: f64) -> f64 {
    (rate * 1e3).round() / 1e3
}

impl MutedResets {
    fn new(muted: &Muted) -> Self {
        let (direction, service, cause) = muted.pair;
        Self {
            direction: direction.name().to_owned(),
            service: service.label(),
            cause: CAUSES.get(cause).copied().unwrap_or("unknown").to_owned(),
            by: muted.by.to_owned(),
            resets: muted.resets,
        }
    }
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Told {
    event: &'static str,
    ktime_ns: u64,
    unix_ms: u64,
    phase: &'static str,
    storm: Storm,
}

/// The event of a beginning or an end, without the end of its line.
pub(crate) fn event(change: &Change, ktime_ns: u64, unix_ns: u64) -> String {
    let unix_ms = unix_ns.saturating_sub(ktime_ns.saturating_sub(change.ktime_ns)) / 1_000_000;
    let mut text = line(&Told {
        event: "storm",
        ktime_ns: change.ktime_ns,
        unix_ms,
        phase: change.phase(),
        storm: Storm::new(&change.storm, ktime_ns, unix_ns),
    });
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::tests::change;
    use tcpwatch_common::state::Direction;

    #[test]
    fn storms_are_as_agreed_and_can_be_read_back() {
        let pair = (Direction::Outbound, crate::aggregate::snapshot::Service::Other, storm::RECEIVED);
        let report = Report {
            active: vec![change(false).storm],
            ended: vec![change(true).storm],
            muted: vec![Muted { pair, by: "cause", resets: 7 }],
            ..Report::default()
        };
        let moment = (10_000_000_000, 1_700_000_000_000_000_000);
        let storms = Storms::new(&report, moment.0, moment.1);
        assert_eq!(serde_json::from_str::<Storms>(&line(&storms)).unwrap(), storms);
        let events: String = [false, true].map(|over| event(&change(over), moment.0, moment.1) + "\n").concat();
        crate::golden::check("tests/golden/storms.jsonl", &(line(&storms) + &events));
    }
}
