//! Every program, attached together as the daemon attaches them, with an empty program beside each on the same hook. What
//! the empty one takes in the same round is subtracted.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Program, RawTracePoint};
use aya::{Btf, Ebpf};
use serde_json::json;

use super::{Drain, Runs, programs, traffic, yardsticks};
use crate::bench::report::{Cell, Output, Report, Table};
use crate::bench::sample::Median;
use crate::kernel::facts::KernelFacts;
use crate::kernel::iterate;
use crate::kernel::load::{self, Loaded};
use crate::kernel::maps::{Maps, fdinfo};
use crate::kernel::probes::{BY_TRACEPOINT, CORE, Hook};

/// A program of ours on a tracepoint, and the empty one.
struct Hooked {
    program: &'static str,
    empty: Ebpf,
    empty_name: &'static str,
    /// By round: ns per event net of the empty program, from whichever traffic has it.
    net: Vec<f64>,
    /// Events of all rounds.
    events: u64,
    /// Events in the connection lives of all rounds.
    in_lives: u64,
}

pub(super) fn measure(
    report: &mut Report,
    output: &Output,
    facts: &KernelFacts,
    btf: &Btf,
    trouble: &mut dyn FnMut() -> Result<()>,
    rounds: usize,
) -> Result<()> {
    let Loaded { ebpf, mut maps, .. } = load::load(facts, &programs(false))?;
    maps.set_sample_interval(u64::from(facts.hz))?;
    let _drain = Drain::start(maps.events.take().into_iter().collect());
    let mut hooked = Vec::new();
    for probe in CORE.iter().chain(BY_TRACEPOINT.probes) {
        if ebpf.program(probe.program).is_none_or(|program| program.fd().is_err()) {
            continue;
        }
        if let Some((empty, empty_name)) = empty_beside(probe.hook, facts, btf)? {
            hooked.push(Hooked { program: probe.program, empty, empty_name, net: vec![], events: 0, in_lives: 0 });
        }
    }
    let count = output.count(500, 20);
    let mut per_life = Vec::new();
    for round in 0..rounds {
        output.progress(&format!("every program: round {} of {rounds}", round + 1));
        per_life.push(round_of(&mut hooked, &ebpf, count, trouble)?);
    }
    let mut table = Table::new(
        "Every program, net of an empty one on the same hook",
        &["ns", "events/s of one CPU", "events a life"],
    );
    let mut objects = Vec::new();
    for hook in &hooked {
        let net = Median::of(&hook.net);
        let rate = net.and_then(Median::per_second);
        let a_life = hook.in_lives as f64 / f64::from(count) / rounds as f64;
        if net.is_none() {
            table.row(hook.program, vec![Cell::skipped("the traffic brought no such event")]);
        } else {
            table.row(hook.program, vec![Cell::median(net), Cell::median(rate), Cell::number(a_life)]);
        }
        let mut object = serde_json::Map::new();
        object.insert("program".to_owned(), json!(hook.program));
        object.insert("events".to_owned(), json!(hook.events));
        object.insert("events_per_life".to_owned(), json!(a_life));
        Median::put(net, "net_ns", &mut object);
        objects.push(serde_json::Value::Object(object));
    }
    let life = Median::of(&per_life);
    let dash = Cell::text("–");
    table.row("all together, a connection's life", vec![Cell::median(life), dash, Cell::text("both ends")]);
    let (sockets, told, walks) = walk(&ebpf, &mut maps, output)?;
    let walk = Median::of(&walks);
    table.row("the iterator, a socket of the reading", vec![Cell::median(walk), Cell::text("–"), Cell::text("–")]);
    table.note(format!(
        "A life is a connection within the host, so both of its ends count: handshake, a question and an answer of 16 \
         bytes, close. Retransmissions and resets come from a path with loss, where they are rare and find cold caches. \
         The iterator's time is of the clock, over {sockets} sockets of which it tells {told}, with what it copies to \
         user space."
    ));
    report.table(table);
    report.set("each", objects);
    report.median("life_ns", life);
    report.median("iterator_ns_per_socket", walk);
    Ok(())
}

