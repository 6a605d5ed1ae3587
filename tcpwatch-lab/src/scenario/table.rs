//! The scenarios.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Scenario, Setup, flows, trouble};
use crate::relay::Rate;
use crate::traffic::End;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Small buffers at both ends, so that a window closes after few bytes.
const SMALL_BUFFERS: &[(End, &str, &str)] =
    &[(End::Client, "net.ipv4.tcp_wmem", "4096 16384 65536"), (End::Server, "net.ipv4.tcp_rmem", "4096 32768 65536")];

/// The scenario of a name.
///
/// # Errors
/// When there is none, with the names that there are.
pub fn find(name: &str) -> Result<Scenario> {
    let found = ALL.iter().find(|scenario| scenario.name == name).copied();
    found.with_context(|| {
        let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        format!("there is no scenario '{name}'; there are: {}", names.join(", "))
    })
}

/// All scenarios, in the order in which they are listed.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "loss",
        shows: "5 % loss: throughput collapses, cwnd saws, retransmits are fast or by timeout",
        setup: Setup { one_way: ms(20), loss: [0.05, 0.0], size: 500_000, ..Setup::DEFAULT },
        traffic: flows::uploads,
    },
    Scenario {
        name: "bufferbloat",
        shows: "a queue of 200 ms on a path of 20 ms: srtt far above min RTT",
        setup: Setup {
            rate: Some(Rate { bits_per_second: 10_000_000, queue_packets: usize::MAX, queue_bytes: 250_000 }),
            size: 4_000_000,
            ..Setup::DEFAULT
        },
        traffic: flows::uploads,
    },
    Scenario {
        name: "zero-window",
        shows: "the reader stands still for seconds: zero window, full queues at both ends, window probes",
        setup: Setup { pause: ms(5000), sysctls: SMALL_BUFFERS, ..Setup::DEFAULT },
        traffic: trouble::stalled_reader,
    },
    Scenario {
        name: "bursty-reader",
        shows: "the reader takes everything once a second: the window opens and closes",
        setup: Setup { pause: ms(1000), sysctls: SMALL_BUFFERS, ..Setup::DEFAULT },
        traffic: trouble::stalled_reader,
    },
    Scenario {
        name: "idle-restart",
        shows: "512 KB, 3 s idle, 512 KB on one connection: cwnd begins anew each time",
        setup: Setup { one_way: ms(25), size: 512 << 10, pause: ms(3000), ..Setup::DEFAULT },
        traffic: flows::idle_between_uploads,
    },
    Scenario {
        name: "tail-loss",
        shows: "the last segment of every answer is lost: tail loss probes, hardly a timeout",
        setup: Setup { size: 6_000, pause: ms(100), ..Setup::DEFAULT },
        traffic: trouble::tail_loss,
    },
    Scenario {
        name: "reordering",
        shows: "nothing is lost, but segments overtake each other: retransmits proven spurious",
        setup: Setup {
            reordering: Some((0.02, ms(15))),
            size: 1_000_000,
            // Otherwise the kernel remembers from one connection to the next how much reordering there is.
            sysctls: &[(End::Client, "net.ipv4.tcp_no_metrics_save", "1")],
            ..Setup::DEFAULT
        },
        traffic: flows::uploads,
    },
    Scenario {
        name: "syn-loss",
        shows: "every first SYN and some SYN-ACKs are lost: connections open after 1 s or more",
        setup: Setup { size: 10_000, ..Setup::DEFAULT },
        traffic: trouble::syn_loss,
    },
    Scenario {
        name: "peer-vanishes",
        shows: "nothing comes back any more: timeouts with backoff, at last closed by timeout",
        setup: Setup {
            size: 20_000,
            // About 13 s instead of a quarter of an hour.
            sysctls: &[(End::Client, "net.ipv4.tcp_retries2", "5")],
            ..Setup::DEFAULT
        },
        traffic: trouble::peer_vanishes,
    },
    Scenario {
        name: "mtu-black-hole",
        shows: "small segments pass and full ones vanish: only those are sent again",
        setup: Setup { vanish_above: Some(1200), size: 50_000, pause: ms(8000), ..Setup::DEFAULT },
        traffic: trouble::mtu_black_hole,
    },
    Scenario {
        name: "short-connections",
        shows: "a new connection for each upload over 100 ms: handshakes and slow starts",
        setup: Setup { one_way: ms(50), size: 200_000, ..Setup::DEFAULT },
        traffic: flows::upload_per_connection,
    },
    Scenario {
        name: "tiny-writes",
        shows: "one byte in each segment: many segments, little payload",
        setup: Setup { size: 200, ..Setup::DEFAULT },
        traffic: flows::tiny_writes,
    },
    Scenario {
        name: "nagle",
        shows: "write, write, read: Nagle waits for a delayed ACK, 40 ms each time",
        setup: Setup { one_way: ms(1), size: 100, ..Setup::DEFAULT },
        traffic: flows::write_write_read,
    },
    Scenario {
        name: "half-close",
        shows: "the client ends its side and waits: the server answers from CLOSE_WAIT",
        setup: Setup { one_way: ms(20), size: 2_000_000, ..Setup::DEFAULT },
        traffic: flows::half_close,
    },
    Scenario {
        name: "reset-storm",
        shows: "hundreds of connections a second to a port where nothing listens: a storm of resets",
        setup: Setup { one_way: Duration::ZERO, pause: ms(50), ..Setup::DEFAULT },
        traffic: trouble::reset_storm,
    },
    Scenario {
        name: "mixed",
        shows: "within a minute: a lossy upload, a reader that stalls, short connections and a small reset storm",
        setup: Setup { size: 300_000, pause: ms(4000), sysctls: SMALL_BUFFERS, ..Setup::DEFAULT },
        traffic: trouble::mixed,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_of_their_own() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(find("loss").unwrap().name, "loss");
        let error = find("los").unwrap_err().to_string();
        assert!(error.contains("'los'") && error.contains("bufferbloat"), "{error}");
    }
}
