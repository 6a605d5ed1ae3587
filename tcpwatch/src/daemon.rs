//! START HERE: the daemon wires the stages together. Kernel → source → aggregate → snapshot → outputs.
//!
//! One task takes records from the ring buffer, feeds the aggregator and publishes a snapshot once a second; everything
//! else only reads snapshots.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::aggregate::Reading;
use crate::aggregate::services::Grant;
use crate::aggregate::snapshot::{Facts, ProbeState, Snapshot};
use crate::config::{Config, Sampling};
use crate::http::{self, HttpError};
use crate::instance::{Instance, InstanceError};
use crate::kernel::facts::{FactsError, KernelFacts};
use crate::kernel::load::{self, LoadError, Loaded};
use crate::kernel::maps::{Maps, MapsError};
use crate::kernel::stats;
use crate::metrics::MetricsError;
use crate::recording::{Beginning, Intake, NewFile, Recorder, RecordingError, Written};
use crate::source::adopt::{Walker, adopt};
use crate::source::listeners;
use crate::source::namespaces::Surroundings;
use crate::source::ringbuf::{Batch, RingSource};
use crate::{cli, sys};

/// How often a snapshot is published.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The kernel is not one that can be watched.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map failed while the daemon ran.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The address cannot be used.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The socket path cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The recording cannot be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A mistake in the catalogue.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A namespace of the filter cannot be read.
    #[error("`netns` names {}, which cannot be read: {source}; name a file like /proc/PID/ns/net", path.display())]
    Netns {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime, a signal or the ring buffer failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody takes the output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl DaemonError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Facts(_) | Self::Load(_) => cli::NOT_PERMITTED,
            Self::Netns { .. } => cli::USAGE,
            Self::Maps(_)
            | Self::Http(_)
            | Self::Instance(_)
            | Self::Recording(_)
            | Self::Metrics(_)
            | Self::System { .. }
            | Self::Output(_) => cli::FAILED,
        }
    }
}

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
        tick_mode: config.sampling == Sampling::Tick,
        netns,
        kernel_log: config.kernel_log,
        strict: config.strict,
    })
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: &Config) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System { what: "start the runtime", source })?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
    // What can fail for want of a free name fails before the kernel is touched.
    let _instance = Instance::claim(&config.socket)?;
    let listener = http::bind(config.listen).await?;
    let (facts, loaded) = attach(config)?;
    let mut daemon = Daemon::new(config, &facts, loaded, None)?;
    let (publish, snapshots) = watch::channel(None::<Arc<Snapshot>>);
    let (ask, mut asked) = tokio::sync::mpsc::channel(http::REFRESHES);
    daemon.publish(&publish)?;
    let address = listener.local_addr().map_err(system("read the listening address"))?;
    let server = tokio::spawn(http::serve(listener, config.clone(), snapshots, ask));
    drop(facts);
    sys::release_free_memory();
    daemon.announce();
    log::info!("metrics at http://{address}/metrics");
    notify_ready();

    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            more = daemon.next_batch() => more?,
            _ = tick.tick() => {
                daemon.every_tick()?;
                daemon.publish(&publish)?;
            }
            Some(refresh) = asked.recv() => {
                daemon.publish(&publish)?;
                refresh.done();
            }
        }
    }
    log::info!("stopping");
    // The server ends with the last snapshot; answers under way are finished first.
    drop(publish);
    if let Err(error) = server.await {
        log::warn!("the HTTP server failed: {error}");
    }
    Ok(())
}

/// Loads the programs.
pub(crate) fn attach(config: &Config) -> Result<(KernelFacts, Loaded), DaemonError> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let loaded = load::load(&facts, &options(config)?)?;
    Ok((facts, loaded))
}

/// Tells systemd, if it asked, that the probes are attached and the address answers.
fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        log::warn!("cannot tell systemd that the daemon is ready: {error}");
    }
}

/// Records on their way from the ring to the kernel's tables and back.
pub(crate) struct Inbox {
    /// Where everything goes in.
    pub(crate) intake: Intake,
    /// Slots to tell the kernel programs of.
    pub(crate) grants: Vec<Grant>,
}

