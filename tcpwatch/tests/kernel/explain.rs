//! What `explain` says of situations that people meet: the right cause for each, on the right end, and no second wrong one.
//!
//! Each case is a path with traffic that the lab makes; several run at once, watched by one daemon. What was said last of
//! each connection before it closed is held against what the set-up is known to be limited by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{Flags, Flow, Rate};
use tcpwatch_lab::scenario::{self, Setup, Stage};
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic, sockopt};

use crate::daemon::Daemon;
use crate::{is_long, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("explain_names_what_is_lost_and_what_is_sent_again", retransmissions),
        trial("explain_names_listeners_and_hosts_whose_queues_fill", queues),
    ];
    // Shares of time and rates: a machine that is short of CPU makes slow applications of healthy ones.
    if is_long() {
        trials.extend([
            trial("explain_names_what_makes_transfers_slow", slow_transfers),
            trial("explain_names_what_connections_of_a_service_suffer_together", services),
            trial("explain_has_nothing_to_say_against_healthy_connections", healthy),
        ]);
    }
    trials
}

/// What traffic does on a path.
type Play = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

enum Scene {
    /// A scenario of the lab.
    Stage(Box<Stage>),
    /// Traffic of the test's own.
    Own(Path, Play),
}

/// A situation with what is to be said of it.
struct Case {
    name: String,
    scene: Scene,
    /// Verdicts on connections, by the end that they are of: each is to be given, and nothing else.
    client: &'static [&'static str],
    server: &'static [&'static str],
    /// May be said besides, as it is true.
    also: &'static [&'static str],
    /// Numbers that the evidence of the first verdict must have.
    evidence: &'static [(&'static str, u64)],
    /// Asks for a window of this length as well.
    window: Option<&'static str>,
}

/// What was said last of each connection: cookie, then whether it is of the client's end and the verdicts by id.
type Told = BTreeMap<u64, (End, BTreeMap<String, Value>)>;

impl Case {
    fn staged(row: &str, name: &str, change: impl FnOnce(&mut Setup)) -> Result<Self> {
        let mut scenario = scenario::find(name)?;
        change(&mut scenario.setup);
        let name = format!("{row} {name}, {}", scenario.setup.path_in_words());
        Ok(Self::of(name, Scene::Stage(Box::new(scenario.stage()?))))
    }

    fn own(name: &str, path: Path, play: impl Fn(&Path) -> Result<()> + Send + Sync + 'static) -> Self {
        Self::of(name.to_owned(), Scene::Own(path, Box::new(play)))
    }

    fn of(name: String, scene: Scene) -> Self {
        Self { name, scene, client: &[], server: &[], also: &[], evidence: &[], window: None }
    }

