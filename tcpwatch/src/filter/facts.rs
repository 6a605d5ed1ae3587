//! THE TABLE of facts: the word for each, what may follow it, and what it means.

use tcpwatch_common::close::CloseCause;
use tcpwatch_common::record::Kind;
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::{Direction, TcpState};

/// What can be asked of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fact {
    /// Asked of both ends; no subject is asked for it.
    Port,
    LocalPort,
    PeerPort,
    /// Asked of both ends; no subject is asked for it.
    Host,
    Local,
    Peer,
    State,
    Direction,
    Service,
    Pid,
    Comm,
    User,
    Cgroup,
    Unit,
    Container,
    Netns,
    Cookie,
    Kind,
    Cause,
    Origin,
    Reason,
    Srtt,
    MinRtt,
    Rto,
    Age,
    Cwnd,
    InFlight,
    Retransmits,
    Sent,
    Received,
    Unread,
    Unsent,
    Unacked,
    Mss,
}

impl Fact {
    /// Whether it is of the owner of a socket.
    pub(crate) const fn is_of_owner(self) -> bool {
        matches!(self, Self::Pid | Self::Comm | Self::User | Self::Cgroup | Self::Unit | Self::Container)
    }
}

/// What follows the word of a fact.
#[derive(Clone, Copy)]
pub(crate) enum Takes {
    /// A port.
    Port,
    /// A whole number.
    Number,
    /// A time, kept in µs.
    Time,
    /// A size, kept in bytes.
    Bytes,
    /// An address or a network.
    Address,
    /// A user: a name of /etc/passwd or a number.
    User,
    /// One of these names.
    OneOf(fn() -> Vec<&'static str>),
    /// Any name; `*` stands for any characters.
    Name,
    /// A path, or names in it.
    Path,
}

impl Takes {
    /// How it is written in the documentation.
    pub(crate) const fn shown(self) -> &'static str {
        match self {
            Self::Port | Self::Number => "N",
            Self::Time => "> TIME",
            Self::Bytes => "> SIZE",
            Self::Address => "ADDR[/LEN]",
            Self::User => "NAME|UID",
            Self::OneOf(_) | Self::Name => "NAME",
            Self::Path => "PATH|NAME",
        }
    }

    /// Whether it can be compared with `<` and `>`.
    pub(crate) const fn ordered(self) -> bool {
        matches!(self, Self::Port | Self::Number | Self::Time | Self::Bytes)
    }
}

/// A line of the table.
pub(crate) struct Entry {
    pub(crate) fact: Fact,
    /// One word, or two for what is of one end.
    pub(crate) word: &'static str,
    /// Other words for the same.
    pub(crate) also: &'static [&'static str],
    pub(crate) takes: Takes,
    pub(crate) help: &'static str,
}

macro_rules! table {
    ($($fact:ident: $word:literal $([$($also:literal),+])?, $takes:expr, $help:literal;)+) => {
        /// The table, in the order of the documentation. Two words come before the first of them alone.
        pub(crate) const TABLE: &[Entry] = &[$(Entry {
            fact: Fact::$fact, word: $word, also: &[$($($also),+)?], takes: $takes, help: $help,
        },)+];
    };
}

use Takes::{Address, Bytes, Name, Number, OneOf, Path, Port, Time, User};

table! {
    Port: "port", Port, "port of either end";
    LocalPort: "local port" ["sport"], Port, "our port";
    PeerPort: "peer port" ["dport", "remote port"], Port, "the peer's port";
    Host: "host", Address, "address of either end";
    Local: "local", Address, "our address";
    Peer: "peer" ["remote"], Address, "the peer's address";
    State: "state", OneOf(states), "state of the connection; of an event, at that moment";
    Direction: "direction", OneOf(directions), "inbound, outbound or unknown";
    Service: "service", Name, "the service that it is counted under: a port, other or none";
    Pid: "pid", Number, "process that owns it";
    Comm: "comm" ["process"], Name, "name of that process, as it is shown";
    User: "user" ["uid"], User, "user of that process; of the socket, while no process is known";
    Cgroup: "cgroup", Path, "control group of that process: its path, the end of it, or names in it";
    Unit: "unit", Name, "the innermost systemd unit in that control group";
    Container: "container", Name, "id of the container, its beginning with `*`";
    Netns: "netns", Number, "inode of the network namespace";
    Cookie: "cookie", Number, "the kernel's cookie of the socket";
    Kind: "kind", OneOf(kinds), "kind of the event";
    Cause: "cause", OneOf(causes), "cause of the event: of a close, a retransmission or a reset";
    Origin: "origin", OneOf(origins), "origin of a reset that was sent";
    Reason: "reason", Name, "the kernel's reason for a reset";
    Srtt: "srtt" ["rtt"], Time, "smoothed round-trip time";
    MinRtt: "min_rtt", Time, "smallest round-trip time in the kernel's window";
    Rto: "rto", Time, "retransmission timeout";
    Age: "age", Time, "since the SYN was sent, or it was first seen; of a close, how long it lasted";
    Cwnd: "cwnd", Number, "congestion window, segments";
    InFlight: "in_flight", Number, "segments in flight";
    Retransmits: "retransmits", Number, "segments sent again";
    Sent: "sent", Bytes, "payload sent";
    Received: "received", Bytes, "payload received";
    Unread: "unread", Bytes, "received, and not read by the application";
    Unsent: "unsent", Bytes, "written, and not sent";
    Unacked: "unacked", Bytes, "sent, and not acknowledged";
    Mss: "mss", Bytes, "maximum segment size";
}

/// Words that take nothing.
pub(crate) const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
/// Words that join.
pub(crate) const JOINTS: [&str; 4] = ["and", "or", "not", "known"];

fn states() -> Vec<&'static str> {
    TcpState::ALL.iter().map(|state| state.name()).collect()
}

fn directions() -> Vec<&'static str> {
    Direction::ALL.iter().map(|direction| direction.name()).collect()
}

/// The kinds of events; a periodic reading is none.
pub(crate) fn kinds() -> Vec<&'static str> {
    Kind::ALL.iter().filter(|kind| **kind != Kind::Sample).map(|kind| kind.name()).collect()
}

fn causes() -> Vec<&'static str> {
    let closes = CloseCause::ALL.iter().map(|cause| cause.name());
    let retransmits = RetransmitCause::ALL.iter().map(|cause| cause.name());
    let resets = ResetCause::ALL.iter().map(|cause| cause.name());
    let mut all: Vec<_> = closes.chain(retransmits).chain(resets).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn origins() -> Vec<&'static str> {
    ResetOrigin::ALL.iter().map(|origin| origin.name()).collect()
}

/// The line of a fact.
pub(crate) fn entry(fact: Fact) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.fact == fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_none_joins() {
        let mut words: Vec<_> =
            TABLE.iter().flat_map(|entry| [entry.word].into_iter().chain(entry.also.to_vec())).collect();
        words.extend(FAMILIES.iter().chain(&JOINTS));
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
        for entry in TABLE {
            assert_eq!(super::entry(entry.fact).unwrap().word, entry.word, "a fact has one line");
        }
    }
}
