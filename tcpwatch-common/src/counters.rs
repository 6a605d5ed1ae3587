//! The authoritative counters: their places in the per-CPU maps.
//!
//! Every total that users see as a counter is accumulated in the kernel, per group slot, by the program that saw the
//! event. A record that does not fit into the ring buffer therefore never changes a total.

use crate::close::CloseCause;
use crate::hist::{LOG2_BUCKETS, RTT_BUCKETS};
use crate::limits::{LIMITS, SIDES};
use crate::reset::{REASONS, ResetCause, ResetOrigin};
use crate::retransmit::RetransmitCause;
use crate::state::{Direction, STATES};

/// Groups: direction × service. The first are fixed, the others are given to services by the daemon.
pub mod slot {
    use crate::state::Direction;

    /// Slots in all: each takes about 7 KB of kernel memory a CPU.
    pub const COUNT: usize = 40;
    /// Resets that no listener and no connection explains: `direction="unknown", service="none"`.
    pub const NONE: u32 = 3;
    /// The first slot that a service can get.
    pub const FIRST_FREE: u32 = 4;

    /// The slot of a direction for services that have none of their own.
    #[inline(always)]
    pub const fn other(direction: Direction) -> u32 {
        direction as u32
    }
}

/// Words of one group in the map of counters.
pub mod group {
    use super::{CloseCause, LIMITS, LOG2_BUCKETS, ResetCause, ResetOrigin, RetransmitCause, SIDES, STATES};

    /// Connections that reached ESTABLISHED.
    pub const OPENED: usize = 0;
    /// Connections that existed before they were seen.
    pub const ADOPTED: usize = 1;
    /// Payload bytes sent, retransmissions included.
    pub const SENT_BYTES: usize = 2;
    /// Payload bytes received in order.
    pub const RECEIVED_BYTES: usize = 3;
    /// Segments with payload sent, retransmissions included.
    pub const SENT_SEGMENTS: usize = 4;
    /// Transmits that the kernel refused.
    pub const RETRANSMIT_FAILURES: usize = 5;
    /// Retransmissions that the receiver had no need of.
    pub const SPURIOUS: usize = 6;
    /// Sum of the handshake RTTs, µs.
    pub const HANDSHAKE_SUM: usize = 7;
    /// Sum of the durations of closed connections, µs.
    pub const DURATION_SUM: usize = 8;
    /// Times that a congestion window was reduced after a pause.
    pub const IDLE_RESTARTS: usize = 9;
    /// Jiffies of connections, by what limited them: the order of [`LIMITS`].
    pub const LIMITED: usize = 10;
    /// Times that a receive window became zero, by whose: the order of [`SIDES`].
    pub const ZERO_WINDOWS: usize = LIMITED + LIMITS.len();
    /// Jiffies with a zero window, by whose.
    pub const ZERO_JIFFIES: usize = ZERO_WINDOWS + SIDES.len();
    const CLOSED: usize = ZERO_JIFFIES + SIDES.len();
    const RETRANSMITS: usize = CLOSED + CloseCause::ALL.len();
    const RESETS: usize = RETRANSMITS + RetransmitCause::ALL.len();
    const RECEIVED: usize = RESETS + ResetOrigin::ALL.len() * ResetCause::ALL.len();
    /// Handshake RTTs in powers of two of 32 µs.
    pub const HANDSHAKE: usize = RECEIVED + STATES;
    /// Durations of closed connections in powers of two of ms.
    pub const DURATION: usize = HANDSHAKE + LOG2_BUCKETS;
    /// Words in all.
    pub const WORDS: usize = DURATION + LOG2_BUCKETS;

    /// Connections closed, by cause.
    #[inline(always)]
    pub const fn closed(cause: CloseCause) -> usize {
        CLOSED + cause as usize
    }
    /// Segments retransmitted, by cause.
    #[inline(always)]
    pub const fn retransmits(cause: RetransmitCause) -> usize {
        RETRANSMITS + cause as usize
    }
    /// RSTs sent, by origin and cause.
    #[inline(always)]
    pub const fn resets(origin: ResetOrigin, cause: ResetCause) -> usize {
        RESETS + origin as usize * ResetCause::ALL.len() + cause as usize
    }
    /// RSTs received that ended a full socket, by its state.
    #[inline(always)]
    pub const fn received(state: u8) -> usize {
        let state = state as usize;
        RECEIVED + if state < STATES { state } else { 0 }
    }
}

/// Handshake RTTs are bucketed in this unit, µs, so that 20 powers of two reach from 32 µs to 8 s.
pub const HANDSHAKE_UNIT_US: u32 = 32;

/// Words of one group in the map of distributions that tcp_probe fills.
pub mod dist {
    use super::{LOG2_BUCKETS, RTT_BUCKETS};

