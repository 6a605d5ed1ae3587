//! What user space takes: a record, a snapshot, a scrape, and a connection that is remembered.
//!
//! Records are taken as the daemon takes them from the ring: from bytes, through the decoder, by the aggregator, past
//! the listeners. Beside it, in the same round and over the same bytes, runs what is the least that anybody must do who
//! keeps the newest record of every connection: look it up in a hash map and copy it.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tcpwatch_common::counters::slot;
use tcpwatch_common::record::{ConnRecord, Kind, ResetRecord, RetransmitRecord, encode};
use tokio::sync::watch;

use super::records::{beginning, connection, counters, zeros};
use super::report::{Cell, Goal, Output, Report, Table};
use super::sample::Median;
use crate::aggregate::Reading;
use crate::metrics::{Exporter, Format, MOST_SERVICES};
use crate::recording::{Beginning, Intake};
use crate::sys;
use crate::tell::Teller;

/// What the allocator of the program says: it is the example's, since a library has none.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Allocations so far.
    pub allocations: fn() -> u64,
    /// Bytes that are allocated now.
    pub live_bytes: fn() -> u64,
}

/// Records in one go: about as many as fit into the ring.
const BATCH: usize = 8192;
/// Where a record has its kind, its time, and its cookie.
const KIND_AT: usize = 0;
const KTIME_AT: usize = 8;
const COOKIE_AT: usize = 16;
/// The goals.
const RATIO: f64 = 3.0;
const BYTES_PER_CONNECTION: f64 = 400.0;

/// Measures.
///
/// # Errors
/// When what was taken is not there afterwards.
pub fn run(output: &Output, memory: Memory) -> Result<Report> {
    let mut report = Report::new("user");
    let rounds = output.count(101, 3);
    report.set("rounds", rounds);
    records(&mut report, output, rounds, memory)?;
    pictures(&mut report, output, memory)?;
    remembered(&mut report, output, memory)?;
    Ok(report)
}

/// Where records go in, as in the daemon.
struct Taker {
    intake: Intake,
    teller: Teller,
}

impl Taker {
    fn new(beginning: &Beginning) -> Self {
        Self { intake: Intake::new(beginning, None).0, teller: Teller::new() }
    }

    fn take(&mut self, record: &[u8]) {
        black_box(self.intake.take(record));
        self.teller.tell(record, self.intake.aggregator());
    }

    fn entries(&mut self) -> u64 {
        let counters = counters(self.intake.aggregator().slots_used(), 0);
        self.intake.read(&counters, &Reading::default()).own.table.entries
    }
}

/// Bytes as they lie in the ring, one record after the other.
struct Batch {
    bytes: Vec<u8>,
    len: usize,
    next: u64,
}

impl Batch {
    fn of(record: &[u8], count: usize) -> Self {
        Self { bytes: record.repeat(count), len: record.len(), next: 0 }
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.len)
    }

    /// Others of `population` connections, at a later time, in an order that no cache foresees. The bytes themselves are
    /// in the caches, as what the kernel has just written is.
    fn turn(&mut self, population: u64) {
        self.each_mut(|n| scattered(n) % population + 1);
    }

    /// The next ones of `population` connections, so that all of them come once.
    fn introduce(&mut self, population: u64) {
        self.each_mut(|n| n % population + 1);
    }

    fn each_mut(&mut self, cookie: impl Fn(u64) -> u64) {
        for record in self.bytes.chunks_exact_mut(self.len) {
            put(record, COOKIE_AT, cookie(self.next));
            put(record, KTIME_AT, 1_000_000_000 + self.next * 1_000);
            self.next += 1;
        }
    }

    /// Every other record opens a connection that was not there before, and the next one closes it.
    fn lives(&mut self) {
        for (n, record) in self.bytes.chunks_exact_mut(self.len).enumerate() {
            let kind = if n % 2 == 0 { Kind::Open } else { Kind::Close };
            put(record, COOKIE_AT, (1 << 40) + self.next / 2);
            put(record, KTIME_AT, 1_000_000_000 + self.next * 1_000);
            if let Some(place) = record.get_mut(KIND_AT..KIND_AT + 2) {
                place.copy_from_slice(&(kind as u16).to_ne_bytes());
            }
            self.next += 1;
        }
    }
}

