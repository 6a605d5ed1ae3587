//! START HERE: the daemon wires the stages together. Kernel → source → aggregate → snapshot → outputs.
//!
//! One task takes records from the ring buffer, feeds the aggregator and publishes a snapshot once a second; everything
//! else only reads snapshots.

mod error;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tcpwatch_common::counters::Loss;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{MissedTickBehavior, sleep};

use crate::aggregate::Reading;
use crate::aggregate::owners::{Named, Wanted};
use crate::aggregate::services::Grant;
use crate::aggregate::snapshot::{Facts, ProbeState, Snapshot};
use crate::config::{Config, ConfigError, Resolved, Sampling};
use crate::governor::{Budget, Governor, Used};
use crate::http::{self, Ask, Feed};
use crate::instance::Instance;
use crate::kernel::facts::KernelFacts;
use crate::kernel::kernel_log;
use crate::kernel::load::{self, Loaded};
use crate::kernel::maps::{Maps, MapsError};
use crate::kernel::stats;
use crate::recording::{Beginning, Intake, NewFile, Recorder, Written};
use crate::reload::{self, Settings, tell_systemd};
use crate::source::adopt::{Walker, adopt};
use crate::source::listeners;
use crate::source::names::NameService;
use crate::source::namespaces::Surroundings;
use crate::source::reads::Reads;
use crate::source::ringbuf::{Batch, RingSource};
use crate::source::roll_call::RollCall;
use crate::source::stacks::Stacks;
use crate::storm::mute::Mute;
use crate::storm::{self, Change, Rules};
use crate::tell::Teller;
use crate::{privileges, sys};

pub(crate) use error::DaemonError;

/// How often a snapshot is published.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Beginnings and ends of storms that a slow listener may lag behind.
const STORMS_KEPT: usize = 64;
/// Batches taken in one go before a question is answered: more than a second brings.
const CATCH_UP: usize = 64;

/// What the configuration decides about the kernel programs.
pub(crate) fn options(config: &Config) -> Result<load::Options, DaemonError> {
    let netns = config
        .netns
        .iter()
        .map(|path| listeners::netns_inode(path).map_err(|source| DaemonError::Netns { path: path.clone(), source }))
        .collect::<Result<_, _>>()?;
    Ok(load::Options {
        ring_bytes: config.ring_bytes,
        detail_per_second: config.detail_per_second,
        reset_stacks: config.reset_stacks,
        tick_mode: config.sampling == Sampling::Tick,
        reset_hook: config.reset_hook,
        netns,
        kernel_log: config.kernel_log,
        strict: config.strict,
    })
}

fn rules(config: &Config) -> Rules {
    Rules {
        min_rate: config.storm_min_rate,
        factor: config.storm_factor,
        hold_ns: config.storm_hold.as_nanos() as u64,
        mute: Mute {
            causes: config.storm_mute_causes.clone(),
            ports: config.storm_mute_ports.clone(),
            peers: config.storm_mute_peers.clone(),
        },
    }
}

/// Runs until SIGTERM or SIGINT; SIGHUP makes it look at its settings again, by `resolve`.
pub(crate) fn run(config: &Config, resolve: impl Fn() -> Result<Resolved, ConfigError>) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System { what: "start the runtime", source })?;
    runtime.block_on(serve(Settings::new(config.clone(), resolve)?))
}

async fn serve(mut settings: Settings<impl Fn() -> Result<Resolved, ConfigError>>) -> Result<(), DaemonError> {
    let config = &settings.config;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("wait for SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
    // What can fail for want of a free name fails before the kernel is touched.
    let _instance = Instance::claim(&config.socket)?;
    // Its thread has capabilities of its own, which are gone from this one later.
    let storms = storm::tell::Teller::new(config)?;
    let tcp = http::bind(config.listen).await?;
    let unix = http::SocketFile::bind(&config.socket)?;
    let address = tcp.local_addr().map_err(system("read the listening address"))?;
    let mut running = Running::start(config)?;
    privileges::missing().for_each(|sentence| log::warn!("{sentence}"));
    // Before anything is started that would inherit them.
    privileges::give_up();
    running.daemon.storm_teller = Some(storms);
    let server = tokio::spawn(http::serve(tcp, unix, settings.access(), running.feed(), config.connection_metrics));
    sys::release_free_memory();
    running.daemon.announce();
    log::info!("metrics at http://{address}/metrics, API at {}", config.socket.display());
    tell_systemd(&[NotifyState::Ready]);
    let end = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    settings.reload();
                    // A storm of signals costs one reload a second; those in between are one.
                    sleep(TICK).await;
                }
            }
        }
    };
    running.until(end).await?;
    log::info!("stopping");
    tell_systemd(&[NotifyState::Stopping]);
    // The server ends with the last snapshot; answers under way are finished first.
    drop(running);
    if let Err(error) = server.await {
        log::warn!("the HTTP server failed: {error}");
    }
    Ok(())
}

