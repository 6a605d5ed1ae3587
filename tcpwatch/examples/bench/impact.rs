//! The same traffic with nobody who watches, with the daemon, and with bpftrace, one after the other in changing order.
//!
//! The traffic has a namespace of its own and the last CPU: of a bulk transfer and of the connections both ends are one
//! thread, of requests and answers they are two threads. The daemon is the real one and runs where there is room, which
//! is the other CPU.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tcpwatch::bench::bpftrace::Bpftrace;
use tcpwatch::bench::impact::{BPFTRACE, NOBODY, Round, Run, WATCHERS, report};
use tcpwatch::bench::kernel::pin_to_last_cpu;
use tcpwatch::bench::report::{Output, Report};
use tcpwatch_lab::Netns;

use crate::daemon::Daemon;
use crate::quiet_namespace;

const BLOCK: usize = 1 << 16;

pub(crate) fn run(output: &Output, rounds: Option<usize>) -> Result<Report> {
    let rounds = rounds.unwrap_or(output.count(31, 1));
    let long = output.count(Duration::from_millis(500), Duration::from_millis(20));
    let ns = quiet_namespace()?;
    let (mut measured, mut no_bpftrace) = (Vec::new(), None);
    for round in 0..rounds {
        output.progress(&format!("round {} of {rounds}", round + 1));
        let mut runs = Round::default();
        for i in 0..WATCHERS.len() {
            let watcher = (i + round) % WATCHERS.len();
            if let Some(run) = runs.get_mut(watcher) {
                *run = watched(watcher, &ns, long, &mut no_bpftrace)?;
            }
        }
        measured.push(runs);
    }
    Ok(report(&measured, no_bpftrace.as_deref()))
}

fn watched(watcher: usize, ns: &Netns, long: Duration, no_bpftrace: &mut Option<String>) -> Result<Option<Run>> {
    if watcher == NOBODY {
        return traffic(ns, long, None).map(Some);
    }
    if watcher == BPFTRACE {
        let running = match Bpftrace::counting() {
            Ok(running) => running,
            Err(reason) => {
                *no_bpftrace = Some(reason);
                return Ok(None);
            }
        };
        let run = traffic(ns, long, None)?;
        drop(running);
        return Ok(Some(run));
    }
    // It watches all namespaces, as daemons do.
    let sampling = if watcher == 1 { "every-ack" } else { "tick" };
    let daemon = Daemon::start(&[], &format!("sampling = \"{sampling}\""))?;
    traffic(ns, long, Some(&daemon)).map(Some)
}

fn traffic(ns: &Netns, long: Duration, daemon: Option<&Daemon>) -> Result<Run> {
    let cpu = || daemon.map_or(Ok(0.0), Daemon::cpu_seconds);
    let (before, began) = (cpu()?, Instant::now());
    let mut run = ns.try_run(|| -> Result<Run> {
        pin_to_last_cpu()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // What is new to the caches is not what it costs.
        bulk(&listener, long / 10)?;
        let bytes_per_second = bulk(&listener, long)?;
        requests(&listener, long / 10)?;
        let mut times = requests(&listener, long)?;
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1e3;
        let seconds = times.iter().sum::<u64>() as f64 / 1e9;
        let connections_per_second = lives(&listener, long)?;
        Ok(Run {
            bytes_per_second,
            requests_per_second: times.len() as f64 / seconds,
            p50_us: at(0.5),
            p99_us: at(0.99),
            connections_per_second,
            daemon_cpus: 0.0,
        })
    })??;
    run.daemon_cpus = (cpu()? - before) / began.elapsed().as_secs_f64();
    Ok(run)
}

fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// Bytes a second.
fn bulk(listener: &TcpListener, long: Duration) -> Result<f64> {
    let (mut client, mut server) = connect(listener)?;
    let (mut block, mut bytes) = (vec![0; BLOCK], 0);
    let began = Instant::now();
    while began.elapsed() < long {
        client.write_all(&block)?;
        server.read_exact(&mut block)?;
        bytes += BLOCK;
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64())
}

/// Time of each request, ns.
fn requests(listener: &TcpListener, long: Duration) -> Result<Vec<u64>> {
    let (mut client, mut server) = connect(listener)?;
    let answers = thread::spawn(move || {
        let mut message = [0_u8; 64];
        while server.read_exact(&mut message).is_ok() && server.write_all(&message).is_ok() {}
    });
    let (mut message, mut times) = ([0_u8; 64], Vec::with_capacity(1 << 16));
    let began = Instant::now();
    let mut last = Duration::ZERO;
    while last < long {
        client.write_all(&message)?;
        client.read_exact(&mut message)?;
        let now = began.elapsed();
        times.push(now.saturating_sub(last).as_nanos() as u64);
        last = now;
    }
    drop(client);
    answers.join().map_err(|_| anyhow!("who answers panicked"))?;
    times.first().context("there was no answer")?;
    Ok(times)
}

/// Connections a second: a question, an answer, and the client closes.
fn lives(listener: &TcpListener, long: Duration) -> Result<f64> {
    let (mut message, mut count) = ([0_u8; 64], 0);
    let began = Instant::now();
    while began.elapsed() < long {
        let (mut client, mut server) = connect(listener)?;
        client.write_all(&message)?;
        server.read_exact(&mut message)?;
        server.write_all(&message)?;
        client.read_exact(&mut message)?;
        drop(client);
        let _end_of_file = server.read(&mut message)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
