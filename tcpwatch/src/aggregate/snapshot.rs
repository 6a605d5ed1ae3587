//! The one model that every output reads: a consistent picture of a moment, never changed after it was published.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tcpwatch_common::counters::{Loss, dist, group};
use tcpwatch_common::record::Kind;
use tcpwatch_common::state::{Direction, STATES};

use super::exemplars::Exemplars;
use super::resets::stacks::StackTotals;
use crate::explain::ServiceVerdicts;
use crate::storm::Report;

/// The value of the metric label `service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Service {
    /// A port: listening for inbound connections, remote for outbound ones.
    Port(u16),
    /// Every service without a place of its own.
    Other,
    /// No service: resets that neither a listener nor a connection explains.
    None,
}

impl Service {
    /// The value of the metric label.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Port(port) => port.to_string(),
            Self::Other => "other".to_owned(),
            Self::None => "none".to_owned(),
        }
    }
}

/// Totals of one group since the daemon attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupTotals {
    /// Which end opened the connections.
    pub(crate) direction: Direction,
    /// What they are for.
    pub(crate) service: Service,
    /// Counters, by the indices of `tcpwatch_common::counters::group`.
    pub(crate) words: [u64; group::WORDS],
    /// Distributions, by the indices of `tcpwatch_common::counters::dist`.
    pub(crate) dist: [u64; dist::WORDS],
}

/// RTT quantiles of one direction over the last 30 to 60 seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RttQuantiles {
    /// Which end opened the connections.
    pub(crate) direction: Direction,
    /// Raw samples they are made of.
    pub(crate) samples: u64,
    /// Median, seconds.
    pub(crate) p50_seconds: f64,
    /// 90th percentile, seconds.
    pub(crate) p90_seconds: f64,
    /// 99th percentile, seconds.
    pub(crate) p99_seconds: f64,
}

/// A listening socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListenerStats {
    /// Address and port, as users write them.
    pub(crate) address: String,
    /// Connections that wait to be accepted.
    pub(crate) queue: u32,
    /// The most that may wait.
    pub(crate) limit: u32,
    /// Segments dropped.
    pub(crate) drops: u32,
    /// Handshakes under way.
    pub(crate) half_open: u32,
}

/// What the kernel counts in one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespaceStats {
    /// Inode number.
    pub(crate) netns: u32,
    /// Sockets in TIME_WAIT, orphaned ones in FIN_WAIT2 included.
    pub(crate) time_wait: u64,
    /// Connections that did not fit an accept queue, since the namespace exists.
    pub(crate) listen_overflows: u64,
    /// The kernel's counters beside ours.
    pub(crate) compared: Compared,
    /// `net.ipv4.ip_local_port_range`: the first and the last.
    pub(crate) port_range: [u32; 2],
}

/// The kernel's own counters beside ours, since the same moment: a baseline taken after the last probe was attached.
/// Only pairs enter that were read while the kernel's counters stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compared {
    /// The kernel's `RetransSegs`.
    pub(crate) kernel_retransmitted_segments: u64,
    /// Segments that our programs counted as retransmitted.
    pub(crate) retransmitted_segments: u64,
    /// The kernel's `OutRsts`.
    pub(crate) kernel_resets_sent: u64,
    /// RSTs that our programs counted as sent.
    pub(crate) resets_sent: u64,
    /// The kernel's `TCPAbortFailed`: counted as a RST sent, and not sent for want of memory or a route.
    pub(crate) kernel_aborts_failed: u64,
    /// The kernel's `Ip6OutNoRoutes`: a RST among them is seen by our programs and not counted by the kernel.
    pub(crate) kernel_ipv6_no_routes: u64,
}

impl Compared {
    /// Every number, in an order that stays.
    pub(crate) const fn words(&mut self) -> [&mut u64; 6] {
        [
            &mut self.kernel_retransmitted_segments,
            &mut self.retransmitted_segments,
            &mut self.kernel_resets_sent,
            &mut self.resets_sent,
            &mut self.kernel_aborts_failed,
            &mut self.kernel_ipv6_no_routes,
        ]
    }

    /// Ours over the kernel's: retransmitted segments, and RSTs sent. `None` while the kernel has counted none.
    pub(crate) fn ratios(&self) -> [Option<f64>; 2] {
        let ratio = |ours: u64, kernel: u64| (kernel > 0).then(|| ours as f64 / kernel as f64);
        [
            ratio(self.retransmitted_segments, self.kernel_retransmitted_segments),
            ratio(self.resets_sent, self.kernel_resets_sent),
        ]
    }

    /// Both together.
    pub(crate) fn plus(mut self, mut other: Self) -> Self {
        for (word, more) in self.words().into_iter().zip(other.words()) {
            *word = word.saturating_add(*more);
        }
        self
    }
}

/// What the kernel says of one of our programs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProgramStats {
    /// Name of the program.
    pub(crate) name: String,
    /// Runs, counted by the kernel while BPF statistics are on; `None` while they are off.
    pub(crate) runs: Option<u64>,
    /// Mean time of a run in seconds, while statistics are on.
    pub(crate) mean_run_seconds: Option<f64>,
    /// Events that the kernel did not give to the program because it was running on that CPU.
    pub(crate) recursion_misses: u64,
}

/// How a probe ended up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ProbeState {
    /// It runs.
    Attached,
    /// This kernel does not have the hook; the text says what is missing.
    Unsupported(String),
    /// It should have worked and did not; the text says what was tried.
    Broken(String),
}

