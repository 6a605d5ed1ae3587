//! Situations that people meet, made on a path of the lab: to be watched with `tcpwatch top` (`cargo xtask lab NAME`), and
//! for tests that know what is to be seen.
//!
//! A [`Scenario`] is data: a name, a line about what it shows, a [`Setup`] whose fields may be changed, and its traffic.
//! Its [`Stage`] is the path, made before anything runs on it; [`Stage::run`] makes the traffic and returns the [`Truth`].
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let mut scenario = tcpwatch_lab::scenario::find("loss")?;
//! scenario.setup.loss = [0.01, 0.0];
//! scenario.setup.duration = std::time::Duration::ZERO; // one round
//! let stage = scenario.stage()?;
//! // Whoever watches the namespaces stage.path.a() and stage.path.b() begins here.
//! println!("{}", stage.run()?);
//! # Ok(())
//! # }
//! ```

mod flows;
mod table;
mod trouble;
mod truth;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use table::{ALL, find};
pub use truth::Truth;

use crate::relay::{Impairment, Path, Rate};
use crate::traffic::{End, Family, Pair, Traffic};

/// A situation: what it shows, on what path, with what traffic.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What there is to be seen, in one line.
    pub shows: &'static str,
    /// Its parameters.
    pub setup: Setup,
    /// Makes its traffic, in rounds, for as long as [`Stage::going`] says.
    pub(crate) traffic: fn(&Stage, &mut Truth) -> Result<()>,
}

/// The parameters of a scenario. Which of them matter depends on it: a field that its table entry leaves at the default has
/// no effect on its traffic, while those of the path have theirs on any.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// For how long rounds of traffic begin; one that has begun is finished. Zero is one round.
    pub duration: Duration,
    /// How the ends speak.
    pub family: Family,
    /// The congestion control of both ends; `None` is the namespace's.
    pub congestion: Option<&'static str>,
    /// From either end to the other.
    pub one_way: Duration,
    /// Further delay of each packet, up to this, that keeps their order.
    pub jitter: Duration,
    /// The rate from client to server, with its queue.
    pub rate: Option<Rate>,
    /// The share of packets lost, from client to server and back.
    pub loss: [f64; 2],
    /// The share of segments from the client that are held back, and for how long.
    pub reordering: Option<(f64, Duration)>,
    /// Packets from the client that are larger vanish.
    pub vanish_above: Option<u32>,
    /// What all chance begins from.
    pub seed: u64,
    /// Bytes of one transfer.
    pub size: u64,
    /// The pause that the scenario is about: of the reader, of the sender, or until it gives up.
    pub pause: Duration,
    /// Parameters of the ends' namespaces.
    pub sysctls: &'static [(End, &'static str, &'static str)],
}

impl Setup {
    /// A path of 20 ms and a minute of traffic with cubic, nothing else.
    pub const DEFAULT: Self = Self {
        duration: Duration::from_secs(60),
        family: Family::V4,
        congestion: Some("cubic"),
        one_way: Duration::from_millis(10),
        jitter: Duration::ZERO,
        rate: None,
        loss: [0.0; 2],
        reordering: None,
        vanish_above: None,
        seed: 1,
        size: 0,
        pause: Duration::ZERO,
        sysctls: &[],
    };

    /// What the path does to packets, in a few words.
    pub fn path_in_words(&self) -> String {
        let mut words = vec![format!("round trip {:?}", self.one_way * 2)];
        if !self.jitter.is_zero() {
            words.push(format!("jitter up to {:?}", self.jitter));
        }
        if let Some(rate) = self.rate {
            words.push(format!("{} kbit/s from the client", rate.bits_per_second / 1000));
        }
        for (share, from) in self.loss.iter().zip(["client", "server"]) {
            if *share > 0.0 {
                words.push(format!("{} % of packets from the {from} lost", share * 100.0));
            }
        }
        if let Some((share, extra)) = self.reordering {
            words.push(format!("{} % of the client's segments {extra:?} late", share * 100.0));
        }
        if let Some(bytes) = self.vanish_above {
            words.push(format!("packets from the client above {bytes} bytes vanish"));
        }
        words.push(format!("congestion control {}", self.congestion.unwrap_or("as configured")));
        words.join(", ")
    }
}