    fn client(self, client: &'static [&'static str]) -> Self {
        Self { client, ..self }
    }

    fn server(self, server: &'static [&'static str]) -> Self {
        Self { server, ..self }
    }

    fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    fn evidence(self, evidence: &'static [(&'static str, u64)]) -> Self {
        Self { evidence, ..self }
    }

    fn window(self, window: &'static str) -> Self {
        Self { window: Some(window), ..self }
    }

    fn path(&self) -> &Path {
        match &self.scene {
            Scene::Stage(stage) => &stage.path,
            Scene::Own(path, _) => path,
        }
    }

    fn run(&self) -> Result<()> {
        match &self.scene {
            Scene::Stage(stage) => stage.run().map(drop),
            Scene::Own(path, play) => play(path),
        }
    }

    /// Plays it, and holds what was said against what is expected.
    fn check(&self, daemon: &Daemon) -> Result<()> {
        let began = Instant::now();
        let (mut told, mut windowed) = (Told::new(), None);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| self.run());
            while !traffic.is_finished() {
                told.extend(self.ask(daemon, "")?);
                if let (Some(window), None) = (self.window, &windowed)
                    && began.elapsed() > Duration::from_millis(500)
                {
                    // Between two connections there is nothing to be told.
                    windowed = Some(self.ask(daemon, &format!("&for={window}"))?).filter(|told| !told.is_empty());
                }
                thread::sleep(Duration::from_millis(100));
            }
            traffic.join().map_err(|_| anyhow!("the traffic panicked"))?
        })
        .with_context(|| self.name.clone())?;
        self.hold(&told).with_context(|| self.name.clone())?;
        if self.window.is_some() {
            let windowed = windowed.with_context(|| format!("{}: nothing was told of a window", self.name))?;
            self.hold(&windowed).with_context(|| format!("{}, over a window", self.name))?;
        }
        Ok(())
    }

    fn ask(&self, daemon: &Daemon, more: &str) -> Result<Told> {
        let [a, b] = [self.path().a().inode(), self.path().b().inode()];
        let lines = daemon.ask(&format!("/api/v1/explain?all=true&filter=netns%20{a}%20or%20netns%20{b}{more}"))?;
        lines.iter().map(told).collect()
    }

    fn hold(&self, told: &Told) -> Result<()> {
        for (end, expected) in [(End::Client, self.client), (End::Server, self.server)] {
            let of_end = || told.values().filter(|(of, _)| *of == end).map(|(_, verdicts)| verdicts);
            for id in expected {
                ensure!(of_end().any(|verdicts| verdicts.contains_key(*id)), "{end:?}: no {id}: {}", words(told));
            }
            let right = |id: &str| expected.contains(&id) || self.also.contains(&id) || is_silent(id);
            let wrong: BTreeSet<_> = of_end().flat_map(BTreeMap::keys).filter(|id| !right(id)).collect();
            ensure!(wrong.is_empty(), "{end:?}: {wrong:?} instead of {expected:?}: {}", words(told));
        }
        let first = self.client.iter().chain(self.server).next().copied().unwrap_or_default();
        let verdict = told.values().find_map(|(_, verdicts)| verdicts.get(first));
        for (name, number) in self.evidence {
            let verdict = verdict.with_context(|| format!("no {first}"))?;
            ensure!(verdict["evidence"][*name] == *number, "{name} is to be {number}: {verdict:#}");
        }
        Ok(())
    }
}

/// What was said, for a message: a line for each verdict.
fn words(told: &Told) -> String {
    let each = told.iter().flat_map(|(cookie, (end, verdicts))| {
        verdicts.values().map(move |v| format!("\n  {cookie} {end:?} {}: {} {}", v["id"], v["sentence"], v["evidence"]))
    });
    each.collect()
}

/// No complaint.
fn is_silent(id: &str) -> bool {
    matches!(id, "healthy" | "not_enough_data")
}

fn verdicts(line: &Value) -> BTreeMap<String, Value> {
    let verdicts = line["verdicts"].as_array().into_iter().flatten();
    verdicts.map(|verdict| (verdict["id"].as_str().unwrap_or_default().to_owned(), verdict.clone())).collect()
}

/// One entry of [`Told`].
type One = (u64, (End, BTreeMap<String, Value>));

fn told(line: &Value) -> Result<One> {
    let subject = &line["subject"];
    ensure!(subject["kind"] == "connection", "a filter selects connections, and not {subject}");
    let local = subject["local"].as_str().context("no local end")?;
    let client = local.starts_with(&format!("{}:", Path::IPV4[0]));
    let end = if client { End::Client } else { End::Server };
    Ok((subject["cookie"].as_u64().context("no cookie")?, (end, verdicts(line))))
}

/// As many as one daemon takes: it watches up to eight namespaces.
const CASES_OF_A_DAEMON: usize = 4;

/// Plays them all at once, under as many daemons as it needs.
fn all(cases: &[Case]) -> Result<()> {
    let groups: Vec<_> = cases.chunks(CASES_OF_A_DAEMON).collect();
    let daemons = groups.iter().map(|group| {
        let namespaces: Vec<&Netns> = group.iter().flat_map(|case| [case.path().a(), case.path().b()]).collect();
        Daemon::with(&namespaces, "sample_interval = \"100ms\"")
    });
    let daemons: Vec<Daemon> = daemons.collect::<Result<_>>()?;
    let watched = groups.iter().zip(&daemons).flat_map(|(group, daemon)| group.iter().map(move |case| (case, daemon)));
    at_once(watched.collect(), |(case, daemon)| case.check(daemon))
}

