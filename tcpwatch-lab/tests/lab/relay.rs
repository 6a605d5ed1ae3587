//! The relay: what it is asked to do to packets is what the kernels on both sides notice, and what the record says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::harness::trial;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{DropReason, Fate, Origin, Packet, Rate, median_rtt_ns, smoothed_rtt_ns};
use tcpwatch_lab::{Direction, End, Family, Impairment, Match, Path, Traffic, clock};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_delay_is_as_asked", delay),
        trial("a_dropped_data_segment_is_one_retransmission_v4", || drop_third(Family::V4)),
        trial("a_dropped_data_segment_is_one_retransmission_v6", || drop_third(Family::V6)),
        trial("a_segment_is_dropped_again_and_again", drop_repeatedly),
        trial("a_dropped_syn_is_sent_again", drop_syn),
        trial("a_dropped_syn_ack_is_sent_again", drop_syn_ack),
        trial("a_black_hole_is_switched", black_hole),
        trial("a_rate_bounds_the_throughput", rate),
        trial("a_full_queue_drops", full_queue),
        trial("a_held_segment_is_overtaken", hold),
        trial("a_duplicate_is_noticed", duplicate),
        trial("round_trip_times_agree_with_the_kernel", round_trips),
        trial("the_delay_changes_while_it_runs", changing_delay),
        trial("a_forged_reset_is_believed", forged_reset),
        trial("a_panicking_rule_is_reported", panicking_rule),
        trial("a_full_record_counts_the_rest", full_record),
        trial("a_pinned_relay_relays", pinned),
        trial("a_large_transfer_loses_nothing", large_transfer),
    ]
}

const MS: u64 = 1_000_000;

fn delay() -> Result<()> {
    for delay in [0, 1, 5, 20] {
        let path = Path::builder().delay(Duration::from_millis(delay)).build()?;
        Traffic::over(&path, Family::V4).connect()?.ping_pong(50, 100)?;
        let record = path.record();
        for direction in Direction::BOTH {
            let median = record.median_transit_ns(direction).context("no packets")?;
            let excess = median.checked_sub(delay * MS).context("a packet left too early")?;
            ensure!(excess < MS / 2, "{delay} ms {direction:?}: {excess} ns too late");
        }
        let early = record.packets.iter().filter_map(Packet::transit_ns).filter(|ns| *ns < delay * MS).count();
        ensure!(early == 0, "{early} packets left before their time");
    }
    Ok(())
}

fn drop_third(family: Family) -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    let mut pair = Traffic::over(&path, family).connect()?;
    let before = path.a().counters()?;
    let rule = path.forward().drop_nth_data(3);
    pair.send(End::Client, 100_000)?;
    ensure!(rule.hits() == 1);
    let counted = path.a().counters()?.delta(&before);
    ensure!(counted.get("Tcp", "RetransSegs")? == 1, "{counted}");
    ensure!(pair.info(End::Client)?.total_retrans == 1);
    let record = path.record();
    ensure!(record.retransmissions(Direction::Forward) == 1);
    let data: Vec<_> = record.segments(Direction::Forward).filter(|(_, segment)| segment.payload > 0).collect();
    let lost: Vec<_> = data.iter().filter(|(packet, _)| packet.is_dropped()).collect();
    ensure!(lost.len() == 1 && lost[0].1.seq == data[2].1.seq);
    ensure!(lost[0].0.fate == Fate::Dropped(DropReason::Rule));
    Ok(())
}

fn drop_repeatedly() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(1)).build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    let before = path.a().counters()?;
    let rule = path.forward().drop_nth_data_times(1, 3);
    pair.send(End::Client, 100)?;
    ensure!(rule.hits() == 3);
    let counted = path.a().counters()?.delta(&before);
    ensure!(counted.get("Tcp", "RetransSegs")? == 3, "{counted}");
    ensure!(path.record().retransmissions(Direction::Forward) == 3);
    Ok(())
}

fn drop_syn() -> Result<()> {
    let path = Path::builder().build()?;
    let rule = path.forward().drop_syns(1);
    let pair = Traffic::over(&path, Family::V4).connect()?;
    ensure!(rule.hits() == 1);
    ensure!(path.a().counters()?.get("Tcp", "RetransSegs")? == 1);
    ensure!(pair.info(End::Client)?.total_retrans == 1);
    ensure!(path.record().retransmissions(Direction::Forward) == 1);
    Ok(())
}

