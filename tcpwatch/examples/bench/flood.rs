//! What a bulk transfer loses under a flood of resets because tcpwatch watches.
//!
//! In a namespace of its own, a client fills a connection as fast as it can while another thread connects to a closed
//! port, so many times a second in both halves of a pair. Halves alternate.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tcpwatch::bench::flood::{Half, Pair, report};
use tcpwatch::bench::report::{Output, Report};
use tcpwatch_lab::Netns;

use crate::daemon::Daemon;

/// Resets come in batches of this time.
const BATCH: Duration = Duration::from_millis(2);

pub(crate) fn run(output: &Output, pairs: Option<usize>, rate: u64) -> Result<Report> {
    let pairs = pairs.unwrap_or(output.count(24, 1));
    let long = output.count(Duration::from_secs(2), Duration::from_millis(200));
    let ns = Netns::new()?;
    let mut measured = Vec::new();
    for round in 0..pairs {
        output.progress(&format!("pair {} of {pairs}", round + 1));
        // Which comes first changes, so that a trend of the machine favours neither.
        let first = half(&ns, rate, long, round % 2 == 1)?;
        let second = half(&ns, rate, long, round % 2 == 0)?;
        let (without, with) = if round % 2 == 1 { (second, first) } else { (first, second) };
        measured.push(Pair { without, with });
    }
    Ok(report(&measured))
}

fn half(ns: &Netns, rate: u64, long: Duration, watched: bool) -> Result<Half> {
    let daemon = if watched { Some(Daemon::start(&[ns], "")?) } else { None };
    let listener = ns.run(|| TcpListener::bind("127.0.0.1:0"))?;
    let to = listener.local_addr()?;
    let mut client = ns.run(|| TcpStream::connect(to))?;
    let (mut server, _) = listener.accept()?;
    let stop = AtomicBool::new(false);
    let before = ns.counters()?;
    let cpu = daemon.as_ref().map_or(Ok(0.0), Daemon::cpu_seconds)?;
    let began = Instant::now();
    let bytes = thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| ns.run(|| connect_in_vain(Some(rate), &stop)));
        let reader = scope.spawn(move || {
            let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
            while let Ok(read @ 1..) = server.read(&mut buffer) {
                bytes += read as u64;
            }
            bytes
        });
        let block = vec![0; 1 << 16];
        while began.elapsed() < long {
            client.write_all(&block)?;
        }
        drop(client);
        let bytes = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        stop.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        Ok(bytes)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let resets = ns.counters()?.delta(&before).get("Tcp", "OutRsts")?;
    let cpu = daemon.as_ref().map_or(Ok(0.0), Daemon::cpu_seconds)? - cpu;
    Ok(Half {
        bytes_per_second: bytes as f64 / seconds,
        resets_per_second: resets as f64 / seconds,
        daemon_cpus: cpu / seconds,
    })
}

/// So many connections a second to a closed port, and no attempt to catch up; or as many as can be.
pub(crate) fn connect_in_vain(rate: Option<u64>, stop: &AtomicBool) -> Result<()> {
    let to = SocketAddr::from(([127, 0, 0, 1], 9));
    let batch = rate.map_or(100, |rate| (rate as f64 * BATCH.as_secs_f64()).ceil() as u64);
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..batch {
            ensure!(TcpStream::connect(to).is_err(), "something listens at {to}");
        }
        if rate.is_some() {
            due = (due + BATCH).max(Instant::now());
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}
