//! Nanoseconds per event of the programs on tcp_probe, by the kernel's own BPF statistics.
//!
//! Every round runs the same ping-pong once under each program, in changing order, with both ends in one thread on one
//! CPU. What an empty program takes in that round (the statistics' own cost among it) is subtracted; ratios are taken
//! within the round, and the median over the rounds is reported with its interval.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use serde_json::{Value, json};

use super::sample::Median;
use crate::kernel::facts::KernelFacts;
use crate::kernel::load;
use crate::kernel::maps::{fdinfo, field};
use crate::kernel::probes::BY_TRACEPOINT;
use crate::objects;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Print one JSON object and nothing else.
    pub json: bool,
    /// How often each program is measured.
    pub rounds: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { json: false, rounds: 21 }
    }
}

/// Round trips in one measurement; each is two tcp_probe events.
const ROUND_TRIPS: u32 = 20_000;
/// Round trips before it.
const WARM_UP: u32 = 1_000;
/// How often the rings are emptied, on the other CPU if there is one.
const DRAIN: Duration = Duration::from_millis(2);
/// The same question as one line of bpftrace: the RTT distribution of each connection.
const MOUNT_AND_TRACE: &str = "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; \
     mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec bpftrace -e \"$1\"";
const BPFTRACE: &str = "tracepoint:tcp:tcp_probe { @[args->sock_cookie] = hist(args->srtt); }";

/// Runs the measurement and prints it.
pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench::set_up()?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        if !options.json {
            eprint!("\rround {} of {}", round + 1, options.rounds);
        }
        rounds.push(bench.round(round)?);
    }
    if !options.json {
        eprintln!();
    }
    let report = report(&rounds);
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{report}")?;
    } else {
        table(&mut out, &report)?;
    }
    Ok(())
}

/// Net of nothing yet: ns per event of each subject in one round, `None` where it could not be measured.
struct Round([Option<f64>; SUBJECTS.len()]);

/// What is measured. The first is the base line.
const SUBJECTS: [&str; 6] = ["empty", "ringbuf", "lru", "bpftrace", "every-ack", "tick"];
const EMPTY: usize = 0;
const RINGBUF: usize = 1;
const LRU: usize = 2;
const BPFTRACE_HIST: usize = 3;
const EVERY_ACK: usize = 4;
const TICK: usize = 5;

struct Bench {
    _statistics: std::os::fd::OwnedFd,
    yardsticks: Ebpf,
    every_ack: Ebpf,
    tick: Ebpf,
    _drain: Drain,
    traffic: PingPong,
}

impl Bench {
    fn set_up() -> Result<Self> {
        let statistics =
            aya::sys::enable_stats(aya::sys::Stats::RunTime).context("cannot switch BPF statistics on; run as root")?;
        let facts = KernelFacts::gather(Path::new("/"))?;
        let btf = Btf::from_sys_fs()?;
        let mut every_ack = load::load_object(&facts, &programs(false), &btf, &BY_TRACEPOINT)?;
        let mut tick = load::load_object(&facts, &programs(true), &btf, &BY_TRACEPOINT)?;
        let mut yardsticks = yardsticks(&facts, &btf)?;
        for (ebpf, names) in [
            (&mut every_ack, &["tcp_probe"][..]),
            (&mut tick, &["tcp_probe"]),
            (&mut yardsticks, &["bench_empty", "bench_ringbuf", "bench_lru"]),
        ] {
            for name in names {
                program(ebpf, name)?.load("tcp_probe", &btf)?;
            }
        }
        for ebpf in [&mut every_ack, &mut tick] {
            let settings = ebpf.map_mut("SETTINGS").context("no map SETTINGS")?;
            aya::maps::Array::<_, u64>::try_from(settings)?.set(0, u64::from(facts.hz), 0)?;
        }
        let rings = vec![
            take_ring(&mut yardsticks, "BENCH_RING")?,
            take_ring(&mut every_ack, "EVENTS")?,
            take_ring(&mut tick, "EVENTS")?,
        ];
        // Started before this thread is pinned, so that it runs elsewhere.
        let drain = Drain::start(rings);
        pin_to_last_cpu()?;
        Ok(Self { _statistics: statistics, yardsticks, every_ack, tick, _drain: drain, traffic: PingPong::new()? })
    }

