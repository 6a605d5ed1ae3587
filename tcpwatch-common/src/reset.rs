//! Why this host sent a RST: a bounded cause of our own beside the kernel's reason, which alone misleads.

use crate::stack::path;
use crate::state::TcpState;

/// Who decided to send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ResetOrigin {
    /// `tcp_send_active_reset`: something on this host ended a connection.
    Active = 0,
    /// `tcp_v4_send_reset`, `tcp_v6_send_reset`: the answer to a segment that fits no connection.
    Passive = 1,
}

impl ResetOrigin {
    /// Every origin, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Active, Self::Passive];

    /// The value of the metric label `origin`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// The values of the metric label `cause` of resets sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ResetCause {
    /// The facts do not tell.
    Unknown = 0,
    /// `close()` with SO_LINGER on and a time of 0.
    LingerZero = 1,
    /// `close()` with received bytes that the application never read.
    UnreadData = 2,
    /// A SYN for a port where nothing listens.
    NoListener = 3,
    /// Data or an ACK for a connection that no longer exists here.
    ClosedSocket = 4,
    /// A segment that a socket in TIME_WAIT cannot accept.
    TimeWait = 5,
    /// Keepalive probes were not answered.
    Keepalive = 6,
    /// Too many orphans, or no TCP memory left.
    Memory = 7,
    /// Killed by another process (`ss -K`, sock_diag, BPF).
    Destroyed = 8,
    /// The accept queue was full and tcp_abort_on_overflow is on.
    AcceptQueue = 9,
    /// An ACK that acknowledges nothing we sent.
    BadAck = 10,
    /// `connect(AF_UNSPEC)` on a live connection.
    Disconnect = 11,
    /// A listener was closed with connections in its accept queue.
    ListenerClosed = 12,
}

impl ResetCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Unknown,
        Self::LingerZero,
        Self::UnreadData,
        Self::NoListener,
        Self::ClosedSocket,
        Self::TimeWait,
        Self::Keepalive,
        Self::Memory,
        Self::Destroyed,
        Self::AcceptQueue,
        Self::BadAck,
        Self::Disconnect,
        Self::ListenerClosed,
    ];

    /// The value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::LingerZero => "linger_zero",
            Self::UnreadData => "unread_data",
            Self::NoListener => "no_listener",
            Self::ClosedSocket => "closed_socket",
            Self::TimeWait => "time_wait",
            Self::Keepalive => "keepalive",
            Self::Memory => "memory",
            Self::Destroyed => "destroyed",
            Self::AcceptQueue => "accept_queue",
            Self::BadAck => "bad_ack",
            Self::Disconnect => "disconnect",
            Self::ListenerClosed => "listener_closed",
        }
    }

    /// The cause with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What a kernel reason means to us, before the socket is looked at. The numbers differ between kernels, so the table
/// from reason to hint is made by the daemon from the names in the running kernel's BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReasonHint {
    /// No reason, or one that says nothing.
    None = 0,
    /// The segment belongs to no socket.
    NoSocket = 1,
    /// Only the state says more: disconnect, linger 0, or killed.
    State = 2,
    /// A SYN where none is acceptable, or an overflowing accept queue.
    InvalidSyn = 3,
    /// Conclusive: unread data at close.
    UnreadData = 4,
    /// Conclusive: data for a socket that nobody holds any more.
    ClosedSocket = 5,
    /// Conclusive.
    TimeWait = 6,
    /// Conclusive.
    Keepalive = 7,
    /// Conclusive.
    Memory = 8,
    /// Conclusive.
    BadAck = 9,
    /// Conclusive.
    Disconnect = 10,
}

impl ReasonHint {
    /// The hint for a name of `enum sk_rst_reason` (include/net/rstreason.h) without its prefix.
    pub fn from_kernel_name(name: &str) -> Self {
        match name {
            "NO_SOCKET" => Self::NoSocket,
            "TCP_STATE" => Self::State,
            "INVALID_SYN" => Self::InvalidSyn,
            "TCP_ABORT_ON_CLOSE" => Self::UnreadData,
            "TCP_ABORT_ON_DATA" => Self::ClosedSocket,
            "TCP_TIMEWAIT_SOCKET" => Self::TimeWait,
            "TCP_KEEPALIVE_TIMEOUT" => Self::Keepalive,
            "TCP_ABORT_ON_MEMORY" => Self::Memory,
            "TCP_INVALID_ACK_SEQUENCE" | "TCP_TOO_OLD_ACK" | "TCP_ACK_UNSENT_DATA" | "TCP_OLD_ACK" | "TCP_FLAGS" => {
                Self::BadAck
            }
            "TCP_DISCONNECT_WITH_DATA" => Self::Disconnect,
            _ => Self::None,
        }
    }

