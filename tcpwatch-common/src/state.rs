//! TCP states as the kernel numbers them, and the names that users see.

/// `enum tcp_state`, include/net/tcp_states.h. `NewSynRecv` and `TimeWait` belong to minisocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of RFC 9293")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
}

/// One past the highest number of a state: the size of an array indexed by state.
pub const STATES: usize = 13;

impl TcpState {
    /// Every state, in the kernel's order.
    pub const ALL: [Self; 12] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::NewSynRecv,
    ];

    /// The state with this number, `None` for one that no kernel we know has.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The name as `ss` and RFC 9293 write it, with underscores.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::NewSynRecv => "NEW_SYN_RECV",
        }
    }
}

/// Which end opened the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Not known: seen only after it was opened, and no listener tells.
    #[default]
    Unknown = 0,
    /// Accepted by a listener of this host.
    Inbound = 1,
    /// Opened by `connect()` on this host.
    Outbound = 2,
}

impl Direction {
    /// Every direction.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Inbound, Self::Outbound];

    /// The direction with this number; anything else is unknown.
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::Inbound,
            2 => Self::Outbound,
            _ => Self::Unknown,
        }
    }

    /// The value of the metric label `direction`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// `enum tcp_ca_state`, include/net/tcp.h: how the sender judges the path.
pub mod ca_state {
    /// Normal.
    pub const OPEN: u8 = 0;
    /// Duplicate ACKs or SACKs seen, not yet judged a loss.
    pub const DISORDER: u8 = 1;
    /// Congestion window reduced after ECN or local congestion.
    pub const CWR: u8 = 2;
    /// Fast retransmit in progress.
    pub const RECOVERY: u8 = 3;
    /// A retransmission timeout fired.
    pub const LOSS: u8 = 4;
    /// The name of a state, as the kernel's documentation writes it.
    pub const fn name(number: u8) -> &'static str {
        match number {
            OPEN => "Open",
            DISORDER => "Disorder",
            CWR => "CWR",
            RECOVERY => "Recovery",
            LOSS => "Loss",
            _ => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_others_are_refused() {
        for state in TcpState::ALL {
            assert_eq!(TcpState::from_u8(state as u8), Some(state));
        }
        for number in [0, 13, 14, 255] {
            assert_eq!(TcpState::from_u8(number), None);
        }
    }
}
