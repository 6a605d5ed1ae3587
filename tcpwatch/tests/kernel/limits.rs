//! What holds connections back: zero windows, pauses, and time by limit, against the kernel's own account of the socket
//! and the record of the relay.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::relay::{Impairment, Rate, Record};
use tcpwatch_lab::{Direction, End, Family, Pair, Path, Traffic, clock};

use crate::daemon::{Daemon, Metrics, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("zero_windows_are_counted_and_timed_at_both_ends", zero_windows),
        trial("idle_restarts_are_counted_with_cubic", || idle_restarts("cubic", "1", PAUSES as i64)),
        trial("idle_restarts_are_none_with_bbr", || idle_restarts("bbr", "1", 0)),
        trial("idle_restarts_are_none_when_they_are_switched_off", || idle_restarts("cubic", "0", 0)),
        trial("limited_time_is_of_the_receive_window_when_nobody_reads", by_receive_window),
        trial("limited_time_is_of_the_congestion_window_on_a_slow_link", by_congestion_window),
        trial("limited_time_is_of_the_application_when_it_pauses", by_application),
        trial("time_in_congestion_states_and_ecn_are_told", states_and_ecn),
        trial("handshakes_with_a_retransmission_bring_no_round_trip_time", handshakes),
        trial("spurious_retransmits_are_proven_without_sack", needless_without_sack),
    ]
}

const LIMITED: &str = "tcpwatch_limited_seconds_total";
const OUTBOUND: &str = "direction=\"outbound\"";

/// The times between a zero window's arrival at the client and that of the next open one.
fn closed_windows(record: &Record) -> Vec<Duration> {
    let mut closed = Vec::new();
    let mut since = None;
    for (packet, segment) in record.segments(Direction::Backward) {
        let Some(at) = packet.departed_ns() else { continue };
        match (segment.window, since) {
            (0, None) => since = Some(at),
            (0, Some(_)) | (_, None) => {}
            (_, Some(began)) => {
                closed.push(Duration::from_nanos(at - began));
                since = None;
            }
        }
    }
    closed
}

/// Fills the server's buffers until its window is closed, lets it be for a while, and has everything read.
fn stall(pair: &mut Pair, pause: Duration) -> Result<()> {
    use std::io::{Read as _, Write as _};
    pair.client.set_nonblocking(true)?;
    let chunk = vec![0x74; 1 << 16];
    let mut written = 0;
    clock::wait_for(Duration::from_secs(20), "the window to close", || {
        written += pair.client.write(&chunk).unwrap_or(0);
        Ok((pair.info(End::Client)?.snd_wnd == 0).then_some(()))
    })?;
    std::thread::sleep(pause);
    pair.client.set_nonblocking(false)?;
    let mut buffer = vec![0; 1 << 16];
    let mut read = 0;
    while read < written {
        read += pair.server.read(&mut buffer)?;
    }
    pair.wait_acknowledged(End::Client)
}

fn zero_windows() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let path = Path::builder().delay(Duration::from_millis(3)).build()?;
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        let before = path.b().counters()?;
        let mut pair = Traffic::over(&path, family).congestion("cubic").connect()?;
        for _ in 0..2 {
            stall(&mut pair, Duration::from_millis(700))?;
        }
        let found = daemon.connection(&pair, End::Client)?.context("the connection is not listed")?;
        ensure!(found["peer_zero_windows"].as_u64() >= Some(1), "{found}");
        pair.close(End::Client)?;
        let metrics = daemon.metrics()?;
        let closed = closed_windows(&path.record());
        ensure!(closed.len() >= 2, "the set-up closed the window {} times", closed.len());
        let count = |side| metrics.count("tcpwatch_zero_window_total", &[&format!("side=\"{side}\"")]);
        equal("zero windows of the peer", count("peer"), closed.len() as i64, &metrics)?;
        let advertised = path.b().counters()?.delta(&before).get("TcpExt", "TCPToZeroWindowAdv")?;
        // A window that is opened before the next segment comes is not seen at its own end.
        ensure!((2..=advertised).contains(&count("local")), "{} of ours, {advertised}\n{metrics}", count("local"));
        let truth: f64 = closed.iter().map(Duration::as_secs_f64).sum();
        let seconds =
            |side, way| metrics.sum("tcpwatch_zero_window_seconds_total", &[&format!("side=\"{side}\""), way]);
        let (peer, local) = (seconds("peer", OUTBOUND), seconds("local", "direction=\"inbound\""));
        ensure!((peer - truth).abs() < 0.05 + truth * 0.03, "peer {peer} s, truth {truth} s\n{metrics}");
        ensure!((local - truth).abs() < 0.1 + truth * 0.05, "local {local} s, truth {truth} s\n{metrics}");
        nothing_lost(&metrics)?;
    }
    Ok(())
}

