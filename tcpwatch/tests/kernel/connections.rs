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
        trial("listeners_older_than_the_daemon_give_direction_and_service", older_listener),
        trial("half_closed_connections_are_read_between_their_transitions", half_closed),
        trial("what_is_written_before_a_close_counts_to_the_last_byte", write_and_close),
        trial("half_open_connections_are_shown", half_open),
        trial("sockets_that_are_connected_again_begin_anew", reconnected),
        trial("listeners_show_queue_limit_and_overflows", listener_queue),
        trial("time_wait_is_what_the_kernel_counts", time_wait),
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

pub(crate) fn bytes() -> Result<()> {
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
    equal("bytes since", metrics.count("tcpwatch_sent_bytes_total", &[]), 2 * 3 * 1000, &metrics)?;
    equal("received since", metrics.count("tcpwatch_received_bytes_total", &[]), 2 * 3 * 1000, &metrics)?;
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

fn older_listener() -> Result<()> {
    let path = Path::builder().build()?;
    let traffic = Traffic::over(&path, Family::V4).port(7443);
    let server = traffic.listen()?;
    let mut pair = traffic.connect_to(&server)?;
    pair.send(End::Client, 50_000_000)?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let inbound = ["direction=\"inbound\"", "service=\"7443\""];
    let metrics = daemon.metrics()?;
    equal("adopted", metrics.count("tcpwatch_connections_adopted_total", &[]), 2, &metrics)?;
    equal("of the service", metrics.count("tcpwatch_connections_adopted_total", &inbound), 1, &metrics)?;
    equal("established", metrics.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]), 2, &metrics)?;
    equal("bytes", metrics.count("tcpwatch_sent_bytes_total", &[]), 0, &metrics)?;
    equal("samples", metrics.count("tcpwatch_rtt_seconds_count", &[]), 0, &metrics)?;
    let new = traffic.connect_to(&server)?;
    new.close(End::Client)?;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    equal("opened of the service", metrics.count("tcpwatch_connections_opened_total", &inbound), 1, &metrics)?;
    equal("closed", metrics.count(CLOSED, &inbound), 2, &metrics)?;
    equal("bytes", metrics.count("tcpwatch_sent_bytes_total", &[]), 0, &metrics)?;
    nothing_lost(&metrics)
}

fn half_closed() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.send(End::Client, 1000)?;
    pair.half_close(End::Client)?;
    pair.send(End::Server, 1_000_000)?;
    // The server sends from CLOSE_WAIT: neither end has moved on, and tcp_probe sees nothing of it.
    let sent = ["direction=\"inbound\""];
    daemon.wait("the reading of the half-closed connection", |m| {
        m.count("tcpwatch_sent_bytes_total", &sent) == 1_000_000
            && m.count("tcpwatch_received_bytes_total", &["direction=\"outbound\""]) == 1_000_000
    })?;
    drop(pair);
    let metrics = daemon.wait("both closes", |m| m.count(CLOSED, &[]) == 2)?;
    equal("sent", metrics.count("tcpwatch_sent_bytes_total", &[]), 1_001_000, &metrics)?;
    equal("received", metrics.count("tcpwatch_received_bytes_total", &[]), 1_001_000, &metrics)?;
    nothing_lost(&metrics)
}

fn reconnected() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let first = traffic.listen()?;
    let mut pair = traffic.connect_to(&first)?;
    pair.send(End::Client, 10_000)?;
    // connect(AF_UNSPEC) dissolves the connection, with a RST, and clears its totals; then the socket connects again.
    rustix::net::connect_unspec(&pair.client)?;
    rustix::net::connect(&pair.client, &first.address)?;
    let (again, _) = first.listener.accept()?;
    pair.server = again;
    pair.send(End::Client, 3_000)?;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    let outbound = "direction=\"outbound\"";
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[outbound]), 2, &metrics)?;
    equal("dissolved", metrics.count(CLOSED, &[outbound, "cause=\"reset_sent\""]), 1, &metrics)?;
    equal("closed", metrics.count(CLOSED, &[outbound, "cause=\"fin_local\""]), 1, &metrics)?;
    let read = metrics.count("tcpwatch_received_bytes_total", &["direction=\"inbound\""]);
    equal("received", read, 13_000, &metrics)?;
    // On a slow machine the acknowledgement may come later than the probe for it, and what is sent twice counts twice.
    let sent = metrics.count("tcpwatch_sent_bytes_total", &[outbound]);
    if metrics.count("tcpwatch_retransmitted_segments_total", &[]) == 0 {
        equal("sent", sent, 13_000, &metrics)?;
    }
    ensure!((13_000..26_000).contains(&sent), "{sent} bytes sent\n{metrics}");
    let sent = metrics.count("tcpwatch_resets_sent_total", &["cause=\"disconnect\""]);
    equal("resets", sent, path.a().counters()?.get("Tcp", "OutRsts")?, &metrics)?;
    nothing_lost(&metrics)
}

