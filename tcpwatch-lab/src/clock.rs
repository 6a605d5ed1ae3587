//! The clock of the lab, and waiting for a condition with a deadline. Used by every other module.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`: comparable with `bpf_ktime_get_ns` in a kernel program.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A duration in whole nanoseconds; more than 584 years is cut to that.
pub fn as_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How often a condition that has no descriptor to wait on (a file below `/proc`) is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Asks `probe` until it answers `Some`, and returns that answer.
///
/// For conditions that only show in files; where there is a descriptor, poll that instead.
///
/// # Errors
/// What `probe` fails with, at once; or, after `timeout`, that `what` did not come to be.
pub fn wait_for<T>(timeout: Duration, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {timeout:?} for {what}, in vain");
        }
        thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back() {
        let first = now_ns();
        assert!(now_ns() >= first);
    }

    #[test]
    fn waiting_in_vain_says_for_what() {
        let error = wait_for(Duration::from_millis(3), "the moon", || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().contains("the moon"), "{error}");
    }

    #[test]
    fn a_failing_probe_ends_the_wait() {
        let error = wait_for(Duration::from_secs(60), "nothing", || bail!("broken") as Result<Option<()>>).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }
}