/// Does it with each in a thread of its own, and tells all that failed.
fn at_once<T: Send>(things: Vec<T>, check: impl Fn(T) -> Result<()> + Sync) -> Result<()> {
    let (count, check) = (things.len(), &check);
    let failures: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = things.into_iter().map(|thing| scope.spawn(move || check(thing))).collect();
        let done = running.into_iter().map(|case| case.join().unwrap_or_else(|_| Err(anyhow!("a case panicked"))));
        done.filter_map(|done| done.err().map(|error| format!("{error:#}"))).collect()
    });
    ensure!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n\n"));
    Ok(())
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A path without trouble.
fn path(one_way: Duration) -> Result<Path> {
    Path::builder().delay(one_way).build()
}

/// Congestion controls: one of them in the short run.
fn congestions() -> &'static [&'static str] {
    if is_long() { &["cubic", "bbr"] } else { &["cubic"] }
}

/// Delays of one way: the first of them in the short run.
fn delays(all: &'static [u64]) -> impl Iterator<Item = Duration> {
    all.iter().take(if is_long() { all.len() } else { 1 }).map(|delay| ms(*delay))
}

/// S2 to S12.
fn slow_transfers() -> Result<()> {
    let mut cases = Vec::new();
    for one_way in delays(&[4, 20]) {
        let answer = |path: &Path| {
            let mut pair = Traffic::over(path, Family::V4).congestion("cubic").connect()?;
            pair.send(End::Server, 512 << 10)?;
            thread::sleep(ms(2500));
            Ok(())
        };
        cases.push(Case::own("S2 an answer of 512 KB", path(one_way)?, answer).server(&["slow_start"]));
    }
    for one_way in delays(&[25, 50]) {
        let case = Case::staged("S3", "idle-restart", |s| {
            (s.duration, s.pause, s.one_way) = (ms(3500), ms(1500), one_way);
        })?;
        cases.push(case.client(&["idle_restart"]));
    }
    for congestion in ["cubic", "bbr"] {
        for one_way in delays(&[20, 40]) {
            let case = Case::staged("S4", "loss", |s| {
                (s.duration, s.congestion, s.one_way) = (ms(4000), Some(congestion), one_way);
            })?;
            cases.push(case.client(&["loss"]).window("1500ms"));
        }
    }
    let case = Case::staged("S5", "zero-window", |s| (s.duration, s.pause) = (Duration::ZERO, ms(3000)))?;
    cases.push(case.client(&["receiver_window"]).server(&["receiver_window"]));
    let case = Case::staged("S6", "bursty-reader", |s| s.duration = ms(4000))?;
    cases.push(case.client(&["receiver_window"]).server(&["receiver_window"]).window("2s"));
    for congestion in congestions() {
        let writes = move |path: &Path| {
            let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
            for _ in 0..25 {
                pair.send(End::Client, 80_000)?;
                thread::sleep(ms(140));
            }
            Ok(())
        };
        cases.push(Case::own("S7 a slow writer", path(ms(5))?, writes).client(&["application"]).window("1500ms"));
    }
    for one_way in delays(&[40, 100]) {
        let small = |path: &Path| {
            let mut pair = Traffic::over(path, Family::V4).congestion("cubic").connect()?;
            sockopt::set_send_buffer(&pair.client, 40_000)?;
            let began = Instant::now();
            pair.send_while(End::Client, u64::MAX, || began.elapsed() < ms(4000)).map(drop)
        };
        cases.push(Case::own("S8 a small send buffer", path(one_way)?, small).client(&["send_buffer"]).window("2s"));
    }
    let case = Case::staged("S9", "tiny-writes", |s| (s.duration, s.one_way) = (ms(4000), ms(1)))?;
    cases.push(case.client(&["tiny_segments"]));
    let dialogue = |path: &Path| Traffic::over(path, Family::V4).connect()?.ping_pong(150, 1);
    let case = Case::own("S9 a dialogue of single bytes", path(ms(10))?, dialogue);
    cases.push(case.client(&["tiny_segments"]).server(&["tiny_segments"]));
    for one_way in delays(&[1, 10]) {
        let case = Case::staged("S10", "nagle", |s| (s.duration, s.one_way) = (ms(3000), one_way))?;
        cases.push(case.client(&["nagle_delayed_ack"]));
    }
    for one_way in delays(&[10, 20]) {
        let case = Case::staged("S11", "bufferbloat", |s| (s.duration, s.one_way) = (ms(3000), one_way))?;
        cases.push(case.client(&["bufferbloat"]).window("1500ms"));
    }
    for congestion in ["cubic", "bbr"] {
        let answer = move |path: &Path| {
            let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
            pair.send(End::Client, 300)?;
            pair.half_close(End::Client)?;
            path.backward().drop_share(0.03, 1);
            let began = Instant::now();
            pair.send_while(End::Server, u64::MAX, || began.elapsed() < ms(4500)).map(drop)
        };
        let name = format!("S12 a half-closed client gets an answer with loss, {congestion}");
        cases.push(Case::own(&name, path(ms(20))?, answer).server(&["loss"]));
    }
    all(&cases)
}

