//! The same traffic with nobody who watches, with empty programs, with the daemon, and with bpftrace, one after the other in
//! changing order.
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
use tcpwatch::bench::impact::{BPFTRACE, EMPTY, EVERY_ACK, NOBODY, Pair, Round, Run, WATCHERS, report};
use tcpwatch::bench::kernel::{Empties, pin_to_last_cpu};
use tcpwatch::bench::report::{Output, Report};
use tcpwatch_lab::Netns;

use crate::daemon::Daemon;
use crate::quiet_namespace;

const BLOCK: usize = 1 << 16;

pub(crate) fn run(output: &Output, rounds: Option<usize>) -> Result<Report> {
    let rounds = rounds.unwrap_or(output.count(25, 1));
    let long = output.count(Duration::from_millis(500), Duration::from_millis(20));
    let ns = quiet_namespace()?;
    let (mut measured, mut no_bpftrace) = (Vec::new(), None);
    for round in 0..rounds {
        output.progress(&format!("round {} of {rounds}", round + 1));
        let mut pairs = Round::default();
        for i in 0..WATCHERS.len() {
            let watcher = (i + round) % WATCHERS.len();
            if let Some(pair) = pairs.get_mut(watcher).filter(|_| watcher != NOBODY) {
                *pair = beside(watcher, round % 2 == 0, &ns, long, &mut no_bpftrace)?;
            }
        }
        measured.push(pairs);
    }
    Ok(report(&measured, no_bpftrace.as_deref()))
}

/// With the watcher, and with nobody: the machine changes its speed from one second to the next.
fn beside(
    watcher: usize,
    nobody_first: bool,
    ns: &Netns,
    long: Duration,
    no_bpftrace: &mut Option<String>,
) -> Result<Option<Pair>> {
    let before = if nobody_first { Some(traffic(ns, long, None)?) } else { None };
    let Some(with) = watched(watcher, ns, long, no_bpftrace)? else { return Ok(None) };
    let without = before.map_or_else(|| traffic(ns, long, None), Ok)?;
    Ok(Some(Pair { with, without }))
}

fn watched(watcher: usize, ns: &Netns, long: Duration, no_bpftrace: &mut Option<String>) -> Result<Option<Run>> {
    if watcher == EMPTY {
        let attached = Empties::attach()?;
        let run = traffic(ns, long, None)?;
        drop(attached);
        return Ok(Some(run));
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
    let sampling = if watcher == EVERY_ACK { "every-ack" } else { "tick" };
    let daemon = Daemon::start(&[], &format!("sampling = \"{sampling}\""))?;
    traffic(ns, long, Some(&daemon)).map(Some)
}

/// So long after the last connection was accepted, and a little more, the daemon no longer watches who reads.
const UNTIL_REST: Duration = Duration::from_millis(4200);

fn traffic(ns: &Netns, long: Duration, daemon: Option<&Daemon>) -> Result<Run> {
    let cpu = || daemon.map_or(Ok(0.0), Daemon::cpu_seconds);
    ns.try_run(|| -> Result<Run> {
        pin_to_last_cpu()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // What is new to the caches is not what it costs.
        lives(&listener, long / 10)?;
        let before = cpu()?;
        let connections_per_second = lives(&listener, long)?;
        let daemon_cpus = (cpu()? - before) / long.as_secs_f64();
        let new_requests_per_second = rate(&requests(connect(&listener)?, long / 10, long / 2)?);
        // Not a pause: a CPU that has slept is slow for a while.
        let warm_up = if daemon.is_some() { UNTIL_REST.max(long / 2) } else { long / 2 };
        let (pair, other) = (connect(&listener)?, connect(&listener)?);
        let bytes_per_second = bulk(pair, warm_up, long)?;
        let mut times = requests(other, long / 2, long)?;
        let requests_per_second = rate(&times);
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1e3;
        Ok(Run {
            bytes_per_second,
            requests_per_second,
            new_requests_per_second,
            p50_us: at(0.5),
            p99_us: at(0.99),
            connections_per_second,
            daemon_cpus,
        })
    })?
}

fn rate(times: &[u64]) -> f64 {
    times.len() as f64 * 1e9 / times.iter().sum::<u64>() as f64
}

fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// Bytes a second, after some time that does not count.
fn bulk((mut client, mut server): (TcpStream, TcpStream), warm_up: Duration, long: Duration) -> Result<f64> {
    let mut block = vec![0; BLOCK];
    let mut send = |long: Duration| -> Result<f64> {
        let (began, mut bytes) = (Instant::now(), 0);
        while began.elapsed() < long {
            client.write_all(&block)?;
            server.read_exact(&mut block)?;
            bytes += BLOCK;
        }
        Ok(bytes as f64 / began.elapsed().as_secs_f64())
    };
    send(warm_up)?;
    send(long)
}

/// Time of each request, ns, after some that do not count.
fn requests((mut client, mut server): (TcpStream, TcpStream), warm_up: Duration, long: Duration) -> Result<Vec<u64>> {
    let answers = thread::spawn(move || {
        let mut message = [0_u8; 64];
        while server.read_exact(&mut message).is_ok() && server.write_all(&message).is_ok() {}
    });
    let (mut message, mut times) = ([0_u8; 64], Vec::with_capacity(1 << 16));
    for long in [warm_up, long] {
        times.clear();
        let began = Instant::now();
        let mut last = Duration::ZERO;
        while last < long {
            client.write_all(&message)?;
            client.read_exact(&mut message)?;
            let now = began.elapsed();
            times.push(now.saturating_sub(last).as_nanos() as u64);
            last = now;
        }
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
