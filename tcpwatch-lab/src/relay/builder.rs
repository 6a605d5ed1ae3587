//! The settings of a path, and making it: namespaces, devices and the relay's thread.

use std::num::NonZeroU64;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};

use super::engine::{Engine, LaneState, Shared, lock};
use super::impair::{Impairment, Shaper};
use super::record::Record;
use super::rules::Rules;
use super::tun::{self, Tun, TunConfig};
use super::{DEVICE, Direction, Path};
use crate::netns::Netns;

/// How a path is to be; [`PathBuilder::build`] makes it.
#[derive(Clone, Debug)]
pub struct PathBuilder {
    impairments: [Impairment; 2],
    mtu: u32,
    queue_packets: u32,
    record_cap: usize,
    spin: Duration,
    cpu: Option<usize>,
    urgent: bool,
}

impl PathBuilder {
    /// The same one-way delay in both directions: the round trip takes twice as long. Default zero.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.impairments.iter_mut().for_each(|impairment| impairment.delay = delay);
        self
    }

    /// All that happens from A to B.
    #[must_use]
    pub fn forward(mut self, impairment: Impairment) -> Self {
        self.impairments[Direction::Forward as usize] = impairment;
        self
    }

    /// All that happens from B to A.
    #[must_use]
    pub fn backward(mut self, impairment: Impairment) -> Self {
        self.impairments[Direction::Backward as usize] = impairment;
        self
    }

    /// The largest IP packet in bytes, at least 1280 for IPv6. Default 1500.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// How many packets wait in each kernel for the relay to read them. Default 10 000. When the relay is late,
    /// the kernel drops what exceeds it: [`Path::device_drops`].
    #[must_use]
    pub fn device_queue(mut self, packets: u32) -> Self {
        self.queue_packets = packets;
        self
    }

    /// How many packets the record holds (about 200 bytes each). Default 200 000.
    #[must_use]
    pub fn record_cap(mut self, packets: usize) -> Self {
        self.record_cap = packets;
        self
    }

    /// For how long before a departure the relay stays awake, because a sleeper is woken late. Default 50 µs.
    #[must_use]
    pub fn spin(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Binds the relay's thread to one CPU, counted from 0.
    #[must_use]
    pub fn pin(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Whether the relay's thread goes before all ordinary ones (`SCHED_FIFO`), where that is permitted. Default
    /// yes: on a busy machine times are wrong without it. Switch it off to measure what load costs.
    #[must_use]
    pub fn urgent(mut self, urgent: bool) -> Self {
        self.urgent = urgent;
        self
    }

    /// Makes the namespaces, their devices and the relay.
    ///
    /// # Errors
    /// Without the privileges or the tun driver ([`crate::harness::obstacle`] tells beforehand), or when the
    /// thread cannot be bound to the CPU asked for.
    pub fn build(self) -> Result<Path> {
        let ends = [Netns::new()?, Netns::new()?];
        let tun = |n: usize| {
            let config = TunConfig {
                mtu: self.mtu,
                queue_packets: self.queue_packets,
                ipv4: Path::IPV4[n],
                ipv6: Path::IPV6[n],
            };
            // Without link-local addresses the kernel solicits no routers. One address of each family is enough.
            ends[n].sysctl("net.ipv6.conf.default.addr_gen_mode", "1")?;
            ends[n].try_run(|| Tun::create(DEVICE, config))?
        };
        let tuns = [tun(0)?, tun(1)?];
        let lane = |impairment| Mutex::new(LaneState { shaper: Shaper::new(impairment), rules: Rules::default() });
        let shared = Arc::new(Shared {
            lanes: self.impairments.map(lane),
            record: Mutex::new(Record::default()),
            changed: Condvar::new(),
            waiters: AtomicU64::new(0),
            record_cap: self.record_cap,
            injected: Mutex::new(Vec::new()),
            has_injected: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .context("cannot make the eventfd that wakes the relay")?,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            in_flight: AtomicU64::new(0),
        });
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("lab-relay".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || relay(&shared, tuns, &self, &ready)
            })
            .context("cannot start the relay's thread")?;
        // From here on the path ends its thread when it is dropped, also by the error of the next line.
        let path = Path { ends, shared, thread: Some(thread) };
        is_ready.recv().context("the relay's thread ended before it began")??;
        Ok(path)
    }
}

impl Default for PathBuilder {
    fn default() -> Self {
        Self {
            impairments: [Impairment::default(); 2],
            mtu: 1500,
            queue_packets: 10_000,
            record_cap: 200_000,
            spin: Duration::from_micros(50),
            cpu: None,
            urgent: true,
        }
    }
}

/// The body of the relay's thread: prepares it, says how that went, relays, and leaves behind why it ended.
fn relay(shared: &Shared, tuns: [Tun; 2], builder: &PathBuilder, ready: &SyncSender<Result<()>>) {
    let prepared = prepare(builder);
    let may_run = prepared.is_ok();
    // The receiver waits for exactly this one answer, which fits into the channel.
    let _ = ready.send(prepared);
    if !may_run {
        return;
    }
    let run = AssertUnwindSafe(|| Engine::new(shared, tuns, builder.spin).run());
    let failure = match panic::catch_unwind(run) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("its thread panicked (in the closure of a rule?)".to_owned()),
    };
    *lock(&shared.failure) = failure;
    shared.announce_end();
}

fn prepare(builder: &PathBuilder) -> Result<()> {
    if let Some(cpu) = builder.cpu {
        let mut cpus = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU {
            bail!("there is no CPU {cpu} to bind the relay to");
        }
        cpus.set(cpu);
        sched_setaffinity(None, &cpus)
            .with_context(|| format!("cannot bind the relay to CPU {cpu}: does the machine have it?"))?;
    }
    // Both are refinements: without them (no CAP_SYS_NICE) departures are a little later.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    if builder.urgent {
        let _ = tun::run_first();
    }
    Ok(())
}
