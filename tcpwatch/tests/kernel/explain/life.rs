//! L1 to L5: ends that are not closed, and queues that fill.

use std::any::Any;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{Flags, Flow};
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic};

use super::case::{Case, verdicts};
use super::{Choice, MUST_BE_RIGHT, Row, chosen, daemon, ms, path, recorded};
use crate::daemon::Daemon;
use crate::is_long;

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "L1",
        what: "the client closes and the server does not; after so many bytes",
        case: client_closes,
        choices: [
            (10, 30_000, "cubic"),
            (10, 300, "bbr"),
            (2, 100_000, "cubic"),
            (2, 1, "bbr"),
            (40, 10_000, "cubic"),
            (40, 50_000, "bbr"),
            (0, 5_000, "cubic"),
            (20, 0, "reno"),
            (80, 20_000, "cubic"),
            (5, 200_000, "bbr"),
        ],
    },
    Row {
        id: "L4",
        what: "the server closes and the client does not; after so many bytes",
        case: server_closes,
        choices: [
            (10, 30_000, "bbr"),
            (10, 300, "cubic"),
            (2, 100_000, "bbr"),
            (2, 1, "cubic"),
            (40, 10_000, "bbr"),
            (40, 50_000, "cubic"),
            (0, 5_000, "bbr"),
            (20, 0, "cubic"),
            (80, 20_000, "reno"),
            (5, 200_000, "cubic"),
        ],
    },
];

fn client_closes(choice: Choice) -> Result<Case> {
    let case = one_end_closes(choice, End::Client)?;
    Ok(case.client(&["half_closed"]).server(&["close_wait_leak"]))
}

fn server_closes(choice: Choice) -> Result<Case> {
    let case = one_end_closes(choice, End::Server)?;
    Ok(case.client(&["close_wait_leak"]).server(&["half_closed"]))
}

fn one_end_closes((one_way, bytes, congestion): Choice, by: End) -> Result<Case> {
    let half_closed = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        pair.echo(bytes)?;
        pair.half_close(by)?;
        thread::sleep(ms(11_500));
        Ok(())
    };
    Ok(Case::own(path(one_way)?, half_closed))
}

/// A place that gets into trouble, and what is to be said of it.
struct Place {
    row: &'static str,
    namespace: Netns,
    /// The address of a listener, or the number of a namespace, with its verdict.
    says: String,
    /// A path with connections that wait at its listener, which may not be closed; or a namespace.
    _held: Box<dyn Any>,
}

/// L2: connections that came and went.
const TIME_WAITS: [usize; 10] = [1200, 1100, 1500, 1300, 2000, 1050, 1400, 1800, 1600, 1250];
/// L3: the limit of a listener, and SYNs to it that are never finished.
const FLOODS: [(u32, u16); 10] =
    [(1024, 700), (64, 60), (128, 90), (256, 180), (512, 400), (32, 30), (16, 14), (100, 80), (200, 150), (48, 40)];
/// L5: the limit of a listener, and connections to it that are never accepted.
const WAITING: [(u32, u16); 10] =
    [(8, 6), (8, 9), (16, 10), (32, 20), (4, 3), (64, 40), (128, 100), (2, 2), (20, 21), (10, 5)];

/// L2, L3 and L5.
pub(super) fn queues() -> Result<()> {
    let wrong = Mutex::new(Vec::new());
    for n in 0..chosen() {
        let outcome = queue_choice(n, &wrong);
        outcome.with_context(|| format!("choice {n}"))?;
    }
    let wrong = wrong.into_inner().map_err(|_| anyhow!("a thread panicked"))?;
    for row in ["L2", "L3", "L5"] {
        let right = chosen() - wrong.iter().filter(|(of, _)| *of == row).count();
        println!("{row}: {right} of {} right", chosen());
        let needed = if is_long() { MUST_BE_RIGHT } else { chosen() };
        ensure!(right >= needed, "{row}: {right} of {} right: {wrong:#?}", chosen());
    }
    Ok(())
}

