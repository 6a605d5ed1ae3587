//! How a connection ended.

use crate::state::TcpState;

/// The values of the metric label `cause` of closed connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CloseCause {
    /// Our FIN came first.
    FinLocal = 0,
    /// The peer's FIN came first.
    FinRemote = 1,
    /// We ended it with a RST.
    ResetSent = 2,
    /// A RST of the peer ended it.
    ResetReceived = 3,
    /// Retransmissions, probes or keepalives were never answered.
    Timeout = 4,
    /// It never reached ESTABLISHED.
    FailedOpen = 5,
}

impl CloseCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::FinLocal, Self::FinRemote, Self::ResetSent, Self::ResetReceived, Self::Timeout, Self::FailedOpen];

    /// The value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FinLocal => "fin_local",
            Self::FinRemote => "fin_remote",
            Self::ResetSent => "reset_sent",
            Self::ResetReceived => "reset_received",
            Self::Timeout => "timeout",
            Self::FailedOpen => "failed_open",
        }
    }

    /// The cause with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What happened to a socket before it reached CLOSE: bits of [`crate::conn::Conn::flags`].
pub mod flag {
    /// Our FIN was first.
    pub const FIN_LOCAL: u8 = 1;
    /// The peer's FIN was first.
    pub const FIN_REMOTE: u8 = 2;
    /// tcp_receive_reset fired.
    pub const RST_RECEIVED: u8 = 4;
    /// It reached ESTABLISHED and was counted as opened or adopted.
    pub const COUNTED: u8 = 8;
    /// It existed before we saw it: earlier totals are not ours.
    pub const PARTIAL: u8 = 16;
    /// The close was counted.
    pub const CLOSED: u8 = 32;
}

/// `ECONNABORTED`: what `tcp_abort` leaves in `sk_err`.
const ECONNABORTED: i32 = 103;
/// `ECONNRESET`: what `tcp_reset` leaves in `sk_err`.
const ECONNRESET: i32 = 104;
/// `EPIPE`: what `tcp_reset` leaves in CLOSE_WAIT.
const EPIPE: i32 = 32;

/// The flag to remember when a connection leaves `old` for `new`; 0 when that move says nothing of who closed first.
#[inline(always)]
pub const fn fin_flag(flags: u8, new: u8) -> u8 {
    if flags & (flag::FIN_LOCAL | flag::FIN_REMOTE) != 0 {
        return 0;
    }
    if new == TcpState::FinWait1 as u8 {
        return flag::FIN_LOCAL;
    }
    if new == TcpState::CloseWait as u8 {
        return flag::FIN_REMOTE;
    }
    0
}

/// The cause of the move from `old` to CLOSE, with the flags gathered on the way and `sk_err`.
///
/// A close that neither FIN, RST nor error explains is one of ours: `tcp_close` with unread data, `tcp_disconnect` and
/// `tcp_abort` all send a RST, the first two after this transition. A received reset is provisional: data that
/// arrives for a socket nobody holds looks the same until the passive reset that follows on the same socket.
#[inline(always)]
pub const fn cause(flags: u8, old: u8, sk_err: i32) -> CloseCause {
    if flags & flag::COUNTED == 0 && (old == TcpState::SynSent as u8 || old == TcpState::SynRecv as u8) {
        return CloseCause::FailedOpen;
    }
    // Without our state there is no flag, but tcp_reset has left its error before the socket closes.
    if flags & flag::RST_RECEIVED != 0 || sk_err == ECONNRESET || sk_err == EPIPE {
        return CloseCause::ResetReceived;
    }
    if sk_err != 0 && sk_err != ECONNABORTED {
        return CloseCause::Timeout;
    }
    // The only states from which FINs alone lead to CLOSE; FIN_WAIT2 goes there when TIME_WAIT becomes a minisock.
    let orderly = old == TcpState::LastAck as u8
        || old == TcpState::FinWait2 as u8
        || old == TcpState::Closing as u8
        || old == TcpState::TimeWait as u8;
    if orderly && sk_err != ECONNABORTED {
        if flags & flag::FIN_REMOTE != 0 {
            return CloseCause::FinRemote;
        }
        if flags & flag::FIN_LOCAL != 0 {
            return CloseCause::FinLocal;
        }
        // First seen after the first FIN: LAST_ACK is only reached through CLOSE_WAIT.
        return if old == TcpState::LastAck as u8 { CloseCause::FinRemote } else { CloseCause::FinLocal };
    }
    CloseCause::ResetSent
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: u8 = flag::COUNTED;

    #[test]
    fn each_way_to_close_has_its_cause() {
        use CloseCause::{FailedOpen, FinLocal, FinRemote, ResetReceived, ResetSent, Timeout};
        use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, SynRecv, SynSent};
        let table = [
            (C | flag::FIN_LOCAL, FinWait2, 0, FinLocal, "close, then TIME_WAIT"),
            (C | flag::FIN_LOCAL, Closing, 0, FinLocal, "both closed at once"),
            (C | flag::FIN_REMOTE, LastAck, 0, FinRemote, "the peer closed first"),
            (C | flag::FIN_REMOTE, CloseWait, 0, ResetSent, "unread data after the peer's FIN"),
            (C, Established, 0, ResetSent, "unread data, linger 0 or disconnect"),
            (C, Established, 103, ResetSent, "ss -K"),
            (C | flag::RST_RECEIVED, Established, 104, ResetReceived, "RST"),
            (C | flag::RST_RECEIVED | flag::FIN_REMOTE, CloseWait, 32, ResetReceived, "RST in CLOSE_WAIT"),
            (C, Established, 104, ResetReceived, "RST, for a socket without state"),
            (C, Established, 110, Timeout, "retransmissions never answered"),
            (C, Established, 113, Timeout, "no route to host, remembered as the soft error"),
            (C | flag::FIN_LOCAL, FinWait1, 110, Timeout, "orphan given up"),
            (C | flag::FIN_LOCAL, FinWait1, 0, ResetSent, "orphan killed for want of memory"),
            (0, SynSent, 110, FailedOpen, "SYN never answered"),
            (flag::RST_RECEIVED, SynSent, 111, FailedOpen, "connection refused"),
            (0, SynRecv, 0, FailedOpen, "handshake never finished"),
            (C, LastAck, 0, FinRemote, "adopted in LAST_ACK"),
            (C, FinWait2, 0, FinLocal, "adopted in FIN_WAIT2"),
        ];
        for (flags, old, err, expected, what) in table {
            assert_eq!(cause(flags, old as u8, err), expected, "{what}");
        }
    }

    #[test]
    fn only_the_first_fin_is_remembered() {
        assert_eq!(fin_flag(0, TcpState::FinWait1 as u8), flag::FIN_LOCAL);
        assert_eq!(fin_flag(0, TcpState::CloseWait as u8), flag::FIN_REMOTE);
        assert_eq!(fin_flag(flag::FIN_REMOTE, TcpState::LastAck as u8), 0);
        assert_eq!(fin_flag(flag::FIN_LOCAL, TcpState::CloseWait as u8), 0);
        assert_eq!(fin_flag(0, TcpState::Established as u8), 0);
    }
}
