//! The values of the metrics: one function per entry of the catalogue, from what a scrape sees to labelled numbers.
//!
//! The functions decide nothing about names; the order of the label values is that of the labels in the catalogue.

mod gather;
mod own;

use tcpwatch_common::close::CloseCause;
use tcpwatch_common::counters::{dist, group, reason};
use tcpwatch_common::hist::{LOG2_BUCKETS, RTT_BUCKETS, rtt_lower};
use tcpwatch_common::limits::{LIMITS, SIDES};
use tcpwatch_common::reset::{REASONS, ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::STATES;

use super::catalog::{self, COMPARED, MOST_LISTENERS, MOST_NAMESPACES, PERCENTILES, RTT_EDGES, RTT_FIRST_US};
use super::monotone::Settled;
use super::native;
use super::process::Process;
use crate::aggregate::exemplars::Exemplars;
use crate::aggregate::snapshot::{GroupTotals, ListenerStats, Service, Snapshot};
use crate::explain;
use crate::storm::{self, Pair, Report};

pub(crate) use gather::{Mark, One, Series};
pub(super) use own::*;

/// Everything that a scrape sees.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// The newest snapshot; none before the first.
    pub(crate) settled: Option<&'a Settled>,
    /// Time since that snapshot was taken, s.
    pub(crate) snapshot_age_seconds: f64,
    /// The daemon as a process.
    pub(crate) process: Process,
    /// Time that the last scrape took, s; none before the first.
    pub(crate) scrape_seconds: Option<f64>,
    /// HTTP clients that went away before they had their answer.
    pub(crate) disconnects: u64,
}

impl View<'_> {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.settled.map(|settled| &settled.snapshot)
    }

    /// Every group in which connections are counted.
    fn groups(&self) -> impl Iterator<Item = &GroupTotals> {
        self.all_groups().filter(|totals| totals.service != Service::None)
    }

    fn all_groups(&self) -> impl Iterator<Item = &GroupTotals> {
        self.snapshot().into_iter().flat_map(|snapshot| &snapshot.groups)
    }

    fn exemplars(&self) -> Option<&Exemplars> {
        self.snapshot().map(|snapshot| &snapshot.exemplars)
    }

    fn directions(&self) -> impl Iterator<Item = &GroupTotals> {
        self.settled.into_iter().flat_map(|settled| &settled.directions)
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A word of a list; a list that is too short has counted nothing there.
fn word(words: &[u64], index: usize) -> u64 {
    words.get(index).copied().unwrap_or_default()
}

/// The same word of every group.
fn per_group(view: &View<'_>, out: &mut Series, index: usize) {
    for totals in view.groups() {
        out.count(&[totals.direction.name(), &totals.service.label()], word(&totals.words, index));
    }
}

/// Words of every group, each with a label value of its own.
fn per_group_and<const N: usize>(view: &View<'_>, out: &mut Series, words: [(&str, usize); N]) {
    for totals in view.groups() {
        let service = totals.service.label();
        for (value, index) in words {
            out.count(&[totals.direction.name(), &service, value], word(&totals.words, index));
        }
    }
}

pub(super) fn connections(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for state in catalog::STATES {
        out.count(&[state.name()], word(&snapshot.states, state as usize));
    }
}

pub(super) fn listener_queue(view: &View<'_>, out: &mut Series) {
    per_listener(view, out, |listener| listener.queue);
}

pub(super) fn listener_limit(view: &View<'_>, out: &mut Series) {
    per_listener(view, out, |listener| listener.limit);
}

pub(super) fn listener_drops(view: &View<'_>, out: &mut Series) {
    per_listener(view, out, |listener| listener.drops);
}

fn per_listener(view: &View<'_>, out: &mut Series, value: fn(&ListenerStats) -> u32) {
    let Some(snapshot) = view.snapshot() else { return };
    let (own, others) = snapshot.listeners.split_at(snapshot.listeners.len().min(MOST_LISTENERS));
    for listener in own {
        out.count(&[&listener.address], u64::from(value(listener)));
    }
    if !others.is_empty() {
        out.count(&["other"], others.iter().map(|listener| u64::from(value(listener))).sum());
    }
}

pub(super) fn listen_overflows(view: &View<'_>, out: &mut Series) {
    for namespace in view.snapshot().iter().flat_map(|snapshot| &snapshot.namespaces).take(MOST_NAMESPACES) {
        out.count(&[&namespace.netns.to_string()], namespace.listen_overflows);
    }
}

pub(super) fn kernel_retransmits(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    out.count(&[], snapshot.compared.kernel_retransmitted_segments);
}

pub(super) fn kernel_resets(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    out.count(&[], snapshot.compared.kernel_resets_sent);
}

pub(super) fn coverage(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for (name, ratio) in COMPARED.into_iter().zip(snapshot.compared.ratios()) {
        if let Some(ratio) = ratio {
            out.value(&[name], ratio);
        }
    }
}

pub(super) fn unreadable_namespaces(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    out.count(&[], snapshot.unreadable_namespaces);
}

pub(super) fn opened(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::OPENED);
}

