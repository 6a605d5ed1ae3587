//! The last states of a connection, four bits each, the newest in the lowest: a word that a program can shift.

use crate::state::TcpState;

const BITS: u32 = 4;
const MASK: u32 = 15;

/// The word after a move from `old` to `new`. A state that was not seen to begin is taken from `old`.
#[inline(always)]
pub const fn push(history: u32, old: u8, new: u8) -> u32 {
    let known = if history & MASK == old as u32 & MASK { history } else { history << BITS | (old as u32 & MASK) };
    if known & MASK == new as u32 & MASK { known } else { known << BITS | (new as u32 & MASK) }
}

/// The states, the newest first.
pub fn states(history: u32) -> impl Iterator<Item = TcpState> {
    (0..u32::BITS / BITS).map_while(move |i| TcpState::from_u8((history >> (i * BITS) & MASK) as u8))
}

/// Whose FIN came first, by the states that it leads through; `None` when there was none, or when that is not known.
pub fn closed_first_locally(history: u32) -> Option<bool> {
    let mut first = None;
    for state in states(history) {
        match state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::TimeWait => first = Some(true),
            TcpState::CloseWait | TcpState::LastAck => first = Some(false),
            _ => {}
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use TcpState::{CloseWait, Established, FinWait1, FinWait2, LastAck, SynRecv, SynSent};

    fn walk(states: &[TcpState]) -> u32 {
        states.windows(2).fold(0, |history, pair| push(history, pair[0] as u8, pair[1] as u8))
    }

    #[test]
    fn states_come_back_newest_first() {
        let history = walk(&[SynSent, Established, FinWait1, FinWait2]);
        assert_eq!(states(history).collect::<Vec<_>>(), [FinWait2, FinWait1, Established, SynSent]);
        assert_eq!(states(0).count(), 0);
        // What begins with no state before.
        assert_eq!(states(push(0, SynSent as u8, SynSent as u8)).collect::<Vec<_>>(), [SynSent]);
        // A connection that was first seen in ESTABLISHED.
        assert_eq!(states(push(0, Established as u8, CloseWait as u8)).collect::<Vec<_>>(), [CloseWait, Established]);
    }

    #[test]
    fn only_the_last_eight_are_kept() {
        let long = walk(&[
            SynSent,
            Established,
            FinWait1,
            FinWait2,
            SynRecv,
            Established,
            CloseWait,
            LastAck,
            SynSent,
            Established,
        ]);
        assert_eq!(states(long).count(), 8);
        assert_eq!(states(long).next(), Some(Established));
    }

    #[test]
    fn who_closed_first_is_told_by_the_states() {
        assert_eq!(closed_first_locally(walk(&[SynSent, Established])), None);
        assert_eq!(closed_first_locally(walk(&[SynSent, Established, FinWait1])), Some(true));
        assert_eq!(closed_first_locally(walk(&[SynRecv, Established, CloseWait, LastAck])), Some(false));
        assert_eq!(closed_first_locally(0), None);
    }
}
