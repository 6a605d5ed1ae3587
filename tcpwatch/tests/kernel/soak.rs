//! Everything at once for a minute (ten in the long run): afterwards every total equals the kernels', and nothing leaks.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::sockets::TcpState;
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic, sockopt};

use crate::daemon::{Daemon, Metrics, equal};
use crate::{is_long, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![trial("soak_leaves_totals_equal_to_the_kernel_and_nothing_behind", soak)];
    if is_long() {
        trials.push(trial("soak_of_half_an_hour_with_ten_thousand_connections_keeps_memory_flat", half_an_hour));
    }
    trials
}

const LOST: &str = "tcpwatch_events_lost_total";
const CLOSED: &str = "tcpwatch_connections_closed_total";
const OPENED: &str = "tcpwatch_connections_opened_total";

/// What all flows did together.
#[derive(Debug, Default)]
struct Truth {
    /// Connections made, each of which has two ends.
    connections: AtomicU64,
    /// Payload that reached the other end, read or not.
    bytes: AtomicU64,
}

impl Truth {
    fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn soak() -> Result<()> {
    let duration = Duration::from_secs(if is_long() { 600 } else { 60 });
    let paths = [lossy()?, reordering()?];
    let local = Netns::new()?;
    // Thousands of connections leave their TIME_WAIT behind, more than there are ports.
    local.sysctl("net.ipv4.tcp_max_tw_buckets", "1000")?;
    let namespaces = [paths[0].a(), paths[0].b(), paths[1].a(), paths[1].b(), &local];
    let daemon = Daemon::watching(&namespaces)?;
    let start = Leaks::of(&daemon)?;
    let truth = Truth::default();
    let until = Instant::now() + duration;
    let warm = thread::scope(|scope| {
        let mut flows = Vec::new();
        for (n, path) in paths.iter().enumerate() {
            for (family, congestion) in [(Family::V4, "cubic"), (Family::V6, "bbr"), (Family::MappedServer, "cubic")] {
                let traffic = Traffic::over(path, family).congestion(congestion).timeout(Duration::from_secs(60));
                let truth = &truth;
                flows.push(scope.spawn(move || mixture(&traffic, until, n as u64, truth)));
            }
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (local, truth) = (&local, &truth);
            flows.push(scope.spawn(move || churn(local, address, Duration::from_millis(10), until, truth)));
        }
        // A third of the time is for caches and tables to fill.
        thread::sleep(duration / 3);
        let warm = Leaks::of(&daemon)?;
        for flow in flows {
            flow.join().map_err(|_| anyhow!("a flow panicked"))??;
        }
        Ok::<_, anyhow::Error>(warm)
    })?;
    for ns in namespaces {
        let ended = |state| matches!(state, TcpState::TimeWait | TcpState::Listen);
        ns.wait_tcp(Duration::from_secs(120), "all connections to end", |all| all.iter().all(|s| ended(s.state)))?;
    }
    let metrics = daemon.wait("the last records", |m| m.count("tcpwatch_table_entries", &[]) <= start.table)?;
    totals(&metrics, &namespaces, &truth)?;
    Leaks::of(&daemon)?.within(&start, &warm).with_context(|| metrics.to_string())
}

/// As many connections as one process can have both ends of, some of them busy, and short ones beside them all the time.
fn half_an_hour() -> Result<()> {
    const KEPT: usize = 9_900;
    const MINUTES: usize = 30;
    /// What docs/INSTALL.md promises for as many.
    const BOUND: u64 = 64 << 20;
    let ns = Netns::new()?;
    ns.sysctl("net.ipv4.tcp_max_tw_buckets", "1000")?;
    let daemon = Daemon::watching(&[&ns])?;
    let mut pairs = Traffic::loopback(&ns, Family::V4).connect_many(KEPT)?;
    let truth = Truth::default();
    let until = Instant::now() + Duration::from_secs(60) * MINUTES as u32;
    let minutes = thread::scope(|scope| {
        let mut flows = Vec::new();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (ns, truth) = (&ns, &truth);
            flows.push(scope.spawn(move || churn(ns, address, Duration::from_millis(50), until, truth)));
        }
        let mut minutes = Vec::new();
        let mut turn = 0;
        while Instant::now() < until {
            let minute = Instant::now() + Duration::from_secs(60);
            while Instant::now() < minute {
                pairs[turn % KEPT].ping_pong(2, 1_000)?;
                turn += 7;
                thread::sleep(Duration::from_millis(5));
            }
            let now = Leaks::of(&daemon)?;
            println!("minute {}: {now:?}", minutes.len() + 1);
            minutes.push(now);
        }
        for flow in flows {
            flow.join().map_err(|_| anyhow!("a flow panicked"))??;
        }
        Ok::<_, anyhow::Error>(minutes)
    })?;
    let metrics = daemon.metrics()?;
    println!(
        "{} short connections; {} s of CPU",
        truth.connections.load(Ordering::Relaxed),
        metrics.sum("process_cpu_seconds_total", &[])
    );
    let warm = minutes.get(MINUTES / 3).context("it was too short")?;
    for now in minutes.iter().skip(MINUTES / 3) {
        ensure!(
            now.resident < warm.resident + (4 << 20) && now.resident < BOUND,
            "memory grew: {warm:?}, then {now:?}"
        );
        ensure!(now.files <= warm.files + 1 && now.maps == warm.maps, "{warm:?}, then {now:?}");
    }
    drop(pairs);
    ns.wait_tcp(Duration::from_secs(60), "all connections to end", |all| {
        all.iter().all(|socket| matches!(socket.state, TcpState::TimeWait | TcpState::Listen))
    })?;
    let metrics = daemon.wait("the last records", |metrics| metrics.count("tcpwatch_table_entries", &[]) == 0)?;
    let withheld = metrics.count(LOST, &["where=\"recursion\"", "program=\"inet_sock_set_state\""]);
    let ends = 2 * (KEPT as i64 + truth.connections.load(Ordering::Relaxed) as i64);
    for (what, ours) in [("opened", metrics.count(OPENED, &[])), ("closed", metrics.count(CLOSED, &[]))] {
        ensure!(ours <= ends && ends - ours <= withheld, "{what}: {ours} of {ends}, {withheld} withheld\n{metrics}");
    }
    Ok(())
}