/// A recording of one of each.
pub(super) fn recorded() -> Result<Vec<u8>> {
    let (flooded, slow, local) = (path(0)?, path(0)?, Netns::new()?);
    let namespaces = [flooded.b().clone(), slow.b().clone(), local.clone()];
    // What comes and goes before is not in it.
    let places = [time_waits(local, TIME_WAITS[0])?, flood(flooded, 0, FLOODS[5])?, waiting(slow, 0, WAITING[0])?];
    let recorder = recorded::recorder(&namespaces.each_ref())?;
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let said = said(&recorded::explained(&recorder.file)?);
        if places.iter().all(|place| said.contains(&place.says)) {
            return recorded::ended(recorder);
        }
        ensure!(Instant::now() < deadline, "only {said:?} is said");
        thread::sleep(ms(200));
    }
}

/// What is said of listeners and namespaces.
fn said(lines: &[Value]) -> BTreeSet<String> {
    let of_queues = lines.iter().filter(|l| l["subject"]["kind"] == "listener" || l["subject"]["kind"] == "host");
    of_queues
        .flat_map(|line| {
            let subject = line["subject"]["address"].as_str().map(str::to_owned);
            let subject = subject.unwrap_or_else(|| line["subject"]["netns"].to_string());
            verdicts(line).into_keys().map(move |id| format!("{subject} {id}"))
        })
        .collect()
}

fn queue_choice(n: usize, wrong: &Mutex<Vec<(&'static str, String)>>) -> Result<()> {
    let (flooded, slow, local) = (path(0)?, path(0)?, Netns::new()?);
    let namespaces = [flooded.b().clone(), slow.b().clone(), local.clone()];
    let daemon = daemon(&namespaces.each_ref())?;
    let places = [time_waits(local, TIME_WAITS[n])?, flood(flooded, n, FLOODS[n])?, waiting(slow, n, WAITING[n])?];
    for place in &places {
        let judged = judged(&daemon, place, &places);
        if let Err(error) = judged {
            wrong
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((place.row, format!("{n}: {error:#}")));
        }
    }
    Ok(())
}

fn time_waits(local: Netns, count: usize) -> Result<Place> {
    // No more descriptors at once than a process may have.
    for some in [count / 2, count - count / 2] {
        let pairs: Vec<Pair> = Traffic::loopback(&local, Family::V4).connect_many(some)?;
        drop(pairs);
    }
    let says = format!("{} time_wait_pressure", local.inode());
    Ok(Place { row: "L2", namespace: local.clone(), says, _held: Box::new(local) })
}

fn flood(path: Path, n: usize, (limit, syns): (u32, u16)) -> Result<Place> {
    path.b().sysctl("net.core.somaxconn", &limit.to_string())?;
    let server = Traffic::over(&path, Family::V4).port(8100 + n as u16).listen()?;
    path.backward().blackhole();
    for port in 10_000..10_000 + syns {
        let flow = Flow { src: SocketAddr::new(Path::IPV4[0].into(), port), dst: server.address };
        path.inject_segment(&RawSegment::new(flow, 1, 0, Flags::SYN))?;
    }
    let says = format!("{} syn_backlog", server.address);
    Ok(Place { row: "L3", namespace: path.b().clone(), says, _held: Box::new((path, server)) })
}

fn waiting(path: Path, n: usize, (limit, connections): (u32, u16)) -> Result<Place> {
    path.b().sysctl("net.core.somaxconn", &limit.to_string())?;
    let traffic = Traffic::over(&path, Family::V4).port(8200 + n as u16);
    let server = traffic.listen()?;
    for _ in 0..connections {
        ensure!(traffic.try_connect(&server, ms(5000))?, "the queue is full too early");
    }
    let says = format!("{} listen_queue", server.address);
    Ok(Place { row: "L5", namespace: path.b().clone(), says, _held: Box::new((path, server)) })
}

/// Waits until it is said of the place; nothing else may ever be.
fn judged(daemon: &Daemon, place: &Place, all: &[Place]) -> Result<()> {
    let expected: BTreeSet<&str> = all.iter().map(|place| place.says.as_str()).collect();
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let said = said(&daemon.ask("/api/v1/explain?all=true")?);
        let second = said.iter().find(|said| !expected.contains(said.as_str()));
        ensure!(second.is_none(), "{second:?} was said; expected were {expected:?}");
        if said.contains(&place.says) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} was not said in {:?}, only {said:?}", place.says, place.namespace);
        thread::sleep(ms(100));
    }
}
