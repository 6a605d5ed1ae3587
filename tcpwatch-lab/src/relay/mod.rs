//! Two namespaces joined by a relay in this process, which delays, drops, holds, duplicates and rate-limits
//! packets as asked, and records each one.
//!
//! Unlike a queueing discipline it needs no kernel module, can pick out "the third data segment", and knows
//! afterwards what happened to the nanosecond. Used by the tests against a real kernel and by demonstrations.
//!
//! ```no_run
//! use std::net::TcpListener;
//! use std::time::Duration;
//! use tcpwatch_lab::Path;
//!
//! # fn main() -> anyhow::Result<()> {
//! let path = Path::builder().delay(Duration::from_millis(20)).build()?; // 20 ms each way
//! path.forward().drop_nth_data(3);
//! let server = path.b().run(|| TcpListener::bind("10.77.0.2:8000"))?;
//! # Ok(())
//! # }
//! ```

mod builder;
mod engine;
mod impair;
mod lane;
mod packet;
mod record;
mod rtt;
mod rules;
mod tun;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

pub use builder::PathBuilder;
pub use impair::{Impairment, Rate};
pub use lane::Lane;
pub(crate) use packet::Tracker;
pub use packet::{Flags, Flow, SackBlocks, Segment};
pub use record::{DropReason, Fate, Origin, Packet, Record, Totals, median};
pub use rtt::{RttSample, median_rtt_ns, smoothed_rtt_ns};
pub use rules::{Action, Match, RuleHandle};
pub(crate) use tun::CLONE_DEVICE;

use crate::interface;
use crate::netns::Netns;
use engine::{Shared, lock};

/// The name of the device in both namespaces.
pub(crate) const DEVICE: &str = "lab0";

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From A to B: in most tests from the client to the server.
    Forward = 0,
    /// From B to A.
    Backward = 1,
}

impl Direction {
    /// Both, forward first.
    pub const BOTH: [Self; 2] = [Self::Forward, Self::Backward];

    /// The other one.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Forward => Self::Backward,
            Self::Backward => Self::Forward,
        }
    }
}

/// Two namespaces, A and B, joined by a relay. Dropping it ends the relay; the namespaces go with the last
/// sockets and processes in them.
#[derive(Debug)]
pub struct Path {
    ends: [Netns; 2],
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Path {
    /// The IPv4 addresses of A and B.
    pub const IPV4: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];

    /// The IPv6 addresses of A and B.
    pub const IPV6: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2)];

    /// Settings to begin from: no impairment, an MTU of 1500.
    pub fn builder() -> PathBuilder {
        PathBuilder::default()
    }

    /// End A: 10.77.0.1 and fd77::1.
    pub fn a(&self) -> &Netns {
        &self.ends[0]
    }

    /// End B: 10.77.0.2 and fd77::2.
    pub fn b(&self) -> &Netns {
        &self.ends[1]
    }

    /// The direction from A to B, to change while traffic runs.
    pub fn forward(&self) -> Lane<'_> {
        self.lane(Direction::Forward)
    }

    /// The direction from B to A, to change while traffic runs.
    pub fn backward(&self) -> Lane<'_> {
        self.lane(Direction::Backward)
    }

    /// One direction, to change while traffic runs.
    pub fn lane(&self, direction: Direction) -> Lane<'_> {
        Lane::new(&self.shared, direction)
    }

    /// A copy of the record so far. The relay waits meanwhile, so copy large records when traffic has ended.
    pub fn record(&self) -> Record {
        lock(&self.shared.record).clone()
    }

    /// What happened so far in each direction, forward first: [`Record::totals`].
    pub fn totals(&self) -> [Totals; 2] {
        lock(&self.shared.record).totals
    }

    /// Empties the record and returns what it held. Packets that are still under way stay pending there.
    pub fn take_record(&self) -> Record {
        std::mem::take(&mut *lock(&self.shared.record))
    }

    /// How many packets of both directions are waiting for their departure.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    /// Packets that the kernels of A and B dropped because the relay read too late: none, unless the machine is
    /// overloaded. They are in no record.
    ///
    /// # Errors
    /// When the device's counters cannot be read.
    pub fn device_drops(&self) -> Result<[u64; 2]> {
        let [a, b] = &self.ends;
        Ok([a.try_run(|| interface::transmit_drops(DEVICE))??, b.try_run(|| interface::transmit_drops(DEVICE))??])
    }

    /// Waits until `condition` holds of the record; it is asked again after each change. `what` names it for the
    /// error.
    ///
    /// # Errors
    /// When it does not hold within `timeout`, or the relay has ended.
    pub fn wait_record(&self, timeout: Duration, what: &str, mut condition: impl FnMut(&Record) -> bool) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.shared.waiters.fetch_add(1, Ordering::AcqRel);
        let mut record = lock(&self.shared.record);
        let outcome = loop {
            if condition(&record) {
                break Ok(());
            }
            if let Err(error) = self.health() {
                break Err(error);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let seen = record.packets.len();
                break Err(anyhow!("waited {timeout:?} for {what}, in vain; the record has {seen} packets"));
            };
            record = self.shared.changed.wait_timeout(record, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        self.shared.waiters.fetch_sub(1, Ordering::AcqRel);
        outcome
    }

    /// Hands a packet made by hand to the receiving end of a direction at once, past all rules and delays, and
    /// enters it in the record as [`Origin::Injected`].
    ///
    /// # Errors
    /// When the relay has ended.
    pub fn inject(&self, direction: Direction, packet: Vec<u8>) -> Result<()> {
        self.health()?;
        lock(&self.shared.injected).push((direction, packet));
        self.shared.has_injected.store(true, Ordering::Release);
        self.shared.wake();
        Ok(())
    }

    /// Whether the relay still runs.
    ///
    /// # Errors
    /// Why it ended: a rule's closure panicked, or a device failed.
    pub fn health(&self) -> Result<()> {
        match &*lock(&self.shared.failure) {
            Some(failure) => bail!("the relay has ended: {failure}"),
            None => Ok(()),
        }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for end in &self.ends {
            // A socket that was closed with unacknowledged data or FIN would keep its namespace for minutes of
            // retransmissions that no one relays: let it give up after the next. A namespace that outlives this
            // path in other hands hardly notices, so an error (no privileges any more) does not matter.
            let _ = end.sysctl("net.ipv4.tcp_orphan_retries", "1");
        }
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and kept in `failure`.
            let _ = thread.join();
        }
    }
}
