//! The values of the metrics that tell of tcpwatch itself.

use std::collections::BTreeMap;

use tcpwatch_common::counters::Loss;
use tcpwatch_common::record::Kind;

use super::{Series, View};
use crate::aggregate::snapshot::{Governed, ProbeState};
use crate::metrics::catalog::{DECODE_REASONS, MODES};

pub(in crate::metrics) fn events(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for (kind, count) in Kind::ALL.iter().zip(snapshot.own.events) {
        out.count(&[kind.name()], count);
    }
}

pub(in crate::metrics) fn lost(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    let own = &snapshot.own;
    // One program may have several ways to lose something in one place.
    let mut losses = BTreeMap::new();
    for (loss, count) in Loss::ALL.iter().zip(own.losses) {
        let sum: &mut u64 = losses.entry((loss.place(), loss.program())).or_default();
        *sum = sum.saturating_add(count);
    }
    for ((place, program), count) in losses {
        out.count(&[place, program], count);
    }
    for program in &own.programs {
        out.count(&["recursion", &program.name], program.recursion_misses);
    }
    out.count(&["decode", "daemon"], own.decode_errors.iter().map(|(_, count)| count).sum());
    out.count(&["table", "daemon"], own.table.evicted);
}

pub(in crate::metrics) fn decode_errors(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for reason in DECODE_REASONS {
        let errors = snapshot.own.decode_errors.iter().filter(|(name, _)| *name == reason);
        out.count(&[reason], errors.map(|(_, count)| count).sum());
    }
}

pub(in crate::metrics) fn program_runs(view: &View<'_>, out: &mut Series) {
    for program in view.snapshot().iter().flat_map(|snapshot| &snapshot.own.programs) {
        if let Some(runs) = program.runs {
            out.count(&[&program.name], runs);
        }
    }
}

pub(in crate::metrics) fn program_time(view: &View<'_>, out: &mut Series) {
    for program in view.snapshot().iter().flat_map(|snapshot| &snapshot.own.programs) {
        if let Some(mean) = program.mean_run_seconds {
            out.value(&[&program.name], mean);
        }
    }
}

pub(in crate::metrics) fn sampling_mode(view: &View<'_>, out: &mut Series) {
    let Some(snapshot) = view.snapshot() else { return };
    for mode in MODES {
        out.flag(&[mode], mode == snapshot.facts.sampling_mode);
    }
}

pub(in crate::metrics) fn probes(view: &View<'_>, out: &mut Series) {
    for probe in view.snapshot().iter().flat_map(|snapshot| &snapshot.facts.probes) {
        let attached = match probe.state {
            ProbeState::Attached => true,
            ProbeState::Unsupported(_) | ProbeState::Broken(_) => false,
        };
        out.flag(&[&probe.probe, &probe.hook], attached);
    }
}

pub(in crate::metrics) fn sample_interval(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.value(&[], snapshot.own.sample_interval_seconds);
    }
}

pub(in crate::metrics) fn snapshot_age(view: &View<'_>, out: &mut Series) {
    if view.settled.is_some() {
        out.value(&[], view.snapshot_age_seconds);
    }
}

pub(in crate::metrics) fn ring_size(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.count(&[], snapshot.own.ring_bytes);
    }
}

pub(in crate::metrics) fn ring_used(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.count(&[], snapshot.own.ring_used_bytes);
    }
}

pub(in crate::metrics) fn map_memory(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.count(&[], snapshot.own.map_bytes);
    }
}

pub(in crate::metrics) fn table_entries(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.count(&[], snapshot.own.table.entries);
    }
}

pub(in crate::metrics) fn table_capacity(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.count(&[], snapshot.own.table.capacity);
    }
}

pub(in crate::metrics) fn scrape_duration(view: &View<'_>, out: &mut Series) {
    view.scrape_seconds.iter().for_each(|seconds| out.value(&[], *seconds));
}

pub(in crate::metrics) fn disconnects(view: &View<'_>, out: &mut Series) {
    out.count(&[], view.disconnects);
}

pub(in crate::metrics) fn build_info(_: &View<'_>, out: &mut Series) {
    let commit = option_env!("TCPWATCH_COMMIT").unwrap_or_default();
    let compiler = option_env!("TCPWATCH_BPF_COMPILER").unwrap_or_default();
    out.flag(&[env!("CARGO_PKG_VERSION"), commit, compiler], true);
}

pub(in crate::metrics) fn kernel_info(view: &View<'_>, out: &mut Series) {
    if let Some(snapshot) = view.snapshot() {
        out.flag(&[&snapshot.facts.kernel_release], true);
    }
}

pub(in crate::metrics) fn cpu_seconds(view: &View<'_>, out: &mut Series) {
    view.process.cpu_seconds.iter().for_each(|value| out.value(&[], *value));
}

pub(in crate::metrics) fn resident_memory(view: &View<'_>, out: &mut Series) {
    view.process.resident_bytes.iter().for_each(|value| out.count(&[], *value));
}

pub(in crate::metrics) fn virtual_memory(view: &View<'_>, out: &mut Series) {
    view.process.virtual_bytes.iter().for_each(|value| out.count(&[], *value));
}

pub(in crate::metrics) fn open_fds(view: &View<'_>, out: &mut Series) {
    view.process.open_fds.iter().for_each(|value| out.count(&[], *value));
}

pub(in crate::metrics) fn max_fds(view: &View<'_>, out: &mut Series) {
    view.process.max_fds.iter().for_each(|value| out.count(&[], *value));
}

pub(in crate::metrics) fn threads(view: &View<'_>, out: &mut Series) {
    view.process.threads.iter().for_each(|value| out.count(&[], *value));
}

pub(in crate::metrics) fn start_time(view: &View<'_>, out: &mut Series) {
    view.process.start_time_seconds.iter().for_each(|value| out.value(&[], *value));
}

/// A number of what the governor holds back; none where that is not known.
fn of_governor(view: &View<'_>, out: &mut Series, value: impl Fn(&Governed) -> f64) {
    if let Some(governed) = view.snapshot().and_then(|snapshot| snapshot.own.governed.as_ref()) {
        out.value(&[], value(governed));
    }
}

pub(in crate::metrics) fn governor_level(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.level as f64);
}

pub(in crate::metrics) fn histogram_ratio(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| 1.0 / governed.one_in.max(1) as f64);
}

pub(in crate::metrics) fn thinned_seconds(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.thinned_ns as f64 / 1e9);
}

pub(in crate::metrics) fn governor_cpu(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.cpu_millionths as f64 / 1e6);
}

pub(in crate::metrics) fn governor_cpu_budget(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.cpu_budget_millionths as f64 / 1e6);
}

pub(in crate::metrics) fn governor_records(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.records_thousandths as f64 / 1e3);
}

pub(in crate::metrics) fn governor_records_budget(view: &View<'_>, out: &mut Series) {
    of_governor(view, out, |governed| governed.records_budget_thousandths as f64 / 1e3);
}
