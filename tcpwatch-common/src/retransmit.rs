//! Why a segment was sent again.

use crate::state::ca_state;

/// The values of the metric label `cause` of retransmitted segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RetransmitCause {
    /// Duplicate ACKs, SACK or RACK said that it was lost.
    Fast = 0,
    /// The retransmission timer fired (RFC 6298).
    Timeout = 1,
    /// Tail loss probe (RFC 8985): a question, not a loss.
    TailLossProbe = 2,
    /// The SYN of an outgoing connection.
    Syn = 3,
    /// The SYN-ACK of an incoming one.
    SynAck = 4,
    /// Anything else: zero-window probes that resend data, Fast Open, path MTU probes.
    Other = 5,
}

impl RetransmitCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Fast, Self::Timeout, Self::TailLossProbe, Self::Syn, Self::SynAck, Self::Other];

    /// The value of the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Timeout => "timeout",
            Self::TailLossProbe => "tail_loss_probe",
            Self::Syn => "syn",
            Self::SynAck => "syn_ack",
            Self::Other => "other",
        }
    }

    /// The cause with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// `ICSK_TIME_LOSS_PROBE`, include/net/inet_connection_sock.h.
pub const ICSK_TIME_LOSS_PROBE: u8 = 5;
/// `TCPHDR_SYN`, include/net/tcp.h.
pub const TCPHDR_SYN: u8 = 0x02;

/// What tcp_retransmit_skb can see of the sender's situation.
#[derive(Clone, Copy, Debug)]
pub struct RetransmitFacts {
    /// TCP flags in the control block of the segment.
    pub tcp_flags: u8,
    /// `icsk_pending`: the timer that is running, or was when it fired.
    pub pending: u8,
    /// `icsk_ca_state`.
    pub ca_state: u8,
    /// `icsk_retransmits`: timeouts since the last ACK that made progress.
    pub retransmits: u8,
    /// `snd_wnd`, bytes.
    pub snd_wnd: u32,
    /// `undo_marker`: 0 unless a loss began that may turn out to be none.
    pub undo_marker: u32,
}

/// The cause, by the order in which the facts are conclusive.
#[inline(always)]
pub const fn cause(facts: &RetransmitFacts) -> RetransmitCause {
    if facts.tcp_flags & TCPHDR_SYN != 0 {
        return RetransmitCause::Syn;
    }
    let recovering = facts.ca_state == ca_state::RECOVERY || facts.ca_state == ca_state::LOSS;
    if facts.pending == ICSK_TIME_LOSS_PROBE && !recovering {
        return RetransmitCause::TailLossProbe;
    }
    // The queue of what is marked lost is also worked off after an undo has left Recovery: the kernel counts all of it outside
    // Loss as TCPFastRetrans (`tcp_xmit_retransmit_queue`).
    if facts.ca_state != ca_state::LOSS {
        return RetransmitCause::Fast;
    }
    // The first ACK after a timeout clears the number of timeouts, and clocks out the rest of what was lost. Those who enter
    // the state without a loss (`tcp_non_congestion_loss_retransmit`: path MTU, Fast Open) clear the marker.
    if facts.retransmits == 0 && facts.undo_marker != 0 {
        return RetransmitCause::Timeout;
    }
    if facts.retransmits > 0 {
        // A peer that closed its window and is probed with data is not losing anything.
        return if facts.snd_wnd == 0 { RetransmitCause::Other } else { RetransmitCause::Timeout };
    }
    RetransmitCause::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: RetransmitFacts = RetransmitFacts {
        tcp_flags: 0x10,
        pending: 0,
        ca_state: ca_state::OPEN,
        retransmits: 0,
        snd_wnd: 65_535,
        undo_marker: 0,
    };

    #[test]
    fn each_cause_has_its_facts() {
        use RetransmitCause::{Fast, Other, Syn, TailLossProbe, Timeout};
        let table = [
            (RetransmitFacts { tcp_flags: TCPHDR_SYN, ca_state: ca_state::LOSS, retransmits: 1, ..QUIET }, Syn),
            (RetransmitFacts { pending: 5, ..QUIET }, TailLossProbe),
            (RetransmitFacts { pending: 5, ca_state: ca_state::DISORDER, ..QUIET }, TailLossProbe),
            (RetransmitFacts { pending: 5, ca_state: ca_state::RECOVERY, ..QUIET }, Fast),
            (RetransmitFacts { ca_state: ca_state::RECOVERY, ..QUIET }, Fast),
            (RetransmitFacts { ca_state: ca_state::LOSS, retransmits: 3, ..QUIET }, Timeout),
            (RetransmitFacts { pending: 1, ca_state: ca_state::LOSS, retransmits: 1, ..QUIET }, Timeout),
            (RetransmitFacts { ca_state: ca_state::LOSS, retransmits: 2, snd_wnd: 0, ..QUIET }, Other),
            (RetransmitFacts { ca_state: ca_state::LOSS, undo_marker: 7, ..QUIET }, Timeout),
            (RetransmitFacts { ca_state: ca_state::LOSS, ..QUIET }, Other),
            (QUIET, Fast),
            (RetransmitFacts { ca_state: ca_state::DISORDER, ..QUIET }, Fast),
        ];
        for (facts, expected) in table {
            assert_eq!(cause(&facts), expected, "{facts:?}");
        }
    }
}
