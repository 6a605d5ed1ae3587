//! A tun device: the end of a namespace's link that the relay reads packets from and writes packets to.

use std::ffi::c_int;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::interface;

/// Where tun devices are made.
pub(crate) const CLONE_DEVICE: &str = "/dev/net/tun";

/// What a tun device is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TunConfig {
    pub(crate) mtu: u32,
    /// Packets that wait for the relay; beyond it the kernel drops.
    pub(crate) queue_packets: u32,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

/// A tun device. It is deleted when this, its only descriptor, is closed.
#[derive(Debug)]
pub(crate) struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Makes the device in the calling thread's namespace, with addresses and routes, and brings it up.
    pub(crate) fn create(name: &str, config: TunConfig) -> Result<Self> {
        let fd = rustix::fs::open(CLONE_DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open {CLONE_DEVICE}: load the kernel module tun, or run as root"))?;
        let mut request = interface::named_ifreq(name)?;
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which lives until the call returns.
        let status = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        if status < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("cannot make tun device {name}: root (CAP_NET_ADMIN) is needed"));
        }
        interface::set_mtu(name, config.mtu)?;
        interface::set_queue_length(name, config.queue_packets)?;
        interface::set_ipv4(name, config.ipv4, 24)?;
        interface::set_up(name)?;
        interface::add_ipv6(name, config.ipv6, 64)?;
        interface::wait_usable_ipv6(config.ipv6)?;
        Ok(Self { fd })
    }

    /// The next packet that the namespace sent, if one waits: its length in `buffer`.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot read from a tun device of the relay"),
            }
        }
    }

    /// Hands a packet to the namespace; the kernel has received it (and TCP has acted on it) when this returns.
    pub(crate) fn write(&self, packet: &[u8]) -> Result<(), Errno> {
        loop {
            match rustix::io::write(&self.fd, packet) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lets the calling thread run before all ordinary ones, so that a busy machine does not falsify times.
pub(crate) fn run_first() -> io::Result<()> {
    const LOWEST_OF_THE_URGENT: c_int = 1;
    let parameter = libc::sched_param { sched_priority: LOWEST_OF_THE_URGENT };
    // SAFETY: the call reads one `sched_param`; thread 0 is the calling one.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
