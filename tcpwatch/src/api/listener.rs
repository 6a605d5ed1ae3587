//! A listening socket as the API shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tcpwatch_common::record::ListenerRecord;

use super::ends;
use super::owner::Owner;
use crate::aggregate::owners::{self, Names};

/// One line of `/api/v1/listeners`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Listener {
    /// The kernel's cookie of the socket, as in `ss -e`.
    pub(crate) cookie: u64,
    /// Inode number of the network namespace.
    pub(crate) netns: u32,
    /// The address it listens on.
    pub(crate) local_address: IpAddr,
    /// The port.
    pub(crate) local_port: u16,
    /// Connections that wait to be accepted.
    pub(crate) queue: u32,
    /// The most that may wait.
    pub(crate) queue_limit: u32,
    /// Segments dropped.
    pub(crate) drops: u32,
    /// Handshakes under way.
    pub(crate) half_open: u32,
    /// Who owns it.
    pub(crate) owner: Owner,
}

impl Listener {
    /// What a record says.
    pub(crate) fn new(record: &ListenerRecord, names: &Names) -> Self {
        let local = ends(&record.key).0;
        Self {
            cookie: record.cookie,
            netns: record.key.netns,
            local_address: local.ip(),
            local_port: local.port(),
            queue: record.queue,
            queue_limit: record.backlog,
            drops: record.drops,
            half_open: record.half_open,
            owner: Owner::new(&owners::Owner::of_listener(record), names),
        }
    }
}