fn drop_syn_ack() -> Result<()> {
    let path = Path::builder().build()?;
    let rule = path.backward().drop_syn_acks(1);
    let _pair = Traffic::over(&path, Family::V6).connect()?;
    ensure!(rule.hits() == 1);
    let sent = path.record().retransmissions(Direction::Backward);
    ensure!(sent >= 1, "the server did not repeat its SYN-ACK");
    let counted = path.b().counters()?;
    ensure!(counted.get("Tcp", "RetransSegs")? == sent as i64, "{sent} repeated, but: {counted}");
    Ok(())
}

fn black_hole() -> Result<()> {
    let path = Path::builder().build()?;
    let traffic = Traffic::over(&path, Family::V4);
    let server = traffic.listen()?;
    let hole = path.backward().blackhole();
    ensure!(!traffic.try_connect(&server, Duration::from_millis(100))?);
    ensure!(hole.hits() >= 1);
    hole.set_enabled(false);
    traffic.connect_to(&server)?;
    Ok(())
}

fn rate() -> Result<()> {
    let rate = Rate::bits_per_second(20_000_000);
    let path = Path::builder().forward(Impairment::default().rate(rate)).build()?;
    Traffic::over(&path, Family::V4).connect()?.send(End::Client, 500_000)?;
    let record = path.record();
    let left: Vec<_> = record.segments(Direction::Forward).filter_map(|(packet, _)| packet.departed_ns()).collect();
    let bits: u64 = record.segments(Direction::Forward).skip(1).map(|(packet, _)| u64::from(packet.length) * 8).sum();
    let took_ns = left[left.len() - 1] - left[0];
    let least_ns = bits * 1_000_000_000 / rate.bits_per_second;
    // Departures are never early, so the last can only be late; and the first by what it took to wake up.
    ensure!(took_ns + MS / 2 >= least_ns, "{bits} bits took {took_ns} ns, at least {least_ns} are due");
    Ok(())
}

fn full_queue() -> Result<()> {
    let rate = Rate::bits_per_second(50_000_000).queue_packets(8);
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    path.forward().set_rate(Some(rate));
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    pair.send(End::Client, 1_000_000)?;
    let record = path.record();
    let full = record.packets.iter().filter(|packet| packet.fate == Fate::Dropped(DropReason::Queue)).count();
    ensure!(full > 0, "no packet met a full queue");
    ensure!(pair.info(End::Client)?.total_retrans as usize == record.retransmissions(Direction::Forward));
    Ok(())
}

fn hold() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    let rule = path.forward().hold(Match::data().nth(2), Duration::from_millis(2));
    pair.send(End::Client, 14_000)?;
    ensure!(rule.hits() == 1);
    let record = path.record();
    let data: Vec<_> = record.segments(Direction::Forward).filter(|(_, segment)| segment.payload > 0).collect();
    ensure!(data[1].0.departed_ns() > data[2].0.departed_ns(), "the second segment was not overtaken");
    ensure!(path.b().counters()?.get("TcpExt", "TCPOFOQueue")? > 0);
    Ok(())
}

fn duplicate() -> Result<()> {
    let path = Path::builder().build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    let rule = path.forward().duplicate(Match::data().nth(1), 2, Duration::from_micros(100));
    pair.send(End::Client, 100)?;
    ensure!(rule.hits() == 1);
    path.wait_record(Duration::from_secs(5), "both copies to be delivered", |record| {
        let copies = record.packets.iter().filter(|packet| matches!(packet.origin, Origin::CopyOf(_)));
        copies.filter(|packet| packet.departed_ns().is_some()).count() == 2
    })?;
    clock::wait_for(Duration::from_secs(5), "both copies to be told back", || {
        Ok((pair.info(End::Client)?.dsack_dups == 2).then_some(()))
    })?;
    ensure!(path.record().retransmissions(Direction::Forward) == 0);
    ensure!(pair.info(End::Client)?.total_retrans == 0);
    Ok(())
}