    /// Fine histogram of raw RTT samples.
    pub const RTT: usize = 0;
    /// Sum of the raw RTT samples, µs.
    pub const RTT_SUM: usize = RTT + RTT_BUCKETS;
    /// Congestion window at each RTT sample, in powers of two of segments.
    pub const CWND: usize = RTT_SUM + 1;
    /// Sum of those windows, segments.
    pub const CWND_SUM: usize = CWND + LOG2_BUCKETS;
    /// Words in all.
    pub const WORDS: usize = CWND_SUM + 1;
}

/// Entries of the map of distributions: the upper half belongs to the programs that read once more at transitions, so
/// that tcp_probe owns its words and need not add atomically.
pub const DIST_ENTRIES: usize = 2 * slot::COUNT;

/// RSTs sent for the whole host, by origin, kernel reason and IP version.
pub mod reason {
    use super::{REASONS, ResetOrigin};

    /// Words in all.
    pub const WORDS: usize = 2 * 2 * REASONS;

    /// The word of an origin, a kernel reason and an IP version.
    #[inline(always)]
    pub const fn index(origin: ResetOrigin, reason: u32, ip_version: u16) -> usize {
        let reason = if reason as usize >= REASONS { REASONS - 1 } else { reason as usize };
        (origin as usize * 2 + (ip_version == 6) as usize) * REASONS + reason
    }
}

macro_rules! losses {
    ($($(#[$meta:meta])* $name:ident = $number:literal, $place:literal, $program:literal;)+) => {
        /// Where something could not be kept, and by which program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Loss { $($(#[$meta])* $name = $number,)+ }

        impl Loss {
            /// Every place, in the order of their numbers.
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$name),+];
            /// The value of the metric label `where`.
            pub const fn place(self) -> &'static str { match self { $(Self::$name => $place,)+ } }
            /// The value of the metric label `program`.
            pub const fn program(self) -> &'static str { match self { $(Self::$name => $program,)+ } }
        }
    };
}

losses! {
    /// No room in the ring buffer for a sample.
    RingSample = 0, "ring", "tcp_probe";
    /// No room for an open, close or listener record.
    RingState = 1, "ring", "inet_sock_set_state";
    /// No room for a retransmission.
    RingRetransmit = 2, "ring", "tcp_retransmit_skb";
    /// No room for a SYN-ACK retransmission.
    RingSynAck = 3, "ring", "tcp_retransmit_synack";
    /// No room for a reset sent.
    RingReset = 4, "ring", "tcp_send_reset";
    /// No room for a reset received.
    RingReceived = 5, "ring", "tcp_receive_reset";
    /// Over the limit of records a second.
    ThrottledRetransmit = 6, "throttled", "tcp_retransmit_skb";
    /// Over the limit of records a second.
    ThrottledSynAck = 7, "throttled", "tcp_retransmit_synack";
    /// Over the limit of records a second.
    ThrottledReset = 8, "throttled", "tcp_send_reset";
    /// Over the limit of records a second.
    ThrottledReceived = 9, "throttled", "tcp_receive_reset";
    /// The kernel refused memory for the state of a socket.
    StorageProbe = 10, "storage", "tcp_probe";
    /// The kernel refused memory for the state of a socket.
    StorageState = 11, "storage", "inet_sock_set_state";
    /// The kernel refused memory for the state of a socket.
    StorageRetransmit = 12, "storage", "tcp_retransmit_skb";
    /// The kernel refused memory for the state of a socket.
    StorageIterator = 13, "storage", "adopt";
    /// The table of listeners is full.
    MapListener = 14, "map", "inet_sock_set_state";
    /// The table that ties a reset to its close refused an entry.
    MapClosing = 15, "map", "inet_sock_set_state";
    /// The table of namespaces refused an entry: what was counted there is not compared with the kernel's counters.
    MapNetns = 16, "map", "tcp_send_reset";
    /// The table of stacks is full, or refused an entry.
    MapStack = 17, "stack", "tcp_send_reset";
}

const _: () = {
    let mut i = 0;
    while i < Loss::ALL.len() {
        assert!(Loss::ALL[i] as usize == i, "losses are numbered without a gap");
        i += 1;
    }
};

/// Connections by state, for sockets that have state of ours; one word per [`crate::state::TcpState`], rounded up so
/// that a mask bounds the index: the verifier loses sight of a comparison when the compiler widens the register after it.
pub const GAUGE_WORDS: usize = 16;

const _: () = assert!(STATES <= GAUGE_WORDS);