/// Loads the programs for this process alone, answers at the other end of `stream`, and ends when that is closed.
/// `ready` is told how loading went.
pub(crate) fn run_for(
    config: &Config,
    stream: std::os::unix::net::UnixStream,
    ready: impl FnOnce(Result<(), DaemonError>),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(source) => return ready(Err(DaemonError::System { what: "start the runtime", source })),
    };
    runtime.block_on(async {
        let begun = stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream))
            .map_err(system("talk to the own thread"))
            .and_then(|stream| Ok((stream, Running::start(config)?)));
        let (stream, mut running) = match begun {
            Ok(begun) => begun,
            Err(error) => return ready(Err(error)),
        };
        sys::release_free_memory();
        ready(Ok(()));
        let access = match reload::access(config) {
            Ok(access) => watch::channel(Arc::new(access)),
            Err(error) => return log::error!("{error}"),
        };
        let served = http::serve_one(stream, access.1, running.feed());
        if let Err(error) = running.until(served).await {
            log::error!("{error}");
        }
    });
}

fn system(what: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

/// A daemon with its programs attached, and the ends of what it gives to others.
struct Running {
    daemon: Daemon,
    publish: watch::Sender<Option<Arc<Snapshot>>>,
    ask: mpsc::Sender<Ask>,
    asked: mpsc::Receiver<Ask>,
}

impl Running {
    fn start(config: &Config) -> Result<Self, DaemonError> {
        let (facts, loaded) = attach(config)?;
        let mut daemon = Daemon::new(config, &facts, loaded, None)?;
        let publish = watch::channel(None::<Arc<Snapshot>>).0;
        let (ask, asked) = mpsc::channel(http::REFRESHES);
        daemon.publish(&publish)?;
        Ok(Self { daemon, publish, ask, asked })
    }

    /// What the outputs read, and where they ask.
    fn feed(&self) -> Feed {
        let Teller { sender, interests, .. } = &self.daemon.inbox.teller;
        Feed {
            snapshots: self.publish.subscribe(),
            ask: self.ask.clone(),
            events: sender.downgrade(),
            interests: Arc::clone(interests),
            storms: self.daemon.storms.downgrade(),
        }
    }

    /// Takes records, publishes and answers, until `end`.
    async fn until(&mut self, end: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let Self { daemon, publish, asked, .. } = self;
        let mut end = std::pin::pin!(end);
        // The ring is drained and the counters are read by this loop: when it hangs, nothing is right any more.
        let mut watchdog = sd_notify::watchdog_enabled().map(Watchdog::new);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                batch = daemon.next_batch() => {
                    // Where records come faster than they are taken, nobody else would ever get a word in.
                    if !batch?.drained {
                        tokio::task::yield_now().await;
                    }
                }
                _ = tick.tick() => {
                    daemon.every_tick()?;
                    daemon.publish(publish)?;
                    if let Some(watchdog) = &mut watchdog {
                        watchdog.tell();
                    }
                }
                Some(ask) = asked.recv() => daemon.answer(ask, publish)?,
            }
        }
    }
}

/// Loads the programs.
pub(crate) fn attach(config: &Config) -> Result<(KernelFacts, Loaded), DaemonError> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let loaded = load::load(&facts, &options(config)?)?;
    Ok((facts, loaded))
}

/// Tells systemd that the main loop goes round.
struct Watchdog {
    every: Duration,
    told: tokio::time::Instant,
}

impl Watchdog {
    /// `within` is the time after which systemd would end this process.
    fn new(within: Duration) -> Self {
        Self { every: within / 3, told: tokio::time::Instant::now() }
    }

