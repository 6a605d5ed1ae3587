//! Resets that somebody intends: they are counted as ever, listed as muted, and never make a storm.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::evidence::Detail;
use super::{CAUSES, Pair};
use crate::aggregate::snapshot::Service;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// `10.0.0.0/8`, `2001:db8::/32` or a single address; no bits may be set beyond the prefix.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|c| c.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= width)?
            }
            Some(_) => return None,
            None => width,
        };
        let prefix = Self { address, bits };
        (prefix.masked(address) == number(address)).then_some(prefix)
    }

    /// As it is written.
    pub(crate) fn show(&self) -> String {
        format!("{}/{}", self.address, self.bits)
    }

    /// Whether `address` is in it.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.masked(address) == number(self.address)
    }

    fn masked(&self, address: IpAddr) -> u128 {
        let rest = if address.is_ipv4() { 32 - self.bits } else { 128 - self.bits };
        let kept = number(address).checked_shr(rest.into()).unwrap_or(0);
        kept.checked_shl(rest.into()).unwrap_or(0)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// What is intended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mute {
    /// Causes.
    pub(crate) causes: Vec<String>,
    /// Services.
    pub(crate) ports: Vec<u16>,
    /// Other ends.
    pub(crate) peers: Vec<Prefix>,
}

impl Mute {
    /// What mutes a service and cause as a whole.
    pub(super) fn pair(&self, (_, service, cause): Pair) -> Option<&'static str> {
        let port = match service {
            Service::Port(port) => self.ports.contains(&port),
            Service::Other | Service::None => false,
        };
        if CAUSES.get(cause).is_some_and(|name| self.causes.iter().any(|muted| muted == name)) {
            Some("cause")
        } else {
            port.then_some("port")
        }
    }

    /// Whether a reset is muted by its peer, or by its port where the service does not tell of that.
    pub(super) fn detail(&self, service: Service, detail: &Detail) -> bool {
        let unnamed = !matches!(service, Service::Port(_));
        self.peers.iter().any(|prefix| prefix.contains(detail.peer)) || unnamed && self.ports.contains(&detail.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_hold_their_addresses_and_no_others() {
        let inside = |prefix: &str, address: &str| Prefix::parse(prefix).unwrap().contains(address.parse().unwrap());
        assert!(inside("10.0.0.0/8", "10.255.0.1") && !inside("10.0.0.0/8", "11.0.0.1"));
        assert!(inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1"));
        assert!(inside("2001:db8::/32", "2001:db8:1::9") && !inside("2001:db8::/32", "2001:db9::"));
        assert!(inside("::/0", "::1") && inside("192.0.2.7", "192.0.2.7") && !inside("192.0.2.7", "192.0.2.8"));
        for wrong in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "x", "", "::/129"] {
            assert_eq!(Prefix::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Prefix::parse("10.0.0.0/8").unwrap().show(), "10.0.0.0/8");
    }
}