    /// The hint with this number; anything else says nothing.
    #[inline(always)]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::NoSocket,
            2 => Self::State,
            3 => Self::InvalidSyn,
            4 => Self::UnreadData,
            5 => Self::ClosedSocket,
            6 => Self::TimeWait,
            7 => Self::Keepalive,
            8 => Self::Memory,
            9 => Self::BadAck,
            10 => Self::Disconnect,
            _ => Self::None,
        }
    }
}

/// How many kernel reasons the table holds; higher numbers count as the last.
pub const REASONS: usize = 64;
/// `SHUTDOWN_MASK`, include/net/sock.h: both directions shut, as only `close()` leaves them before a reset.
const SHUTDOWN_MASK: u8 = 3;

/// Which fields of a record are facts: a socket that is none has no bytes, and that is not the same as 0 bytes.
pub mod known {
    /// There was a full socket: what is read from it.
    pub const SOCKET: u8 = 1;
    /// There was a segment: its sequence number, acknowledgement number and flags.
    pub const SEGMENT: u8 = 2;
    /// SO_LINGER was on; its time.
    pub const LINGER: u8 = 4;
    /// No process held the socket any more.
    pub const ORPHAN: u8 = 8;
}

/// What a reset program can see.
#[derive(Clone, Copy, Debug)]
pub struct ResetFacts {
    /// Which function sent it.
    pub origin: ResetOrigin,
    /// What the kernel's reason means.
    pub hint: ReasonHint,
    /// `skc_state`; 0 without a socket.
    pub state: u8,
    /// `sk_shutdown`; 0 without a full socket.
    pub shutdown: u8,
    /// SOCK_LINGER is set and `sk_lingertime` is 0.
    pub linger_zero: bool,
    /// No process holds the socket, or none ever did.
    pub orphan: bool,
    /// Received bytes that the application has not read.
    pub unread: u32,
    /// A listener whose queue of connections to accept is full: with tcp_abort_on_overflow it answers the ACK that would
    /// complete a handshake like one that completes none.
    pub queue_full: bool,
    /// TCP flags of the causing segment (passive resets).
    pub tcp_flags: u8,
    /// Bits of [`crate::stack::path`]; 0 where the stack tells nothing.
    pub path: u64,
}

/// Flag bits of the 14th byte of a TCP header.
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// The cause of a reset.
#[inline(always)]
pub const fn cause(facts: &ResetFacts) -> ResetCause {
    match facts.hint {
        ReasonHint::UnreadData => ResetCause::UnreadData,
        ReasonHint::ClosedSocket => ResetCause::ClosedSocket,
        ReasonHint::TimeWait => ResetCause::TimeWait,
        ReasonHint::Keepalive => ResetCause::Keepalive,
        ReasonHint::Memory => ResetCause::Memory,
        ReasonHint::BadAck => ResetCause::BadAck,
        // tcp_disconnect in a state that needs no reset but for unsent data: whoever called it is the cause.
        ReasonHint::Disconnect if facts.path & path::KNOWN != 0 => by_path(facts, false),
        ReasonHint::Disconnect => ResetCause::Disconnect,
        ReasonHint::NoSocket => no_socket(facts.tcp_flags),
        // tcp_check_req answers an ACK that the full accept queue cannot take with the reason of a bad SYN.
        ReasonHint::InvalidSyn if facts.tcp_flags & TCP_SYN == 0 => ResetCause::AcceptQueue,
        ReasonHint::InvalidSyn => ResetCause::Unknown,
        ReasonHint::State => active(facts, false),
        ReasonHint::None => match facts.origin {
            ResetOrigin::Active => active(facts, true),
            ResetOrigin::Passive => passive(facts),
        },
    }
}

const fn no_socket(tcp_flags: u8) -> ResetCause {
    if tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN { ResetCause::NoListener } else { ResetCause::ClosedSocket }
}