    fn tell(&mut self) {
        if self.told.elapsed() >= self.every {
            self.told = tokio::time::Instant::now();
            tell_systemd(&[NotifyState::Watchdog]);
        }
    }
}

/// Records on their way from the ring to the kernel's tables and back.
pub(crate) struct Inbox {
    /// Where everything goes in.
    pub(crate) intake: Intake,
    /// Slots to tell the kernel programs of.
    pub(crate) grants: Vec<Grant>,
    /// What happens, for those who listen.
    teller: Teller,
}

impl Inbox {
    /// Tells the kernel programs of the slots that were given out.
    pub(crate) fn apply_grants(&mut self, maps: &mut Maps) -> Result<(), MapsError> {
        self.grants.drain(..).try_for_each(|grant| maps.set_service(grant.key, grant.slot))
    }

    /// Takes one record.
    pub(crate) fn take(&mut self, record: &[u8]) {
        self.grants.extend(self.intake.take(record));
        self.teller.tell(record, self.intake.aggregator());
    }
}

/// What was used of the budgets so far; `programs` is the time of the kernel programs.
fn used(inbox: &Inbox, programs: Duration) -> Used {
    Used {
        at: Duration::from_nanos(sys::monotonic_ns()),
        cpu: sys::cpu_time() + programs,
        records: inbox.intake.aggregator().samples(),
    }
}

/// The programs, the aggregator and what goes between them.
pub(crate) struct Daemon {
    source: RingSource,
    inbox: Inbox,
    maps: Maps,
    ebpf: aya::Ebpf,
    _log: Option<tokio::task::JoinHandle<()>>,
    facts: Facts,
    governor: Governor,
    walker: Walker,
    roll_call: RollCall,
    reads: Reads,
    /// Records lost, and runs withheld, at the last reading.
    lost: u64,
    /// Run time of the programs at the last reading, see [`stats::foreign_time`].
    programs_time: Duration,
    surroundings: Surroundings,
    names: NameService,
    hz: u32,
    stacks: Stacks,
    /// `Counters::reasons` at the last reading of stacks.
    resets_seen: Vec<u64>,
    ring_used: u64,
    /// Beginnings and ends of storms, for those who listen.
    storms: broadcast::Sender<Change>,
    /// Who else is told of them.
    storm_teller: Option<storm::tell::Teller>,
}

impl Daemon {
    /// Begins to watch, and to record if there is a file to record to.
    pub(crate) fn new(
        config: &Config,
        kernel: &KernelFacts,
        loaded: Loaded,
        record_to: Option<NewFile>,
    ) -> Result<Self, DaemonError> {
        let Loaded { mut ebpf, mut maps, probes, reads } = loaded;
        let facts = Facts {
            kernel_release: kernel.release.clone(),
            ticks_per_second: kernel.hz,
            sampling_mode: if config.sampling == Sampling::Tick { "tick" } else { "every-ack" }.into(),
            reasons: kernel.reasons.clone(),
            probes,
            no_symbols: kernel.symbols.hidden.clone(),
        };
        let beginning = Beginning {
            facts,
            services: config.services as usize,
            service_ports: config.service_ports.clone(),
            table_capacity: config.max_connections as usize,
            ktime_ns: sys::monotonic_ns(),
            storms: rules(config),
        };
        let recorder = record_to.map(|file| Recorder::begin(file, &beginning)).transpose()?;
        let events = maps.events.take().ok_or(MapsError::Missing("EVENTS"))?;
        let source =
            RingSource::new(events).map_err(|source| DaemonError::System { what: "watch the ring buffer", source })?;
        let (intake, grants) = Intake::new(&beginning, recorder);
        let mut inbox = Inbox { intake, grants, teller: Teller::new() };
        inbox.apply_grants(&mut maps)?;
        adopt(&mut inbox, &mut maps, &mut ebpf, config)?;
        let log = if config.kernel_log { kernel_log::follow(&mut ebpf) } else { None };
        let budget =
            Budget { cpu: f64::from(config.cpu_budget) / 1000.0, records_per_second: config.records_per_second.into() };
        let governor = Governor::new(config.sample_interval, budget, used(&inbox, Duration::ZERO));
        let mut daemon = Self {
            source,
            inbox,
            maps,
            ebpf,
            _log: log,
            facts: beginning.facts,
            governor,
            walker: Walker::new(),
            roll_call: RollCall::default(),
            reads,
            lost: 0,
            programs_time: Duration::ZERO,
            surroundings: Surroundings::new(config, options(config)?.netns),
            names: NameService::start(),
            hz: kernel.hz,
            stacks: Stacks::new(kernel.symbols.clone()),
            resets_seen: Vec::new(),
            ring_used: 0,
            storms: broadcast::channel(STORMS_KEPT).0,
            storm_teller: None,
        };
        daemon.apply_grants()?;
        daemon.apply_interval()?;
        Ok(daemon)
    }

