//! What the API says, as types: made from records and snapshots, written by `http`, read back by `client` and `top`.
//!
//! Pure: every time comes in as a [`Moment`]. One object a line, keys in the order of the fields, units in the names.

pub(crate) mod connection;
pub(crate) mod event;
pub(crate) mod interest;
pub(crate) mod listener;
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
use std::sync::Arc;

use serde::Serialize;
use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::{Direction, TcpState};

use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;
use crate::filter::{ConnFacts, Filter};

/// The connection table at a moment. The records are shared with the table: it costs a pointer a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// When it was made, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// The newest record of each connection, in no order.
    pub(crate) records: Vec<Arc<ConnRecord>>,
    /// Direction and service of each group slot.
    pub(crate) services: Vec<(Direction, Service)>,
    /// Users and control groups.
    pub(crate) names: Arc<Names>,
}

impl Listing {
    /// What a slot is shown as.
    pub(crate) fn service(&self, slot: u32) -> Service {
        self.services.get(slot as usize).map_or(Service::Other, |(_, service)| *service)
    }

    /// What a filter looks at in a connection.
    pub(crate) fn facts<'a>(&'a self, record: &'a ConnRecord, ticks_per_second: u32) -> ConnFacts<'a> {
        let moment = Moment { ktime_ns: self.ktime_ns, ticks_per_second };
        ConnFacts { record, service: self.service(record.slot), moment, names: Some(&self.names) }
    }

    /// The connections that a filter selects, as the API shows them.
    pub(crate) fn connections(&self, ticks_per_second: u32, filter: Option<&Filter>) -> Vec<connection::Connection> {
        let moment = Moment { ktime_ns: self.ktime_ns, ticks_per_second };
        self.records
            .iter()
            .filter(|record| filter.is_none_or(|filter| filter.selects(&self.facts(record, ticks_per_second))))
            .map(|record| {
                let owner = owner::Owner::new(&owners::Owner::of(record), &self.names);
                connection::Connection {
                    owner,
                    ..connection::Connection::new(record, self.service(record.slot), moment)
                }
            })
            .collect()
    }
}

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