impl Scenario {
    /// Makes the path; no traffic yet.
    ///
    /// # Errors
    /// Where the lab cannot run, and when a sysctl is refused.
    pub fn stage(&self) -> Result<Stage> {
        self.stage_until(Arc::new(AtomicBool::new(false)))
    }

    /// As [`Scenario::stage`], with traffic that ends early once `stop` is set: by a signal handler, say.
    ///
    /// # Errors
    /// As [`Scenario::stage`].
    pub fn stage_until(&self, stop: Arc<AtomicBool>) -> Result<Stage> {
        let setup = self.setup;
        let both = Impairment::delay(setup.one_way).jitter(setup.jitter, setup.seed);
        let path = Path::builder().forward(Impairment { rate: setup.rate, ..both }).backward(both).build()?;
        for (end, name, value) in setup.sysctls {
            let netns = if *end == End::Client { path.a() } else { path.b() };
            netns.sysctl(name, value).with_context(|| format!("scenario {}", self.name))?;
        }
        for (n, (share, lane)) in setup.loss.into_iter().zip([path.forward(), path.backward()]).enumerate() {
            if share > 0.0 {
                lane.drop_share(share, setup.seed + n as u64);
            }
        }
        if let Some((share, extra)) = setup.reordering {
            path.forward().reorder_share(share, extra, setup.seed);
        }
        if let Some(bytes) = setup.vanish_above {
            path.forward().mtu_black_hole(bytes);
        }
        Ok(Stage { scenario: *self, path, stop, until: Mutex::new(None) })
    }
}

/// The path of a scenario, for its traffic.
#[derive(Debug)]
pub struct Stage {
    /// What is to be shown.
    pub scenario: Scenario,
    /// The clients are in A, the servers in B.
    pub path: Path,
    stop: Arc<AtomicBool>,
    /// When the last round may begin.
    until: Mutex<Option<Instant>>,
}

impl Stage {
    /// Makes the traffic and returns what happened.
    ///
    /// # Errors
    /// When a step of the traffic fails that was not meant to.
    pub fn run(&self) -> Result<Truth> {
        let began = Instant::now();
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(began + self.scenario.setup.duration);
        let before = [self.path.a().counters()?, self.path.b().counters()?];
        let mut truth = Truth::default();
        let done = (self.scenario.traffic)(self, &mut truth);
        // What was interrupted fails in any way that sockets can; that is no news.
        if !self.stopped() {
            done.with_context(|| format!("scenario {}", self.scenario.name))?;
        }
        self.path.health()?;
        truth.took = began.elapsed();
        truth.relay = self.path.totals();
        let after = [self.path.a().counters()?, self.path.b().counters()?];
        truth.kernel = [after[0].delta(&before[0]), after[1].delta(&before[1])];
        Ok(truth)
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.scenario.setup
    }

    /// Connections of this scenario.
    pub(crate) fn traffic(&self) -> Traffic {
        let traffic = Traffic::over(&self.path, self.setup().family);
        match self.setup().congestion {
            Some(name) => traffic.congestion(name),
            None => traffic,
        }
    }

    /// Whether the user wants no more.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether another round may begin.
    pub(crate) fn going(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        !self.stopped() && until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits so long, or until the user wants no more: the deliberate pauses of a scenario, not a way to wait for an event.
    pub(crate) fn pause(&self, pause: Duration) {
        const STEP: Duration = Duration::from_millis(20);
        let end = Instant::now() + pause;
        while !self.stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(STEP));
        }
    }

    /// Sends so many bytes one way and notes how long it took.
    pub(crate) fn transfer(&self, pair: &mut Pair, from: End, bytes: u64, truth: &mut Truth) -> Result<()> {
        let began = Instant::now();
        let moved = pair.send_while(from, bytes, || !self.stopped())?;
        truth.moved(from, moved);
        truth.transfers.push(began.elapsed());
        Ok(())
    }
}
