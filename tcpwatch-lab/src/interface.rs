//! Interface settings of the calling thread's namespace, by `ioctl(2)`: no `ip` command is needed.
//!
//! Used by [`crate::netns`] for the loopback interface and by [`crate::relay`] for its tun devices. All
//! functions act on the namespace that the calling thread is in: call them inside [`crate::Netns::run`].

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};

use crate::clock;
use crate::netns::read_own_proc;

/// Brings an interface up.
///
/// # Errors
/// When there is no such interface, or without `CAP_NET_ADMIN`.
pub fn set_up(name: &str) -> Result<()> {
    let mut request = Request::new(name)?;
    request.call(libc::SIOCGIFFLAGS, "SIOCGIFFLAGS")?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifreq.ifr_ifru.ifru_flags };
    request.ifreq.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    request.call(libc::SIOCSIFFLAGS, "SIOCSIFFLAGS")
}

/// Sets the largest packet, in bytes with the IP header, that an interface carries.
///
/// # Errors
/// When the device refuses the size, or without `CAP_NET_ADMIN`.
pub fn set_mtu(name: &str, mtu: u32) -> Result<()> {
    let mut request = Request::new(name)?;
    request.ifreq.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    request.call(libc::SIOCSIFMTU, "SIOCSIFMTU").with_context(|| format!("cannot set the MTU of {name} to {mtu}"))
}

/// Sets how many packets wait in the kernel for an interface's transmission; for a tun device, for its reader.
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub fn set_queue_length(name: &str, packets: u32) -> Result<()> {
    let mut request = Request::new(name)?;
    request.ifreq.ifr_ifru.ifru_metric = packets as libc::c_int;
    request.call(libc::SIOCSIFTXQLEN, "SIOCSIFTXQLEN")
}

/// Gives an interface its IPv4 address, with a route to the address's network of `prefix` bits.
///
/// # Errors
/// Without `CAP_NET_ADMIN`.
pub fn set_ipv4(name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let mut request = Request::new(name)?;
    request.ifreq.ifr_ifru.ifru_addr = ipv4_sockaddr(address);
    request.call(libc::SIOCSIFADDR, "SIOCSIFADDR")?;
    request.ifreq.ifr_ifru.ifru_netmask = ipv4_sockaddr(Ipv4Addr::from(mask));
    request.call(libc::SIOCSIFNETMASK, "SIOCSIFNETMASK")
}

/// Adds an IPv6 address to an interface that is up, with a route to the address's network of `prefix` bits.
///
/// # Errors
/// Where IPv6 is disabled, or without `CAP_NET_ADMIN`.
pub fn add_ipv6(name: &str, address: Ipv6Addr, prefix: u8) -> Result<()> {
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: u32::from(prefix),
        ifr6_ifindex: index(name)?,
    };
    let socket = control_socket(Domain::IPV6)?;
    // SAFETY: for an AF_INET6 socket SIOCSIFADDR reads one `in6_ifreq`, which lives until the call returns.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &raw const request) };
    if status < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot add {address}/{prefix} to {name}: is IPv6 enabled in this kernel?"));
    }
    Ok(())
}

/// The number of an interface.
///
/// # Errors
/// When there is no such interface.
pub fn index(name: &str) -> Result<i32> {
    let mut lookup = Request::new(name)?;
    lookup.call(libc::SIOCGIFINDEX, "SIOCGIFINDEX")?;
    // SAFETY: SIOCGIFINDEX has just filled this member of the union.
    Ok(unsafe { lookup.ifreq.ifr_ifru.ifru_ifindex })
}

/// Waits until an IPv6 address of the calling thread's namespace can be used. The kernel looks for duplicates first,
/// and even where there is nothing to look for (a tun device) ends that only a little later, in a work queue.
///
/// # Errors
/// When that takes more than a few seconds, or there is no such address.
pub fn wait_usable_ipv6(address: Ipv6Addr) -> Result<()> {
    const TENTATIVE: u32 = 0x40;
    let digits = format!("{:032x}", u128::from(address));
    clock::wait_for(Duration::from_secs(5), &format!("the IPv6 address {address} to be usable"), || {
        let table = read_own_proc("if_inet6")?;
        let line = table.lines().find(|line| line.starts_with(&digits));
        let flags = line.and_then(|line| line.split_whitespace().nth(4));
        let flags = flags.with_context(|| format!("there is no address {address} in this namespace"))?;
        Ok((u32::from_str_radix(flags, 16)? & TENTATIVE == 0).then_some(()))
    })
}

/// Packets that an interface of the calling thread's namespace dropped instead of transmitting: for a tun
/// device, those that its reader was too late for.
///
/// # Errors
/// When there is no such interface.
pub fn transmit_drops(name: &str) -> Result<u64> {
    let text = read_own_proc("dev")?;
    for line in text.lines() {
        let Some((device, numbers)) = line.split_once(':') else { continue };
        if device.trim() == name {
            // Eight receive columns, then bytes, packets, errs, drop of the transmit side.
            let drops = numbers.split_whitespace().nth(11).context("a line of /proc/net/dev is too short")?;
            return drops.parse().with_context(|| format!("'{drops}' in /proc/net/dev is not a number"));
        }
    }
    bail!("there is no interface {name} in this namespace")
}

/// One `struct ifreq` and the socket that carries it.
struct Request {
    ifreq: libc::ifreq,
    socket: OwnedFd,
    name: String,
}

impl Request {
    fn new(name: &str) -> Result<Self> {
        Ok(Self { ifreq: named_ifreq(name)?, socket: control_socket(Domain::IPV4)?, name: name.to_owned() })
    }

    fn call(&mut self, request: libc::c_ulong, what: &str) -> Result<()> {
        // SAFETY: all requests of this module that come here take a pointer to one `struct ifreq`, which
        // `self` holds and which no one else uses during the call.
        let status = unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &raw mut self.ifreq) };
        if status < 0 {
            return Err(io::Error::last_os_error()).with_context(|| {
                format!("ioctl {what} on interface {} failed: root (CAP_NET_ADMIN) is needed", self.name)
            });
        }
        Ok(())
    }
}

/// An `ifreq` for the interface `name`, all else zero.
pub(crate) fn named_ifreq(name: &str) -> Result<libc::ifreq> {
    let name = CString::new(name).context("an interface name holds a zero byte")?;
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        bail!("the interface name {name:?} is longer than the {} bytes of the kernel", libc::IFNAMSIZ - 1);
    }
    // SAFETY: `ifreq` is plain data of the kernel's interface, for which all zeros is a value.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(ifreq)
}

fn control_socket(domain: Domain) -> Result<OwnedFd> {
    let socket = Socket::new(domain, Type::DGRAM, None)
        .with_context(|| format!("cannot open a {domain:?} socket to configure an interface"))?;
    Ok(socket.into())
}

/// An IPv4 address as the first bytes of a generic `sockaddr`: family, port, address.
fn ipv4_sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert!(named_ifreq("a_name_of_16_chr").is_err());
        assert!(named_ifreq("fifteen_letters").is_ok());
    }
}