fn listener_queue() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let server = path.b().run(|| -> Result<_> {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &std::net::SocketAddr::from((Path::IPV4[1], 9444)))?;
        rustix::net::listen(&socket, 3)?;
        Ok(std::net::TcpListener::from(socket))
    })?;
    let address = server.local_addr()?;
    let label = format!("listener=\"{address}\"");
    let clients: Vec<_> = (0..3)
        .map(|_| path.a().run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))))
        .collect::<Result<_, _>>()?;
    daemon.wait("the queue of the listener", |m| {
        m.count("tcpwatch_listener_queue", &[&label]) == 3 && m.count("tcpwatch_listener_queue_limit", &[&label]) == 3
    })?;
    // The queue takes one more than its limit; what comes then is dropped, and tried again by its sender.
    let more: Vec<_> = (0..4)
        .map(|_| path.a().run(|| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200))))
        .collect();
    ensure!(more.iter().any(Result::is_err), "a queue of 3 took {} connections", 3 + more.len());
    let netns = format!("netns=\"{}\"", path.b().inode());
    let metrics = daemon.wait("what did not fit the queue", |m| {
        m.count("tcpwatch_listen_overflows_total", &[&netns]) > 0
            && m.count("tcpwatch_listener_drops_total", &[&label]) > 0
    })?;
    // The clients that were refused go on trying until they are closed, so the kernel may be ahead by now.
    drop(more);
    let truth = path.b().counters()?.get("TcpExt", "ListenOverflows")?;
    let ours = metrics.count("tcpwatch_listen_overflows_total", &[&netns]);
    ensure!(ours <= truth, "tcpwatch says {ours}, the kernel {truth}\n{metrics}");
    let drops = metrics.count("tcpwatch_listener_drops_total", &[&label]);
    ensure!(drops >= ours, "{drops} drops and {ours} overflows\n{metrics}");
    drop(clients);
    Ok(())
}

fn time_wait() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let server = traffic.listen()?;
    for _ in 0..4 {
        traffic.connect_to(&server)?.close(End::Client)?;
    }
    daemon.wait("four sockets in TIME_WAIT", |m| m.count("tcpwatch_connections", &["state=\"TIME_WAIT\""]) == 4)?;
    Ok(())
}

fn write_and_close() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(3)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::V6).connect()?;
    let mut server = pair.server.try_clone()?;
    let reader = std::thread::spawn(move || std::io::copy(&mut server, &mut std::io::sink()));
    std::io::Write::write_all(&mut pair.client, &vec![7; 1_000_000])?;
    // Most of it is still in the send queue: it leaves from FIN_WAIT1, after the last descriptor is gone.
    drop(pair);
    let read = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(read == 1_000_000, "{read} bytes arrived");
    let metrics = daemon.wait("both closes", |m| m.count(CLOSED, &[]) == 2)?;
    let sent = metrics.count("tcpwatch_sent_bytes_total", &["direction=\"outbound\""]);
    equal("sent", sent, 1_000_000, &metrics)?;
    let received = metrics.count("tcpwatch_received_bytes_total", &["direction=\"inbound\""]);
    equal("received", received, 1_000_000, &metrics)?;
    nothing_lost(&metrics)
}

fn half_open() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let server = traffic.listen()?;
    path.backward().drop_syn_acks(100);
    ensure!(!traffic.try_connect(&server, Duration::from_millis(100))?, "it connected without a SYN-ACK");
    daemon.wait("the half-open connection", |m| m.count("tcpwatch_connections", &["state=\"SYN_RECV\""]) == 1)?;
    Ok(())
}