/// `unexplained`: the kernel gave no reason at all, or one that we know nothing of.
const fn active(facts: &ResetFacts, unexplained: bool) -> ResetCause {
    if facts.path & path::KNOWN != 0 {
        return by_path(facts, unexplained);
    }
    if facts.state != TcpState::Close as u8 {
        // tcp_abort resets before it closes. So does the timer of an orphan in FIN_WAIT2, and, on kernels without
        // reasons, that of keepalive.
        let timer = facts.orphan && facts.state == TcpState::FinWait2 as u8;
        return if unexplained || timer { ResetCause::Unknown } else { ResetCause::Destroyed };
    }
    if facts.shutdown & SHUTDOWN_MASK != SHUTDOWN_MASK {
        // connect(AF_UNSPEC) is called on a socket that somebody holds.
        return if facts.orphan { ResetCause::ListenerClosed } else { ResetCause::Disconnect };
    }
    if facts.linger_zero && !(unexplained && facts.unread > 0) {
        return ResetCause::LingerZero;
    }
    if unexplained && facts.unread > 0 { ResetCause::UnreadData } else { ResetCause::Unknown }
}

/// By the functions on the stack, which leave no doubt.
const fn by_path(facts: &ResetFacts, unexplained: bool) -> ResetCause {
    if facts.path & path::ABORT != 0 {
        ResetCause::Destroyed
    } else if facts.path & path::LISTEN_STOP != 0 {
        ResetCause::ListenerClosed
    } else if facts.path & path::CLOSE != 0 {
        if facts.path & path::DISCONNECT != 0 {
            ResetCause::LingerZero
        } else if unexplained && facts.unread > 0 {
            ResetCause::UnreadData
        } else {
            ResetCause::Unknown
        }
    } else if facts.path & path::DISCONNECT != 0 {
        ResetCause::Disconnect
    } else if facts.path & path::MEMORY != 0 {
        ResetCause::Memory
    } else if facts.path & path::KEEPALIVE != 0 && facts.state != TcpState::FinWait2 as u8 {
        ResetCause::Keepalive
    } else {
        ResetCause::Unknown
    }
}