    fn round(&mut self, round: usize) -> Result<Round> {
        let mut times = [None; SUBJECTS.len()];
        for i in 0..SUBJECTS.len() {
            let subject = (i + round) % SUBJECTS.len();
            let time = match subject {
                EMPTY => Some(measure(&mut self.yardsticks, "bench_empty", &mut self.traffic)?),
                RINGBUF => Some(measure(&mut self.yardsticks, "bench_ringbuf", &mut self.traffic)?),
                LRU => Some(measure(&mut self.yardsticks, "bench_lru", &mut self.traffic)?),
                BPFTRACE_HIST => measure_bpftrace(&mut self.traffic)?,
                EVERY_ACK => Some(measure(&mut self.every_ack, "tcp_probe", &mut self.traffic)?),
                _ => Some(measure(&mut self.tick, "tcp_probe", &mut self.traffic)?),
            };
            if let Some(slot) = times.get_mut(subject) {
                *slot = time;
            }
        }
        Ok(Round(times))
    }
}

fn programs(tick_mode: bool) -> load::Options {
    load::Options {
        ring_bytes: 1 << 20,
        detail_per_second: 1000,
        reset_stacks: tcpwatch_common::stack::STACKS,
        tick_mode,
        reset_hook: crate::config::ResetHook::Auto,
        netns: Vec::new(),
        kernel_log: false,
        strict: false,
    }
}

fn yardsticks(facts: &KernelFacts, btf: &Btf) -> Result<Ebpf> {
    let object = objects::OBJECTS
        .iter()
        .find(|(name, _)| *name == "tcpwatch-bench")
        .context("built without the yardsticks; run `cargo xtask bench kernel`")?
        .1;
    let layout = load::layout_bytes(&facts.layout);
    Ok(EbpfLoader::new().btf(Some(btf)).override_global("LAYOUT", layout.as_slice(), true).load(object)?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn take_ring(ebpf: &mut Ebpf, name: &str) -> Result<RingBuf<MapData>> {
    Ok(RingBuf::try_from(ebpf.take_map(name).with_context(|| format!("no map {name}"))?)?)
}

/// Mean ns of a run while the traffic passes.
fn measure(ebpf: &mut Ebpf, name: &str, traffic: &mut PingPong) -> Result<f64> {
    let program = program(ebpf, name)?;
    let link = program.attach()?;
    traffic.run(WARM_UP)?;
    let before = Runs::of(&fdinfo(program.fd()?.as_fd())?);
    traffic.run(ROUND_TRIPS)?;
    let after = Runs::of(&fdinfo(program.fd()?.as_fd())?);
    program.detach(link)?;
    after.mean_since(before)
}

#[derive(Clone, Copy)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

impl Runs {
    fn of(fdinfo: &str) -> Self {
        let read = |name| field(fdinfo, name).unwrap_or(0);
        Self { count: read("run_cnt"), nanoseconds: read("run_time_ns") }
    }

    fn mean_since(self, before: Self) -> Result<f64> {
        let runs = self.count - before.count;
        ensure!(runs >= u64::from(ROUND_TRIPS), "only {runs} events were seen; is tcp_probe filtered?");
        Ok((self.nanoseconds - before.nanoseconds) as f64 / runs as f64)
    }
}

/// The same with bpftrace's program; `None` where there is no bpftrace, or it cannot run.
fn measure_bpftrace(traffic: &mut PingPong) -> Result<Option<f64>> {
    let before: Vec<u32> = tracepoint_programs().iter().map(|(id, _)| *id).collect();
    let Some(_running) = Bpftrace::start(before.len()) else { return Ok(None) };
    let Some(info) = tracepoint_programs().into_iter().find(|(id, _)| !before.contains(id)).map(|(_, info)| info)
    else {
        return Ok(None);
    };
    let fd = info.fd()?;
    traffic.run(WARM_UP)?;
    let from = Runs::of(&fdinfo(fd.as_fd())?);
    traffic.run(ROUND_TRIPS)?;
    Ok(Some(Runs::of(&fdinfo(fd.as_fd())?).mean_since(from)?))
}

fn tracepoint_programs() -> Vec<(u32, aya::programs::ProgramInfo)> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str() == Some("tcp_probe"))
        .map(|info| (info.id(), info))
        .collect()
}

struct Bpftrace(Child);

