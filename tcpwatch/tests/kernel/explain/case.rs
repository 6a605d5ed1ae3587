//! A situation with what is to be said of it, and how it is held against what was said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tcpwatch_lab::scenario::{self, Setup, Stage};
use tcpwatch_lab::{End, Path};

use crate::daemon::Daemon;

/// What traffic does on a path.
type Play = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

enum Scene {
    /// A scenario of the lab.
    Stage(Box<Stage>),
    /// Traffic of the test's own.
    Own(Path, Play),
}

/// A situation.
pub(super) struct Case {
    scene: Scene,
    /// Verdicts on connections, by the end that they are of: each is to be given, and nothing else.
    client: &'static [&'static str],
    server: &'static [&'static str],
    /// May be said besides, as it is true.
    also: &'static [&'static str],
    /// Of the service, when its connections are over; then it has a daemon of its own.
    pub(super) service: Option<&'static str>,
    /// Numbers that the evidence of the first verdict must have.
    evidence: Vec<(&'static str, u64)>,
    /// Asks for a window of this length as well.
    window: Option<&'static str>,
}

/// What was said last of each connection: cookie, then whether it is of the client's end and the verdicts by id.
type Told = BTreeMap<u64, (End, BTreeMap<String, Value>)>;

impl Case {
    /// A scenario of the lab, with parameters of the test's own.
    pub(super) fn staged(name: &str, change: impl FnOnce(&mut Setup)) -> Result<Self> {
        let mut scenario = scenario::find(name)?;
        change(&mut scenario.setup);
        Ok(Self::of(Scene::Stage(Box::new(scenario.stage()?))))
    }

    /// Traffic of the test's own.
    pub(super) fn own(path: Path, play: impl Fn(&Path) -> Result<()> + Send + Sync + 'static) -> Self {
        Self::of(Scene::Own(path, Box::new(play)))
    }

    fn of(scene: Scene) -> Self {
        Self { scene, client: &[], server: &[], also: &[], service: None, evidence: Vec::new(), window: None }
    }

