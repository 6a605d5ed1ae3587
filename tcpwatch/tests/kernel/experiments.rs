//! Situations that people meet, played by the lab: what the API and the metrics show is what really happened.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::relay::Direction;
use tcpwatch_lab::scenario::{self, Scenario, Stage, Truth};
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal, nothing_lost};
use crate::trial;
use crate::truth_retransmits::{Causes, agrees};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("experiment_a_peer_that_vanishes_shows_backoff_and_ends_by_timeout", peer_vanishes),
        trial("experiment_a_silent_host_is_a_failed_open_and_no_reset", silent_host),
        trial("experiment_an_mtu_black_hole_has_full_segments_sent_again_only", mtu_black_hole),
        trial("experiment_a_lossy_path_shows_its_losses_and_their_recovery", loss),
        trial("experiment_a_full_queue_shows_as_srtt_far_above_min_rtt", bufferbloat),
        trial("experiment_a_half_closed_client_is_answered_in_full_view", half_close),
        trial("experiment_short_connections_show_their_number_and_handshakes", short_connections),
        trial("experiment_tiny_writes_show_as_segments_of_one_byte", tiny_writes),
    ]
}

const CLOSED: &str = "tcpwatch_connections_closed_total";
const PATIENCE: Duration = Duration::from_secs(20);

/// A scenario of the lab, one round of it.
fn once(name: &str) -> Result<Scenario> {
    let mut scenario = scenario::find(name)?;
    scenario.setup.duration = Duration::ZERO;
    Ok(scenario)
}

/// A daemon that reads connections often.
fn watch(stage: &Stage) -> Result<Daemon> {
    Daemon::with(&[stage.path.a(), stage.path.b()], "sample_interval = \"100ms\"")
}

/// Plays a scenario and meanwhile shows the client's connection, as the API has it, to `look`; returns what really happened.
fn play(daemon: &Daemon, stage: &Stage, mut look: impl FnMut(&Value)) -> Result<Truth> {
    thread::scope(|scope| {
        let traffic = scope.spawn(|| stage.run());
        while !traffic.is_finished() {
            let listed = daemon.ask("/api/v1/connections")?;
            listed.iter().filter(|c| c["netns"] == stage.path.a().inode()).for_each(&mut look);
            thread::sleep(Duration::from_millis(20));
        }
        traffic.join().map_err(|_| anyhow!("the traffic panicked"))?
    })
}

fn number(connection: &Value, name: &str) -> u64 {
    connection[name].as_u64().unwrap_or(0)
}

fn closed(metrics: &Metrics, cause: &str) -> i64 {
    metrics.count(CLOSED, &[&format!("cause=\"{cause}\"")])
}

fn peer_vanishes() -> Result<()> {
    let mut scenario = once("peer-vanishes")?;
    scenario.setup.sysctls = &[(End::Client, "net.ipv4.tcp_retries2", "4")];
    let stage = scenario.stage()?;
    let daemon = watch(&stage)?;
    let (mut backoffs, mut timeouts, mut longest_rto) = (0, 0, 0);
    let truth = play(&daemon, &stage, |c| {
        backoffs = backoffs.max(number(c, "rto_backoff"));
        longest_rto = longest_rto.max(number(c, "rto_us") / 1000);
        timeouts = timeouts.max(number(&c["retransmits"], "timeout"));
    })?;
    ensure!(truth.kernel[0].get("TcpExt", "TCPAbortOnTimeout")? == 1, "{truth}");
    ensure!(backoffs >= 2 && timeouts >= 3 && longest_rto >= 800, "{backoffs}, {timeouts}, {longest_rto} ms: {truth}");
    let metrics = daemon.wait("the closes", |m| m.count(CLOSED, &[]) == 2)?;
    equal("by timeout", closed(&metrics, "timeout"), 1, &metrics)?;
    agrees(&Causes::of(&metrics), &stage.path, &metrics)?;
    nothing_lost(&metrics)
}

fn silent_host() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let path = Path::builder().build()?;
        path.a().sysctl("net.ipv4.tcp_syn_retries", "1")?;
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        let traffic = Traffic::over(&path, family).timeout(PATIENCE);
        let server = traffic.listen()?;
        path.forward().blackhole();
        ensure!(!traffic.try_connect(&server, PATIENCE)?, "it connected through a black hole");
        let metrics = daemon.metrics()?;
        equal("failed opens", closed(&metrics, "failed_open"), 1, &metrics)?;
        equal("closed", metrics.count(CLOSED, &[]), 1, &metrics)?;
        equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 0, &metrics)?;
        let resets = metrics.count("tcpwatch_resets_sent_total", &[]);
        equal("resets", resets + metrics.count("tcpwatch_resets_received_total", &[]), 0, &metrics)?;
        agrees(&Causes::of(&metrics), &path, &metrics)?;
        let syns = metrics.count("tcpwatch_retransmitted_segments_total", &["cause=\"syn\""]);
        // How many is the kernel's choice: it also has a number of timeouts before it backs off.
        equal("SYNs sent again", syns, path.a().counters()?.get("TcpExt", "TCPSynRetrans")?, &metrics)?;
        ensure!(syns > 0, "no SYN was sent again\n{metrics}");
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn mtu_black_hole() -> Result<()> {
    let mut scenario = once("mtu-black-hole")?;
    scenario.setup.pause = Duration::from_millis(2500);
    let stage = scenario.stage()?;
    let daemon = watch(&stage)?;
    let mut seen = Vec::new();
    let truth = play(&daemon, &stage, |c| {
        if number(c, "retransmits_total") > 0 {
            seen.push((number(c, "retransmits_total"), number(c, "retransmitted_bytes"), number(c, "mss_bytes")));
        }
    })?;
    let (segments, bytes, mss) = *seen.last().with_context(|| format!("no retransmission was shown: {truth}"))?;
    ensure!(segments >= 2 && bytes == segments * mss, "{bytes} bytes in {segments} segments of up to {mss}");
    let metrics = daemon.metrics()?;
    agrees(&Causes::of(&metrics), &stage.path, &metrics)?;
    equal("fast", metrics.count("tcpwatch_retransmitted_segments_total", &["cause=\"fast\""]), 0, &metrics)?;
    nothing_lost(&metrics)
}

