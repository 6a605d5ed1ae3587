//! Retransmitted segments by cause, under exact losses, equal to RetransSegs of the namespaces.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::nft::Share;
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("retransmits_are_fast_when_a_segment_amid_a_flight_is_lost", amid),
        trial("retransmits_are_tail_loss_probes_when_the_last_segment_is_lost", tail),
        trial("retransmits_are_timeouts_when_everything_is_lost", everything),
        trial("retransmits_are_of_syn_when_the_syn_is_lost", syn),
        trial("retransmits_are_of_syn_ack_when_the_syn_ack_is_lost", syn_ack),
        trial("retransmits_equal_the_kernel_under_random_loss", random),
        trial("retransmits_equal_the_kernel_when_the_receiver_drops_by_nftables", nftables),
    ]
}

const RETRANSMITTED: &str = "tcpwatch_retransmitted_segments_total";

fn by_cause(metrics: &Metrics, cause: &str) -> i64 {
    metrics.count(RETRANSMITTED, &[&format!("cause=\"{cause}\"")])
}

fn agrees_with_the_kernel(metrics: &Metrics, path: &Path) -> Result<i64> {
    let truth = path.a().counters()?.get("Tcp", "RetransSegs")? + path.b().counters()?.get("Tcp", "RetransSegs")?;
    equal("retransmitted segments", metrics.count(RETRANSMITTED, &[]), truth, metrics)?;
    Ok(truth)
}

fn path() -> Result<Path> {
    Path::builder().delay(Duration::from_millis(5)).build()
}

fn amid() -> Result<()> {
    for family in [Family::V4, Family::V6, Family::MappedBoth] {
        let path = path()?;
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        let mut pair = Traffic::over(&path, family).congestion("cubic").connect()?;
        path.forward().drop_nth_data(3);
        pair.send(End::Client, 20_000)?;
        let metrics = daemon.metrics()?;
        equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 1, &metrics)?;
        equal("fast", by_cause(&metrics, "fast"), 1, &metrics)?;
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn tail() -> Result<()> {
    let path = path()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    // A first exchange, so that the RTT is known and the probe comes before the timeout.
    pair.ping_pong(3, 100)?;
    path.forward().drop_nth_data(1);
    pair.send(End::Client, 500)?;
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 1, &metrics)?;
    equal("probes", by_cause(&metrics, "tail_loss_probe"), 1, &metrics)?;
    nothing_lost(&metrics)
}

fn everything() -> Result<()> {
    let path = path()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    pair.ping_pong(3, 100)?;
    // The segment, its probe and two timeouts.
    path.forward().drop_nth_data_times(1, 4);
    pair.send(End::Client, 500)?;
    let metrics = daemon.metrics()?;
    let truth = agrees_with_the_kernel(&metrics, &path)?;
    let timeouts = by_cause(&metrics, "timeout");
    let probes = by_cause(&metrics, "tail_loss_probe");
    ensure!(timeouts >= 2, "{timeouts} timeouts\n{metrics}");
    equal("timeouts and the probe", timeouts + probes, truth, &metrics)?;
    nothing_lost(&metrics)
}

fn syn() -> Result<()> {
    let path = path()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    path.forward().drop_syns(1);
    Traffic::over(&path, Family::V4).connect()?.close(End::Client)?;
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 1, &metrics)?;
    equal("SYN", by_cause(&metrics, "syn"), 1, &metrics)?;
    // The client's sample would be that of either SYN: only the server's handshake counts.
    equal("handshakes", metrics.count("tcpwatch_handshake_seconds_count", &[]), 1, &metrics)?;
    nothing_lost(&metrics)
}

fn syn_ack() -> Result<()> {
    let path = path()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    path.backward().drop_syn_acks(1);
    Traffic::over(&path, Family::V6).connect()?.close(End::Client)?;
    let metrics = daemon.metrics()?;
    agrees_with_the_kernel(&metrics, &path)?;
    // Not RetransSegs: on a host that stands still for a moment a FIN may be sent again too.
    let (client, server) = (path.a().counters()?, path.b().counters()?);
    let (syns, syn_acks) = (by_cause(&metrics, "syn"), by_cause(&metrics, "syn_ack"));
    equal("SYN-ACKs", syn_acks, server.get("TcpExt", "TCPSynRetrans")?, &metrics)?;
    equal("SYNs", syns, client.get("TcpExt", "TCPSynRetrans")?, &metrics)?;
    ensure!(syn_acks > 0, "no SYN-ACK was sent again\n{metrics}");
    nothing_lost(&metrics)
}

fn random() -> Result<()> {
    for congestion in ["cubic", "bbr"] {
        let path = path()?;
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        let mut pair = Traffic::over(&path, Family::V4).congestion(congestion).connect()?;
        path.forward().drop_share(0.03, 7);
        path.backward().drop_share(0.01, 8);
        pair.send(End::Client, 2_000_000)?;
        let metrics = daemon.metrics()?;
        let truth = agrees_with_the_kernel(&metrics, &path)?;
        ensure!(truth > 10, "{congestion}: only {truth} segments were sent again");
        let known = metrics.count(RETRANSMITTED, &[]) - by_cause(&metrics, "other");
        ensure!(known * 100 >= truth * 95, "{congestion}: the cause of many is not known\n{metrics}");
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn nftables() -> Result<()> {
    let path = path()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    let drop = path.b().drop_input("tcp flags & (syn | fin | rst) == 0 meta length > 1000", Share::EveryNth(20))?;
    pair.send(End::Client, 300_000)?;
    let metrics = daemon.metrics()?;
    let truth = agrees_with_the_kernel(&metrics, &path)?;
    let dropped = drop.dropped()? as i64;
    ensure!(dropped > 3 && truth >= dropped, "{dropped} dropped, {truth} sent again\n{metrics}");
    ensure!(by_cause(&metrics, "fast") > 0, "{metrics}");
    nothing_lost(&metrics)
}
