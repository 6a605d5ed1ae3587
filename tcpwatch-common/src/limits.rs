//! What holds a sender back, and which windows are closed.

/// What a sender with data waits for: the values of the metric label `by`, in the order of the counters. The first three
/// are the kernel's chronographs (`enum tcp_chrono`, include/linux/tcp.h); without data to send it waits for the application.
pub const LIMITS: [&str; 4] = ["congestion_window", "receive_window", "send_buffer", "application"];

/// Whose receive window: the values of the metric label `side`, in the order of the counters.
pub const SIDES: [&str; 2] = ["peer", "local"];

/// Bits of the windows that are zero.
pub mod zero {
    /// The peer's receive window: we may not send.
    pub const PEER: u8 = 1;
    /// Ours: the peer may not send.
    pub const LOCAL: u8 = 2;
}

/// Bits of `ecn_flags`, include/net/tcp_ecn.h.
pub mod ecn {
    /// Both ends agreed on ECN (RFC 3168).
    pub const NEGOTIATED: u8 = 1;
    /// A segment with an ECN mark came in.
    pub const SEEN: u8 = 8;
}

/// Bits that tell of an application which does not keep its connection busy.
pub mod application {
    /// It limits the connection now: less is in flight than the congestion window allows, and nothing waits.
    pub const LIMITS_NOW: u8 = 1;
    /// It limited the last sample of the delivery rate.
    pub const LIMITED_RATE: u8 = 2;
}

/// The initial congestion window, segments (`TCP_INIT_CWND`, include/net/tcp.h).
pub const INITIAL_WINDOW: u32 = 10;

/// What is known of a congestion window that fell between two segments.
#[derive(Clone, Copy, Debug)]
pub struct Fall {
    /// Segments after the fall.
    pub cwnd: u32,
    /// `icsk_ca_state`.
    pub ca_state: u8,
    /// Jiffies between the last data sent before, and the last data sent now.
    pub pause: u32,
    /// Retransmission timeout, jiffies.
    pub rto: u32,
    /// The congestion control decides about the window itself (bbr): the kernel then never restarts it.
    pub own_control: bool,
}

/// Whether the kernel has reduced the window because the connection had paused (RFC 2861,
/// `tcp_slow_start_after_idle_check`): not below the initial window, not after losses.
#[inline(always)]
pub const fn is_idle_restart(fall: &Fall) -> bool {
    fall.ca_state == crate::state::ca_state::OPEN
        && fall.pause > fall.rto
        && fall.pause <= i32::MAX as u32
        && fall.cwnd >= INITIAL_WINDOW
        && !fall.own_control
}

/// Two counts of 32 bits in one word, so that they can be exchanged together.
#[inline(always)]
pub const fn pack(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// What must be added to totals that count 64 bits when a packed pair goes from `old` to `new`. A pair that another program
/// has moved on meanwhile goes back a little: the difference is then negative, and the sum of all stays right.
#[inline(always)]
pub const fn grown(old: u64, new: u64) -> [u64; 2] {
    let low = (new as u32).wrapping_sub(old as u32) as i32;
    let high = ((new >> 32) as u32).wrapping_sub((old >> 32) as u32) as i32;
    [low as i64 as u64, high as i64 as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ca_state;
    use proptest::prelude::*;

    const PAUSED: Fall = Fall { cwnd: 10, ca_state: ca_state::OPEN, pause: 60, rto: 51, own_control: false };

    #[test]
    fn a_restart_needs_a_pause_and_nothing_else_that_explains_the_fall() {
        assert!(is_idle_restart(&PAUSED));
        for other in [
            Fall { pause: 51, ..PAUSED },
            Fall { pause: u32::MAX, ..PAUSED },
            Fall { ca_state: ca_state::CWR, ..PAUSED },
            Fall { cwnd: 7, ..PAUSED },
            Fall { own_control: true, ..PAUSED },
        ] {
            assert!(!is_idle_restart(&other), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn differences_add_up_whatever_order_they_are_taken_in(
            totals in proptest::collection::vec((0_u32..1000, 0_u32..1000), 1..20),
            start in any::<(u32, u32)>(),
        ) {
            let at = |(low, high): (u32, u32)| pack(start.0.wrapping_add(low), start.1.wrapping_add(high));
            let mut flushed = at((0, 0));
            let mut sums = [0_u64; 2];
            for pair in totals.iter().copied() {
                let new = at(pair);
                for (sum, more) in sums.iter_mut().zip(grown(flushed, new)) {
                    *sum = sum.wrapping_add(more);
                }
                flushed = new;
            }
            let last = totals[totals.len() - 1];
            prop_assert_eq!(sums, [u64::from(last.0), u64::from(last.1)]);
        }
    }
}