fn loss() -> Result<()> {
    for congestion in ["cubic", "bbr"] {
        let mut scenario = once("loss")?;
        scenario.setup.congestion = Some(congestion);
        scenario.setup.size = 300_000;
        let stage = scenario.stage()?;
        let daemon = watch(&stage)?;
        let (mut recoveries, mut shown) = (0, 0);
        let truth = play(&daemon, &stage, |c| {
            recoveries = recoveries.max(number(c, "recoveries"));
            shown = shown.max(number(c, "retransmits_total"));
        })?;
        let metrics = daemon.metrics()?;
        agrees(&Causes::of(&metrics), &stage.path, &metrics)?;
        ensure!(recoveries > 0 && shown > 0, "{recoveries} recoveries, {shown} retransmits were shown: {truth}");
        // Whatever left is what was lost and what arrived.
        let sent = metrics.count("tcpwatch_sent_segments_total", &["direction=\"outbound\""]);
        equal("segments", sent, stage.path.record().data_segments(Direction::Forward) as i64, &metrics)?;
        let received = metrics.count("tcpwatch_received_bytes_total", &["direction=\"inbound\""]);
        equal("bytes", received, truth.client_bytes as i64, &metrics)?;
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn bufferbloat() -> Result<()> {
    let stage = once("bufferbloat")?.stage()?;
    let daemon = watch(&stage)?;
    let mut most = (0, 1);
    let truth = play(&daemon, &stage, |c| {
        let now = (number(c, "srtt_us"), number(c, "min_rtt_us").max(1));
        if now.0 > most.0 {
            most = now;
        }
    })?;
    let (srtt, min) = most;
    // The path alone takes 20 ms, and a packet of the client's up to this more than its way of 10 ms.
    let queued = truth.relay[0].longest_transit_ns / 1000;
    ensure!((20_000..40_000).contains(&min), "min RTT {min} µs of a path of 20 ms: {truth}");
    ensure!(srtt > 4 * min && srtt < queued + 30_000, "srtt {srtt} µs, min {min} µs: {truth}");
    nothing_lost(&daemon.metrics()?)
}

fn half_close() -> Result<()> {
    for congestion in ["cubic", "bbr"] {
        let mut scenario = once("half-close")?;
        scenario.setup.congestion = Some(congestion);
        scenario.setup.loss = [0.0, 0.01];
        let stage = scenario.stage()?;
        let daemon = watch(&stage)?;
        let truth = play(&daemon, &stage, |_| ())?;
        let metrics = daemon.metrics()?;
        agrees(&Causes::of(&metrics), &stage.path, &metrics)?;
        let received = metrics.count("tcpwatch_received_bytes_total", &["direction=\"outbound\""]);
        equal("the answer", received, truth.server_bytes as i64, &metrics)?;
        let sent = metrics.count("tcpwatch_sent_segments_total", &["direction=\"inbound\""]);
        equal("its segments", sent, stage.path.record().data_segments(Direction::Backward) as i64, &metrics)?;
        equal("closed by us", closed(&metrics, "fin_local"), 1, &metrics)?;
        equal("closed by the peer", closed(&metrics, "fin_remote"), 1, &metrics)?;
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn short_connections() -> Result<()> {
    let mut scenario = once("short-connections")?;
    scenario.setup.duration = Duration::from_secs(3);
    scenario.setup.size = 50_000;
    let stage = scenario.stage()?;
    let daemon = watch(&stage)?;
    let truth = play(&daemon, &stage, |_| ())?;
    let metrics = daemon.metrics()?;
    let both_ends = 2 * truth.connections as i64;
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), both_ends, &metrics)?;
    equal("closed", metrics.count(CLOSED, &[]), both_ends, &metrics)?;
    equal("handshakes", metrics.count("tcpwatch_handshake_seconds_count", &[]), both_ends, &metrics)?;
    let mean = metrics.sum("tcpwatch_handshake_seconds_sum", &[]) / both_ends as f64;
    ensure!((0.1..0.13).contains(&mean), "handshakes of {mean} s on a path of 0.1 s\n{metrics}");
    nothing_lost(&metrics)
}

fn tiny_writes() -> Result<()> {
    let stage = once("tiny-writes")?.stage()?;
    let daemon = watch(&stage)?;
    let began = Instant::now();
    let truth = play(&daemon, &stage, |_| ())?;
    let metrics = daemon.metrics()?;
    let bytes = metrics.count("tcpwatch_sent_bytes_total", &["direction=\"outbound\""]);
    equal("bytes", bytes, truth.client_bytes as i64, &metrics)?;
    let segments = metrics.count("tcpwatch_sent_segments_total", &["direction=\"outbound\""]);
    equal("segments", segments, stage.path.record().data_segments(Direction::Forward) as i64, &metrics)?;
    ensure!(segments * 10 >= bytes * 9, "{segments} segments of {bytes} bytes in {:?}", began.elapsed());
    nothing_lost(&metrics)
}