pub(super) fn adopted(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::ADOPTED);
}

pub(super) fn closed(view: &View<'_>, out: &mut Series) {
    per_group_and(view, out, CloseCause::ALL.map(|cause| (cause.name(), group::closed(cause))));
}

pub(super) fn handshake(view: &View<'_>, out: &mut Series) {
    for totals in view.directions() {
        let counts = totals.words.get(group::HANDSHAKE..group::HANDSHAKE + LOG2_BUCKETS);
        out.log2_histogram(&[totals.direction.name()], counts, seconds(word(&totals.words, group::HANDSHAKE_SUM)));
    }
}

pub(super) fn duration(view: &View<'_>, out: &mut Series) {
    for totals in view.directions() {
        let counts = totals.words.get(group::DURATION..group::DURATION + LOG2_BUCKETS);
        out.log2_histogram(&[totals.direction.name()], counts, seconds(word(&totals.words, group::DURATION_SUM)));
    }
}

pub(super) fn window(view: &View<'_>, out: &mut Series) {
    for totals in view.directions() {
        let counts = totals.dist.get(dist::CWND..dist::CWND + LOG2_BUCKETS);
        out.log2_histogram(&[totals.direction.name()], counts, word(&totals.dist, dist::CWND_SUM) as f64);
    }
}

pub(super) fn rtt(view: &View<'_>, out: &mut Series) {
    for totals in view.groups() {
        let fine = totals.dist.get(dist::RTT..dist::RTT + RTT_BUCKETS).unwrap_or_default();
        let sum = seconds(word(&totals.dist, dist::RTT_SUM));
        let labels = [totals.direction.name(), &totals.service.label()];
        out.histogram(&labels, rtt_below(fine), total(fine), sum);
        out.native(native::of_rtt(fine));
        let marks = (0..=RTT_EDGES).filter_map(|bucket| {
            let mark = view.exemplars()?.rtt.get(&(totals.direction, totals.service, bucket))?;
            // OpenMetrics has the edge in the bucket below it.
            let on_edge = mark.us.is_power_of_two() && u64::from(mark.us) >= RTT_FIRST_US;
            (!on_edge).then(|| (bucket, Mark::of(mark, seconds(mark.us.into()))))
        });
        out.mark(marks);
    }
}

/// Samples below each edge. Every edge is one of the fine buckets too, so that these are sums and not guesses.
fn rtt_below(fine: &[u64]) -> impl Iterator<Item = u64> {
    (0..RTT_EDGES).map(|i| {
        let edge = RTT_FIRST_US << i;
        total(fine.iter().enumerate().take_while(|(bucket, _)| rtt_lower(bucket + 1) <= edge).map(|(_, count)| count))
    })
}

/// A sum that no recording, whatever it says, makes overflow.
fn total<'a>(counts: impl IntoIterator<Item = &'a u64>) -> u64 {
    counts.into_iter().fold(0, |sum, count| sum.saturating_add(*count))
}

pub(super) fn rtt_recent(view: &View<'_>, out: &mut Series) {
    for recent in view.snapshot().iter().flat_map(|snapshot| &snapshot.rtt) {
        let values = [recent.p50_seconds, recent.p90_seconds, recent.p99_seconds];
        for (percentile, value) in PERCENTILES.into_iter().zip(values) {
            out.value(&[recent.direction.name(), percentile], value);
        }
    }
}

pub(super) fn sent_bytes(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::SENT_BYTES);
}

pub(super) fn received_bytes(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::RECEIVED_BYTES);
}

pub(super) fn sent_segments(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::SENT_SEGMENTS);
}

pub(super) fn retransmitted(view: &View<'_>, out: &mut Series) {
    per_group_and(view, out, RetransmitCause::ALL.map(|cause| (cause.name(), group::retransmits(cause))));
}

pub(super) fn refused(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::RETRANSMIT_FAILURES);
}

pub(super) fn spurious(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::SPURIOUS);
}

/// Words of every group that count jiffies, in seconds.
fn per_group_seconds<const N: usize>(view: &View<'_>, out: &mut Series, values: [&str; N], first: usize) {
    let Some(snapshot) = view.snapshot() else { return };
    let ticks = f64::from(snapshot.facts.ticks_per_second.max(1));
    for totals in view.groups() {
        let service = totals.service.label();
        for (value, index) in values.into_iter().zip(first..) {
            out.value(&[totals.direction.name(), &service, value], word(&totals.words, index) as f64 / ticks);
        }
    }
}

