//! The real-kernel suite: the daemon as users run it, traffic in namespaces of its own, and the truth known from the
//! set-up or from the namespaces' own counters. Needs root; where it cannot run, each test is reported as ignored.

mod actor;
mod agree_with_ss;
mod api;
mod bounds;
mod clock;
mod connections;
mod daemon;
mod dashboard;
mod experiments;
mod explain;
mod fallbacks;
mod fire;
mod governor;
mod hardship;
mod limits;
mod operations;
mod overflow;
mod owners;
mod prometheus;
mod proof;
mod recording;
mod reset_evidence;
mod reset_rows;
mod resets;
mod retransmits;
mod rtt;
mod service;
mod soak;
mod storms;
mod top;
mod trace;
mod trampoline;
mod truth_retransmits;
mod truth_rtt;

use std::process::ExitCode;

use tcpwatch_lab::harness;

fn main() -> ExitCode {
    if let Some(end) = actor::played() {
        return end;
    }
    let mut trials = Vec::new();
    trials.extend(connections::trials());
    trials.extend(resets::trials());
    trials.extend(reset_evidence::trials());
    trials.extend(reset_rows::trials());
    trials.extend(retransmits::trials());
    trials.extend(rtt::trials());
    trials.extend(proof::trials());
    trials.extend(limits::trials());
    trials.extend(agree_with_ss::trials());
    trials.extend(truth_retransmits::trials());
    trials.extend(truth_rtt::trials());
    trials.extend(experiments::trials());
    trials.extend(explain::trials());
    trials.extend(soak::trials());
    trials.extend(overflow::trials());
    trials.extend(governor::trials());
    trials.extend(operations::trials());
    trials.extend(prometheus::trials());
    trials.extend(recording::trials());
    trials.extend(api::trials());
    trials.extend(storms::trials());
    trials.extend(fire::trials());
    trials.extend(owners::trials());
    trials.extend(service::trials());
    trials.extend(bounds::trials());
    trials.extend(hardship::trials());
    trials.extend(clock::trials());
    trials.extend(trace::trials());
    trials.extend(top::trials());
    // Last: what it locks stays locked.
    trials.extend(fallbacks::trials());
    harness::run(trials)
}

/// Why the kernel programs cannot be loaded here; `None` when they can. Asked of the doctor, once.
fn obstacle() -> Option<String> {
    static OBSTACLE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    OBSTACLE
        .get_or_init(|| {
            harness::obstacle().map(str::to_owned).or_else(|| {
                let doctor = std::process::Command::new(daemon::PROGRAM).arg("doctor").output();
                match doctor {
                    Ok(done) if done.status.success() => None,
                    Ok(done) => Some(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
                    Err(error) => Some(format!("cannot start {}: {error}", daemon::PROGRAM)),
                }
            })
        })
        .clone()
}

/// Whether resets have the kernel's reason: its tracepoint has the argument (6.10 and later), and is what is attached.
fn gives_reasons() -> bool {
    static GIVES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *GIVES.get_or_init(|| {
        let doctor = std::process::Command::new(daemon::PROGRAM).args(["doctor", "--json"]).output();
        let found = doctor.ok().and_then(|done| serde_json::from_slice::<serde_json::Value>(&done.stdout).ok());
        found.is_some_and(|found| {
            let by_tracepoint = found["probes"].as_array().is_some_and(|probes| {
                probes.iter().any(|probe| probe["probe"] == "tcp_send_reset" && probe["state"] == "attached")
            });
            by_tracepoint && found["reset_reasons"].as_u64().is_some_and(|reasons| reasons > 1)
        })
    })
}

/// Whether this is the long run, `cargo xtask test full`.
fn is_long() -> bool {
    std::env::var_os("TCPWATCH_TEST_FULL").is_some()
}

/// A test of this suite.
fn trial(name: &str, test: fn() -> anyhow::Result<()>) -> libtest_mimic::Trial {
    harness::trial_unless(name, obstacle, test)
}
