//! Tests that need the lab: reported as ignored, by name and with the reason, where it cannot run.
//!
//! For test targets with `harness = false`, of this crate and of others:
//!
//! ```no_run
//! use tcpwatch_lab::harness;
//!
//! fn main() -> std::process::ExitCode {
//!     harness::run(vec![harness::trial("namespaces_can_be_made", || {
//!         tcpwatch_lab::Netns::new()?;
//!         Ok(())
//!     })])
//! }
//! ```
//!
//! With `TCPWATCH_FORBID_SKIPS=1` in the environment a test that cannot run fails instead.

use std::env;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

use crate::netns::Netns;
use crate::relay::CLONE_DEVICE;

/// The variable with the tests to run, as beginnings of their names with commas between: the rest is not part of the run.
pub const TESTS: &str = "TCPWATCH_TESTS";
/// The variable that turns skipped tests into failures.
pub const FORBID_SKIPS: &str = "TCPWATCH_FORBID_SKIPS";

/// Why the lab cannot run here; `None` when it can. Looked up once per process.
pub fn obstacle() -> Option<&'static str> {
    static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
    OBSTACLE.get_or_init(find_obstacle).as_deref()
}

fn find_obstacle() -> Option<String> {
    if let Err(error) = Netns::new() {
        return Some(format!("{error:#}"));
    }
    let access = rustix::fs::access(CLONE_DEVICE, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK);
    access.err().map(|error| format!("cannot use {CLONE_DEVICE} ({error}): load the kernel module tun"))
}

/// A test that needs the lab.
pub fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    trial_unless(name, obstacle, test)
}

/// A test that needs the lab and more: `obstacle` says why it cannot run here, if so.
pub fn trial_unless<S: ToString>(
    name: &str,
    obstacle: impl FnOnce() -> Option<S> + Send + 'static,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = obstacle() {
            let reason = reason.to_string();
            if env::var_os(FORBID_SKIPS).is_some_and(|value| value == "1") {
                return Err(format!("{FORBID_SKIPS} is set, and this test cannot run here: {reason}").into());
            }
            return Ok(Completion::ignored_with(reason));
        }
        test().map_err(|error| format!("{error:#}"))?;
        Ok(Completion::Completed)
    })
}

/// Runs tests one after the other (they share two CPUs' worth of time and the machine's counters), with the
/// arguments of `cargo test`; `--test-threads` overrides that.
pub fn run(mut trials: Vec<Trial>) -> ExitCode {
    if let Ok(names) = env::var(TESTS) {
        trials.retain(|trial| names.split(',').any(|name| trial.name().starts_with(name)));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(1));
    libtest_mimic::run(&arguments, trials).exit_code()
}
