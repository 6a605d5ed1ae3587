//! `tcpwatch doctor`: what this kernel offers, what attaches, and what is lost without it. It loads and attaches the
//! programs as the daemon would, and takes them out again.

use std::io::{self, Write};

use serde_json::json;

use crate::aggregate::snapshot::{ProbeState, ProbeStatus};
use crate::config::Config;
use crate::daemon::{self, DaemonError};
use crate::kernel::facts::KernelFacts;
use crate::kernel::load;

/// Examines the host and prints the findings; an error when the daemon could not run here.
pub(crate) fn run(config: &Config, as_json: bool) -> Result<(), DaemonError> {
    let facts = KernelFacts::gather(std::path::Path::new("/"))?;
    let loaded = load::load(&facts, &daemon::options(config)?)?;
    let absent: Vec<&str> = facts
        .layout
        .fields()
        .filter(|(_, f)| f.offset == tcpwatch_common::layout::ABSENT)
        .map(|(s, _)| s.path)
        .collect();
    let mut out = io::stdout().lock();
    let written = if as_json {
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": facts.release,
            "ticks_per_second": facts.hz,
            "reset_reasons": facts.reasons.len(),
            "absent_fields": absent,
            "map_bytes": loaded.maps.map_bytes,
            "probes": loaded.probes.iter().map(probe_json).collect::<Vec<_>>(),
        });
        writeln!(out, "{object}")
    } else {
        text(&mut out, &facts, &loaded, &absent)
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(DaemonError::Output(error)),
        _ => Ok(()),
    }
}

fn text(out: &mut impl Write, facts: &KernelFacts, loaded: &load::Loaded, absent: &[&str]) -> io::Result<()> {
    writeln!(out, "kernel      {} ({} ticks a second)", facts.release, facts.hz)?;
    writeln!(
        out,
        "maps        {} KiB of kernel memory, and about 700 bytes a connection",
        loaded.maps.map_bytes / 1024
    )?;
    if !absent.is_empty() {
        writeln!(out, "fields      not in this kernel: {}", absent.join(", "))?;
    }
    for probe in &loaded.probes {
        let (state, why) = words(&probe.state);
        writeln!(out, "{state:<11} {:<24} {}", probe.probe, probe.hook)?;
        if !why.is_empty() {
            writeln!(out, "            {why}")?;
        }
        if matches!(probe.state, ProbeState::Unsupported(_) | ProbeState::Broken(_)) {
            writeln!(out, "            without it: no {}", probe.loses)?;
        }
    }
    Ok(())
}

fn words(state: &ProbeState) -> (&'static str, &str) {
    match state {
        ProbeState::Attached => ("attached", ""),
        ProbeState::Unsupported(why) => ("unsupported", why),
        ProbeState::Broken(why) => ("broken", why),
    }
}

fn probe_json(probe: &ProbeStatus) -> serde_json::Value {
    let (state, why) = words(&probe.state);
    json!({
        "probe": probe.probe,
        "hook": probe.hook,
        "required": probe.required,
        "state": state,
        "why": why,
        "loses": probe.loses,
    })
}
