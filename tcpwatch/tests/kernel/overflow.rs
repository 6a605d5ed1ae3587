//! Totals when there is no room: in the ring, for the state of sockets, in the maps.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{End, Family, Netns, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("overflow_of_a_ring_of_one_page_changes_no_total", small_ring),
        trial("overflow_of_socket_storage_changes_no_total", no_storage),
        trial("overflow_of_the_table_of_listeners_is_shown", many_listeners),
        trial("a_scan_of_every_port_adds_no_series", port_scan),
        trial("twenty_thousand_peers_add_no_series", peers),
        trial("overflow_by_connections_as_fast_as_they_can_be_made_changes_no_total", churn),
    ]
}

const CLOSED: &str = "tcpwatch_connections_closed_total";
const LOST: &str = "tcpwatch_events_lost_total";

/// A bit of everything that is counted: transfers with loss, orderly closes, resets of both kinds.
fn mixture(path: &Path) -> Result<()> {
    let traffic = Traffic::over(path, Family::V4).congestion("cubic");
    let server = traffic.listen()?;
    path.forward().drop_share(0.02, 11);
    for _ in 0..40 {
        let mut pair = traffic.connect_to(&server)?;
        pair.send(End::Client, 60_000)?;
        pair.close(End::Client)?;
    }
    for _ in 0..40 {
        traffic.connect_to(&server)?.abort(End::Server)?;
    }
    Traffic::over(path, Family::V6).refused(40)?;
    Ok(())
}

/// Everything that [`mixture`] makes, against the set-up and the kernels.
fn totals(metrics: &Metrics, path: &Path) -> Result<()> {
    let (a, b) = (path.a().counters()?, path.b().counters()?);
    let of_both = |name| Ok::<_, anyhow::Error>(a.get("Tcp", name)? + b.get("Tcp", name)?);
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 160, metrics)?;
    equal("adopted", metrics.count("tcpwatch_connections_adopted_total", &[]), 0, metrics)?;
    for (cause, truth) in
        [("fin_local", 40), ("fin_remote", 40), ("reset_sent", 40), ("reset_received", 40), ("failed_open", 40)]
    {
        equal(cause, metrics.count(CLOSED, &[&format!("cause=\"{cause}\"")]), truth, metrics)?;
    }
    let retransmitted = metrics.count("tcpwatch_retransmitted_segments_total", &[]);
    equal("retransmitted", retransmitted, of_both("RetransSegs")?, metrics)?;
    ensure!(retransmitted > 5, "only {retransmitted} retransmitted");
    equal("resets sent", metrics.count("tcpwatch_resets_sent_total", &[]), of_both("OutRsts")?, metrics)?;
    equal("received", metrics.count("tcpwatch_received_bytes_total", &[]), 40 * 60_000, metrics)
}

fn small_ring() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "ring_bytes = 4096")?;
    mixture(&path)?;
    totals(&daemon.metrics()?, &path)?;
    // Opened while the daemon cannot look: far more than a page holds.
    let paused = daemon.paused()?;
    let burst = Traffic::loopback(path.a(), Family::V4);
    thread::scope(|scope| {
        let server = burst.listen()?;
        let address = server.address;
        let client_ns = path.a();
        let clients = scope.spawn(move || {
            client_ns.run(|| (0..300).map(|_| TcpStream::connect(address)).collect::<Result<Vec<_>, _>>())
        });
        let accepted = (0..300).map(|_| server.listener.accept()).collect::<Result<Vec<_>, _>>()?;
        let clients = clients.join().map_err(|_| anyhow::anyhow!("the clients panicked"))??;
        drop(paused);
        let metrics = daemon.metrics()?;
        let opened = metrics.count("tcpwatch_connections_opened_total", &[]);
        equal("opened with the burst", opened, 160 + 600, &metrics)?;
        ensure!(metrics.count(LOST, &["where=\"ring\""]) > 0, "nothing was lost in the ring\n{metrics}");
        let taken = metrics.count("tcpwatch_events_total", &["kind=\"open\""]);
        ensure!(taken < opened, "{taken} records of {opened} opens");
        let entries = |metrics: &Metrics| metrics.count("tcpwatch_table_entries", &[]);
        let known = entries(&metrics);
        ensure!(known > 0, "nothing is known of {opened} connections");
        // Their ends are lost too, and nobody shows them as open for ever.
        let paused = daemon.paused()?;
        drop((accepted, clients));
        drop(paused);
        let metrics = daemon.wait("those to go whose end was lost", |metrics| entries(metrics) == 0)?;
        let closed = metrics.count(CLOSED, &[]);
        ensure!(metrics.count("tcpwatch_events_total", &["kind=\"close\""]) < closed, "no end was lost\n{metrics}");
        Ok(())
    })
}