fn lossy() -> Result<Path> {
    let path = Path::builder().delay(Duration::from_millis(5)).record_cap(0).build()?;
    path.forward().drop_share(0.01, 1);
    path.backward().drop_share(0.01, 2);
    Ok(path)
}

fn reordering() -> Result<Path> {
    let path = Path::builder().delay(Duration::from_millis(2)).record_cap(0).build()?;
    path.forward().reorder_share(0.02, Duration::from_millis(5), 3);
    path.forward().duplicate_share(0.01, 4);
    path.backward().duplicate_share(0.01, 5);
    Ok(path)
}

/// Connections that end in every way, beside some that stay.
fn mixture(traffic: &Traffic, until: Instant, seed: u64, truth: &Truth) -> Result<()> {
    let server = traffic.listen()?;
    let connect = || {
        truth.opened();
        traffic.connect_to(&server)
    };
    let send = |pair: &mut Pair, from, bytes| {
        truth.moved(bytes);
        pair.send(from, bytes)
    };
    let mut kept = [connect()?, connect()?, connect()?];
    let mut turn = seed;
    while Instant::now() < until {
        turn += 1;
        let mut pair = connect()?;
        match turn % 7 {
            0 => {
                send(&mut pair, End::Client, 100_000)?;
                pair.half_close(End::Client)?;
            }
            1 => {
                send(&mut pair, End::Client, 300)?;
                pair.half_close(End::Client)?;
                send(&mut pair, End::Server, 50_000)?;
            }
            2 => {
                send(&mut pair, End::Server, 5_000)?;
                pair.half_close(End::Server)?;
            }
            3 => sockopt::abort_on_close(&pair.client)?,
            4 => sockopt::abort_on_close(&pair.server)?,
            5 => {
                truth.moved(700);
                pair.send_unread(End::Client, 700)?;
                // Its unread bytes make this a reset.
                drop(pair.server);
                continue;
            }
            _ => {
                traffic.refused(2)?;
                let place = turn as usize % kept.len();
                send(&mut kept[place], End::Client, 20_000)?;
            }
        }
        drop(pair);
    }
    for pair in &mut kept {
        pair.half_close(End::Client)?;
    }
    Ok(())
}

/// Short connections over loopback, 25 of them after each pause: a question, an answer, and the server closes.
fn churn(ns: &Netns, address: &str, pause: Duration, until: Instant, truth: &Truth) -> Result<()> {
    const AT_ONCE: usize = 25;
    let listener = ns.run(|| TcpListener::bind(address))?;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            loop {
                let (mut stream, _) = listener.accept()?;
                let mut question = [0; 8];
                stream.read_exact(&mut question)?;
                stream.write_all(&question)?;
                if question == *b"goodbye!" {
                    return Ok(());
                }
            }
        });
        let ask = |question: &[u8; 8]| -> Result<()> {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(question)?;
            stream.read_to_end(&mut Vec::new())?;
            truth.opened();
            truth.moved(2 * question.len() as u64);
            Ok(())
        };
        ns.run(|| -> Result<()> {
            while Instant::now() < until {
                (0..AT_ONCE).try_for_each(|_| ask(b"question"))?;
                // Room for the others on a small machine.
                thread::sleep(pause);
            }
            ask(b"goodbye!")
        })?;
        server.join().map_err(|_| anyhow!("the server panicked"))?
    })
}