/// What is counted once more by network namespace, to be held against what the kernel counts there.
pub mod netns {
    /// Segments retransmitted, to compare with RetransSegs.
    pub const RETRANSMITS: usize = 0;
    /// RSTs sent, to compare with OutRsts.
    pub const RESETS: usize = 1;
    /// Words in all.
    pub const WORDS: usize = 2;
    /// Namespaces that can be told apart.
    pub const MOST: usize = 1024;
}

/// Words of the map of settings that the daemon changes while the programs run.
pub mod setting {
    /// Interval of periodic records, jiffies.
    pub const SAMPLE_JIFFIES: u32 = 0;
    /// What the adopting iterators look at: 0 listeners, 1 connections. Directions need the listeners first.
    pub const ADOPT: u32 = 1;
    /// Number of the pass over the files of all processes, see [`crate::owner::on_file`].
    pub const FILES_PASS: u32 = 2;
    /// What the reading iterator does: one of [`super::pass`].
    pub const PASS: u32 = 3;
    /// Which RTT samples enter the histograms: [`crate::thinning::mask`].
    pub const THINNING: u32 = 4;
    /// Not 0 while the daemon sleeps until a record wakes it; otherwise it looks by the clock.
    pub const SLEEPS: u32 = 5;
    /// Words in all.
    pub const COUNT: u32 = 6;
}

/// What the reading iterator does with every connection.
pub mod pass {
    /// Reads those that have news.
    pub const READ: u64 = 0;
    /// Calls the roll: it tells the cookie of every connection, 8 bytes, and nothing else.
    pub const ROLL_CALL: u64 = 1;
    /// Spreads the next periodic records over one interval, and tells nothing: connections that waited for the end of an
    /// interval that holds no longer follow the new one at once, and not all at the same moment.
    pub const SPREAD: u64 = 2;
}

/// Programs that emit records under a limit of their own; the index into the map of token buckets.
pub mod bucket {
    /// tcp_retransmit_skb.
    pub const RETRANSMIT: u32 = 0;
    /// tcp_retransmit_synack.
    pub const SYN_ACK: u32 = 1;
    /// tcp_send_reset.
    pub const RESET: u32 = 2;
    /// tcp_receive_reset.
    pub const RECEIVED: u32 = 3;
    /// Buckets in all.
    pub const COUNT: u32 = 4;
}

/// A service as the kernel looks it up: the listening port of inbound connections, the remote port of outbound ones.
#[inline(always)]
pub const fn service_key(direction: Direction, port: u16) -> u32 {
    (direction as u32) << 16 | port as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_counters_share_a_word() {
        let mut seen = std::collections::BTreeSet::new();
        let mut add = |word: usize| assert!(word < group::WORDS && seen.insert(word), "word {word}");
        for word in [
            group::OPENED,
            group::ADOPTED,
            group::SENT_BYTES,
            group::RECEIVED_BYTES,
            group::SENT_SEGMENTS,
            group::RETRANSMIT_FAILURES,
            group::SPURIOUS,
            group::HANDSHAKE_SUM,
            group::DURATION_SUM,
            group::IDLE_RESTARTS,
        ] {
            add(word);
        }
        (0..LIMITS.len()).for_each(|by| add(group::LIMITED + by));
        (0..SIDES.len()).for_each(|side| add(group::ZERO_WINDOWS + side));
        (0..SIDES.len()).for_each(|side| add(group::ZERO_JIFFIES + side));
        for cause in CloseCause::ALL {
            add(group::closed(cause));
        }
        for cause in RetransmitCause::ALL {
            add(group::retransmits(cause));
        }
        for (origin, cause) in ResetOrigin::ALL.into_iter().flat_map(|o| ResetCause::ALL.map(|c| (o, c))) {
            add(group::resets(origin, cause));
        }
        (0..STATES as u8).for_each(|s| add(group::received(s)));
        (0..LOG2_BUCKETS).for_each(|b| add(group::HANDSHAKE + b));
        (0..LOG2_BUCKETS).for_each(|b| add(group::DURATION + b));
        assert_eq!(seen.len(), group::WORDS);
    }

    #[test]
    fn reasons_beyond_the_table_share_the_last_word_of_their_row() {
        let last = reason::index(ResetOrigin::Passive, 1000, 6);
        assert_eq!(last, reason::WORDS - 1);
        assert_eq!(reason::index(ResetOrigin::Active, 0, 4), 0);
        assert_ne!(reason::index(ResetOrigin::Active, 3, 4), reason::index(ResetOrigin::Active, 3, 6));
    }

    #[test]
    fn directions_have_slots_of_their_own() {
        for direction in Direction::ALL {
            assert!(slot::other(direction) < slot::NONE);
        }
        assert_ne!(service_key(Direction::Inbound, 443), service_key(Direction::Outbound, 443));
    }
}
