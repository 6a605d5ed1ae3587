//! Nanoseconds per event of the kernel programs, by the kernel's own BPF statistics.
//!
//! tcp_probe, the hot path, runs in every round under the same traffic as each of the yardsticks, in changing order and
//! with both ends in one thread on one CPU. What an empty program takes in that round (the statistics' own cost among it)
//! is subtracted; ratios are taken within the round, and the median over the rounds is reported with its interval. All
//! other programs are measured together, as the daemon attaches them: see [`each`].

mod each;
mod traffic;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use serde_json::{Value, json};

use self::traffic::PingPong;
use super::bpftrace::{Bpftrace, HISTOGRAM, PATIENCE};
use super::report::{Cell, Goal, Output, Report, Table};
use super::sample::Median;
use crate::kernel::facts::KernelFacts;
use crate::kernel::load;
use crate::kernel::maps::{fdinfo, field};
use crate::kernel::places::{self, Cast};
use crate::kernel::probes::{BY_TRACEPOINT, CORE, Hook};
use crate::objects;
use crate::source::reads;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often each program is measured; `None` for the usual number.
    pub rounds: Option<usize>,
}

/// How often the rings are emptied, on the other CPU if there is one.
const DRAIN: Duration = Duration::from_millis(2);

/// What is measured on tcp_probe. The first is the base line.
const SUBJECTS: [&str; 6] = ["empty", "ringbuf", "lru", "bpftrace", "every-ack", "tick"];
const EMPTY: usize = 0;
const RINGBUF: usize = 1;
const LRU: usize = 2;
const BPFTRACE_HIST: usize = 3;
const EVERY_ACK: usize = 4;
const TICK: usize = 5;
/// Under which traffic.
const LOADS: [&str; 2] = ["request/response", "bulk"];

/// The goals for tcp_probe: mode, of a ring-buffer record, of bpftrace's histogram.
const GOALS: [(usize, f64, f64); 2] = [(EVERY_ACK, 0.5, 0.3), (TICK, 0.15, 0.08)];

/// Measures. `trouble` makes connections that retransmit and are reset, in the network namespace of this thread or not.
///
/// # Errors
/// Without the privileges, or when the programs do not see what happens.
pub fn run(options: &Options, output: &Output, trouble: &mut dyn FnMut() -> Result<()>) -> Result<Report> {
    let mut report = Report::new("kernel");
    let _statistics =
        aya::sys::enable_stats(aya::sys::Stats::RunTime).context("cannot switch BPF statistics on; run as root")?;
    let facts = KernelFacts::gather(Path::new("/"))?;
    let btf = Btf::from_sys_fs()?;
    let count = options.rounds.unwrap_or(output.count(21, 2));
    let mut bench = Bench::set_up(&facts, &btf, output)?;
    let mut rounds = Vec::new();
    for round in 0..count {
        output.progress(&format!("tcp_probe: round {} of {count}", round + 1));
        rounds.push(bench.round(round)?);
    }
    hot_path(&mut report, &rounds, bench.no_bpftrace.as_deref());
    drop(bench);
    each::measure(&mut report, output, &facts, &btf, trouble, count)?;
    report.set("rounds", count);
    Ok(report)
}

/// ns per event of each subject under each load in one round, net of nothing yet; `None` where it could not be measured.
struct Round([[Option<f64>; LOADS.len()]; SUBJECTS.len()]);

impl Round {
    fn at(&self, subject: usize, load: usize) -> Option<f64> {
        *self.0.get(subject)?.get(load)?
    }

    fn net(&self, subject: usize, load: usize) -> Option<f64> {
        Some(self.at(subject, load)? - self.at(EMPTY, load)?)
    }
}

struct Bench {
    yardsticks: Ebpf,
    every_ack: Ebpf,
    tick: Ebpf,
    _drain: Drain,
    traffic: PingPong,
    /// Why bpftrace was not measured.
    no_bpftrace: Option<String>,
}