    /// What is said at the beginning: what is watched, and what is not.
    pub(crate) fn announce(&self) {
        let attached = self.facts.probes.iter().filter(|p| p.state == ProbeState::Attached).count();
        let total = self.facts.probes.len();
        let release = &self.facts.kernel_release;
        log::info!("watching TCP on kernel {release}: {attached} of {total} probes attached");
        for probe in &self.facts.probes {
            if let ProbeState::Unsupported(why) | ProbeState::Broken(why) = &probe.state {
                log::warn!("probe {} ({}): {why}; without it: no {}", probe.probe, probe.hook, probe.loses);
            }
        }
    }

    /// Waits for records and takes a batch of them.
    pub(crate) async fn next_batch(&mut self) -> Result<Batch, DaemonError> {
        let sleeps = |sleeps| self.maps.set_sleeps(sleeps).map_err(io::Error::other);
        let batch = self.source.next_batch(|record| self.inbox.take(record), sleeps).await;
        let batch = batch.map_err(|source| DaemonError::System { what: "read the ring buffer", source })?;
        self.after(batch)?;
        Ok(batch)
    }

    /// Takes what waits in the ring.
    fn catch_up(&mut self) -> Result<(), DaemonError> {
        for _ in 0..CATCH_UP {
            let batch = self.source.take_ready(|record| self.inbox.take(record));
            self.after(batch)?;
            if batch.drained {
                break;
            }
        }
        Ok(())
    }

    fn after(&mut self, batch: Batch) -> Result<(), DaemonError> {
        self.ring_used = self.ring_used.max(batch.bytes);
        self.reads.watch(&mut self.ebpf, self.inbox.intake.aggregator().accepted());
        self.apply_grants()
    }

    fn apply_grants(&mut self) -> Result<(), DaemonError> {
        Ok(self.inbox.apply_grants(&mut self.maps)?)
    }

    fn apply_interval(&mut self) -> Result<(), DaemonError> {
        let jiffies = self.governor.interval().as_secs_f64() * f64::from(self.hz);
        Ok(self.maps.set_sample_interval(jiffies.ceil() as u64)?)
    }

    /// Keeps the budgets; to be called with every [`TICK`].
    fn govern(&mut self) -> Result<(), DaemonError> {
        let level = self.governor.level();
        if self.governor.adjust(used(&self.inbox, self.programs_time)) {
            self.maps.set_thinning(self.governor.thinning_shift())?;
            self.apply_interval()?;
            let interval = self.governor.interval();
            self.walker.spread(&mut self.maps, &self.ebpf, interval);
            if self.governor.level() != level {
                log::info!("{}", self.governor);
            }
        }
        self.inbox.intake.governed(self.governor.state());
        Ok(())
    }

    /// Takes the names that were found, and asks for those that are missing.
    fn name(&mut self) {
        let intake = &mut self.inbox.intake;
        self.names.take(|what, number, name| intake.named(what, number, name));
        self.names.ask(intake.wanted());
    }

    /// To be called every [`TICK`], before the counters are read.
    pub(crate) fn every_tick(&mut self) -> Result<(), DaemonError> {
        self.walker.walk(&mut self.inbox, &mut self.maps, &mut self.ebpf, self.governor.interval());
        self.reads.rest(&mut self.ebpf);
        self.roll_call.call(&mut self.inbox, &mut self.maps, &self.ebpf, self.lost);
        let owners = self.inbox.intake.aggregator().owners_of_orphans();
        let ended = |pid: u32| Wanted { what: Named::Ended, number: pid.into(), pid };
        self.names.ask(owners.into_iter().map(ended).collect());
        self.name();
        self.surroundings.look(&mut self.maps.namespaces);
        self.inbox.intake.settings(&self.surroundings.limits());
        self.govern()?;
        self.apply_grants()
    }

