//! `tcpwatch doctor`: what this kernel offers, what attaches, and what is lost without it. It loads and attaches the
//! programs as the daemon would, and takes them out again.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::json;

use crate::aggregate::snapshot::{ProbeState, ProbeStatus};
use crate::api::status::Status;
use crate::api::text::printable;
use crate::client::Client;
use crate::config::Config;
use crate::daemon::{self, DaemonError};
use crate::kernel::facts::KernelFacts;
use crate::kernel::load;
use crate::privileges::{self, Privilege, WANTED};
use crate::source::names::{self, Hierarchy};

/// Examines the host and prints the findings; an error when the daemon could not run here.
pub(crate) fn run(config: &Config, as_json: bool, bundle: Option<&Path>) -> Result<(), DaemonError> {
    let facts = KernelFacts::gather(Path::new("/"))?;
    let loaded = match load::load(&facts, &daemon::options(config)?) {
        Ok(loaded) => loaded,
        Err(error) => {
            // What is missing is what somebody who sees this error wants to know.
            let told = if as_json { String::new() } else { capabilities() };
            io::stdout().lock().write_all(told.as_bytes()).map_err(DaemonError::Output)?;
            return Err(error.into());
        }
    };
    let absent: Vec<&str> = facts
        .layout
        .fields()
        .filter(|(_, f)| f.offset == tcpwatch_common::layout::ABSENT)
        .map(|(s, _)| s.path)
        .collect();
    let daemon = ask(&config.socket);
    let names = NameSources::find();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": facts.release,
        "ticks_per_second": facts.hz,
        "reset_reasons": facts.reasons.len(),
        "absent_fields": absent,
        "map_bytes": loaded.maps.map_bytes,
        "cgroup2_mount": names.mount,
        "sees_all_processes": names.sees_all_processes,
        "no_symbols": facts.symbols.hidden,
        "capabilities": WANTED.iter().map(capability_json).collect::<Vec<_>>(),
        "probes": loaded.probes.iter().map(probe_json).collect::<Vec<_>>(),
        "daemon": daemon.json(),
    });
    let mut out = io::stdout().lock();
    let written = if as_json {
        writeln!(out, "{report}")
    } else {
        text(&mut out, &facts, &loaded, &absent, &names)
            .and_then(|()| out.write_all(capabilities().as_bytes()))
            .and_then(|()| daemon.text(&mut out))
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(DaemonError::Output(error)),
        _ => {}
    }
    if let Some(file) = bundle {
        let failed = |source| DaemonError::Bundle { path: file.to_owned(), source };
        crate::bundle::write(file, report, config).map_err(failed)?;
        log::info!("{} holds: {}", file.display(), crate::bundle::CONTENTS);
    }
    Ok(())
}

/// What owners are named by.
struct NameSources {
    mount: Option<String>,
    sees_all_processes: bool,
}

impl NameSources {
    fn find() -> Self {
        let hierarchy = Hierarchy::find(Path::new("/proc"));
        Self {
            mount: hierarchy.map(|found| printable(found.mount.as_os_str().as_bytes())),
            sees_all_processes: names::sees_all_processes(),
        }
    }

    /// Where from, and what is missing.
    fn words(&self) -> (String, Vec<&'static str>) {
        let mut missing = Vec::new();
        if !self.sees_all_processes {
            missing.push("processes have other numbers here: share the host's process namespace (hostPID, --pid=host)");
        }
        let from = if let Some(mount) = &self.mount {
            format!("units and containers by the control groups at {mount}")
        } else {
            missing.push("control groups of version 2 are not mounted here: mount them, or /sys/fs/cgroup of the host");
            "units and containers by /proc/PID/cgroup of the owners".to_owned()
        };
        (from, missing)
    }
}

