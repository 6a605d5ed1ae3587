//! Connections opened and closed, by cause, and the bytes they moved.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{End, Family, Netns, Path, Traffic};

use crate::daemon::{Daemon, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("connections_close_by_fin_when_either_end_closes_first", orderly),
        trial("connections_close_by_timeout_when_the_peer_vanishes", vanished),
        trial("connections_fail_to_open_when_nothing_answers", silent),
        trial("bytes_and_segments_equal_what_was_sent", bytes),
        trial("connections_older_than_the_daemon_bring_nothing_along", adopted),
        trial("services_get_labels_and_the_gauge_follows", services),
    ]
}

const CLOSED: &str = "tcpwatch_connections_closed_total";

fn orderly() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let before = [path.a().counters()?, path.b().counters()?];
    for family in Family::ALL {
        let traffic = Traffic::over(&path, family);
        let server = traffic.listen()?;
        for first in [End::Client, End::Client, End::Server] {
            traffic.connect_to(&server)?.close(first)?;
        }
    }
    let metrics = daemon.metrics()?;
    let truth = |i: usize, ns: &Netns, name: &str| ns.counters()?.delta(&before[i]).get("Tcp", name);
    let (active, passive) = (truth(0, path.a(), "ActiveOpens")?, truth(1, path.b(), "PassiveOpens")?);
    equal("active opens of the set-up", active, 12, &metrics)?;
    let opened = |direction| metrics.count("tcpwatch_connections_opened_total", &[direction]);
    equal("outbound", opened("direction=\"outbound\""), active, &metrics)?;
    equal("inbound", opened("direction=\"inbound\""), passive, &metrics)?;
    let closed = |direction, cause| metrics.count(CLOSED, &[direction, cause]);
    for (direction, cause, truth) in [
        ("direction=\"outbound\"", "cause=\"fin_local\"", 8),
        ("direction=\"outbound\"", "cause=\"fin_remote\"", 4),
        ("direction=\"inbound\"", "cause=\"fin_local\"", 4),
        ("direction=\"inbound\"", "cause=\"fin_remote\"", 8),
    ] {
        equal(&format!("{direction} {cause}"), closed(direction, cause), truth, &metrics)?;
    }
    equal("closed in all", metrics.count(CLOSED, &[]), 24, &metrics)?;
    equal("handshakes", metrics.count("tcpwatch_handshake_seconds_count", &[]), 24, &metrics)?;
    equal("durations", metrics.count("tcpwatch_connection_duration_seconds_count", &[]), 24, &metrics)?;
    for state in ["ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "FIN_WAIT1"] {
        let label = format!("state=\"{state}\"");
        equal(&label, metrics.count("tcpwatch_connections", &[&label]), 0, &metrics)?;
    }
    nothing_lost(&metrics)
}

fn vanished() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    path.a().sysctl("net.ipv4.tcp_retries2", "3")?;
    let traffic = Traffic::over(&path, Family::V4);
    let mut pair = traffic.connect()?;
    pair.send(End::Client, 1000)?;
    path.forward().blackhole();
    path.backward().blackhole();
    std::io::Write::write_all(&mut pair.client, b"is anybody there?")?;
    let metrics = daemon.wait("the close by timeout", |m| m.count(CLOSED, &["cause=\"timeout\""]) == 1)?;
    let kernel = path.a().counters()?;
    equal(
        "retransmits by timeout and probe",
        metrics.count("tcpwatch_retransmitted_segments_total", &[]),
        kernel.get("Tcp", "RetransSegs")?,
        &metrics,
    )?;
    ensure!(metrics.count("tcpwatch_retransmitted_segments_total", &["cause=\"timeout\""]) > 0, "{metrics}");
    nothing_lost(&metrics)
}

fn silent() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    path.a().sysctl("net.ipv4.tcp_syn_retries", "1")?;
    path.forward().blackhole();
    let traffic = Traffic::over(&path, Family::V6);
    let server = traffic.listen()?;
    ensure!(!traffic.try_connect(&server, Duration::from_secs(10))?, "it connected through a black hole");
    let metrics = daemon.wait("the failed open", |m| m.count(CLOSED, &["cause=\"failed_open\""]) == 1)?;
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 0, &metrics)?;
    let syns = metrics.count("tcpwatch_retransmitted_segments_total", &["cause=\"syn\""]);
    equal("SYNs sent again", syns, path.a().counters()?.get("Tcp", "RetransSegs")?, &metrics)?;
    ensure!(syns >= 1, "no SYN was sent again\n{metrics}");
    nothing_lost(&metrics)
}

fn bytes() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let mut pair = traffic.connect()?;
    pair.send(End::Client, 300_000)?;
    pair.send(End::Server, 50_000)?;
    let sent_segments = pair.info(End::Client)?.data_segs_out + pair.info(End::Server)?.data_segs_out;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    for (direction, sent, received) in [("outbound", 300_000, 50_000), ("inbound", 50_000, 300_000)] {
        let label = format!("direction=\"{direction}\"");
        equal("sent", metrics.count("tcpwatch_sent_bytes_total", &[&label]), sent, &metrics)?;
        equal("received", metrics.count("tcpwatch_received_bytes_total", &[&label]), received, &metrics)?;
    }
    let segments = metrics.count("tcpwatch_sent_segments_total", &[]);
    equal("segments", segments, i64::from(sent_segments), &metrics)?;
    nothing_lost(&metrics)
}

fn adopted() -> Result<()> {
    let path = Path::builder().build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.send(End::Client, 5_000_000)?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    pair.ping_pong(3, 1000)?;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    equal("adopted", metrics.count("tcpwatch_connections_adopted_total", &[]), 2, &metrics)?;
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 0, &metrics)?;
    equal("closed", metrics.count(CLOSED, &[]), 2, &metrics)?;
    let sent = metrics.count("tcpwatch_sent_bytes_total", &[]);
    ensure!((2000..=6000).contains(&sent), "{sent} bytes counted, of which at most 6000 are ours\n{metrics}");
    nothing_lost(&metrics)
}

fn services() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4).port(8443);
    let server = traffic.listen()?;
    // The listener's record has to pass through the ring before the connections do.
    daemon.metrics()?;
    let pairs: Vec<_> = (0..5).map(|_| traffic.connect_to(&server)).collect::<Result<_>>()?;
    let metrics = daemon.metrics()?;
    let inbound = ["direction=\"inbound\"", "service=\"8443\""];
    equal("of the service", metrics.count("tcpwatch_connections_opened_total", &inbound), 5, &metrics)?;
    equal("established", metrics.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]), 10, &metrics)?;
    for pair in pairs {
        pair.close(End::Server)?;
    }
    let metrics = daemon.metrics()?;
    equal("established", metrics.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]), 0, &metrics)?;
    let closed = metrics.count(CLOSED, &["service=\"8443\"", "cause=\"fin_local\""]);
    equal("closed by the service", closed, 5, &metrics)?;
    nothing_lost(&metrics)
}