/// An empty program on the same tracepoint; iterators have none.
pub(super) fn empty_beside(hook: Hook, facts: &KernelFacts, btf: &Btf) -> Result<Option<(Ebpf, &'static str)>> {
    let mut empty = yardsticks(facts, btf)?;
    let name = match hook {
        Hook::BtfTracepoint(tracepoint) => {
            let name = "bench_empty";
            let program = super::program(&mut empty, name)?;
            program.load(tracepoint, btf)?;
            program.attach()?;
            name
        }
        Hook::RawTracepoint(tracepoint) => {
            let name = "bench_empty_raw";
            let program: &mut RawTracePoint =
                empty.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?;
            program.load()?;
            program.attach(tracepoint)?;
            name
        }
        Hook::Fentry(_) | Hook::Kprobe(_) | Hook::Iterator(_) => return Ok(None),
    };
    Ok(Some((empty, name)))
}

fn runs(ebpf: &Ebpf, name: &str) -> Result<Runs> {
    let program: &Program = ebpf.program(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(Runs::of(&fdinfo(program.fd()?.as_fd())?))
}

/// Ours and the empty one's.
fn both(hooked: &[Hooked], ebpf: &Ebpf) -> Result<Vec<[Runs; 2]>> {
    hooked.iter().map(|hook| Ok([runs(ebpf, hook.program)?, runs(&hook.empty, hook.empty_name)?])).collect()
}

/// One round of connection lives and of trouble; ns of a life.
fn round_of(hooked: &mut [Hooked], ebpf: &Ebpf, lives: u32, trouble: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let before = both(hooked, ebpf)?;
    traffic::lives(lives)?;
    let between = both(hooked, ebpf)?;
    trouble()?;
    let after = both(hooked, ebpf)?;
    let mut life = 0.0;
    for (((hook, before), between), after) in hooked.iter_mut().zip(before).zip(between).zip(after) {
        let [[ours, empty], [ours_in_trouble, empty_in_trouble]] = [(before, between), (between, after)]
            .map(|([ours, empty], [ours_later, empty_later])| [ours_later.since(ours), empty_later.since(empty)]);
        let net = |ours: Runs, empty: Runs| Some(ours.mean()? - empty.mean()?);
        let in_lives = net(ours, empty);
        life += in_lives.unwrap_or(0.0) * ours.count as f64 / f64::from(lives);
        // Where an event belongs to a life, that is where it is measured.
        let often = ours.count >= u64::from(lives);
        let elsewhere = net(ours_in_trouble, empty_in_trouble);
        hook.net.extend(if often { in_lives } else { elsewhere.or(in_lives) });
        hook.events += ours.count + ours_in_trouble.count;
        hook.in_lives += ours.count;
    }
    ensure!(life > 0.0, "the programs saw no connection");
    Ok(life)
}

/// Wall time of the iterator over our state, for each socket of many: how many there are, how many records it told, times.
fn walk(ebpf: &Ebpf, maps: &mut Maps, output: &Output) -> Result<(usize, usize, Vec<f64>)> {
    // What came within a jiffy of the last record is left for it to tell.
    maps.set_sample_interval(1)?;
    let mut pairs = traffic::pairs(output.count(4_000, 50))?;
    let sockets = 2 * pairs.len();
    let (mut times, mut told) = (Vec::new(), Vec::new());
    for _ in 0..output.count(21, 2) {
        traffic::twice_each(&mut pairs)?;
        std::thread::sleep(Duration::from_millis(20));
        let began = Instant::now();
        let output = iterate::tracked(ebpf)?;
        times.push(began.elapsed().as_nanos() as f64 / sockets as f64);
        told.push(iterate::records(&output).count());
    }
    told.sort_unstable();
    let told = told.get(told.len() / 2).copied().unwrap_or(0);
    ensure!(told > 0, "the iterator told nothing of {sockets} sockets");
    Ok((sockets, told, times))
}