fn no_storage() -> Result<()> {
    let path = Path::builder().build()?;
    for ns in [path.a(), path.b()] {
        // Socket storage is charged to the memory for socket options.
        ns.sysctl("net.core.optmem_max", "100")?;
    }
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    mixture(&path)?;
    let metrics = daemon.metrics()?;
    totals(&metrics, &path)?;
    ensure!(metrics.count(LOST, &["where=\"storage\""]) > 0, "storage was not refused\n{metrics}");
    Ok(())
}

fn many_listeners() -> Result<()> {
    /// Entries of the kernel's table.
    const ROOM: usize = 8192;
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    let listeners = ns.run(|| {
        (0..ROOM as u32 + 100)
            .map(|i| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 10_000 + i as u16))))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let metrics = daemon.metrics()?;
    equal("lost", metrics.count(LOST, &["where=\"map\""]), 100, &metrics)?;
    drop(listeners);
    let again = ns.run(|| TcpListener::bind("127.0.0.1:9000"))?;
    let metrics = daemon.metrics()?;
    equal("lost afterwards", metrics.count(LOST, &["where=\"map\""]), 100, &metrics)?;
    drop(again);
    Ok(())
}

/// Ends that may stay untold where there are many: those of one connection.
const UNTOLD: i64 = 2;
/// From so many ends on.
const MANY_ENDS: i64 = 100_000;

/// Waits until `ends` ends of connections were opened and closed: all of them counted, but for those events that the kernel
/// withheld because the program was running on that CPU, which are shown.
///
/// Not understood, and so allowed for one connection of very many: about once in half a million, and only seen while the daemon
/// ran, in one virtual machine, the programs are not called for the last transitions of a connection. The kernel's count of runs
/// and of misses lacks them too; bpftrace beside us lacked the same in two runs of three. It stays in the gauge of states.
pub(crate) fn all_ended(daemon: &Daemon, ends: i64) -> Result<Metrics> {
    let counts = |m: &Metrics| {
        (
            m.count("tcpwatch_connections_opened_total", &[]),
            m.count(CLOSED, &[]),
            m.count(LOST, &["where=\"recursion\"", "program=\"inet_sock_set_state\""]),
        )
    };
    let (most, every) = (Duration::from_secs(10), Duration::from_millis(100));
    let metrics = daemon
        .wait_at_most(most, every, "the last closes", |m| {
            let (opened, closed, withheld) = counts(m);
            opened + closed + withheld >= 2 * ends
        })
        .or_else(|_| daemon.metrics())?;
    let (opened, closed, withheld) = counts(&metrics);
    ensure!(opened <= ends && closed <= ends, "{opened} opened and {closed} closed of {ends}\n{metrics}");
    let missing = 2 * ends - opened - closed;
    let gauged =
        metrics.count("tcpwatch_connections", &[]) - metrics.count("tcpwatch_connections", &["state=\"TIME_WAIT\""]);
    let untold = gauged.clamp(0, if ends >= MANY_ENDS { UNTOLD } else { 0 });
    ensure!(
        missing <= withheld + untold,
        "{missing} are missing, {withheld} shown as withheld, {gauged} in the gauge\n{metrics}"
    );
    Ok(metrics)
}

