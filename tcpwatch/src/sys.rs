//! What the daemon asks of the kernel directly, beside BPF.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::time::ClockId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Jiffies in a second: the resolution of the coarse clocks is one tick.
pub(crate) fn ticks_per_second() -> u32 {
    let resolution = rustix::time::clock_getres(ClockId::MonotonicCoarse);
    match resolution.tv_nsec {
        ns if ns > 0 => ((1_000_000_000 + ns / 2) / ns) as u32,
        _ => 250,
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Takes an exclusive lock on `file` that ends with the process; false when another process holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Lets the runtime wait until `inner` can be read; to be called within one.
#[expect(unsafe_code, reason = "tokio cannot see that the descriptor stays open")]
pub(crate) fn readable<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `AsFd` says that the descriptor is open as long as `inner` lives, and `AsyncFd` owns `inner`.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// The page size, bytes.
pub(crate) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Gives memory that start-up needed back to the kernel: the BTF of a kernel is larger than all the daemon keeps.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's allocator has no safe interface")]
pub(crate) fn release_free_memory() {
    // SAFETY: it takes no pointer and may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn release_free_memory() {}
