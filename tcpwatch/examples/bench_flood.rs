//! `cargo xtask bench flood [--json]`: what a bulk transfer loses under a flood of resets because tcpwatch watches.
//!
//! In a namespace of its own, a client fills a connection as fast as it can while another thread connects to a closed
//! port, so many times a second in both halves of a pair. Halves alternate; the daemon is this program, started again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tcpwatch::bench::flood::{Half, Pair, report};
use tcpwatch_lab::Netns;

/// Length of a half.
const HALF: Duration = Duration::from_secs(2);
/// Resets come in batches of this time.
const BATCH: Duration = Duration::from_millis(2);

fn main() -> Result<ExitCode> {
    // The daemon that is measured.
    if std::env::args().any(|word| word == "--config") {
        return Ok(tcpwatch::main());
    }
    let (mut json, mut pairs, mut rate) = (false, 24, 10_000);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).with_context(|| format!("{word} takes a number"));
        match word.as_str() {
            "--json" => json = true,
            "--pairs" => pairs = number()?,
            "--rate" => rate = number()?,
            other => bail!("unknown argument {other:?}; known are --json, --pairs N and --rate RESETS_A_SECOND"),
        }
    }
    let ns = Netns::new()?;
    let mut measured = Vec::new();
    for round in 0..pairs {
        if !json {
            eprint!("\rpair {} of {pairs}", round + 1);
        }
        // Which comes first changes, so that a trend of the machine favours neither.
        let first = half(&ns, rate, round % 2 == 1)?;
        let second = half(&ns, rate, round % 2 == 0)?;
        let (without, with) = if round % 2 == 1 { (second, first) } else { (first, second) };
        measured.push(Pair { without, with });
    }
    if !json {
        eprintln!();
    }
    report(&measured, json)?;
    Ok(ExitCode::SUCCESS)
}

fn half(ns: &Netns, rate: u64, watched: bool) -> Result<Half> {
    let daemon = if watched { Some(Daemon::start(ns)?) } else { None };
    let listener = ns.run(|| TcpListener::bind("127.0.0.1:0"))?;
    let to = listener.local_addr()?;
    let mut client = ns.run(|| TcpStream::connect(to))?;
    let (mut server, _) = listener.accept()?;
    let stop = AtomicBool::new(false);
    let before = ns.counters()?;
    let cpu = daemon.as_ref().map_or(Ok(0.0), Daemon::cpu_seconds)?;
    let began = Instant::now();
    let bytes = thread::scope(|scope| -> Result<u64> {
        let flood = scope.spawn(|| ns.run(|| flood(rate, &stop)));
        let reader = scope.spawn(move || {
            let (mut buffer, mut bytes) = (vec![0; 1 << 16], 0);
            while let Ok(read @ 1..) = server.read(&mut buffer) {
                bytes += read as u64;
            }
            bytes
        });
        let block = vec![0; 1 << 16];
        while began.elapsed() < HALF {
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

/// So many connections a second to a closed port, and no attempt to catch up.
fn flood(rate: u64, stop: &AtomicBool) -> Result<()> {
    let to = SocketAddr::from(([127, 0, 0, 1], 9));
    let batch = (rate as f64 * BATCH.as_secs_f64()).ceil() as u64;
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..batch {
            ensure!(TcpStream::connect(to).is_err(), "something listens at {to}");
        }
        due = (due + BATCH).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

struct Daemon {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(ns: &Netns) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, socket) = (folder.path().join("t.toml"), folder.path().join("t.sock"));
        let netns = format!("/proc/{}/fd/{}", std::process::id(), ns.fd().as_raw_fd());
        let text = format!("listen = \"127.0.0.1:0\"\nsocket = \"{}\"\nnetns = [\"{netns}\"]\n", socket.display());
        std::fs::write(&config, text)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--config").arg(&config).arg("run").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start this program as the daemon")?;
        let stderr = BufReader::new(child.stderr.take().context("no standard error")?);
        let daemon = Self { child, _folder: folder };
        let mut lines = stderr.lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            if line.contains("metrics at http") {
                // What else it says must not fill the pipe.
                thread::spawn(move || lines.for_each(drop));
                return Ok(daemon);
            }
            said += &line;
        }
        bail!("the daemon ended: {said}")
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
