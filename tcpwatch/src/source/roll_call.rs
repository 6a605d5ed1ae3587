//! Finds the connections whose end was not heard of, after records were lost or withheld, and now and then in any case: they
//! would stay in the table as if they were open, until it is full.

use std::collections::HashSet;

use tcpwatch_common::counters::pass;

use crate::daemon::Inbox;
use crate::kernel::iterate;
use crate::kernel::maps::Maps;
use crate::sys;

/// How often the roll is called at most, ns.
const EVERY_NS: u64 = 5_000_000_000;
/// How often it is called when nothing is known to be lost, ns: a kernel may fail to tell of an end all the same.
const AT_LEAST_EVERY_NS: u64 = 60_000_000_000;
/// A call may take this share of the time.
const SHARE: u64 = 100;

/// Compares the table with the kernel's sockets.
#[derive(Default)]
pub(crate) struct RollCall {
    next_ns: u64,
    /// When it is called though nothing was lost.
    at_least_ns: u64,
    /// How much was lost when the roll was called last.
    lost: u64,
    /// Who did not answer then.
    missing: HashSet<u64>,
}

impl RollCall {
    /// To be called once a tick, after the ring was emptied; `lost` counts what was lost or withheld.
    pub(crate) fn call(&mut self, inbox: &mut Inbox, maps: &mut Maps, ebpf: &aya::Ebpf, lost: u64) {
        let began = sys::monotonic_ns();
        let due = lost != self.lost || !self.missing.is_empty() || began >= self.at_least_ns;
        if began < self.next_ns || !due {
            return;
        }
        let known: HashSet<u64> = inbox.intake.aggregator().cookies().collect();
        match iterate::tracked_for(pass::ROLL_CALL, maps, ebpf) {
            Ok(answer) => {
                self.lost = lost;
                for cookie in self.absent(known, &answer) {
                    inbox.intake.gone(cookie);
                }
            }
            Err(error) => log::debug!("connections whose end was lost stay in the table: {error}"),
        }
        let took = sys::monotonic_ns() - began;
        self.next_ns = began + EVERY_NS.max(took * SHARE);
        self.at_least_ns = began + AT_LEAST_EVERY_NS;
    }

    /// Of those that are known, who is missing for the second time. Once is no proof: a connection may end before its turn,
    /// with the record of its end still in the ring, and the kernel passes over a socket when one before it goes.
    fn absent(&mut self, known: HashSet<u64>, answer: &[u8]) -> Vec<u64> {
        let present: HashSet<u64> =
            answer.chunks_exact(8).filter_map(|cookie| Some(u64::from_ne_bytes(cookie.try_into().ok()?))).collect();
        let (gone, missing) = known
            .into_iter()
            .filter(|cookie| !present.contains(cookie))
            .partition::<HashSet<_>, _>(|cookie| self.missing.contains(cookie));
        self.missing = missing;
        gone.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_missing_twice_is_gone() {
        let mut roll = RollCall::default();
        let answer = |cookies: &[u64]| cookies.iter().flat_map(|cookie| cookie.to_ne_bytes()).collect::<Vec<_>>();
        let mut absent = |known: &[u64], present: &[u64]| {
            let mut gone = roll.absent(known.iter().copied().collect(), &answer(present));
            gone.sort_unstable();
            gone
        };
        assert_eq!(absent(&[1, 2, 3], &[2, 9]), [0_u64; 0]);
        assert_eq!(absent(&[1, 2, 3, 4], &[2, 3]), [1], "the third has answered late, the fourth is missing once");
        assert_eq!(absent(&[2, 3, 4, 5], &[2]), [4]);
        assert_eq!(absent(&[2], &[2]), [0_u64; 0], "the end of the third was heard of, that of the fifth too");
        assert!(roll.missing.is_empty());
    }
}