/// The kernel's times and those of the record must agree within what the two ends need to hand a packet over.
fn round_trips() -> Result<()> {
    for (family, end) in [(Family::V4, End::Client), (Family::V6, End::Server)] {
        let path = Path::builder().delay(Duration::from_millis(10)).build()?;
        let mut pair = Traffic::over(&path, family).connect()?;
        pair.ping_pong(40, 200)?;
        let samples = path.record().rtt_samples_of(pair.flow(end));
        ensure!(samples.len() >= 41, "{} samples", samples.len());
        let median = median_rtt_ns(&samples).context("no samples")?;
        ensure!((20 * MS..21 * MS).contains(&median), "median {median} ns");
        let kernel = pair.info(end)?;
        let smoothed = smoothed_rtt_ns(&samples).context("no samples")?;
        let kernel_ns = u64::from(kernel.rtt) * 1000;
        ensure!(kernel_ns.abs_diff(smoothed) < MS, "{end:?}: srtt {kernel_ns} ns, by the record {smoothed} ns");
        let best = samples.iter().map(|sample| sample.newest_ns).min().context("no samples")?;
        let kernel_ns = u64::from(kernel.min_rtt) * 1000;
        ensure!(kernel_ns.abs_diff(best) < MS, "{end:?}: min_rtt {kernel_ns} ns, by the record {best} ns");
    }
    Ok(())
}

fn changing_delay() -> Result<()> {
    let path = Path::builder().build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    for delay in [3, 12, 6] {
        path.forward().set_delay(Duration::from_millis(delay));
        path.take_record();
        pair.ping_pong(20, 100)?;
        let forward = path.record().median_transit_ns(Direction::Forward).context("no packets")?;
        ensure!((delay * MS..delay * MS + MS / 2).contains(&forward), "{delay} ms: {forward} ns");
    }
    Ok(())
}

fn forged_reset() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let path = Path::builder().build()?;
        let mut pair = Traffic::over(&path, family).connect()?;
        pair.send(End::Server, 1000)?;
        let flow = pair.flow(End::Server);
        let seq = path.record().next_seq(flow).context("the flow is not in the record")?;
        path.inject_segment(&RawSegment::reset(flow, seq))?;
        let client = flow.reversed();
        path.a().wait_state(client.src, client.dst, None, Duration::from_secs(5))?;
        ensure!(path.a().counters()?.get("Tcp", "EstabResets")? == 1);
        ensure!(path.b().counters()?.get("Tcp", "OutRsts")? == 0, "the reset was forged, yet the server counts one");
        let record = path.record();
        let injected: Vec<_> = record.packets.iter().filter(|packet| packet.origin == Origin::Injected).collect();
        ensure!(injected.len() == 1 && injected[0].departed_ns().is_some());
    }
    Ok(())
}

fn panicking_rule() -> Result<()> {
    let path = Path::builder().build()?;
    // The message of the panic would look like a failure of this test.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    path.forward().drop_when(Match::when(|_| panic!("a rule's mistake")));
    let traffic = Traffic::over(&path, Family::V4);
    let server = traffic.listen()?;
    let connected = traffic.try_connect(&server, Duration::from_millis(200))?;
    std::panic::set_hook(hook);
    ensure!(!connected);
    let error = path.wait_record(Duration::from_secs(5), "a packet", |_| false).err().context("no error")?;
    ensure!(error.to_string().contains("panicked"), "{error:#}");
    Ok(())
}

fn full_record() -> Result<()> {
    let path = Path::builder().record_cap(5).build()?;
    Traffic::over(&path, Family::V4).connect()?.send(End::Client, 50_000)?;
    let record = path.take_record();
    ensure!(record.packets.len() == 5 && record.unrecorded > 10, "{} unrecorded", record.unrecorded);
    Ok(())
}

fn pinned() -> Result<()> {
    let path = Path::builder().pin(0).urgent(false).spin(Duration::ZERO).build()?;
    Traffic::over(&path, Family::V4).connect()?.echo(10_000)?;
    ensure!(Path::builder().pin(100_000).build().is_err());
    Ok(())
}

fn large_transfer() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(1)).build()?;
    let mut pair = Traffic::over(&path, Family::V4).congestion("cubic").connect()?;
    pair.send(End::Client, 20_000_000)?;
    let record = path.record();
    ensure!(path.device_drops()? == [0, 0], "the relay was too late: {:?}", path.device_drops()?);
    ensure!(record.dropped(Direction::Forward) + record.dropped(Direction::Backward) == 0);
    let sent: u64 = record.segments(Direction::Forward).map(|(_, segment)| u64::from(segment.payload)).sum();
    ensure!(sent >= 20_000_000, "{sent} bytes");
    Ok(())
}