/// Makes connections over loopback, one after the other as fast as it goes; the server ends them, by a reset if it is to
/// `abort`. Returns how many there were.
pub(crate) fn connect_while(ns: &Netns, port: u16, abort: bool, mut go_on: impl FnMut() -> bool + Send) -> Result<i64> {
    // All closes leave TIME_WAIT on the server's side, whose ports are not used up.
    ns.sysctl("net.ipv4.tcp_max_tw_buckets", "1000")?;
    let stop = AtomicBool::new(false);
    let made = AtomicU64::new(0);
    let listener = ns.run(|| TcpListener::bind(("127.0.0.1", port)))?;
    let address = listener.local_addr()?;
    // A reset may be there before connect() or read() has returned.
    let reset = |error: &std::io::Error| abort && error.kind() == std::io::ErrorKind::ConnectionReset;
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((stream, peer)) = listener.accept() {
                if abort && rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).is_err() {
                    return;
                }
                drop(stream);
                if stop.load(Ordering::Relaxed) && peer.port() == 7 {
                    return;
                }
            }
        });
        let (stop, made, reset) = (&stop, &made, &reset);
        let client = scope.spawn(move || {
            ns.run(|| -> std::io::Result<()> {
                let mut flood = || -> std::io::Result<()> {
                    while go_on() {
                        match TcpStream::connect(address) {
                            // The server closes first; the end of its stream says that it has.
                            Ok(mut stream) => match std::io::Read::read(&mut stream, &mut [0]) {
                                Err(error) if !reset(&error) => return Err(error),
                                _ => {}
                            },
                            Err(error) if reset(&error) => {}
                            Err(error) => return Err(error),
                        }
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                };
                let flooded = flood();
                // Whatever became of it, the server waits for this one.
                stop.store(true, Ordering::Relaxed);
                let last =
                    rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
                rustix::net::bind(&last, &SocketAddr::from(([127, 0, 0, 1], 7)))?;
                match rustix::net::connect(&last, &address).map_err(std::io::Error::from) {
                    Err(error) if !reset(&error) => return Err(error),
                    _ => {}
                }
                flooded
            })
        });
        client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(made.load(Ordering::Relaxed) as i64 + 1)
}

fn churn() -> Result<()> {
    /// Long enough to fill the ring many times.
    const DURATION: Duration = Duration::from_secs(10);
    let ns = Netns::new()?;
    let daemon = Daemon::with(&[&ns], "ring_bytes = 16384")?;
    let before = ns.counters()?;
    let until = Instant::now() + DURATION;
    let made = connect_while(&ns, 8080, false, || Instant::now() < until)?;
    let metrics = all_ended(&daemon, 2 * made)?;
    let kernel = ns.counters()?.delta(&before);
    equal("active opens", made, kernel.get("Tcp", "ActiveOpens")?, &metrics)?;
    let opened = metrics.count("tcpwatch_connections_opened_total", &[]);
    let closed = metrics.count(CLOSED, &[]);
    equal("resets", metrics.count("tcpwatch_resets_sent_total", &[]), kernel.get("Tcp", "OutRsts")?, &metrics)?;
    let taken = metrics.count("tcpwatch_events_total", &["kind=\"open\""])
        + metrics.count("tcpwatch_events_total", &["kind=\"close\""]);
    let lost = metrics.count(LOST, &["where=\"ring\"", "program=\"inet_sock_set_state\""]);
    println!("{made} connections in {DURATION:?}, {lost} records did not fit");
    equal("records taken and lost", taken + lost, opened + closed, &metrics)?;
    Ok(())
}

/// The bound that is promised for a host with default settings.
const MOST_SERIES: usize = 6000;

fn port_scan() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    ns.run(|| {
        for port in 1..=u16::MAX {
            // From another address: a socket that happens to get the port that it connects to connects to itself.
            let scanner = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
            rustix::net::bind(&scanner, &SocketAddr::from(([127, 0, 0, 2], 0)))?;
            let refused = rustix::net::connect(&scanner, &SocketAddr::from(([127, 0, 0, 1], port)));
            ensure!(refused.is_err(), "something listens on port {port} of a new namespace");
        }
        Ok(())
    })?;
    let metrics = daemon.metrics()?;
    let scanned = i64::from(u16::MAX);
    equal("resets", metrics.count("tcpwatch_resets_sent_total", &["service=\"none\""]), scanned, &metrics)?;
    equal("failed opens", metrics.count(CLOSED, &["service=\"other\"", "cause=\"failed_open\""]), scanned, &metrics)?;
    ensure!(metrics.series() < MOST_SERIES, "{} series", metrics.series());
    Ok(())
}

fn peers() -> Result<()> {
    const PEERS: u32 = 20_000;
    let ns = Netns::new()?;
    let daemon = Daemon::with(&[&ns], "max_connections = 1000")?;
    ns.run(|| {
        let listener = TcpListener::bind("127.0.0.1:8081")?;
        let to = listener.local_addr()?;
        for peer in 0..PEERS {
            let client = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
            let from = std::net::Ipv4Addr::from(0x7f01_0000 + peer);
            rustix::net::bind(&client, &SocketAddr::from((from, 0)))?;
            rustix::net::connect(&client, &to)?;
            drop((listener.accept()?, client));
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let both_ends = 2 * i64::from(PEERS);
    let metrics = all_ended(&daemon, both_ends)?;
    ensure!(metrics.series() < MOST_SERIES, "{} series", metrics.series());
    Ok(())
}