const PAUSES: usize = 3;

fn idle_restarts(congestion: &str, restart: &str, truth: i64) -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    path.a().sysctl("net.ipv4.tcp_slow_start_after_idle", restart)?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion(congestion).connect()?;
    pair.send(End::Client, 500_000)?;
    for _ in 0..PAUSES {
        let (grown, rto) = (pair.info(End::Client)?.snd_cwnd, pair.info(End::Client)?.rto);
        ensure!(grown > 20, "a window of {grown} segments is not worth a restart");
        std::thread::sleep(Duration::from_micros(rto.into()) * 4);
        pair.send(End::Client, 500_000)?;
    }
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    equal("idle restarts", metrics.count("tcpwatch_idle_restarts_total", &[]), truth, &metrics)?;
    nothing_lost(&metrics)
}

/// The time of the client's connection by limit, and the kernel's: of a quiet socket, and then of the counters.
fn limits(path: &Path, daemon: &Daemon, pair: Pair) -> Result<(Metrics, [f64; 4])> {
    pair.wait_acknowledged(End::Client)?;
    let began = pair.info(End::Client)?;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    let shown = ["congestion_window", "receive_window", "send_buffer", "application"]
        .map(|by| metrics.sum(LIMITED, &[OUTBOUND, &format!("by=\"{by}\"")]));
    let congestion = began.busy_time - began.rwnd_limited - began.sndbuf_limited;
    let truth = [congestion, began.rwnd_limited, began.sndbuf_limited].map(|us| us as f64 / 1e6);
    for (shown, truth) in shown.iter().zip(truth) {
        // What the FIN adds is at most its round trip.
        ensure!((shown - truth).abs() <= 0.1, "{shown} s, the kernel says {truth} s: {began:?}\n{metrics}");
    }
    ensure!(path.device_drops()? == [0, 0], "the set-up lost packets");
    nothing_lost(&metrics)?;
    Ok((metrics, shown))
}

fn dominant(metrics: &Metrics, shown: [f64; 4], which: usize) -> Result<()> {
    let total: f64 = shown.iter().sum();
    ensure!(shown[which] > 0.6 * total && shown[which] > 0.3, "{shown:?} of {total} s\n{metrics}");
    Ok(())
}

fn by_receive_window() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    stall(&mut pair, Duration::from_millis(1500))?;
    let (metrics, shown) = limits(&path, &daemon, pair)?;
    dominant(&metrics, shown, 1)
}

fn by_congestion_window() -> Result<()> {
    let rate = Rate::bits_per_second(8_000_000).queue_packets(1000);
    let path = Path::builder()
        .forward(Impairment::delay(Duration::from_millis(20)).rate(rate))
        .backward(Impairment::delay(Duration::from_millis(20)))
        .build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("bbr").connect()?;
    pair.send(End::Client, 2_000_000)?;
    let (metrics, shown) = limits(&path, &daemon, pair)?;
    dominant(&metrics, shown, 0)
}

fn by_application() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    let began = std::time::Instant::now();
    for _ in 0..8 {
        pair.send(End::Client, 1000)?;
        std::thread::sleep(Duration::from_millis(150));
    }
    // Without a close: a connection that does nothing is told of too.
    let idle = |m: &Metrics| m.sum(LIMITED, &[OUTBOUND, "by=\"application\""]);
    let metrics = daemon.wait("the time of an idle connection", |m| idle(m) > 2.5)?;
    ensure!(idle(&metrics) <= began.elapsed().as_secs_f64() + 0.1, "{metrics}");
    let (metrics, shown) = limits(&path, &daemon, pair)?;
    dominant(&metrics, shown, 3)?;
    let lived = began.elapsed().as_secs_f64();
    let total: f64 = shown.iter().sum();
    ensure!((total / lived - 1.0).abs() < 0.1, "{total} s of {lived} s\n{metrics}");
    Ok(())
}