impl Bench {
    fn set_up(facts: &KernelFacts, btf: &Btf, output: &Output) -> Result<Self> {
        let cast = Cast::of(&facts.btf);
        let mut every_ack = load::load_object(facts, &programs(false), btf, &BY_TRACEPOINT, cast)?;
        let mut tick = load::load_object(facts, &programs(true), btf, &BY_TRACEPOINT, cast)?;
        let mut yardsticks = yardsticks(facts, btf)?;
        for (ebpf, names) in [
            (&mut every_ack, &["tcp_probe"][..]),
            (&mut tick, &["tcp_probe"]),
            (&mut yardsticks, &["bench_empty", "bench_ringbuf", "bench_lru"]),
        ] {
            for name in names {
                program(ebpf, name)?.load("tcp_probe", btf)?;
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
        let drain = Drain::start(rings);
        pin_to_last_cpu()?;
        let traffic = PingPong::new(output)?;
        Ok(Self { yardsticks, every_ack, tick, _drain: drain, traffic, no_bpftrace: None })
    }

    fn round(&mut self, round: usize) -> Result<Round> {
        let mut times = [[None; LOADS.len()]; SUBJECTS.len()];
        for i in 0..SUBJECTS.len() {
            let subject = (i + round) % SUBJECTS.len();
            let time = match subject {
                EMPTY => measure(&mut self.yardsticks, "bench_empty", &mut self.traffic)?,
                RINGBUF => measure(&mut self.yardsticks, "bench_ringbuf", &mut self.traffic)?,
                LRU => measure(&mut self.yardsticks, "bench_lru", &mut self.traffic)?,
                BPFTRACE_HIST => match measure_bpftrace(&mut self.traffic)? {
                    Ok(times) => times,
                    Err(reason) => {
                        self.no_bpftrace = Some(reason);
                        continue;
                    }
                },
                EVERY_ACK => measure(&mut self.every_ack, "tcp_probe", &mut self.traffic)?,
                _ => measure(&mut self.tick, "tcp_probe", &mut self.traffic)?,
            };
            if let Some(slot) = times.get_mut(subject) {
                *slot = time.map(Some);
            }
        }
        Ok(Round(times))
    }
}

/// An empty program on every tracepoint that ours are on all the time; they go with the value.
#[derive(Debug)]
pub struct Empties(#[expect(dead_code, reason = "held, as long as they shall be attached")] Vec<Ebpf>);

impl Empties {
    /// Attaches them.
    ///
    /// # Errors
    /// Without the privileges.
    pub fn attach() -> Result<Self> {
        let facts = KernelFacts::gather(Path::new("/"))?;
        let btf = Btf::from_sys_fs()?;
        let probes = CORE.iter().chain(BY_TRACEPOINT.probes).filter(|probe| probe.program != reads::PROGRAM);
        let empty = |hook: Hook| Ok(each::empty_beside(hook, &facts, &btf)?.map(|(empty, _)| empty));
        probes
            .filter(|probe| probe.hook.missing_in(&facts).is_none())
            .filter_map(|probe| empty(probe.hook).transpose())
            .collect::<Result<_>>()
            .map(Self)
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
    let object = places::fill(object, &facts.layout, None)?;
    let layout = load::layout_bytes(&facts.layout);
    Ok(EbpfLoader::new().btf(Some(btf)).override_global("LAYOUT", layout.as_slice(), true).load(&object)?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn take_ring(ebpf: &mut Ebpf, name: &str) -> Result<RingBuf<MapData>> {
    Ok(RingBuf::try_from(ebpf.take_map(name).with_context(|| format!("no map {name}"))?)?)
}

/// Mean ns of a run under each load.
fn measure(ebpf: &mut Ebpf, name: &str, traffic: &mut PingPong) -> Result<[f64; LOADS.len()]> {
    let program = program(ebpf, name)?;
    let link = program.attach()?;
    let times = under_loads(traffic, program.fd()?.as_fd())?;
    program.detach(link)?;
    Ok(times)
}

/// The same with bpftrace's program, or why there is none.
fn measure_bpftrace(traffic: &mut PingPong) -> Result<Result<[f64; LOADS.len()], String>> {
    let running = match Bpftrace::start(HISTOGRAM) {
        Ok(running) => running,
        Err(reason) => return Ok(Err(reason)),
    };
    let Some(info) = running.program() else { return Ok(Err("its program is not found".to_owned())) };
    let fd = info.fd()?;
    // It is there before it is attached.
    let deadline = Instant::now() + PATIENCE;
    while Runs::of(&fdinfo(fd.as_fd())?).count == 0 {
        if Instant::now() > deadline {
            return Ok(Err("its program is not attached".to_owned()));
        }
        traffic.warm_up()?;
    }
    Ok(Ok(under_loads(traffic, fd.as_fd())?))
}

fn under_loads(traffic: &mut PingPong, fd: std::os::fd::BorrowedFd<'_>) -> Result<[f64; LOADS.len()]> {
    traffic.warm_up()?;
    let before = Runs::of(&fdinfo(fd)?);
    traffic.ask_and_answer()?;
    let between = Runs::of(&fdinfo(fd)?);
    traffic.bulk()?;
    let after = Runs::of(&fdinfo(fd)?);
    Ok([between.mean_since(before, traffic.round_trips())?, after.mean_since(between, 1)?])
}

#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

impl Runs {
    fn of(fdinfo: &str) -> Self {
        let read = |name| field(fdinfo, name).unwrap_or(0);
        Self { count: read("run_cnt"), nanoseconds: read("run_time_ns") }
    }

    fn since(self, before: Self) -> Self {
        Self { count: self.count - before.count, nanoseconds: self.nanoseconds - before.nanoseconds }
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.nanoseconds as f64 / self.count as f64)
    }

    fn mean_since(self, before: Self, least: u32) -> Result<f64> {
        let runs = self.since(before);
        ensure!(runs.count >= u64::from(least), "only {} events were seen; is tcp_probe filtered?", runs.count);
        runs.mean().context("no events were seen")
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
            // Who starts it may be pinned.
            let _it_only_disturbs = unpin();
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

/// Keeps the calling thread, and those it starts from now on, on the last CPU.
///
/// # Errors
/// When the kernel does not say which there are.
pub fn pin_to_last_cpu() -> Result<()> {
    let last = online_cpus()?.pop().context("no CPU is online")?;
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(last as usize);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Lets the calling thread run wherever there is room.
fn unpin() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    online_cpus()?.into_iter().for_each(|cpu| cpus.set(cpu as usize));
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

fn online_cpus() -> Result<Vec<u32>> {
    aya::util::online_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> Option<f64>) -> Option<Median> {
    Median::of(&rounds.iter().filter_map(value).collect::<Vec<_>>())
}

fn hot_path(report: &mut Report, rounds: &[Round], no_bpftrace: Option<&str>) {
    let ratio = |subject, to, load| median(rounds, |r| Some(r.net(subject, load)? / r.net(to, load)?));
    let mut programs = Vec::new();
    for (load, load_name) in LOADS.iter().enumerate() {
        let columns = ["ns", "events/s of one CPU", "of a ring-buffer record", "of an LRU hash", "of bpftrace"];
        let mut table = Table::new(&format!("tcp_probe under {load_name}, net of an empty program"), &columns);
        for (subject, name) in [
            (RINGBUF, "one ring-buffer record per event"),
            (LRU, "state in an LRU hash"),
            (BPFTRACE_HIST, "bpftrace, a histogram by connection"),
            (EVERY_ACK, "tcpwatch, every ACK"),
            (TICK, "tcpwatch, once a tick"),
        ] {
            let cells = match no_bpftrace.filter(|_| subject == BPFTRACE_HIST) {
                Some(reason) => vec![Cell::skipped(reason)],
                None => vec![
                    Cell::median(median(rounds, |r| r.net(subject, load))),
                    Cell::median(median(rounds, |r| r.net(subject, load)).and_then(Median::per_second)),
                    Cell::median(ratio(subject, RINGBUF, load)),
                    Cell::median(ratio(subject, LRU, load)),
                    Cell::median(ratio(subject, BPFTRACE_HIST, load)),
                ],
            };
            table.row(name, cells);
        }
        let empty = median(rounds, |r| r.at(EMPTY, load));
        table.row("an empty program, not subtracted", vec![Cell::median(empty)]);
        report.table(table);
        for (subject, of_ringbuf, of_bpftrace) in GOALS {
            programs.push(program_json(rounds, subject, load));
            let mode = SUBJECTS.get(subject).copied().unwrap_or_default();
            let to = |yardstick| format!("tcp_probe, {mode}, {load_name}: ratio to {yardstick}");
            report.goal(Goal::at_most(&to("a ring-buffer record"), ratio(subject, RINGBUF, load), of_ringbuf));
            report.goal(match no_bpftrace {
                Some(reason) => Goal::unknown(&to("bpftrace's histogram"), &format!("at most {of_bpftrace}"), reason),
                None => Goal::at_most(&to("bpftrace's histogram"), ratio(subject, BPFTRACE_HIST, load), of_bpftrace),
            });
        }
    }
    let mut yardsticks = serde_json::Map::new();
    Median::put(median(rounds, |r| r.at(EMPTY, 0)), "empty_ns", &mut yardsticks);
    for (subject, name) in [(RINGBUF, "ringbuf_net_ns"), (LRU, "lru_net_ns"), (BPFTRACE_HIST, "bpftrace_net_ns")] {
        Median::put(median(rounds, |r| r.net(subject, 0)), name, &mut yardsticks);
    }
    report.set("programs", programs);
    report.set("yardsticks", yardsticks);
}

fn program_json(rounds: &[Round], subject: usize, load: usize) -> Value {
    let ratio = |to| median(rounds, |r| Some(r.net(subject, load)? / r.net(to, load)?));
    let mut object = serde_json::Map::new();
    object.insert("program".to_owned(), json!("tcp_probe"));
    object.insert("mode".to_owned(), json!(SUBJECTS.get(subject)));
    object.insert("load".to_owned(), json!(LOADS.get(load)));
    Median::put(median(rounds, |r| r.net(subject, load)), "net_ns", &mut object);
    Median::put(ratio(RINGBUF), "ratio_to_ringbuf", &mut object);
    Median::put(ratio(LRU), "ratio_to_lru", &mut object);
    Median::put(ratio(BPFTRACE_HIST), "ratio_to_bpftrace", &mut object);
    Value::Object(object)
}