/// R1 to R4, R7, and the ends of L1 and L4.
fn retransmissions() -> Result<()> {
    let mut cases = Vec::new();
    let case = Case::staged("R1", "peer-vanishes", |s| {
        s.duration = Duration::ZERO;
        s.sysctls = &[(End::Client, "net.ipv4.tcp_retries2", "4")];
    })?;
    cases.push(case.client(&["peer_vanished"]));
    for one_way in delays(&[10, 40]) {
        let flight = |path: &Path| {
            let mut pair = Traffic::over(path, Family::V4).congestion("cubic").connect()?;
            path.forward().drop_nth_data(30);
            pair.send(End::Client, 200_000)?;
            thread::sleep(ms(500));
            Ok(())
        };
        let case = Case::own("R2 one segment of a flight is lost", path(one_way)?, flight);
        cases.push(case.client(&["loss"]).evidence(&[("fast", 1), ("timeout", 0), ("lost_segments", 1)]));
    }
    let case = Case::staged("R3", "tail-loss", |s| s.duration = ms(3000))?;
    cases.push(case.client(&["loss"]).evidence(&[("timeout", 0), ("fast", 0)]));
    for one_way in delays(&[10, 30]) {
        let case = Case::staged("R4", "reordering", |s| (s.duration, s.one_way) = (ms(3000), one_way))?;
        cases.push(case.client(&["spurious_retransmits"]));
    }
    for size in if is_long() { &[1200, 700][..] } else { &[1200] } {
        let case = Case::staged("R7", "mtu-black-hole", |s| {
            (s.duration, s.vanish_above, s.pause) = (Duration::ZERO, Some(*size), ms(4000));
        })?;
        cases.push(case.client(&["mtu_black_hole"]));
    }
    let half_closed = |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).connect()?;
        pair.echo(30_000)?;
        pair.half_close(End::Client)?;
        thread::sleep(ms(11_500));
        Ok(())
    };
    let case = Case::own("L1, L4 one end closes and the other does not", path(ms(10))?, half_closed);
    cases.push(case.server(&["close_wait_leak"]).client(&["half_closed"]));
    all(&cases)
}

