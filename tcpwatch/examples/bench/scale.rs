//! How memory, CPU and start-up grow with connections, and what is lost when events come faster than they are taken.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tcpwatch::bench::report::{Output, Report};
use tcpwatch::bench::scale::{Flood, Size, report};
use tcpwatch::bench::user::replayed;
use tcpwatch_lab::Netns;

use crate::MEMORY;
use crate::daemon::{Daemon, Metrics};
use crate::flood::connect_in_vain;
use crate::hold::Holder;

/// Connections of a process, both ends of each: a process may have 20,000 descriptors on many machines.
const PAIRS: usize = 9_000;
/// More are not asked for: the setting `max_connections` has a limit too.
const MOST: usize = 1_000_000;
const LOST: &str = "tcpwatch_events_lost_total";

pub(crate) fn run(output: &Output, most: bool) -> Result<Report> {
    let sizes: &[u64] = output.count(&[10_000, 50_000, 100_000], &[200]);
    let mut measured = Vec::new();
    for sockets in sizes {
        output.progress(&format!("{sockets} sockets"));
        let pairs = *sockets as usize / 2;
        let processes = pairs.div_ceil(PAIRS).max(2);
        let mut holders = Vec::new();
        for n in 0..processes {
            holders.push(Holder::start(pairs / processes + usize::from(n < pairs % processes))?);
        }
        holders.iter_mut().try_for_each(Holder::ready)?;
        measured.push(size(output, holders)?);
    }
    if most {
        output.progress("as many sockets as the machine takes");
        measured.push(size(output, as_many_as_can_be()?)?);
    }
    let floods = floods(output)?;
    let mut all = Vec::new();
    for connections in output.count(vec![10_000, 100_000, 1_000_000], vec![1_000]) {
        output.progress(&format!("{connections} connections replayed"));
        all.push((connections, replayed(connections, MEMORY)?));
    }
    Ok(report(&measured, &floods, &all))
}

/// Until a third of the memory is left, or the machine refuses.
fn as_many_as_can_be() -> Result<Vec<Holder>> {
    let total = meminfo("MemTotal:")?;
    let mut holders = Vec::new();
    while holders.len() * 2 * PAIRS < MOST && meminfo("MemAvailable:")? > total / 3 {
        let mut holder = Holder::start(PAIRS)?;
        if holder.ready().is_err() {
            break;
        }
        holders.push(holder);
    }
    Ok(holders)
}

/// Bytes.
fn meminfo(name: &str) -> Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<i64>()? * 1024)
}

fn size(output: &Output, mut holders: Vec<Holder>) -> Result<Size> {
    let sockets = 2 * holders.iter().map(|holder| holder.pairs as u64).sum::<u64>();
    // Connections of others on this host are seen too.
    let settings = format!("max_connections = {}", sockets + 10_000);
    let slab = settled_slab()?;
    let mut start_s = Vec::new();
    for _ in 0..output.count(6, 1) {
        start_s.push(Daemon::start(&[], &settings)?.start_up.as_secs_f64());
    }
    let daemon = Daemon::start(&[], &settings)?;
    start_s.push(daemon.start_up.as_secs_f64());
    let slab_bytes = settled_slab()? - slab;
    let entries = daemon.metrics()?.sum("tcpwatch_table_entries", &[]) as u64;
    let (idle_cpus, _) = while_busy(output, &daemon, &mut holders, |pairs| pairs / 100)?;
    let (busy_cpus, busy_exchanges) = while_busy(output, &daemon, &mut holders, |pairs| pairs)?;
    holders.iter_mut().try_for_each(|holder| holder.busy(0).map(drop))?;
    let (mut scrape_ms, mut scrape_bytes) = (Vec::new(), 0);
    for _ in 0..output.count(15, 1) {
        let began = Instant::now();
        let Metrics(text) = daemon.metrics()?;
        scrape_ms.push(began.elapsed().as_secs_f64() * 1e3);
        scrape_bytes = text.len() as u64;
    }
    Ok(Size {
        sockets,
        start_s,
        entries,
        resident_bytes: daemon.resident_bytes()?,
        slab_bytes,
        idle_cpus,
        busy_cpus,
        // A question and an answer.
        busy_segments_per_second: busy_exchanges * 2.0,
        scrape_ms,
        scrape_bytes,
        lost: lost(&daemon.metrics()?),
    })
}