impl Bpftrace {
    /// Starts it and waits until it says that it is attached.
    fn start(before: usize) -> Option<Self> {
        // It reads tracefs, which need not be mounted: a mount namespace of its own leaves nothing behind.
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", MOUNT_AND_TRACE, "sh", BPFTRACE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let running = Self(child);
        let attached = lines.next()?.is_ok_and(|line| line.starts_with("Attaching"));
        if !attached {
            return None;
        }
        // The message comes before the attaching: the program counts once it runs.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while tracepoint_programs().len() <= before && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        Some(running)
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Both ends of a connection in one thread: loopback delivers within the call that sends.
struct PingPong {
    client: TcpStream,
    server: TcpStream,
}

impl PingPong {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    fn run(&mut self, round_trips: u32) -> Result<()> {
        let mut message = [0_u8; 16];
        for _ in 0..round_trips {
            self.client.write_all(&message)?;
            self.server.read_exact(&mut message)?;
            self.server.write_all(&message)?;
            self.client.read_exact(&mut message)?;
        }
        Ok(())
    }
}

/// Empties the rings while it lives, so that a record is written for every event as in real use.
struct Drain {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    fn start(mut rings: Vec<RingBuf<MapData>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for ring in &mut rings {
                    while ring.next().is_some() {}
                }
                std::thread::sleep(DRAIN);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _it_only_drains = thread.join();
        }
    }
}

fn pin_to_last_cpu() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(std::thread::available_parallelism()?.get() - 1);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Net time of a subject in a round.
fn net(round: &Round, subject: usize) -> Option<f64> {
    let at = |i: usize| round.0.get(i).copied().flatten();
    Some(at(subject)? - at(EMPTY)?)
}

fn median_net(rounds: &[Round], subject: usize) -> Option<Median> {
    Median::of(&rounds.iter().filter_map(|r| net(r, subject)).collect::<Vec<_>>())
}

fn median_ratio(rounds: &[Round], subject: usize, to: usize) -> Option<Median> {
    Median::of(&rounds.iter().filter_map(|r| Some(net(r, subject)? / net(r, to)?)).collect::<Vec<_>>())
}

fn report(rounds: &[Round]) -> Value {
    let empty: Vec<f64> = rounds.iter().filter_map(|r| r.0.get(EMPTY).copied().flatten()).collect();
    let programs: Vec<Value> = [EVERY_ACK, TICK]
        .into_iter()
        .map(|subject| {
            let mut object = serde_json::Map::new();
            object.insert("program".to_owned(), json!("tcp_probe"));
            object.insert("mode".to_owned(), json!(SUBJECTS.get(subject)));
            Median::put(median_net(rounds, subject), "net_ns", &mut object);
            Median::put(median_ratio(rounds, subject, RINGBUF), "ratio_to_ringbuf", &mut object);
            Median::put(median_ratio(rounds, subject, LRU), "ratio_to_lru", &mut object);
            Median::put(median_ratio(rounds, subject, BPFTRACE_HIST), "ratio_to_bpftrace", &mut object);
            Value::Object(object)
        })
        .collect();
    let mut yardsticks = serde_json::Map::new();
    Median::put(Median::of(&empty), "empty_ns", &mut yardsticks);
    for (subject, name) in [(RINGBUF, "ringbuf_net_ns"), (LRU, "lru_net_ns"), (BPFTRACE_HIST, "bpftrace_net_ns")] {
        Median::put(median_net(rounds, subject), name, &mut yardsticks);
    }
    json!({
        "programs": programs,
        "yardsticks": yardsticks,
        "rounds": rounds.len(),
        "events_per_measurement": 2 * ROUND_TRIPS,
        "machine": machine(),
    })
}

fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
    })
}

fn table(out: &mut impl std::io::Write, report: &Value) -> Result<()> {
    let number = |v: &Value, key: &str| match (v.get(key).and_then(Value::as_f64), v.get(format!("{key}_ci95"))) {
        (Some(n), Some(ci)) if ci.is_array() => {
            let end = |i: usize| ci.get(i).and_then(Value::as_f64).unwrap_or(f64::NAN);
            format!("{n:8.2} [{:.2}, {:.2}]", end(0), end(1))
        }
        _ => "       –".to_owned(),
    };
    writeln!(out, "per tcp_probe event, net of an empty program; median [95 % interval]")?;
    let yardsticks = report.get("yardsticks").unwrap_or(&Value::Null);
    for (key, name) in [
        ("ringbuf_net_ns", "one ring-buffer record an event, ns"),
        ("lru_net_ns", "state in an LRU hash, ns"),
        ("bpftrace_net_ns", "bpftrace's histogram by connection, ns"),
    ] {
        writeln!(out, "{name:<44}{}", number(yardsticks, key))?;
    }
    for program in report.get("programs").and_then(Value::as_array).into_iter().flatten() {
        let mode = program.get("mode").and_then(Value::as_str).unwrap_or_default();
        for (key, name) in [
            ("net_ns", "ns"),
            ("ratio_to_ringbuf", "of the ring-buffer record"),
            ("ratio_to_lru", "of the LRU hash"),
            ("ratio_to_bpftrace", "of bpftrace's histogram"),
        ] {
            writeln!(out, "{:<44}{}", format!("tcp_probe, {mode}: {name}"), number(program, key))?;
        }
    }
    Ok(())
}