fn states_and_ecn() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(20)).build()?;
    for ns in [path.a(), path.b()] {
        ns.sysctl("net.ipv4.tcp_ecn", "1")?;
    }
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    pair.send(End::Client, 100_000)?;
    let again = path.forward().drop_nth_data(20);
    pair.send(End::Client, 200_000)?;
    ensure!(again.hits() == 1, "nothing was dropped");
    let mut found = None;
    clock::wait_for(Duration::from_secs(20), "a reading after the recovery", || {
        found = daemon.connection(&pair, End::Client)?;
        Ok(found.as_ref().is_some_and(|c| c["recoveries"] == 1 && c["congestion_state"] == "Open").then_some(()))
    })?;
    let found = found.context("the connection is not listed")?;
    let us = |name: &str| found[name].as_u64().unwrap_or(u64::MAX);
    // From the third duplicate ACK to the ACK of all that was in flight then: about a round trip.
    ensure!((30_000..400_000).contains(&us("recovery_us")), "{found}");
    ensure!(us("loss_us") == 0 && us("losses") == 0 && us("open_us") > us("recovery_us"), "{found}");
    let all: u64 = ["open_us", "disorder_us", "cwr_us", "recovery_us", "loss_us"].into_iter().map(us).sum();
    let lived = (us("age_ms") - us("reading_age_ms")) * 1000;
    ensure!(all.abs_diff(lived) < 60_000, "{all} µs of {lived}: {found}");
    ensure!(found["ecn"] == true && found["congestion_control"] == "cubic", "{found}");
    let server = daemon.connection(&pair, End::Server)?.context("the server's end is not listed")?;
    ensure!(server["ecn"] == true && server["ecn_seen"] == true, "{server}");
    pair.close(End::Client)
}

fn handshakes() -> Result<()> {
    for (what, truth) in [("nothing", 2), ("syn", 0), ("syn-ack", 0)] {
        let path = Path::builder().delay(Duration::from_millis(5)).build()?;
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        match what {
            "syn" => drop(path.forward().drop_syns(1)),
            "syn-ack" => drop(path.backward().drop_syn_acks(1)),
            _ => {}
        }
        let pair = Traffic::over(&path, Family::V4).connect()?;
        let shown = [End::Client, End::Server].map(|end| daemon.connection(&pair, end));
        pair.close(End::Client)?;
        let metrics = daemon.metrics()?;
        let count = metrics.count("tcpwatch_handshake_seconds_count", &[]);
        // A SYN that is sent again is new to the server: its own handshake went well.
        let truth = truth + i64::from(what == "syn");
        equal(&format!("handshakes after losing {what}"), count, truth, &metrics)?;
        for one in shown {
            let one = one?.context("a connection is not listed")?;
            let inbound = one["direction"] == "inbound";
            let expected = what == "nothing" || what == "syn" && inbound;
            ensure!(one["handshake_us"].is_u64() == expected, "{what}: {one}");
            ensure!(!expected || one["handshake_us"].as_u64() >= Some(10_000), "{what}: {one}");
        }
    }
    Ok(())
}

/// Acknowledgements are held back until the timer fires: what it sends again was not lost.
fn needless_without_sack() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    for ns in [path.a(), path.b()] {
        ns.sysctl("net.ipv4.tcp_sack", "0")?;
    }
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    pair.ping_pong(5, 1000)?;
    path.forward().set_delay(Duration::from_millis(800));
    pair.send(End::Client, 20_000)?;
    path.forward().set_delay(Duration::from_millis(5));
    pair.send(End::Client, 20_000)?;
    pair.close(End::Client)?;
    let kernel = path.a().counters()?;
    let undone = kernel.get("TcpExt", "TCPLossUndo")? + kernel.get("TcpExt", "TCPFullUndo")?;
    ensure!(undone >= 1, "the kernel took nothing back");
    let metrics = daemon.metrics()?;
    let again = metrics.count("tcpwatch_retransmitted_segments_total", &[]);
    let proven = metrics.count("tcpwatch_spurious_retransmits_total", &[]);
    ensure!((1..=again).contains(&proven), "{proven} of {again} proven needless\n{metrics}");
    nothing_lost(&metrics)
}