impl Inbox {
    /// Takes one record.
    pub(crate) fn take(&mut self, record: &[u8]) {
        self.grants.extend(self.intake.take(record));
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
    surroundings: Surroundings,
    hz: u32,
    ring_used: u64,
}

impl Daemon {
    /// Begins to watch, and to record if there is a file to record to.
    pub(crate) fn new(
        config: &Config,
        kernel: &KernelFacts,
        loaded: Loaded,
        record_to: Option<NewFile>,
    ) -> Result<Self, DaemonError> {
        let Loaded { mut ebpf, mut maps, probes } = loaded;
        let facts = Facts {
            kernel_release: kernel.release.clone(),
            sampling_mode: if config.sampling == Sampling::Tick { "tick" } else { "every-ack" }.into(),
            reasons: kernel.reasons.clone(),
            probes,
        };
        let beginning = Beginning {
            facts,
            services: config.services as usize,
            service_ports: config.service_ports.clone(),
            table_capacity: config.max_connections as usize,
            ktime_ns: sys::monotonic_ns(),
        };
        let recorder = record_to.map(|file| Recorder::begin(file, &beginning)).transpose()?;
        let events = maps.events.take().ok_or(MapsError::Missing("EVENTS"))?;
        let source =
            RingSource::new(events).map_err(|source| DaemonError::System { what: "watch the ring buffer", source })?;
        let (intake, grants) = Intake::new(&beginning, recorder);
        let mut inbox = Inbox { intake, grants };
        for grant in inbox.grants.drain(..) {
            maps.set_service(grant.key, grant.slot)?;
        }
        adopt(&mut inbox, &mut maps, &mut ebpf, config)?;
        let log = if config.kernel_log { follow_kernel_log(&mut ebpf) } else { None };
        let governor = Governor::new(config.sample_interval, config.records_per_second);
        let mut daemon = Self {
            source,
            inbox,
            maps,
            ebpf,
            _log: log,
            facts: beginning.facts,
            governor,
            walker: Walker::new(),
            surroundings: Surroundings::new(config, options(config)?.netns),
            hz: kernel.hz,
            ring_used: 0,
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
    pub(crate) async fn next_batch(&mut self) -> Result<(), DaemonError> {
        let batch = self.source.next_batch(|record| self.inbox.take(record)).await;
        self.after(batch.map_err(|source| DaemonError::System { what: "read the ring buffer", source })?)
    }

    fn after(&mut self, batch: Batch) -> Result<(), DaemonError> {
        self.ring_used = self.ring_used.max(batch.bytes);
        self.apply_grants()
    }

    fn apply_grants(&mut self) -> Result<(), DaemonError> {
        for grant in self.inbox.grants.drain(..) {
            self.maps.set_service(grant.key, grant.slot)?;
        }
        Ok(())
    }

    fn apply_interval(&mut self) -> Result<(), DaemonError> {
        let jiffies = self.governor.interval.as_secs_f64() * f64::from(self.hz);
        Ok(self.maps.set_sample_interval(jiffies.ceil() as u64)?)
    }

    /// Keeps the budget of records; to be called with every [`TICK`].
    fn govern(&mut self) -> Result<(), DaemonError> {
        if self.governor.adjust(self.inbox.intake.aggregator().samples(), TICK) {
            self.apply_interval()?;
        }
        Ok(())
    }

    /// To be called every [`TICK`], before the counters are read.
    pub(crate) fn every_tick(&mut self) -> Result<(), DaemonError> {
        self.walker.walk(&mut self.inbox, &self.ebpf, self.governor.interval);
        self.surroundings.look();
        self.govern()?;
        self.apply_grants()
    }

    fn publish(&mut self, publish: &watch::Sender<Option<Arc<Snapshot>>>) -> Result<(), DaemonError> {
        publish.send_replace(Some(self.read()?));
        Ok(())
    }

    /// Takes what waits in the ring, reads the counters, and returns what they add up to.
    pub(crate) fn read(&mut self) -> Result<Arc<Snapshot>, DaemonError> {
        let batch = self.source.take_ready(|record| self.inbox.take(record));
        self.after(batch)?;
        let counters = self.maps.read(self.inbox.intake.aggregator().slots_used())?;
        let reading = Reading {
            ktime_ns: sys::monotonic_ns(),
            programs: stats::programs(&self.ebpf),
            ring_bytes: u64::from(self.maps.ring_bytes),
            ring_used_bytes: std::mem::take(&mut self.ring_used),
            map_bytes: self.maps.map_bytes,
            sample_interval_seconds: self.governor.interval.as_secs_f64(),
            namespaces: self.surroundings.stats.clone(),
        };
        let snapshot = self.inbox.intake.read(&counters, &reading);
        if let Some(recorder) = self.inbox.intake.recorder() {
            recorder.flush()?;
        }
        Ok(snapshot)
    }

    /// Ends the recording.
    pub(crate) fn finish(self) -> Result<Written, DaemonError> {
        Ok(self.inbox.intake.into_recorder().map_or(Ok(Written::default()), Recorder::finish)?)
    }
}

/// Prints what the kernel programs log, until the daemon ends.
fn follow_kernel_log(ebpf: &mut aya::Ebpf) -> Option<tokio::task::JoinHandle<()>> {
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(io::Error::other).and_then(sys::readable);
    match logger {
        Ok(mut logger) => Some(tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        })),
        Err(error) => {
            log::warn!("the log of the kernel programs cannot be read: {error}");
            None
        }
    }
}

/// Lengthens the interval of periodic records when there are more of them than the budget allows.
struct Governor {
    wanted: Duration,
    interval: Duration,
    budget: f64,
    seen: u64,
}

/// The interval never grows past this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

impl Governor {
    fn new(wanted: Duration, records_per_second: u32) -> Self {
        Self { wanted, interval: wanted, budget: f64::from(records_per_second), seen: 0 }
    }

    /// `samples` have come so far, and `elapsed` is the time since the last call; true when the interval changed.
    fn adjust(&mut self, samples: u64, elapsed: Duration) -> bool {
        let rate = (samples - self.seen) as f64 / elapsed.as_secs_f64();
        self.seen = samples;
        // As many connections report in each interval as are busy: that number is what the budget is shared by.
        let busy = rate * self.interval.as_secs_f64();
        let needed = Duration::from_secs_f64(busy / self.budget).clamp(self.wanted, LONGEST_INTERVAL.max(self.wanted));
        // A change within a tenth is noise.
        let ratio = needed.as_secs_f64() / self.interval.as_secs_f64();
        if (0.9..=1.1).contains(&ratio) {
            return false;
        }
        self.interval = needed;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_interval_grows_with_the_load_and_shrinks_again() {
        let mut governor = Governor::new(SECOND, 1000);
        assert!(!governor.adjust(500, SECOND), "within the budget");
        assert!(governor.adjust(500 + 4000, SECOND));
        assert_eq!(governor.interval, 4 * SECOND);
        assert!(!governor.adjust(4500 + 1000, SECOND), "4000 busy connections report every 4 s");
        assert!(governor.adjust(5500, SECOND), "nobody reports");
        assert_eq!(governor.interval, SECOND);
        assert!(governor.adjust(10_000_000, SECOND));
        assert_eq!(governor.interval, LONGEST_INTERVAL);
    }
}