    pub(super) fn client(self, client: &'static [&'static str]) -> Self {
        Self { client, ..self }
    }

    pub(super) fn server(self, server: &'static [&'static str]) -> Self {
        Self { server, ..self }
    }

    pub(super) fn also(self, also: &'static [&'static str]) -> Self {
        Self { also, ..self }
    }

    pub(super) fn service(self, id: &'static str) -> Self {
        Self { service: Some(id), ..self }
    }

    pub(super) fn evidence(self, evidence: &[(&'static str, u64)]) -> Self {
        Self { evidence: evidence.to_vec(), ..self }
    }

    pub(super) fn window(self, window: &'static str) -> Self {
        Self { window: Some(window), ..self }
    }

    /// Where it plays.
    pub(super) fn path(&self) -> &Path {
        match &self.scene {
            Scene::Stage(stage) => &stage.path,
            Scene::Own(path, _) => path,
        }
    }

    pub(super) fn run(&self) -> Result<()> {
        match &self.scene {
            Scene::Stage(stage) => stage.run().map(drop),
            Scene::Own(path, play) => play(path),
        }
    }

    /// Plays it, and holds what was said against what is expected.
    pub(super) fn check(&self, daemon: &Daemon) -> Result<()> {
        let metronome = Metronome::default();
        let outcome = self.played(daemon, &metronome);
        let late = metronome.latest();
        // What a machine does that stands still is true of it, and no fact of the path.
        outcome.with_context(|| format!("threads were woken up to {late:?} late"))
    }

    fn played(&self, daemon: &Daemon, metronome: &Metronome) -> Result<()> {
        let (mut told, over) = (Told::new(), AtomicBool::new(false));
        let goes_on = || !over.load(Ordering::Relaxed);
        let windowed = thread::scope(|scope| {
            let beats = scope.spawn(|| metronome.run());
            let traffic = scope.spawn(|| {
                let done = self.run();
                over.store(true, Ordering::Relaxed);
                done
            });
            let windows = scope.spawn(|| self.last_window(daemon, &goes_on));
            let mut asked = Ok(());
            while !traffic.is_finished() {
                asked = asked.and_then(|()| self.ask(daemon, "").map(|new| told.extend(new)));
                thread::sleep(Duration::from_millis(100));
            }
            let done = traffic.join().map_err(|_| anyhow!("the traffic panicked"))?;
            let windowed = windows.join().map_err(|_| anyhow!("what asks for windows panicked"))?;
            metronome.stop();
            beats.join().map_err(|_| anyhow!("the metronome panicked"))?;
            done.and(asked).and(windowed)
        })?;
        self.hold(&told)?;
        if self.window.is_some() {
            let windowed = windowed.context("nothing was told of a window")?;
            self.hold(&windowed).context("over a window")?;
        }
        self.service.map_or(Ok(()), |id| self.hold_service(daemon, id))
    }

    /// What was said of the last window in which there was something to be said: between two connections there is nothing.
    fn last_window(&self, daemon: &Daemon, goes_on: &dyn Fn() -> bool) -> Result<Option<Told>> {
        let mut last = None;
        let Some(window) = self.window else { return Ok(None) };
        while goes_on() {
            let told = self.ask(daemon, &format!("&for={window}"))?;
            let enough = told.values().any(|(_, verdicts)| !verdicts.contains_key("not_enough_data"));
            if goes_on() && enough {
                last = Some(told);
            }
        }
        Ok(last)
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
        for (name, number) in &self.evidence {
            let verdict = verdict.with_context(|| format!("no {first}"))?;
            ensure!(verdict["evidence"][*name] == *number, "{name} is to be {number}: {verdict:#}");
        }
        Ok(())
    }

    /// Holds what a replay said of all that it knows.
    pub(super) fn hold_replayed(&self, lines: &[Value]) -> Result<()> {
        let connections = lines.iter().filter(|line| line["subject"]["kind"] == "connection");
        let connections = connections.map(told).collect::<Result<Told>>()?;
        match self.service {
            Some(id) => self.hold_lines(lines, id),
            None => self.hold(&connections),
        }
    }

    /// Of connections that are over before they could be judged one by one the service has the verdict, and no other.
    fn hold_service(&self, daemon: &Daemon, id: &str) -> Result<()> {
        daemon.wait("the closes", |m| m.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]) == 0)?;
        self.hold_lines(&daemon.ask("/api/v1/explain?all=true")?, id)
    }

    fn hold_lines(&self, lines: &[Value], id: &str) -> Result<()> {
        let services = lines.iter().filter(|line| line["subject"]["kind"] == "service");
        let said: BTreeSet<String> = services.flat_map(|line| verdicts(line).into_keys()).collect();
        let wrong = said.iter().any(|said| said != id && !self.also.contains(&said.as_str()));
        ensure!(said.contains(id) && !wrong, "of the service: {said:?} instead of {id}: {lines:#?}");
        Ok(())
    }
}

/// How late the machine wakes a thread: what it was short of, when a rule finds an application slow that is not.
#[derive(Default)]
struct Metronome {
    stop: AtomicBool,
    latest_us: std::sync::atomic::AtomicU64,
}

impl Metronome {
    fn run(&self) {
        const BEAT: Duration = Duration::from_millis(5);
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            thread::sleep(BEAT);
            let late = began.elapsed().saturating_sub(BEAT);
            self.latest_us.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
        }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn latest(&self) -> Duration {
        Duration::from_micros(self.latest_us.load(Ordering::Relaxed))
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
pub(super) fn is_silent(id: &str) -> bool {
    matches!(id, "healthy" | "not_enough_data")
}

/// The verdicts of a line, by id.
pub(super) fn verdicts(line: &Value) -> BTreeMap<String, Value> {
    let verdicts = line["verdicts"].as_array().into_iter().flatten();
    verdicts.map(|verdict| (verdict["id"].as_str().unwrap_or_default().to_owned(), verdict.clone())).collect()
}

/// One entry of [`Told`].
type One = (u64, (End, BTreeMap<String, Value>));

fn told(line: &Value) -> Result<One> {
    let subject = &line["subject"];
    ensure!(subject["kind"] == "connection", "a filter selects connections, and not {subject}");
    let local = subject["local"].as_str().context("no local end")?;
    let client = [Path::IPV4[0].to_string() + ":", format!("[{}]:", Path::IPV6[0])];
    let client = client.iter().any(|address| local.starts_with(address));
    let end = if client { End::Client } else { End::Server };
    Ok((subject["cookie"].as_u64().context("no cookie")?, (end, verdicts(line))))
}