/// S1, R1, R5 and R6: each under a daemon of its own, as their connections are counted together.
fn services() -> Result<()> {
    let mut cases = Vec::new();
    for (one_way, size) in if is_long() { &[(50, 50_000), (100, 1_000_000), (10, 20_000)][..] } else { &[(50, 50_000)] }
    {
        let case = Case::staged("S1", "short-connections", |s| {
            (s.duration, s.size, s.one_way) = (ms(3000), *size, ms(*one_way));
        })?;
        cases.push((case.also(&["slow_start"]), "not_reused"));
    }
    let case = Case::staged("R5", "syn-loss", |s| s.duration = ms(4000))?;
    // And it is a new connection for each transfer.
    cases.push((case.client(&["syn_lost"]).also(&["syn_lost", "not_reused"]), "syn_lost"));
    let silent = |path: &Path| {
        path.a().sysctl("net.ipv4.tcp_syn_retries", "1")?;
        let traffic = Traffic::over(path, Family::V4);
        let server = traffic.listen()?;
        path.forward().blackhole();
        ensure!(!traffic.try_connect(&server, ms(20_000))?, "it connected through a black hole");
        Ok(())
    };
    cases.push((Case::own("R6 a silent host", path(ms(10))?, silent).client(&["syn_lost"]), "syn_lost"));
    let case = Case::staged("R1", "peer-vanishes", |s| {
        s.duration = Duration::ZERO;
        s.sysctls = &[(End::Client, "net.ipv4.tcp_retries2", "3")];
    })?;
    cases.push((case.client(&["peer_vanished"]), "peer_vanished"));
    at_once(cases.iter().collect(), |(case, id)| service(case, id))
}

/// A case whose connections are over before they could be judged one by one: their service has the verdict, and no other.
fn service(case: &Case, id: &str) -> Result<()> {
    let daemon = Daemon::with(&[case.path().a(), case.path().b()], "sample_interval = \"100ms\"")?;
    case.check(&daemon)?;
    daemon.wait("the closes", |m| m.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]) == 0)?;
    let lines = daemon.ask("/api/v1/explain?all=true")?;
    let said: BTreeSet<String> = lines
        .iter()
        .filter(|line| line["subject"]["kind"] == "service")
        .flat_map(|line| verdicts(line).into_keys())
        .collect();
    let wrong = said.iter().any(|said| said != id && !case.also.contains(&said.as_str()));
    ensure!(said.contains(id) && !wrong, "{}: of the service: {said:?} instead of {id}: {lines:#?}", case.name);
    Ok(())
}

/// L2, L3 and L5.
fn queues() -> Result<()> {
    let (slow, flooded, local) = (path(Duration::ZERO)?, path(Duration::ZERO)?, Netns::new()?);
    slow.b().sysctl("net.core.somaxconn", "8")?;
    let daemon = Daemon::with(&[slow.b(), flooded.b(), &local], "")?;

    let slow_traffic = Traffic::over(&slow, Family::V4).port(8001);
    let slow_server = slow_traffic.listen()?;
    for _ in 0..6 {
        ensure!(slow_traffic.try_connect(&slow_server, ms(5000))?, "the queue is full too early");
    }

    let flooded_server = Traffic::over(&flooded, Family::V4).port(8002).listen()?;
    flooded.backward().blackhole();
    for port in 10_000..10_700 {
        let flow = Flow { src: SocketAddr::new(Path::IPV4[0].into(), port), dst: flooded_server.address };
        flooded.inject_segment(&RawSegment::new(flow, 1, 0, Flags::SYN))?;
    }

    drop(Traffic::loopback(&local, Family::V4).connect_many(1200)?);

    let expected: BTreeSet<String> = [
        format!("{} listen_queue", slow_server.address),
        format!("{} syn_backlog", flooded_server.address),
        format!("{} time_wait_pressure", local.inode()),
    ]
    .into();
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let lines = daemon.ask("/api/v1/explain?all=true")?;
        let of_queues = lines.iter().filter(|l| l["subject"]["kind"] == "listener" || l["subject"]["kind"] == "host");
        let said: BTreeSet<String> = of_queues
            .flat_map(|line| {
                let subject = line["subject"]["address"].as_str().map(str::to_owned);
                let subject = subject.unwrap_or_else(|| line["subject"]["netns"].to_string());
                verdicts(line).into_keys().map(move |id| format!("{subject} {id}"))
            })
            .collect();
        ensure!(said.is_subset(&expected), "{said:?} instead of {expected:?}");
        if said == expected {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "only {said:?} of {expected:?}");
        thread::sleep(ms(100));
    }
}

