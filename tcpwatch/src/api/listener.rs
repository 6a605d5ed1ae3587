//! A listening socket as the API shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tcpwatch_common::record::ListenerRecord;

use super::ends;
use super::owner::Owner;
use crate::aggregate::owners::{self, Names};

/// One line of `/api/v1/listeners`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

#[cfg(test)]
pub(super) mod tests {
    use tcpwatch_common::owner::OwnerKind;
    use tcpwatch_common::record::{ABI, Header, Kind, decode, encode};
    use tcpwatch_common::record::{ListenerRecord, Record};

    use super::super::connection::tests::named;
    use super::*;

    /// One with every field.
    pub(in crate::api) fn shown() -> Listener {
        let len = size_of::<ListenerRecord>();
        let mut bytes = vec![0; len];
        let header = Header { kind: Kind::Listener as u16, abi: ABI, len: len as u32, ktime_ns: 9_000_000_000 };
        encode(&header, &mut bytes).unwrap();
        let Record::Listener(mut record) = decode(&bytes).unwrap() else { panic!("not a listener") };
        (record.key.local_port, record.backlog, record.queue) = (443, 128, 3);
        (record.pid, record.owner_uid, record.cgroup, record.owner_kind) = (812, 33, 50, OwnerKind::Listen as u32);
        Listener::new(&record, &named())
    }

    #[test]
    fn a_line_is_as_agreed() {
        let expected = r#"{"cookie":0,"netns":0,"local_address":"::","local_port":443,"queue":3,"queue_limit":128,"drops":0,"half_open":0,"owner":{"pid":812,"comm":"","uid":33,"user":"www-data","cgroup":"/system.slice/nginx.service","unit":"nginx.service","container":null,"pod":null,"known_by":"listen","orphan":false,"exited":false}}"#;
        assert_eq!(super::super::line(&shown()).trim_end(), expected);
    }
}
