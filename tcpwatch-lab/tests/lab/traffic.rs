//! Traffic: what each generator says it has done is what the kernel's counters show the moment it returns.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::harness::trial;
use tcpwatch_lab::sockets::TcpState;
use tcpwatch_lab::{Counters, Direction, End, Family, Netns, Path, Traffic, sockopt};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("every_family_carries_data_and_closes", every_family),
        trial("mapped_sockets_are_mapped", mapped),
        trial("closed_ports_refuse", refused),
        trial("unread_data_makes_close_a_reset", unread),
        trial("linger_zero_makes_close_a_reset", linger),
        trial("data_after_close_is_answered_by_a_reset", after_close),
        trial("a_half_closed_connection_still_sends", half_close),
        trial("idle_connections_stay_established", idle),
        trial("congestion_control_is_set_on_both_ends", congestion),
        trial("loopback_traffic_stays_in_its_namespace", loopback),
    ]
}

/// What happened in both namespaces since the path was made.
fn counted(path: &Path) -> Result<[Counters; 2]> {
    Ok([path.a().counters()?, path.b().counters()?])
}

fn every_family() -> Result<()> {
    for family in Family::ALL {
        let path = Path::builder().build()?;
        let mut pair = Traffic::over(&path, family).connect()?;
        pair.echo(100_000)?;
        pair.ping_pong(10, 64)?;
        ensure!(pair.info(End::Client)?.bytes_acked == 1 + 100_640, "{family:?}: {:?}", pair.info(End::Client)?);
        ensure!(pair.info(End::Server)?.bytes_received == 100_640);
        pair.close(End::Server)?;
        let [client, server] = counted(&path)?;
        ensure!(client.get("Tcp", "ActiveOpens")? == 1 && server.get("Tcp", "PassiveOpens")? == 1, "{family:?}");
        ensure!(client.get("Tcp", "OutRsts")? == 0 && server.get("Tcp", "OutRsts")? == 0, "{family:?}");
        ensure!(client.get("Tcp", "CurrEstab")? == 0 && server.get("Tcp", "CurrEstab")? == 0);
    }
    Ok(())
}

fn mapped() -> Result<()> {
    let path = Path::builder().build()?;
    let pair = Traffic::over(&path, Family::MappedServer).connect()?;
    ensure!(pair.server.peer_addr()?.to_string().starts_with("[::ffff:10.77.0.1]"), "{:?}", pair.server.peer_addr());
    ensure!(pair.client.peer_addr()?.is_ipv4());
    let pair = Traffic::over(&path, Family::MappedBoth).connect()?;
    ensure!(pair.client.peer_addr()?.to_string().starts_with("[::ffff:10.77.0.2]"), "{:?}", pair.client.peer_addr());
    let flow = pair.flow(End::Client);
    ensure!(flow.src.is_ipv4());
    ensure!(path.record().flows().contains(&flow), "the flow on the wire is not the pair's");
    Ok(())
}

fn refused() -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let path = Path::builder().build()?;
        Traffic::over(&path, family).refused(5)?;
        let [client, server] = counted(&path)?;
        ensure!(client.get("Tcp", "AttemptFails")? == 5, "{client}");
        ensure!(server.get("Tcp", "OutRsts")? == 5, "{server}");
        ensure!(path.record().resets(Direction::Backward) == 5);
    }
    Ok(())
}

fn unread() -> Result<()> {
    for by in [End::Client, End::Server] {
        let path = Path::builder().build()?;
        Traffic::over(&path, Family::V4).connect()?.close_with_unread(by, 500)?;
        let sender = &counted(&path)?[by as usize];
        ensure!(sender.get("TcpExt", "TCPAbortOnClose")? == 1, "{sender}");
        ensure!(sender.get("Tcp", "OutRsts")? == 1, "{sender}");
        ensure!(path.record().resets(Direction::BOTH[by as usize]) == 1);
    }
    Ok(())
}

fn linger() -> Result<()> {
    for (by, family) in [(End::Client, Family::V4), (End::Server, Family::V6)] {
        let path = Path::builder().build()?;
        Traffic::over(&path, family).connect()?.abort(by)?;
        let sender = &counted(&path)?[by as usize];
        ensure!(sender.get("TcpExt", "TCPAbortOnData")? == 1, "{sender}");
        ensure!(sender.get("Tcp", "OutRsts")? == 1, "{sender}");
        ensure!(counted(&path)?[by.other() as usize].get("Tcp", "EstabResets")? == 1);
    }
    Ok(())
}

fn after_close() -> Result<()> {
    for (closed, family) in [(End::Server, Family::V4), (End::Client, Family::V6)] {
        let path = Path::builder().build()?;
        Traffic::over(&path, family).connect()?.send_after_close(closed)?;
        let answering = &counted(&path)?[closed as usize];
        ensure!(answering.get("Tcp", "OutRsts")? == 1, "{answering}");
        ensure!(path.record().resets(Direction::BOTH[closed as usize]) == 1);
    }
    Ok(())
}

fn half_close() -> Result<()> {
    let path = Path::builder().build()?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.half_close(End::Client)?;
    pair.send(End::Server, 50_000)?;
    let flow = pair.flow(End::Client);
    let sockets = path.a().tcp_sockets()?;
    let state = sockets.iter().find(|socket| socket.local == flow.src).map(|socket| socket.state);
    ensure!(state == Some(TcpState::FinWait2), "{state:?}");
    Ok(())
}

fn idle() -> Result<()> {
    let path = Path::builder().build()?;
    let pairs = Traffic::over(&path, Family::V6).connect_many(20)?;
    ensure!(path.a().counters()?.get("Tcp", "CurrEstab")? == 20);
    let established = |netns: &Netns| -> Result<usize> {
        Ok(netns.tcp_sockets()?.iter().filter(|socket| socket.state == TcpState::Established).count())
    };
    ensure!(established(path.a())? == 20 && established(path.b())? == 20);
    drop(pairs);
    Ok(())
}

fn congestion() -> Result<()> {
    let path = Path::builder().build()?;
    let available = path.a().sysctl_get("net.ipv4.tcp_available_congestion_control")?;
    for name in available.split_whitespace() {
        let pair = Traffic::over(&path, Family::V4).congestion(name).connect()?;
        ensure!(sockopt::congestion(&pair.client)? == name);
        ensure!(sockopt::congestion(&pair.server)? == name);
    }
    ensure!(Traffic::over(&path, Family::V4).congestion("no_such_thing").connect().is_err());
    Ok(())
}

fn loopback() -> Result<()> {
    let netns = Netns::new()?;
    for family in Family::ALL {
        Traffic::loopback(&netns, family).connect()?.echo(10_000)?;
    }
    ensure!(netns.counters()?.get("Tcp", "ActiveOpens")? == 4);
    Ok(())
}
