//! How the daemon is, and the totals of the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tcpwatch_common::close::CloseCause;
use tcpwatch_common::counters::{Loss, group};
use tcpwatch_common::record::Kind;
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::{STATES, TcpState};

use super::proof::Proof;
use super::storm::{Brief, Storm};
use crate::aggregate::snapshot::{Governed, GroupTotals, ProbeState, ProbeStatus, Snapshot};
use crate::metrics::process::Process;

/// `/api/v1/status`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Status {
    /// Of tcpwatch.
    pub(crate) version: String,
    /// `uname -r`.
    pub(crate) kernel: String,
    /// When the counters were read, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// `every-ack` or `tick`.
    pub(crate) sampling_mode: String,
    /// Interval at which busy connections are read.
    pub(crate) sample_interval_ms: u64,
    /// What is held back to keep the budgets; none in recordings that do not tell.
    #[serde(default)]
    pub(crate) governor: Option<Governor>,
    /// Programs and what became of them.
    pub(crate) probes: Vec<Probe>,
    /// What could not be kept, by place; places without a loss are left out.
    pub(crate) losses: Vec<Lost>,
    /// The connection table.
    pub(crate) table: Table,
    /// The ring buffer.
    pub(crate) ring: Ring,
    /// Records taken, by kind.
    pub(crate) records: BTreeMap<String, u64>,
    /// Connections by state, as the kernel programs count them.
    pub(crate) states: BTreeMap<String, u64>,
    /// Of the whole host since the daemon started.
    pub(crate) totals: Totals,
    /// Storms of resets that are under way.
    pub(crate) storms: Vec<Brief>,
    /// Our counters beside the kernel's.
    pub(crate) compared: Proof,
    /// What tcpwatch takes.
    pub(crate) own: Own,
}

/// What is held back to keep the budgets of CPU time and records.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Governor {
    /// 0: nothing; 1: the sample interval is longer than configured; 2: the histograms are thinned, too.
    pub(crate) level: u64,
    /// RTT samples that enter the histograms, over those there are: 1 when they are not thinned.
    pub(crate) histogram_ratio: f64,
    /// How long the histograms have been thinned so far.
    pub(crate) thinned_seconds: f64,
    /// CPU time used in the last seconds, in percent of one CPU: the daemon's, and that of its programs while the kernel
    /// measures them.
    pub(crate) cpu_percent: f64,
    /// What may be used of it.
    pub(crate) cpu_budget_percent: f64,
    /// Periodic records a second, in the last seconds.
    pub(crate) records_per_second: f64,
    /// How many there may be.
    pub(crate) records_per_second_budget: f64,
}

/// A program of the table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[expect(clippy::struct_field_names, reason = "the key that doctor --json has")]
pub(crate) struct Probe {
    /// Its name.
    pub(crate) probe: String,
    /// Kind of hook.
    pub(crate) hook: String,
    /// The daemon does not start without it.
    pub(crate) required: bool,
    /// `attached`, `unsupported` or `broken`.
    pub(crate) state: String,
    /// Why it is not attached.
    pub(crate) why: String,
    /// What is not seen without it.
    pub(crate) loses: String,
}

/// Something that could not be kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Lost {
    /// Where, as in `tcpwatch_events_lost_total`.
    #[serde(rename = "where")]
    pub(crate) place: String,
    /// By which program; empty for the daemon.
    pub(crate) program: String,
    /// How often.
    pub(crate) count: u64,
}

/// The connection table.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Table {
    /// Held.
    pub(crate) connections: u64,
    /// At most.
    pub(crate) capacity: u64,
    /// Dropped for want of room.
    pub(crate) evicted: u64,
}

/// The ring buffer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Ring {
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Most found waiting in it lately.
    pub(crate) used_bytes: u64,
}

