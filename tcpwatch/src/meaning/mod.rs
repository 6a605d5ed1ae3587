//! What a reset means: a sentence, what to do about it, and the facts that say so. Pure.
//!
//! A wrong cause is worse than none: where the facts allow more than one story, the sentence says what is known, and no
//! more. Where a setting explains it, the remedy names it with its value, the change, and how to undo that.

pub(crate) mod docs;
pub(crate) mod lately;
pub(crate) mod limits;
mod received;
mod sent;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use limits::Limits;

/// What a reset means.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Meaning {
    /// What happened, in one sentence or two.
    pub(crate) sentence: String,
    /// What to do, if anything.
    pub(crate) remedy: String,
    /// The facts that it stands on, those of the sentence among them.
    pub(crate) evidence: BTreeMap<String, Value>,
}

/// What is known of a reset. What is not known is `None`, empty or false.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts<'a> {
    /// It came from the peer; otherwise this host sent it.
    pub(crate) received: bool,
    /// Our cause of a reset sent; empty for a received one.
    pub(crate) cause: &'a str,
    /// The kernel's reason of a reset sent.
    pub(crate) reason: &'a str,
    /// Our end.
    pub(crate) local: Option<SocketAddr>,
    /// The peer's end.
    pub(crate) remote: Option<SocketAddr>,
    /// State of the socket before; empty without one.
    pub(crate) state: &'a str,
    /// How long it was in that state, ms.
    pub(crate) in_state_ms: Option<u64>,
    /// Age of the connection, ms.
    pub(crate) age_ms: Option<u64>,
    /// Flags of the segment that this host answered.
    pub(crate) flags: &'a [String],
    /// What the socket said.
    pub(crate) socket: Option<Socket>,
    /// Whose socket it was.
    pub(crate) owner: Option<Owner<'a>>,
    /// Settings of its network namespace at the time of the question.
    pub(crate) limits: Option<&'a Limits>,
    /// The listener of the local port, as it was read last.
    pub(crate) listener: Option<Listener>,
    /// Both ends are sockets of this host, whose TCP sent no reset to our end.
    pub(crate) sent_by_nobody: bool,
}

/// What is known around a reset, beyond its record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Around {
    /// Settings of its network namespace.
    pub(crate) limits: Option<Arc<Limits>>,
    /// The listener of its local port.
    pub(crate) listener: Option<Listener>,
    /// As [`Facts::sent_by_nobody`].
    pub(crate) by_nobody: bool,
}

/// What a socket said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Socket {
    /// Received and not read.
    pub(crate) unread_bytes: u32,
    /// Written and not sent.
    pub(crate) unsent_bytes: Option<u32>,
    /// Sent and not acknowledged.
    pub(crate) unacked_bytes: u32,
    /// Payload sent.
    pub(crate) sent_bytes: Option<u64>,
    /// Payload received.
    pub(crate) received_bytes: Option<u64>,
    /// Smoothed RTT.
    pub(crate) srtt_us: Option<u32>,
    /// SO_LINGER is on, with this time.
    pub(crate) linger_ms: Option<u64>,
    /// Probes that went unanswered.
    pub(crate) probes: Option<u8>,
}

/// Whose socket it was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owner<'a> {
    /// Name of the process; may be empty.
    pub(crate) comm: &'a str,
    /// Its number.
    pub(crate) pid: Option<u32>,
    /// Unit of systemd.
    pub(crate) unit: Option<&'a str>,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Connections that wait to be accepted.
    pub(crate) queue: u32,
    /// The most that may wait.
    pub(crate) limit: u32,
}

/// Says what a reset means.
pub(crate) fn of(facts: &Facts<'_>) -> Meaning {
    let mut meaning = if facts.received { received::meaning(facts) } else { sent::meaning(facts) };
    let evidence = &mut meaning.evidence;
    let mut note = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            evidence.entry(name.to_owned()).or_insert(value);
        }
    };
    note("local", facts.local.map(|end| end.to_string().into()));
    note("peer", facts.remote.map(|end| end.to_string().into()));
    note("state", (!facts.state.is_empty()).then(|| facts.state.into()));
    note("age_ms", facts.age_ms.map(Value::from));
    note("kernel_reason", (!facts.reason.is_empty()).then(|| facts.reason.into()));
    if let Some(owner) = facts.owner {
        note("comm", (!owner.comm.is_empty()).then(|| owner.comm.into()));
        note("pid", owner.pid.map(Value::from));
        note("unit", owner.unit.map(Value::from));
    }
    meaning
}

impl Meaning {
    fn new(sentence: String, remedy: impl Into<String>) -> Self {
        Self { sentence, remedy: remedy.into(), evidence: BTreeMap::new() }
    }

    fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.evidence.insert(name.to_owned(), value.into());
        self
    }

    fn known<T: Into<Value>>(self, name: &str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.fact(name, value),
            None => self,
        }
    }
}

impl Facts<'_> {
    /// The process as the subject of a sentence.
    fn who(&self) -> String {
        let Some(owner) = self.owner.filter(|owner| !owner.comm.is_empty()) else {
            return "The application".to_owned();
        };
        match (owner.pid, owner.unit) {
            (Some(pid), Some(unit)) => format!("{} (pid {pid}, {unit})", owner.comm),
            (Some(pid), None) => format!("{} (pid {pid})", owner.comm),
            (None, Some(unit)) => format!("{} ({unit})", owner.comm),
            (None, None) => owner.comm.to_owned(),
        }
    }

    /// The peer as the subject of a sentence.
    fn peer(&self) -> String {
        self.remote.map_or_else(|| "a peer".to_owned(), |peer| peer.to_string())
    }

    /// Our port, with its word.
    fn port(&self) -> String {
        self.local.map_or_else(|| "this port".to_owned(), |local| format!("port {}", local.port()))
    }
}

/// The verb for so many.
const fn are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// So many bytes.
fn bytes(count: u64) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

#[cfg(test)]
mod tests;
