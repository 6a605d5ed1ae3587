//! RTT against the delay that the relay really gave.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::relay::median_rtt_ns;
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("rtt_median_is_that_of_a_path_of_7_ms", || median_of(7.0)),
        trial("rtt_median_is_that_of_a_path_of_40_ms", || median_of(40.0)),
        trial("rtt_median_is_that_of_a_path_of_200_ms", || median_of(200.0)),
        trial("rtt_of_a_pure_receiver_has_no_samples", receiver),
    ]
}

/// A relay in user space waits for its turn on a busy machine, between the kernel's stamp and its own, and a probe that is
/// sent meanwhile takes a sample away: so many tries may be spoilt by that. A wrong number is wrong in all of them.
const TRIES: usize = 3;

fn median_of(round_trip_ms: f64) -> Result<()> {
    for (family, congestion) in [(Family::V4, "cubic"), (Family::V6, "bbr")] {
        let mut spoilt = Vec::new();
        while let Err(error) = exchange(round_trip_ms, family, congestion) {
            spoilt.push(format!("{error:#}"));
            ensure!(spoilt.len() < TRIES, "{}", spoilt.join("\nthen: "));
        }
    }
    Ok(())
}

fn exchange(round_trip_ms: f64, family: Family, congestion: &str) -> Result<()> {
    let one_way = Duration::from_secs_f64(round_trip_ms / 2000.0);
    let path = Path::builder().delay(one_way).build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, family).congestion(congestion).connect()?;
    pair.ping_pong(40, 200)?;
    pair.close(End::Client)?;
    let truth: Vec<_> = path.record().rtt_samples().into_iter().filter(|s| !s.handshake).collect();
    let from_client: Vec<_> = truth.into_iter().filter(|s| s.flow.src.ip() == client(family)).collect();
    let truth = median_rtt_ns(&from_client).unwrap_or(0) as f64 / 1e9;
    ensure!((truth * 1000.0 / round_trip_ms - 1.0).abs() < 0.5, "the relay gave {truth} s");
    let metrics = daemon.metrics()?;
    let samples = metrics.count("tcpwatch_rtt_seconds_count", &[]);
    ensure!((38..=44).contains(&samples), "{samples} samples of 40 exchanges\n{metrics}");
    let mean = metrics.sum("tcpwatch_rtt_seconds_sum", &[]) / samples as f64;
    ensure!((mean / truth - 1.0).abs() < 0.05, "mean {mean} s, the relay gave {truth} s\n{metrics}");
    let median = metrics.sum("tcpwatch_rtt_recent_seconds", &["direction=\"outbound\"", "percentile=\"p50\""]);
    ensure!((median / truth - 1.0).abs() < 0.05, "median {median} s, the relay gave {truth} s\n{metrics}");
    nothing_lost(&metrics)
}

fn client(family: Family) -> std::net::IpAddr {
    if family.is_ipv6_on_the_wire() { Path::IPV6[0].into() } else { Path::IPV4[0].into() }
}

fn receiver() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    let daemon = Daemon::watching(&[path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.send(End::Client, 1_000_000)?;
    let metrics = daemon.metrics()?;
    equal("samples", metrics.count("tcpwatch_rtt_seconds_count", &[]), 0, &metrics)?;
    let handshakes = metrics.count("tcpwatch_handshake_seconds_count", &[]);
    equal("handshakes", handshakes, 1, &metrics)?;
    nothing_lost(&metrics)
}