/// Counters of the whole host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Totals {
    /// Connections that reached ESTABLISHED.
    pub(crate) opened: u64,
    /// Connections older than the daemon.
    pub(crate) adopted: u64,
    /// Connections closed, by cause.
    pub(crate) closed: BTreeMap<String, u64>,
    /// Payload sent.
    pub(crate) sent_bytes: u64,
    /// Payload received.
    pub(crate) received_bytes: u64,
    /// Segments with payload sent.
    pub(crate) sent_segments: u64,
    /// Segments sent again, by cause.
    pub(crate) retransmitted_segments: BTreeMap<String, u64>,
    /// RSTs sent, by cause.
    pub(crate) resets_sent: BTreeMap<String, u64>,
    /// RSTs that ended a connection.
    pub(crate) resets_received: u64,
}

/// What tcpwatch takes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Own {
    /// User and system time of the process.
    pub(crate) cpu_seconds: Option<f64>,
    /// Its resident memory.
    pub(crate) resident_bytes: Option<u64>,
    /// Kernel memory of the maps.
    pub(crate) map_bytes: u64,
    /// The kernel programs.
    pub(crate) programs: Vec<Program>,
}

/// A kernel program.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Program {
    /// Its name.
    pub(crate) name: String,
    /// Runs, while the kernel counts them.
    pub(crate) runs: Option<u64>,
    /// Mean time of one, while the kernel measures it.
    pub(crate) mean_run_ns: Option<f64>,
}

impl Status {
    /// What a snapshot says; `process` is the daemon's, and `unix_ns` the wall clock when the counters were read.
    pub(crate) fn new(snapshot: &Snapshot, process: Process, unix_ns: u64) -> Self {
        let own = &snapshot.own;
        let named = |name: &str, count: u64| (name.to_owned(), count);
        let losses = losses(snapshot);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: snapshot.facts.kernel_release.clone(),
            ktime_ns: snapshot.ktime_ns,
            sampling_mode: snapshot.facts.sampling_mode.to_string(),
            sample_interval_ms: (own.sample_interval_seconds * 1e3).round() as u64,
            governor: own.governed.map(Governor::new),
            probes: snapshot.facts.probes.iter().map(Probe::new).collect(),
            compared: Proof::new(snapshot, &losses),
            losses,
            table: Table { connections: own.table.entries, capacity: own.table.capacity, evicted: own.table.evicted },
            ring: Ring { size_bytes: own.ring_bytes, used_bytes: own.ring_used_bytes },
            records: Kind::ALL.iter().zip(own.events).map(|(kind, count)| named(kind.name(), count)).collect(),
            states: (0..STATES)
                .filter_map(|number| TcpState::from_u8(number as u8))
                .zip(snapshot.states.iter().skip(1))
                .map(|(state, count)| named(state.name(), *count))
                .filter(|(_, count)| *count > 0)
                .collect(),
            totals: Totals::of(&snapshot.groups),
            storms: snapshot
                .storms
                .active
                .iter()
                .map(|storm| Storm::new(storm, snapshot.ktime_ns, unix_ns).into())
                .collect(),
            own: Own {
                cpu_seconds: process.cpu_seconds,
                resident_bytes: process.resident_bytes,
                map_bytes: own.map_bytes,
                programs: own
                    .programs
                    .iter()
                    .map(|program| Program {
                        name: program.name.clone(),
                        runs: program.runs,
                        mean_run_ns: program.mean_run_seconds.map(|seconds| seconds * 1e9),
                    })
                    .collect(),
            },
        }
    }

    /// How many probes are attached, of how many.
    pub(crate) fn attached(&self) -> (usize, usize) {
        (self.probes.iter().filter(|probe| probe.state == "attached").count(), self.probes.len())
    }

    /// Everything that could not be kept.
    pub(crate) fn lost(&self) -> u64 {
        self.losses.iter().map(|lost| lost.count).sum()
    }
}

impl Governor {
    fn new(governed: Governed) -> Self {
        Self {
            level: governed.level,
            histogram_ratio: 1.0 / governed.one_in.max(1) as f64,
            thinned_seconds: governed.thinned_ns as f64 / 1e9,
            cpu_percent: governed.cpu_millionths as f64 / 1e4,
            cpu_budget_percent: governed.cpu_budget_millionths as f64 / 1e4,
            records_per_second: governed.records_thousandths as f64 / 1e3,
            records_per_second_budget: governed.records_budget_thousandths as f64 / 1e3,
        }
    }
}