const fn passive(facts: &ResetFacts) -> ResetCause {
    const LISTEN: u8 = TcpState::Listen as u8;
    const TIME_WAIT: u8 = TcpState::TimeWait as u8;
    match facts.state {
        0 => no_socket(facts.tcp_flags),
        TIME_WAIT => ResetCause::TimeWait,
        LISTEN if facts.queue_full => ResetCause::AcceptQueue,
        LISTEN => ResetCause::BadAck,
        _ if facts.shutdown & SHUTDOWN_MASK == SHUTDOWN_MASK => ResetCause::ClosedSocket,
        _ => ResetCause::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: ResetFacts = ResetFacts {
        origin: ResetOrigin::Active,
        hint: ReasonHint::State,
        state: TcpState::Close as u8,
        shutdown: 3,
        linger_zero: false,
        orphan: false,
        unread: 0,
        queue_full: false,
        tcp_flags: 0,
        path: 0,
    };
    const PASSIVE: ResetFacts = ResetFacts {
        origin: ResetOrigin::Passive,
        hint: ReasonHint::NoSocket,
        state: 0,
        shutdown: 0,
        tcp_flags: TCP_ACK,
        ..ACTIVE
    };
    /// A kernel that gives no reasons.
    const OLD: ResetFacts = ResetFacts { hint: ReasonHint::None, ..ACTIVE };

    #[test]
    fn each_cause_has_its_facts() {
        use ResetCause::{
            AcceptQueue, BadAck, ClosedSocket, Destroyed, Disconnect, LingerZero, ListenerClosed, NoListener, TimeWait,
            Unknown, UnreadData,
        };
        let established = TcpState::Established as u8;
        let table = [
            (ResetFacts { linger_zero: true, ..ACTIVE }, LingerZero, "close with linger 0"),
            (ResetFacts { linger_zero: true, shutdown: 0, ..ACTIVE }, Disconnect, "connect(AF_UNSPEC) with linger 0"),
            (ResetFacts { shutdown: 0, ..ACTIVE }, Disconnect, "connect(AF_UNSPEC)"),
            (ResetFacts { shutdown: 0, orphan: true, ..ACTIVE }, ListenerClosed, "never accepted"),
            (ACTIVE, Unknown, "close, for a reason the kernel does not give"),
            (ResetFacts { state: established, shutdown: 0, ..ACTIVE }, Destroyed, "ss -K"),
            (ResetFacts { state: 5, orphan: true, ..ACTIVE }, Unknown, "FIN_WAIT2 given up, or ss -K"),
            (ResetFacts { hint: ReasonHint::UnreadData, ..ACTIVE }, UnreadData, "unread data"),
            (ResetFacts { unread: 1, ..OLD }, UnreadData, "old kernel: unread data"),
            (OLD, Unknown, "old kernel: unread data, a linger time below 0 or memory"),
            (ResetFacts { linger_zero: true, ..OLD }, LingerZero, "old kernel: linger 0"),
            (ResetFacts { linger_zero: true, unread: 1, ..OLD }, UnreadData, "old kernel: unread data comes first"),
            (ResetFacts { state: established, ..OLD }, Unknown, "old kernel: one of many"),
            (ResetFacts { tcp_flags: TCP_SYN, ..PASSIVE }, NoListener, "SYN to a closed port"),
            (ResetFacts { tcp_flags: TCP_SYN | TCP_ACK, ..PASSIVE }, ClosedSocket, "a SYN-ACK that nobody asked for"),
            (PASSIVE, ClosedSocket, "data for no socket"),
            (ResetFacts { hint: ReasonHint::InvalidSyn, state: 10, ..PASSIVE }, AcceptQueue, "overflow"),
            (ResetFacts { hint: ReasonHint::InvalidSyn, state: 10, tcp_flags: 18, ..PASSIVE }, Unknown, "bad SYN"),
            (ResetFacts { hint: ReasonHint::BadAck, state: 10, ..PASSIVE }, BadAck, "data to a listener"),
            (ResetFacts { hint: ReasonHint::None, state: 10, ..PASSIVE }, BadAck, "old kernel: data to a listener"),
            (
                ResetFacts { hint: ReasonHint::None, state: 10, queue_full: true, ..PASSIVE },
                AcceptQueue,
                "old: overflow",
            ),
            (ResetFacts { hint: ReasonHint::None, state: 6, ..PASSIVE }, TimeWait, "old kernel: TIME_WAIT"),
            (ResetFacts { hint: ReasonHint::None, tcp_flags: 2, ..PASSIVE }, NoListener, "old kernel: closed port"),
            (
                ResetFacts { hint: ReasonHint::None, state: 7, shutdown: 3, ..PASSIVE },
                ClosedSocket,
                "old kernel: orphan",
            ),
        ];
        for (facts, expected, what) in table {
            assert_eq!(cause(&facts), expected, "{what}");
        }
    }

    #[test]
    fn the_stack_decides_where_it_is_known() {
        use path::{ABORT, CLOSE, DISCONNECT, KEEPALIVE, KNOWN, LISTEN_STOP, MEMORY};
        let established = TcpState::Established as u8;
        let table = [
            (ResetFacts { path: CLOSE | DISCONNECT, ..ACTIVE }, ResetCause::LingerZero),
            (ResetFacts { path: DISCONNECT, ..ACTIVE }, ResetCause::Disconnect),
            (ResetFacts { path: LISTEN_STOP | DISCONNECT, shutdown: 0, ..ACTIVE }, ResetCause::ListenerClosed),
            (ResetFacts { path: LISTEN_STOP | CLOSE | DISCONNECT, ..ACTIVE }, ResetCause::ListenerClosed),
            (ResetFacts { path: ABORT, state: established, ..OLD }, ResetCause::Destroyed),
            (ResetFacts { path: KEEPALIVE, state: established, ..OLD }, ResetCause::Keepalive),
            (ResetFacts { path: KEEPALIVE, state: TcpState::FinWait2 as u8, ..ACTIVE }, ResetCause::Unknown),
            (ResetFacts { path: MEMORY, state: TcpState::FinWait1 as u8, ..OLD }, ResetCause::Memory),
            (ResetFacts { path: CLOSE, unread: 9, ..OLD }, ResetCause::UnreadData),
            (ResetFacts { path: CLOSE, linger_zero: true, ..OLD }, ResetCause::Unknown),
            (ResetFacts { hint: ReasonHint::Disconnect, path: CLOSE | DISCONNECT, ..ACTIVE }, ResetCause::LingerZero),
            (ResetFacts { hint: ReasonHint::UnreadData, path: CLOSE, ..ACTIVE }, ResetCause::UnreadData),
        ];
        for (facts, expected) in table {
            assert_eq!(cause(&ResetFacts { path: facts.path | KNOWN, ..facts }), expected, "{facts:?}");
        }
    }

    #[test]
    fn hints_survive_the_way_through_the_table() {
        for name in ["NO_SOCKET", "TCP_STATE", "INVALID_SYN", "TCP_FLAGS", "TCP_ABORT_ON_CLOSE", "ERROR"] {
            let hint = ReasonHint::from_kernel_name(name);
            assert_eq!(ReasonHint::from_u8(hint as u8), hint, "{name}");
        }
        assert_eq!(ReasonHint::from_kernel_name("SOMETHING_NEW"), ReasonHint::None);
    }
}