/// A probe of the table, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeStatus {
    /// Name of the probe in the table, which is also that of its program.
    pub(crate) probe: String,
    /// Kind of hook: `tp_btf`, `raw_tp`, `fentry`, `kprobe`.
    pub(crate) hook: Cow<'static, str>,
    /// Without it the daemon does not start.
    pub(crate) required: bool,
    /// What became of it.
    pub(crate) state: ProbeState,
    /// What users lose without it.
    pub(crate) loses: Cow<'static, str>,
}

/// The connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableStats {
    /// Connections held.
    pub(crate) entries: u64,
    /// The most it holds.
    pub(crate) capacity: u64,
    /// Connections dropped from it for want of room; their totals are in the groups all the same.
    pub(crate) evicted: u64,
}

/// What the governor holds back, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Governed {
    /// 0: nothing is held back; 1: the sample interval is longer than configured; 2: the histograms are thinned, too.
    pub(crate) level: u64,
    /// One RTT sample in so many enters the histograms; 1 when they are not thinned.
    pub(crate) one_in: u64,
    /// How long they have been thinned so far, ns.
    pub(crate) thinned_ns: u64,
    /// CPU time used in the last seconds, in millionths of one CPU.
    pub(crate) cpu_millionths: u64,
    /// How much of it may be used, likewise.
    pub(crate) cpu_budget_millionths: u64,
    /// Periodic records a second in the last seconds, in thousandths.
    pub(crate) records_thousandths: u64,
    /// How many of them there may be, likewise.
    pub(crate) records_budget_thousandths: u64,
}

impl Governed {
    /// Every number, in an order that stays.
    pub(crate) const fn words(&mut self) -> [&mut u64; 7] {
        [
            &mut self.level,
            &mut self.one_in,
            &mut self.thinned_ns,
            &mut self.cpu_millionths,
            &mut self.cpu_budget_millionths,
            &mut self.records_thousandths,
            &mut self.records_budget_thousandths,
        ]
    }
}

/// What tcpwatch itself takes and gives up.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SelfStats {
    /// Records decoded, by kind, in the order of [`Kind::ALL`].
    pub(crate) events: [u64; Kind::ALL.len()],
    /// What the kernel programs could not keep, in the order of [`Loss::ALL`].
    pub(crate) losses: [u64; Loss::ALL.len()],
    /// Records that could not be decoded, by reason (`DecodeError::name`).
    pub(crate) decode_errors: Vec<(&'static str, u64)>,
    /// Programs.
    pub(crate) programs: Vec<ProgramStats>,
    /// Size of the ring buffer, bytes.
    pub(crate) ring_bytes: u64,
    /// Bytes waiting in the ring buffer when the snapshot was taken.
    pub(crate) ring_used_bytes: u64,
    /// Memory of all maps by the kernel's own account (`memlock` of their fdinfo), bytes; socket storage is not in it.
    pub(crate) map_bytes: u64,
    /// The connection table.
    pub(crate) table: TableStats,
    /// Interval at which busy connections are read, seconds.
    pub(crate) sample_interval_seconds: f64,
    /// What is held back for the budgets; none in recordings that do not tell.
    pub(crate) governed: Option<Governed>,
}

/// Facts that do not change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// `uname -r`.
    pub(crate) kernel_release: String,
    /// Jiffies in a second.
    pub(crate) ticks_per_second: u32,
    /// `every-ack` or `tick`.
    pub(crate) sampling_mode: Cow<'static, str>,
    /// Names of the kernel's reset reasons by number, in lower case and without the enum's prefix; 0 is `none`.
    pub(crate) reasons: Vec<String>,
    /// The probes and what became of them.
    pub(crate) probes: Vec<ProbeStatus>,
    /// Why the kernel's functions have no names here, in a sentence; `None` when they have.
    #[serde(default)]
    pub(crate) no_symbols: Option<String>,
}

/// A picture of a moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    /// ns of CLOCK_MONOTONIC at which the counters were read.
    pub(crate) ktime_ns: u64,
    /// What does not change.
    pub(crate) facts: Arc<Facts>,
    /// Totals by group, ordered by direction and service; every group that a service was admitted to.
    pub(crate) groups: Vec<GroupTotals>,
    /// RTT quantiles of the last minute, for directions that had samples.
    pub(crate) rtt: Vec<RttQuantiles>,
    /// Listeners, ordered by address.
    pub(crate) listeners: Vec<ListenerStats>,
    /// Network namespaces, ordered by inode.
    pub(crate) namespaces: Vec<NamespaceStats>,
    /// The kernel's counters beside ours, of all namespaces that could be read, ended ones included.
    pub(crate) compared: Compared,
    /// Namespaces where our programs counted something and the kernel's counters cannot be read.
    pub(crate) unreadable_namespaces: u64,
    /// Connections by state, indexed by `TcpState`.
    pub(crate) states: [u64; STATES],
    /// RSTs sent, by the indices of `tcpwatch_common::counters::reason`.
    pub(crate) reasons: Vec<u64>,
    /// Kernel stacks of the RSTs sent.
    pub(crate) stacks: Vec<StackTotals>,
    /// Storms of resets.
    pub(crate) storms: Report,
    /// Connections that were counted lately.
    pub(crate) exemplars: Exemplars,
    /// What is said of services, over the last minute or two.
    pub(crate) verdicts: ServiceVerdicts,
    /// What tcpwatch takes and gives up.
    pub(crate) own: SelfStats,
}