impl Probe {
    fn new(status: &ProbeStatus) -> Self {
        let (state, why) = match &status.state {
            ProbeState::Attached => ("attached", ""),
            ProbeState::Unsupported(why) => ("unsupported", why.as_str()),
            ProbeState::Broken(why) => ("broken", why.as_str()),
        };
        Self {
            probe: status.probe.clone(),
            hook: status.hook.to_string(),
            required: status.required,
            state: state.to_owned(),
            why: why.to_owned(),
            loses: status.loses.to_string(),
        }
    }
}

/// What could not be kept, by place.
pub(crate) fn losses(snapshot: &Snapshot) -> Vec<Lost> {
    let own = &snapshot.own;
    let lost = |place: &str, program: &str, count| Lost { place: place.into(), program: program.into(), count };
    let kernel = Loss::ALL.iter().zip(own.losses).map(|(loss, count)| lost(loss.place(), loss.program(), count));
    let decode = own.decode_errors.iter().map(|(_, count)| count).sum();
    let withheld = own.programs.iter().map(|program| lost("recursion", &program.name, program.recursion_misses));
    kernel
        .chain([lost("decode", "", decode), lost("table", "", own.table.evicted)])
        .chain(withheld)
        .filter(|lost| lost.count > 0)
        .collect()
}

impl Totals {
    /// Of these groups together.
    pub(crate) fn of<'a>(groups: impl IntoIterator<Item = &'a GroupTotals> + Copy) -> Self {
        let total = |word: usize| {
            let words = groups.into_iter().filter_map(|group| group.words.get(word));
            words.fold(0_u64, |sum, word| sum.wrapping_add(*word))
        };
        let sent = |cause| ResetOrigin::ALL.iter().map(|origin| total(group::resets(*origin, cause))).sum();
        Self {
            opened: total(group::OPENED),
            adopted: total(group::ADOPTED),
            closed: CloseCause::ALL.map(|cause| (cause.name().to_owned(), total(group::closed(cause)))).into(),
            sent_bytes: total(group::SENT_BYTES),
            received_bytes: total(group::RECEIVED_BYTES),
            sent_segments: total(group::SENT_SEGMENTS),
            retransmitted_segments: RetransmitCause::ALL
                .map(|cause| (cause.name().to_owned(), total(group::retransmits(cause))))
                .into(),
            resets_sent: ResetCause::ALL.map(|cause| (cause.name().to_owned(), sent(cause))).into(),
            resets_received: (0..STATES).map(|state| total(group::received(state as u8))).sum(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics::sample;

    const UNIX_NS: u64 = 1_700_000_000_000_000_000;

    /// A status where everything happened.
    pub(crate) fn full() -> Status {
        let mut status =
            Status::new(&sample::full(1), Process { cpu_seconds: Some(1.5), ..Process::default() }, UNIX_NS);
        "0.0.0".clone_into(&mut status.version);
        status
    }

    #[test]
    fn the_status_is_as_agreed_and_can_be_read_back() {
        let mut snapshot = sample::full(1);
        snapshot.states = [3; STATES];
        let status = Status { version: "0.0.0".to_owned(), ..Status::new(&snapshot, Process::default(), UNIX_NS) };
        let line = super::super::line(&status);
        assert_eq!(serde_json::from_str::<Status>(&line).unwrap(), status);
        assert_eq!(status.states.len(), TcpState::ALL.len());
        // Broken into lines for those who read differences.
        crate::golden::check("tests/golden/status.json", &(serde_json::to_string_pretty(&status).unwrap() + "\n"));
    }

    #[test]
    fn the_states_have_their_own_numbers() {
        let mut snapshot = sample::empty();
        snapshot.states[TcpState::CloseWait as usize] = 4;
        let status = Status::new(&snapshot, Process::default(), UNIX_NS);
        assert_eq!(status.states, BTreeMap::from([("CLOSE_WAIT".to_owned(), 4)]));
    }
}
