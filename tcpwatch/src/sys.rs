//! What the daemon asks of the kernel directly, beside BPF.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

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

/// CPU time of this process so far, of all its threads, in the kernel too.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Nanoseconds since the epoch, by the wall clock.
pub(crate) fn unix_ns() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "it is shown to people, and nothing is computed from it")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Lets `command` begin without our files and without a way to gain privileges: what it is run as is all it has.
#[expect(unsafe_code, reason = "what a child does before it becomes another program has no safe interface")]
pub(crate) fn confine(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let prepare = || {
        /// `CLOSE_RANGE_CLOEXEC`, include/uapi/linux/close_range.h.
        const CLOEXEC: libc::c_uint = 4;
        // Capabilities that a program is given although it is not run as root.
        // SAFETY: neither takes a pointer.
        let kept = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
        // SAFETY: likewise.
        let gains = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the descriptors stay open until the new program begins, so that nobody sees them gone.
        let open = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOEXEC) };
        if kept != 0 || gains != 0 || open != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: it makes three system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
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

/// Opens an iterator whose `program` walks the map `map`: aya attaches iterators without saying which map they are for.
#[expect(unsafe_code, reason = "two bpf() calls that aya does not make")]
pub(crate) fn iterate_map(program: RawFd, map: RawFd) -> io::Result<File> {
    /// `BPF_LINK_CREATE` and `BPF_ITER_CREATE` of `enum bpf_cmd`, `BPF_TRACE_ITER` of `enum bpf_attach_type`.
    const LINK_CREATE: i32 = 28;
    const ITER_CREATE: i32 = 33;
    const TRACE_ITER: u32 = 28;
    /// `link_create` in `union bpf_attr`.
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        iterator: u64,
        iterator_len: u32,
        padding: u32,
    }
    /// `iter_create` in `union bpf_attr`.
    #[repr(C)]
    struct IterCreate {
        link: u32,
        flags: u32,
    }
    /// # Safety
    /// `attributes` is what `command` takes, and what it points to is alive.
    unsafe fn call<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
        // SAFETY: the kernel reads `size_of::<T>()` bytes and no more.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
        match RawFd::try_from(fd) {
            // SAFETY: a new descriptor that nobody else owns.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
    // `union bpf_iter_link_info`: the descriptor of the map.
    let info = map as u32;
    let attributes = LinkCreate {
        program: program as u32,
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        iterator: &raw const info as u64,
        iterator_len: size_of::<u32>() as u32,
        padding: 0,
    };
    // SAFETY: `info` outlives the call.
    let link = unsafe { call(LINK_CREATE, &attributes) }?;
    let attributes = IterCreate { link: link.as_raw_fd() as u32, flags: 0 };
    // SAFETY: it points to nothing.
    let iterator = unsafe { call(ITER_CREATE, &attributes) }?;
    Ok(File::from(iterator))
}

/// The number that the kernel gave to the network namespace of the calling thread, and gives to no other; since 5.14.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    /// `SO_NETNS_COOKIE`, include/uapi/asm-generic/socket.h.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which is as long.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Does the work of a command on a runtime of its own. What still waits at the end, for the keyboard say, is left behind.
pub(crate) fn run_command<T, E>(
    failed: impl FnOnce(io::Error) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}