/// Number `n` of a sequence without a pattern (SplitMix64).
fn scattered(n: u64) -> u64 {
    let mut mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn put(record: &mut [u8], at: usize, value: u64) {
    if let Some(place) = record.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

fn cookie(record: &[u8]) -> u64 {
    record.get(COOKIE_AT..COOKIE_AT + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// The cheapest hash that spreads: one multiplication.
#[derive(Clone, Copy, Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// A hash map with the newest record of each connection.
struct Yardstick<S>(HashMap<u64, [u8; size_of::<ConnRecord>()], S>);

impl<S: BuildHasher + Default> Yardstick<S> {
    fn with(population: u64) -> Self {
        Self((1..=population).map(|cookie| (cookie, [0; size_of::<ConnRecord>()])).collect())
    }

    fn take(&mut self, record: &[u8]) {
        if let (Some(known), Ok(new)) = (self.0.get_mut(&cookie(record)), record.try_into()) {
            *known = new;
        }
    }
}

fn ns_per_record(batch: &Batch, mut take: impl FnMut(&[u8])) -> f64 {
    let began = cpu_time();
    batch.each().for_each(&mut take);
    since(began).as_nanos() as f64 / batch.each().count() as f64
}

fn sample_bytes() -> Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<ConnRecord>()];
    encode(&connection(1, 1, 1)?, &mut bytes).context("the record does not fit")?;
    Ok(bytes)
}

fn records(report: &mut Report, output: &Output, rounds: usize, memory: Memory) -> Result<()> {
    let columns = ["ns", "records/s on one core", "of map + copy", "of map + copy, cheapest hash", "allocations"];
    let mut table = Table::new("One record, from the bytes of the ring to the connection table", &columns);
    let largest = output.count(100_000, 2_000);
    for population in [output.count(1_000, 500), output.count(10_000, 1_000), largest] {
        let mut ours = Taker::new(&beginning(population));
        let mut std_map = Yardstick::<RandomState>::with(population);
        let mut cheap_map = Yardstick::<BuildHasherDefault<Multiply>>::with(population);
        let mut batch = Batch::of(&sample_bytes()?, output.count(BATCH, 256));
        while batch.next < population {
            batch.introduce(population);
            batch.each().for_each(|record| ours.take(record));
        }
        let mut times: [Vec<f64>; 3] = Default::default();
        let (mut allocations, mut taken) = (0, 0_u64);
        for round in 0..rounds {
            for i in 0..times.len() {
                batch.turn(population);
                let subject = (i + round) % times.len();
                let time = match subject {
                    0 => {
                        let before = (memory.allocations)();
                        let time = ns_per_record(&batch, |record| ours.take(record));
                        allocations += (memory.allocations)() - before;
                        taken += batch.each().count() as u64;
                        time
                    }
                    1 => ns_per_record(&batch, |record| std_map.take(record)),
                    _ => ns_per_record(&batch, |record| cheap_map.take(record)),
                };
                if let Some(times) = times.get_mut(subject) {
                    times.push(time);
                }
            }
        }
        ensure!(ours.entries() == population, "{} of {population} connections are there", ours.entries());
        let [ours, std_map, cheap_map] = times;
        let ratio = |to: &[f64]| Median::of(&ours.iter().zip(to).map(|(a, b)| a / b).collect::<Vec<_>>());
        let (ratio, to_cheapest) = (ratio(&std_map), ratio(&cheap_map));
        let per_record = allocations as f64 / taken as f64;
        let per_second = Median::of(&ours).and_then(Median::per_second);
        table.row(
            format!("a reading of one of {population} connections"),
            vec![
                Cell::median(Median::of(&ours)),
                Cell::median(per_second),
                Cell::median(ratio),
                Cell::median(to_cheapest),
                Cell::number(per_record),
            ],
        );
        let dash = || Cell::text("–");
        for (name, times) in [("map + copy", std_map), ("map + copy, cheapest hash", cheap_map)] {
            let cells = vec![Cell::median(Median::of(&times)), dash(), dash(), dash(), dash()];
            table.row(format!("{name}, {population} connections"), cells);
        }
        if population == largest {
            report.median("record_ratio", ratio);
            report.median("records_per_second", per_second);
            report.set("allocations_per_record", per_record);
            report.goal(Goal::at_most("a replayed record, ratio to a hash-map lookup and a copy", ratio, RATIO));
            report.goal(Goal::at_most("allocations of a record on the hot path", Median::of(&[per_record]), 0.0));
        }
    }
    let retransmit = zeros(Kind::Retransmit, size_of::<RetransmitRecord>())?;
    let reset = zeros(Kind::Reset, size_of::<ResetRecord>())?;
    let connections = output.count(10_000, 500);
    for (name, bytes) in [
        ("the open or the close of a connection", sample_bytes()?),
        ("a retransmission", retransmit),
        ("a reset that was sent", reset),
    ] {
        let mut ours = Taker::new(&beginning(connections));
        let mut batch = Batch::of(&bytes, output.count(BATCH, 256));
        let (mut times, mut allocations) = (Vec::new(), 0);
        for _ in 0..rounds {
            if bytes.len() == size_of::<ConnRecord>() {
                batch.lives();
            } else {
                batch.turn(connections);
            }
            let before = (memory.allocations)();
            times.push(ns_per_record(&batch, |record| ours.take(record)));
            allocations += (memory.allocations)() - before;
        }
        let taken = rounds * batch.each().count();
        let per_second = Median::of(&times).and_then(Median::per_second);
        let allocations = Cell::number(allocations as f64 / taken as f64);
        let (dash, other) = (Cell::text("–"), Cell::text("–"));
        table.row(name, vec![Cell::median(Median::of(&times)), Cell::median(per_second), dash, other, allocations]);
    }
    table.note(format!(
        "Records come in batches of {BATCH}, of connections in an order without a pattern. Map and hash: \
         `std::collections::HashMap` with its own hash, and with one multiplication. Nobody listens to events."
    ));
    report.table(table);
    Ok(())
}

/// An aggregator that has heard of so many connections, and its exporter.
fn filled(beginning: &Beginning, connections: u64) -> Result<Taker> {
    let mut taker = Taker::new(beginning);
    let mut batch = Batch::of(&sample_bytes()?, 1);
    for _ in 0..connections {
        batch.introduce(connections);
        batch.each().for_each(|record| taker.take(record));
    }
    Ok(taker)
}

/// A snapshot, and what a scrape makes of it.
fn pictures(report: &mut Report, output: &Output, memory: Memory) -> Result<()> {
    let columns = ["snapshot, ms", "its allocations", "text, ms", "OpenMetrics, ms", "protobuf, ms", "text, bytes"];
    let mut table = Table::new("A snapshot and a scrape", &columns);
    let (some, many) = (output.count(10_000, 100), output.count(100_000, 1_000));
    let default = beginning(1).services;
    for (connections, services) in [(0, default), (some, default), (many, default), (many, 1), (many, MOST_SERVICES)] {
        let ports = (1..=services as u16 / 2).collect();
        let beginning = Beginning { services, service_ports: ports, ..beginning(many) };
        let mut taker = filled(&beginning, connections)?;
        let slots = taker.intake.aggregator().slots_used();
        let (publish, snapshots) = watch::channel(None);
        let exporter = Exporter::new(snapshots);
        let mut times: [Vec<f64>; 4] = Default::default();
        let (mut allocations, mut bytes) = (Vec::new(), 0);
        for round in 0..output.count(21, 2) {
            let now_ns = 1_000_000_000 * (round + 2);
            // What is busy counts on from one snapshot to the next.
            let counters = counters(slots, round + 1);
            let reading = Reading { ktime_ns: now_ns, ..Reading::default() };
            let before = (memory.allocations)();
            let began = cpu_time();
            let snapshot = taker.intake.read(&counters, &reading);
            let mut took = vec![since(began)];
            allocations.push(((memory.allocations)() - before) as f64);
            publish.send_replace(Some(snapshot));
            for format in [Format::Text, Format::OpenMetrics, Format::Protobuf] {
                let began = cpu_time();
                let body = exporter.encode(format)?;
                took.push(since(began));
                if format == Format::Text {
                    bytes = body.len();
                }
            }
            for (times, took) in times.iter_mut().zip(took) {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
        let [snapshot, text, open, protobuf] = times.map(|times| Cell::median(Median::of(&times)));
        let allocations = Cell::median(Median::of(&allocations));
        table.row(
            format!("{connections} connections, {slots} groups"),
            vec![snapshot, allocations, text, open, protobuf, Cell::number(bytes as f64)],
        );
    }
    table.note(format!(
        "Groups are counted in slots, {} of which are fixed; every one has counted everything, so that no histogram is \
         empty. A scrape over HTTP, with the counters read anew from the kernel, is in `scale`.",
        slot::FIRST_FREE
    ));
    report.table(table);
    Ok(())
}

fn remembered(report: &mut Report, output: &Output, memory: Memory) -> Result<()> {
    let mut table = Table::new("Memory of a connection in user space", &["bytes each", "resident, bytes each"]);
    let most = output.count(100_000, 2_000);
    for connections in [output.count(10_000, 500), most] {
        let replayed = replayed(connections, memory)?;
        let each = replayed.live_bytes as f64 / connections as f64;
        let resident = replayed.resident_bytes as f64 / connections as f64;
        table.row(format!("{connections} connections"), vec![Cell::number(each), Cell::number(resident)]);
        if connections == most {
            report.set("bytes_per_connection", each);
            let what = format!("user memory of a connection, bytes, at {connections}");
            report.goal(Goal::at_most(&what, Median::of(&[each]), BYTES_PER_CONNECTION));
        }
    }
    table.note(format!(
        "By what the allocator has given out, and by what the process has grown; a record is {} bytes.",
        size_of::<ConnRecord>()
    ));
    report.table(table);
    Ok(())
}

/// What an aggregator takes that hears of many connections, once of each.
#[derive(Clone, Copy, Debug)]
pub struct Replayed {
    /// Time of a record, ns.
    pub ns_per_record: f64,
    /// What it has allocated and keeps.
    pub live_bytes: u64,
    /// What the process has grown by.
    pub resident_bytes: u64,
    /// A snapshot, ms.
    pub snapshot_ms: f64,
    /// A scrape of it as text, ms.
    pub scrape_ms: f64,
}

/// Has an aggregator hear of so many connections.
///
/// # Errors
/// When they are not all there afterwards.
pub fn replayed(connections: u64, memory: Memory) -> Result<Replayed> {
    sys::release_free_memory();
    let mut batch = Batch::of(&sample_bytes()?, 1024);
    let (live, resident) = ((memory.live_bytes)(), resident_bytes()?);
    let mut taker = Taker::new(&beginning(connections));
    let mut ns = 0.0;
    while batch.next < connections {
        batch.introduce(connections);
        ns += ns_per_record(&batch, |record| taker.take(record)) * batch.each().count() as f64;
    }
    let live_bytes = (memory.live_bytes)().saturating_sub(live);
    let resident_bytes = resident_bytes()?.saturating_sub(resident);
    let counters = counters(taker.intake.aggregator().slots_used(), 1);
    let began = cpu_time();
    let snapshot = taker.intake.read(&counters, &Reading::default());
    let snapshot_ms = since(began).as_secs_f64() * 1e3;
    ensure!(
        snapshot.own.table.entries == connections,
        "{} of {connections} connections are there",
        snapshot.own.table.entries
    );
    let (_publish, snapshots) = watch::channel(Some(snapshot));
    let exporter = Exporter::new(snapshots);
    let began = cpu_time();
    black_box(exporter.encode(Format::Text)?);
    let scrape_ms = since(began).as_secs_f64() * 1e3;
    Ok(Replayed { ns_per_record: ns / batch.next as f64, live_bytes, resident_bytes, snapshot_ms, scrape_ms })
}

/// Time that this thread has run: nothing here waits, and what else the machine does is not measured.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn since(began: Duration) -> Duration {
    cpu_time().saturating_sub(began)
}

fn resident_bytes() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("no resident pages")?.parse()?;
    Ok(pages * sys::page_size())
}