/// Every total against the kernels', but for what is shown as withheld by the kernel from the program that counts it.
fn totals(metrics: &Metrics, namespaces: &[&Netns], truth: &Truth) -> Result<()> {
    let of_all = |name: &str| -> Result<i64> {
        let counts = namespaces.iter().map(|ns| ns.counters()?.get("Tcp", name));
        counts.sum()
    };
    let withheld = |programs: &[&str]| -> i64 {
        let of = |program: &&str| metrics.count(LOST, &["where=\"recursion\"", &format!("program=\"{program}\"")]);
        programs.iter().map(of).sum()
    };
    let nearly = |what: &str, ours: i64, kernels: i64, programs: &[&str]| -> Result<()> {
        let excused = withheld(programs);
        ensure!(
            ours <= kernels && kernels - ours <= excused,
            "{what}: tcpwatch says {ours}, the kernels {kernels}, and {excused} events were withheld\n{metrics}"
        );
        println!("{what}: {ours} of {kernels}, {excused} withheld");
        Ok(())
    };
    let states = ["inet_sock_set_state"];
    let retransmitted = metrics.count("tcpwatch_retransmitted_segments_total", &[]);
    let programs = ["tcp_retransmit_skb", "tcp_retransmit_synack", "inet_sock_set_state"];
    nearly("retransmitted", retransmitted, of_all("RetransSegs")?, &programs)?;
    let resets = metrics.count("tcpwatch_resets_sent_total", &[]);
    nearly("resets sent", resets, of_all("OutRsts")?, &["tcp_send_reset"])?;
    let (opened, closed) = (metrics.count(OPENED, &[]), metrics.count(CLOSED, &[]));
    let failed = metrics.count(CLOSED, &["cause=\"failed_open\""]);
    let kernels = of_all("ActiveOpens")? + of_all("PassiveOpens")?;
    nearly("opened or failed", opened + failed, kernels, &states)?;
    nearly("closed", closed, kernels, &states)?;
    let connections = truth.connections.load(Ordering::Relaxed) as i64;
    equal("the traffic's own count", kernels - failed, 2 * connections, metrics)
        .or_else(|error| if withheld(&states) > 0 { Ok(()) } else { Err(error) })?;
    ensure!(retransmitted > 100 && resets > 100 && connections > 1000, "hardly any traffic\n{metrics}");
    // The bytes of a connection whose close was withheld are missing from its last record on.
    let bytes = truth.bytes.load(Ordering::Relaxed) as i64;
    let received = metrics.count("tcpwatch_received_bytes_total", &[]);
    let slack = withheld(&states) * 100_000;
    ensure!(
        received <= bytes && bytes - received <= slack,
        "received: tcpwatch says {received}, the traffic {bytes}\n{metrics}"
    );
    for place in ["storage", "map", "table", "ring"] {
        equal(place, metrics.count(LOST, &[&format!("where=\"{place}\"")]), 0, metrics)?;
    }
    Ok(())
}

/// What could grow.
#[derive(Debug)]
struct Leaks {
    resident: u64,
    files: usize,
    table: i64,
    maps: i64,
    open: i64,
}

impl Leaks {
    fn of(daemon: &Daemon) -> Result<Self> {
        let metrics = daemon.metrics()?;
        let open = ["ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "CLOSE_WAIT", "LAST_ACK", "CLOSING"];
        let in_state = |state: &&str| metrics.count("tcpwatch_connections", &[&format!("state=\"{state}\"")]);
        Ok(Self {
            resident: daemon.resident_bytes()?,
            files: daemon.open_files()?,
            table: metrics.count("tcpwatch_table_entries", &[]),
            maps: metrics.count("tcpwatch_map_memory_bytes", &[]),
            open: open.iter().map(in_state).sum(),
        })
    }

    /// What may be at the end, given what was at the start and after the warm-up.
    fn within(&self, start: &Self, warm: &Self) -> Result<()> {
        println!("{start:?}, then {warm:?}, then {self:?}");
        ensure!(self.resident < warm.resident + (4 << 20), "memory grew: {warm:?}, then {self:?}");
        // One scrape is under way whenever this is asked.
        ensure!(self.files <= start.files + 1, "descriptors are left: {start:?}, then {self:?}");
        ensure!(self.maps == start.maps, "maps grew: {start:?}, then {self:?}");
        ensure!(self.open == start.open && self.table <= start.table, "connections are left: {start:?}, then {self:?}");
        Ok(())
    }
}