fn text(
    out: &mut impl Write,
    facts: &KernelFacts,
    loaded: &load::Loaded,
    absent: &[&str],
    names: &NameSources,
) -> io::Result<()> {
    writeln!(out, "kernel      {} ({} ticks a second)", facts.release, facts.hz)?;
    writeln!(
        out,
        "maps        {} KiB of kernel memory, and about 700 bytes a connection",
        loaded.maps.map_bytes / 1024
    )?;
    if !absent.is_empty() {
        writeln!(out, "fields      not in this kernel: {}", absent.join(", "))?;
    }
    let (from, missing) = names.words();
    writeln!(out, "owners      {from}")?;
    for what in missing {
        writeln!(out, "            {what}")?;
    }
    match &facts.symbols.hidden {
        None => writeln!(out, "symbols     the kernel's functions have names: stacks of resets are told")?,
        Some(why) => writeln!(out, "symbols     {why}; without them: no stacks of resets, and fewer causes")?,
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

/// What the daemon that runs on this host says of itself.
enum Running {
    Nobody,
    Silent(String),
    Answers(Box<Status>),
}

fn ask(socket: &Path) -> Running {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let status = runtime.map_err(|error| Running::Silent(error.to_string())).and_then(|runtime| {
        runtime
            .block_on(async { Client::connect(socket).await?.status().await })
            .map_err(|error| if error.nobody() { Running::Nobody } else { Running::Silent(error.to_string()) })
    });
    status.map_or_else(|none| none, |status| Running::Answers(Box::new(status)))
}

impl Running {
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Nobody => serde_json::Value::Null,
            Self::Silent(why) => json!({ "error": why }),
            Self::Answers(status) => json!({
                "version": status.version,
                "losses": status.losses,
                "compared": status.compared,
            }),
        }
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let status = match self {
            Self::Nobody => {
                return writeln!(
                    out,
                    "daemon      does not run; with it, this shows how its counters agree with the kernel's"
                );
            }
            Self::Silent(why) => return writeln!(out, "daemon      {why}"),
            Self::Answers(status) => status,
        };
        writeln!(out, "daemon      runs, version {}", status.version)?;
        let compared = &status.compared;
        for (name, sides) in [("retransmits", compared.retransmitted_segments), ("resets sent", compared.resets_sent)] {
            let ratio =
                sides.ratio.map_or_else(|| "nothing to compare yet".to_owned(), |ratio| format!("ratio {ratio:.4}"));
            writeln!(out, "{name:<11} {} counted, {} by the kernel: {ratio}", sides.ours, sides.kernel)?;
        }
        for gap in &compared.gaps {
            writeln!(out, "            {}: {:+} by {}: {}", gap.counter, gap.count, gap.name, gap.sentence)?;
        }
        if compared.unreadable_namespaces > 0 {
            writeln!(
                out,
                "            {} network namespaces cannot be entered and are not compared",
                compared.unreadable_namespaces
            )?;
        }
        writeln!(out, "            resets made outside TCP (netfilter REJECT, XDP, tc) are in neither count")?;
        for lost in &status.losses {
            let program = if lost.program.is_empty() { "the daemon" } else { &lost.program };
            writeln!(out, "lost        {} at {} by {program}", lost.count, lost.place)?;
        }
        Ok(())
    }
}

/// A line for each capability that the daemon wants, and what is lost without it.
fn capabilities() -> String {
    let line = |wanted: &Privilege| {
        if privileges::held(wanted.capability) {
            format!("held        {}\n", wanted.capability)
        } else {
            let (capability, purpose, without) = (wanted.capability, wanted.purpose, wanted.without);
            format!("missing     {capability}: to {purpose}\n            without it: {without}\n")
        }
    };
    WANTED.iter().map(line).collect::<Vec<_>>().concat()
}

fn capability_json(wanted: &Privilege) -> serde_json::Value {
    json!({
        "name": wanted.capability.to_string(),
        "held": privileges::held(wanted.capability),
        "for": wanted.purpose,
        "without": wanted.without,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_owners_lack_is_said_with_its_remedy() {
        let all = NameSources { mount: Some("/sys/fs/cgroup".to_owned()), sees_all_processes: true }.words();
        assert_eq!(all, ("units and containers by the control groups at /sys/fs/cgroup".to_owned(), vec![]));
        let (from, missing) = NameSources { mount: None, sees_all_processes: false }.words();
        assert!(from.contains("/proc/PID/cgroup") && missing.len() == 2, "{missing:?}");
    }
}