/// What was lost, by the place that the daemon names.
fn lost(metrics: &Metrics) -> Vec<(String, u64)> {
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for line in metrics.0.lines().filter(|line| line.starts_with(LOST)) {
        let place = line.split_once("where=\"").and_then(|(_, rest)| rest.split('"').next());
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
        if let (Some(place), Some(count)) = (place, count) {
            *places.entry(place.to_owned()).or_default() += count as u64;
        }
    }
    places.into_iter().collect()
}

/// Memory that slabs cannot give back, when it changes no more: what ended is freed after a grace period.
fn settled_slab() -> Result<i64> {
    let mut last = meminfo("SUnreclaim:")?;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(500));
        let now = meminfo("SUnreclaim:")?;
        if (now - last).abs() < 128 << 10 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// CPUs of the daemon, and exchanges a second, while so many of the connections of each process have one a second.
fn while_busy(
    output: &Output,
    daemon: &Daemon,
    holders: &mut [Holder],
    busy: impl Fn(usize) -> usize,
) -> Result<(f64, f64)> {
    let tell = |holders: &mut [Holder]| -> Result<u64> {
        holders.iter_mut().map(|holder| holder.busy(busy(holder.pairs).max(1))).sum()
    };
    tell(holders)?;
    // The sample interval follows the rate of records.
    thread::sleep(output.count(Duration::from_secs(4), Duration::from_millis(100)));
    tell(holders)?;
    let (cpu, began) = (daemon.cpu_seconds()?, Instant::now());
    thread::sleep(output.count(Duration::from_secs(10), Duration::from_secs(1)));
    let cpu = daemon.cpu_seconds()? - cpu;
    let seconds = began.elapsed().as_secs_f64();
    Ok((cpu / seconds, tell(holders)? as f64 / seconds))
}

/// Some seconds each: first with every record asked for, then with the limits that are usual.
fn floods(output: &Output) -> Result<Vec<Flood>> {
    const EVERY: &str = "detail_per_second = 1000000";
    let ns = Netns::new()?;
    let mut floods = Vec::new();
    let all = [
        ("2,000/s asked, every one told", Some(2_000), EVERY),
        ("10,000/s asked, every one told", Some(10_000), EVERY),
        ("30,000/s asked, every one told", Some(30_000), EVERY),
        ("as many as can be, every one told", None, EVERY),
        ("as many as can be, usual limits", None, ""),
    ];
    let all = all.get(output.count(0, 3)..).unwrap_or_default();
    for &(name, rate, settings) in all {
        output.progress(name);
        floods.push(flood(output, &ns, name, rate, settings)?);
    }
    Ok(floods)
}

fn flood(output: &Output, ns: &Netns, name: &str, rate: Option<u64>, settings: &str) -> Result<Flood> {
    let daemon = Daemon::start(&[ns], settings)?;
    let (metrics, counters, cpu) = (daemon.metrics()?, ns.counters()?, daemon.cpu_seconds()?);
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let threads = thread::available_parallelism()?.get() as u64;
    thread::scope(|scope| {
        let flood = || ns.run(|| connect_in_vain(rate.map(|rate| rate / threads), &stop));
        let flows: Vec<_> = (0..threads).map(|_| scope.spawn(flood)).collect();
        thread::sleep(output.count(Duration::from_secs(3), Duration::from_millis(100)));
        stop.store(true, Ordering::Relaxed);
        flows.into_iter().try_for_each(|flow| flow.join().map_err(|_| anyhow!("a flood panicked"))?)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = daemon.cpu_seconds()? - cpu;
    let resets = ns.counters()?.delta(&counters).get("Tcp", "OutRsts")? as f64;
    let after = daemon.metrics()?;
    let of = |metric: &str, words: &[&str]| after.sum(metric, words) - metrics.sum(metric, words);
    let (taken, lost) = (of("tcpwatch_events_total", &[]), of(LOST, &["where=\"ring\""]));
    let throttled = of(LOST, &["where=\"throttled\""]);
    let all = taken + lost + throttled;
    Ok(Flood {
        name: name.to_owned(),
        resets_per_second: resets / seconds,
        counted_share: of("tcpwatch_resets_sent_total", &[]) / resets,
        records_per_second: taken / seconds,
        lost_share: lost / all,
        throttled_share: throttled / all,
        daemon_cpus: cpu / seconds,
    })
}