    /// Gives who asks a moment of their own.
    fn answer(&mut self, ask: Ask, publish: &watch::Sender<Option<Arc<Snapshot>>>) -> Result<(), DaemonError> {
        match ask {
            Ask::Snapshot(refresh) => {
                self.publish(publish)?;
                refresh.done();
            }
            Ask::Resets(to) => {
                let snapshot = self.read()?;
                publish.send_replace(Some(Arc::clone(&snapshot)));
                let _nobody_waits_any_more = to.send((snapshot, self.inbox.intake.aggregator().resets()));
            }
            Ask::Connections(to) => {
                self.catch_up()?;
                self.name();
                let _nobody_waits_any_more = to.send(self.inbox.intake.aggregator().listing(sys::monotonic_ns()));
            }
            Ask::Explain(to) => {
                self.catch_up()?;
                self.name();
                let namespaces = self.surroundings.stats();
                let picture = self.inbox.intake.aggregator().picture(sys::monotonic_ns(), namespaces);
                let _nobody_waits_any_more = to.send(picture);
            }
            Ask::Listeners(to) => {
                self.name();
                let _nobody_waits_any_more = to.send(self.inbox.intake.aggregator().listeners());
            }
        }
        Ok(())
    }

    fn publish(&mut self, publish: &watch::Sender<Option<Arc<Snapshot>>>) -> Result<(), DaemonError> {
        publish.send_replace(Some(self.read()?));
        Ok(())
    }

    /// Takes what waits in the ring, reads the counters, and returns what they add up to.
    pub(crate) fn read(&mut self) -> Result<Arc<Snapshot>, DaemonError> {
        self.catch_up()?;
        let mut counters = self.maps.read(self.inbox.intake.aggregator().slots_used())?;
        self.read_stacks(&counters.reasons)?;
        counters.stacks = self.stacks.counts().to_vec();
        let reading = Reading {
            ktime_ns: sys::monotonic_ns(),
            programs: stats::programs(&self.ebpf),
            ring_bytes: u64::from(self.maps.ring_bytes),
            ring_used_bytes: std::mem::take(&mut self.ring_used),
            map_bytes: self.maps.map_bytes,
            sample_interval_seconds: self.governor.interval().as_secs_f64(),
            namespaces: self.surroundings.stats(),
            compared: self.surroundings.compared(),
            unreadable_namespaces: self.surroundings.unreadable,
        };
        self.programs_time = stats::foreign_time(&reading.programs);
        let withheld = reading.programs.iter().map(|program| program.recursion_misses);
        // What is throttled is never the end of a connection.
        let lost = Loss::ALL.iter().zip(&counters.losses).filter(|(loss, _)| loss.place() != "throttled");
        self.lost = lost.map(|(_, count)| *count).chain(withheld).sum();
        let snapshot = self.inbox.intake.read(&counters, &reading);
        self.tell_storms(&snapshot.storms.changes);
        if let Some(recorder) = self.inbox.intake.recorder() {
            recorder.flush()?;
        }
        Ok(snapshot)
    }

    /// Reads the stacks of resets, when any was sent since the last time: there are hundreds at most, each a system call.
    fn read_stacks(&mut self, reasons: &[u64]) -> Result<(), DaemonError> {
        if reasons == self.resets_seen {
            return Ok(());
        }
        for stack in self.stacks.update(self.maps.read_stacks()?) {
            self.inbox.intake.stack(&stack);
        }
        self.resets_seen = reasons.to_vec();
        Ok(())
    }

    fn tell_storms(&mut self, changes: &[Change]) {
        for change in changes {
            let _nobody_listens = self.storms.send(change.clone());
            if let Some(teller) = &mut self.storm_teller {
                teller.tell(change, sys::monotonic_ns(), sys::unix_ns());
            }
        }
    }

    /// Ends the recording.
    pub(crate) fn finish(self) -> Result<Written, DaemonError> {
        Ok(self.inbox.intake.into_recorder().map_or(Ok(Written::default()), Recorder::finish)?)
    }
}
