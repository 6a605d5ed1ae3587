//! What is said of a connection, a service, a listener or the host: the words of `explain --json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident = $text:literal;)+) => {
        /// What a verdict says, as a closed list of words that users and scripts rely on.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Id { $($(#[$meta])* $name,)+ }

        impl Id {
            /// Every one.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As users see it.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

ids! {
    /// The path loses packets, and that costs time.
    Loss = "loss";
    /// The reader, here or at the peer, is slower than the path.
    ReceiverWindow = "receiver_window";
    /// The send buffer is smaller than what the path holds.
    SendBuffer = "send_buffer";
    /// The writer is slower than the path.
    Application = "application";
    /// The congestion window is what limits, without loss or queue to explain it.
    CongestionWindow = "congestion_window";
    /// Connections are opened for what one could do.
    NotReused = "not_reused";
    /// The transfer was over before the window had grown.
    SlowStart = "slow_start";
    /// The window is reset after each pause.
    IdleRestart = "idle_restart";
    /// Segments that are nearly empty.
    TinySegments = "tiny_segments";
    /// A small write waits for an ACK that the peer delays.
    NagleDelayedAck = "nagle_delayed_ack";
    /// Most of the round-trip time is queueing.
    Bufferbloat = "bufferbloat";
    /// Nothing comes back.
    PeerVanished = "peer_vanished";
    /// A SYN or its answer was lost.
    SynLost = "syn_lost";
    /// Segments were sent again that had arrived.
    SpuriousRetransmits = "spurious_retransmits";
    /// Full-size segments vanish, small ones pass.
    MtuBlackHole = "mtu_black_hole";
    /// The peer has closed and the application here does not.
    CloseWaitLeak = "close_wait_leak";
    /// Short connections leave their ports in TIME_WAIT.
    TimeWaitPressure = "time_wait_pressure";
    /// One direction is closed and the other stays open for long.
    HalfClosed = "half_closed";
    /// Connections wait to be accepted.
    ListenQueue = "listen_queue";
    /// Handshakes pile up.
    SynBacklog = "syn_backlog";
    /// Nothing limits it but the path itself, or nothing is wanted of it.
    Healthy = "healthy";
    /// Too little happened to tell.
    NotEnoughData = "not_enough_data";
}

/// One answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Verdict {
    /// Which.
    pub(crate) id: Id,
    /// How sure, from 0 to 1.
    pub(crate) confidence: f64,
    /// Share of the window's time that it took, from 0 to 1; null where time is not what it takes.
    pub(crate) share: Option<f64>,
    /// The numbers it stands on, units in the names.
    pub(crate) evidence: Map<String, Value>,
    /// In words.
    pub(crate) sentence: String,
    /// What to do, with the present value and the way back; empty when nothing is to be done here.
    pub(crate) remedy: String,
}

/// What a verdict is about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Subject {
    /// One connection.
    Connection {
        /// Of its socket.
        cookie: u64,
        /// Our end.
        local: String,
        /// The peer's.
        remote: String,
        /// Its state.
        state: String,
        /// The service it is counted under.
        service: String,
        /// The process that holds it, when that is known.
        pid: Option<u32>,
        /// Its name.
        comm: String,
    },
    /// All connections of a direction and service.
    Service {
        /// `inbound` or `outbound`.
        direction: String,
        /// The port, or `other`.
        service: String,
    },
    /// A listening socket.
    Listener {
        /// Address and port.
        address: String,
    },
    /// A network namespace.
    Host {
        /// Its inode number.
        netns: u32,
    },
    /// All connections that are not shown one by one.
    Others {},
}

/// A subject and all that is said of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Explained {
    /// About what.
    pub(crate) subject: Subject,
    /// The time that it stands on, seconds.
    pub(crate) window_s: f64,
    /// `since_open`: all the life of it that the kernel or tcpwatch has kept; `interval`: what was watched for.
    pub(crate) window: String,
    /// The most important first.
    pub(crate) verdicts: Vec<Verdict>,
}

impl Explained {
    /// Whether there is anything to do about it.
    pub(crate) fn is_trouble(&self) -> bool {
        self.verdicts.iter().any(|verdict| !matches!(verdict.id, Id::Healthy | Id::NotEnoughData))
    }
}

impl Subject {
    /// In a line of text.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Connection { local, remote, state, pid, comm, .. } => {
                let owner = pid.map_or_else(String::new, |pid| format!("  {comm}({pid})"));
                format!("{local} -> {remote}  {state}{owner}")
            }
            Self::Service { direction, service } => format!("service {service}, {direction}"),
            Self::Listener { address } => format!("listener {address}"),
            Self::Host { netns } => format!("network namespace {netns}"),
            Self::Others {} => "everything else".to_owned(),
        }
    }
}

/// Makes the evidence of a verdict.
macro_rules! evidence {
    ($($name:ident: $value:expr),+ $(,)?) => {{
        let mut map = serde_json::Map::new();
        $(map.insert(stringify!($name).to_owned(), serde_json::json!($value));)+
        map
    }};
}
pub(crate) use evidence;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_is_written() {
        for id in Id::ALL {
            assert_eq!(serde_json::to_string(id).unwrap(), format!("\"{}\"", id.name()));
        }
    }
}
