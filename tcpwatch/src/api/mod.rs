//! What the API says, as types: made from records and snapshots, written by `http`, read back by `client` and `top`.
//!
//! Pure: every time comes in as a [`Moment`]. One object a line, keys in the order of the fields, units in the names.

pub(crate) mod connection;
pub(crate) mod event;
pub(crate) mod interest;
pub(crate) mod listener;
mod listing;
pub(crate) mod owner;
pub(crate) mod proof;
pub(crate) mod resets;
#[cfg(test)]
mod schema;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod storm;
pub(crate) mod text;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::state::TcpState;

pub(crate) use self::listing::{Listing, Selection};

/// What the clock says where something is turned into words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// Jiffies in a second.
    pub(crate) ticks_per_second: u32,
}

impl Moment {
    /// How long ago something was.
    pub(crate) fn age_ms(self, since_ns: u64) -> u64 {
        self.ktime_ns.saturating_sub(since_ns) / 1_000_000
    }

    /// A number of jiffies, µs.
    pub(crate) fn us(self, jiffies: u32) -> u64 {
        u64::from(jiffies) * 1_000_000 / u64::from(self.ticks_per_second.max(1))
    }
}

/// One line of JSON, with its end.
pub(crate) fn line(object: &impl Serialize) -> String {
    // Only maps with keys that are no strings, or a failing `Serialize`, cannot be written; these types have neither.
    let mut text = serde_json::to_string(object).unwrap_or_default();
    text.push('\n');
    text
}

/// Our end and the peer's.
pub(crate) fn ends(key: &ConnKey) -> (SocketAddr, SocketAddr) {
    let end = |address: [u8; 16], port| {
        let address = Ipv6Addr::from(address);
        let shown = if key.ip_version == 4 { address.to_canonical() } else { IpAddr::V6(address) };
        SocketAddr::new(shown, port)
    };
    (end(key.local, key.local_port), end(key.remote, key.remote_port))
}

/// The name of a state; a number that no kernel we know has is shown as unknown.
pub(crate) fn state_name(number: u8) -> &'static str {
    TcpState::from_u8(number).map_or("UNKNOWN", TcpState::name)
}