pub(super) fn limited(view: &View<'_>, out: &mut Series) {
    per_group_seconds(view, out, LIMITS, group::LIMITED);
}

pub(super) fn zero_windows(view: &View<'_>, out: &mut Series) {
    let [peer, local] = SIDES;
    per_group_and(view, out, [(peer, group::ZERO_WINDOWS), (local, group::ZERO_WINDOWS + 1)]);
}

pub(super) fn zero_window_seconds(view: &View<'_>, out: &mut Series) {
    per_group_seconds(view, out, SIDES, group::ZERO_JIFFIES);
}

pub(super) fn idle_restarts(view: &View<'_>, out: &mut Series) {
    per_group(view, out, group::IDLE_RESTARTS);
}

pub(super) fn resets_sent(view: &View<'_>, out: &mut Series) {
    for totals in view.all_groups() {
        let service = totals.service.label();
        for origin in ResetOrigin::ALL {
            for cause in ResetCause::ALL {
                let labels = [totals.direction.name(), &service, origin.name(), cause.name()];
                let index = group::resets(origin, cause);
                out.count(&labels, word(&totals.words, index));
                out.mark(of_reset(view, totals, index));
            }
        }
    }
}

/// The newest reset that a word counted.
fn of_reset(view: &View<'_>, totals: &GroupTotals, index: usize) -> Option<(usize, Mark)> {
    let mark = view.exemplars()?.resets.get(&(totals.direction, totals.service, index))?;
    Some((0, Mark::of(mark, 1.0)))
}

pub(super) fn resets_by_reason(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for origin in ResetOrigin::ALL {
        for number in 0..REASONS as u32 {
            let unnamed = format!("number_{number}");
            let name = snapshot.facts.reasons.get(number as usize).unwrap_or(&unnamed);
            for (family, version) in catalog::FAMILIES.into_iter().zip([4, 6]) {
                let count = word(&snapshot.reasons, reason::index(origin, number, version));
                // A kernel has many reasons of which a host sees few; without any reason there is one series.
                if count > 0 || number == 0 {
                    out.count(&[origin.name(), name, family], count);
                }
            }
        }
    }
}

pub(super) fn reset_stacks(view: &View<'_>, out: &mut Series) {
    for stack in view.snapshot().iter().flat_map(|snapshot| &snapshot.stacks) {
        out.count(&[&stack.fingerprint], stack.count);
    }
}

pub(super) fn reset_stack_info(view: &View<'_>, out: &mut Series) {
    for stack in view.snapshot().iter().flat_map(|snapshot| &snapshot.stacks) {
        let cause = ResetCause::from_u8(stack.cause).map_or("other", ResetCause::name);
        out.count(&[&stack.fingerprint, cause, &stack.frames.join(";")], 1);
    }
}

pub(super) fn resets_received(view: &View<'_>, out: &mut Series) {
    for totals in view.groups() {
        let service = totals.service.label();
        let received = |number: usize| word(&totals.words, group::received(number as u8));
        for state in catalog::STATES {
            out.count(&[totals.direction.name(), &service, state.name()], received(state as usize));
            out.mark(of_reset(view, totals, group::received(state as u8)));
        }
        let listed = |number: &usize| catalog::STATES.iter().any(|&state| state as usize == *number);
        let others = (0..STATES).filter(|number| !listed(number)).map(received);
        out.count(&[totals.direction.name(), &service, "other"], others.fold(0, u64::saturating_add));
    }
}

pub(super) fn service_verdicts(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for totals in view.groups() {
        let service = totals.service.label();
        for id in explain::SERVICE_IDS {
            let said = snapshot.verdicts.contains(&(totals.direction, totals.service, id));
            out.count(&[totals.direction.name(), &service, id.name()], u64::from(said));
        }
    }
}

pub(super) fn storm_active(view: &View<'_>, out: &mut Series) {
    per_storm(view, out, |report, pair| u64::from(report.shown.contains(pair)));
}

pub(super) fn storms(view: &View<'_>, out: &mut Series) {
    per_storm(view, out, |report, pair| report.counts.get(pair).copied().unwrap_or_default());
}

fn per_storm(view: &View<'_>, out: &mut Series, value: fn(&Report, &Pair) -> u64) {
    let Some(snapshot) = view.snapshot() else { return };
    for totals in view.all_groups() {
        let service = totals.service.label();
        for (cause, name) in storm::CAUSES.into_iter().enumerate() {
            let pair = (totals.direction, totals.service, cause);
            out.count(&[totals.direction.name(), &service, name], value(&snapshot.storms, &pair));
        }
    }
}

#[cfg(test)]
mod tests;