/// What a connection without trouble does, again and again.
type Habit = fn(&mut Pair) -> Result<()>;

/// Kinds of connections that nothing is wrong with.
const HABITS: &[Habit] = &[
    // Idle.
    |_| {
        thread::sleep(ms(100));
        Ok(())
    },
    // Interactive, with time to think.
    |pair| {
        thread::sleep(ms(250));
        pair.ping_pong(1, 100)
    },
    // Keys and their echo.
    |pair| {
        thread::sleep(ms(120));
        pair.ping_pong(1, 1)
    },
    // Streaming in small regular chunks, either way.
    |pair| {
        thread::sleep(ms(100));
        pair.send(End::Server, 3000)
    },
    |pair| {
        thread::sleep(ms(50));
        pair.send(End::Client, 1000)
    },
    // Long-poll.
    |pair| {
        pair.send(End::Client, 300)?;
        thread::sleep(ms(1500));
        pair.send(End::Server, 5000)
    },
    // Pages now and then.
    |pair| {
        thread::sleep(ms(700));
        pair.send(End::Client, 400)?;
        pair.send(End::Server, 12_000)
    },
    // Records of a log.
    |pair| {
        thread::sleep(ms(400));
        pair.send(End::Client, 8000)
    },
];

/// Ten connections on each of three paths.
fn healthy() -> Result<()> {
    let paths = [path(ms(2))?, path(ms(15))?, path(ms(50))?];
    let namespaces: Vec<&Netns> = paths.iter().flat_map(|path| [path.a(), path.b()]).collect();
    let daemon = Daemon::with(&namespaces, "sample_interval = \"100ms\"")?;
    let rate = Rate { bits_per_second: 20_000_000, queue_packets: usize::MAX, queue_bytes: 1_000_000 };
    for path in &paths {
        path.forward().set_rate(Some(rate));
    }
    let lasts = if is_long() { ms(30_000) } else { ms(6000) };
    let mut said = BTreeMap::new();
    thread::scope(|scope| {
        let mut running = Vec::new();
        for path in &paths {
            for habit in HABITS {
                running.push(scope.spawn(move || {
                    let (mut pair, began) = (Traffic::over(path, Family::V4).connect()?, Instant::now());
                    while began.elapsed() < lasts {
                        habit(&mut pair)?;
                    }
                    Ok(())
                }));
            }
            // Half-closed, and still sending.
            running.push(scope.spawn(move || {
                let (mut pair, began) = (Traffic::over(path, Family::V4).connect()?, Instant::now());
                pair.half_close(End::Client)?;
                while began.elapsed() < lasts {
                    thread::sleep(ms(150));
                    pair.send(End::Server, 4000)?;
                }
                Ok(())
            }));
            // Bulk.
            running.push(scope.spawn(move || {
                let mut pair = Traffic::over(path, Family::V4).congestion("bbr").connect()?;
                let began = Instant::now();
                pair.send_while(End::Client, u64::MAX, || began.elapsed() < lasts).map(drop)
            }));
        }
        while running.iter().any(|flow| !flow.is_finished()) {
            for line in daemon.ask("/api/v1/explain?all=true")? {
                said.insert(line["subject"]["cookie"].as_u64().unwrap_or(0), line);
            }
            thread::sleep(ms(200));
        }
        running.into_iter().try_for_each(|flow| flow.join().map_err(|_| anyhow!("a flow panicked"))?)
    })?;
    ensure!(said.len() >= 2 * 3 * (HABITS.len() + 2), "only {} connections were judged", said.len());
    let silent = |line: &Value| verdicts(line).keys().all(|id| is_silent(id));
    let wrong: Vec<String> = said.values().filter(|line| !silent(line)).map(Value::to_string).collect();
    ensure!(wrong.is_empty(), "{} of {} are complained of:\n{}", wrong.len(), said.len(), wrong.join("\n"));
    Ok(())
}
