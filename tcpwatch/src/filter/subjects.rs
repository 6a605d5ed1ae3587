//! What filters are asked of: records of the kernel, before a word is made of them, and connections as the API shows
//! them. Both know the same. Resets and services as the API shows them, too.

use std::borrow::Cow;
use std::net::IpAddr;

use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::Direction;

use super::{Fact, Subject, Value};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;
use crate::api::connection::Connection;
use crate::api::owner::Owner;
use crate::api::resets::Reset;
use crate::api::service::ServiceTotals;
use crate::api::{Moment, ends, state_name, text::printable};
use crate::cgroup::Cgroup;

/// A connection by its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnFacts<'r, 'n> {
    /// The record.
    pub(crate) record: &'r ConnRecord,
    /// What it is counted under.
    pub(crate) service: Service,
    /// The moment at which its age is asked.
    pub(crate) moment: Moment,
    /// Names of control groups, where they are known.
    pub(crate) names: Option<&'n Names>,
}

/// Of both ends.
pub(crate) fn of_key(key: &ConnKey, fact: Fact) -> Option<Value<'static>> {
    let (local, remote) = ends(key);
    Some(match fact {
        Fact::LocalPort => Value::Number(local.port().into()),
        Fact::PeerPort => Value::Number(remote.port().into()),
        Fact::Local => Value::Address(local.ip()),
        Fact::Peer => Value::Address(remote.ip()),
        Fact::Netns => Value::Number(key.netns.into()),
        _ => return None,
    })
}

impl<'n> ConnFacts<'_, 'n> {
    /// The control group of its owner.
    pub(crate) fn cgroup(&self) -> Option<&'n Cgroup> {
        self.names?.cgroup(&owners::Owner::of(self.record))
    }
}

impl Subject for ConnFacts<'_, '_> {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        let record = self.record;
        let known = |us: u32| (us > 0 && us != u32::MAX).then_some(u64::from(us));
        let number = match fact {
            Fact::State => return Some(state_name(record.state).into()),
            Fact::Direction => return Some(Direction::from_u8(record.direction).name().into()),
            Fact::Service => return Some(Value::Text(self.service.label().into())),
            Fact::Comm => return name(printable(&record.comm).into()),
            Fact::Pid => (record.pid != 0).then_some(record.pid.into()),
            Fact::User => Some(owners::Owner::of(record).uid.into()),
            Fact::Cgroup => return borrowed(&self.cgroup()?.path),
            Fact::Unit => return borrowed(self.cgroup()?.unit.as_deref()?),
            Fact::Container => return borrowed(self.cgroup()?.container.as_deref()?),
            Fact::Cookie => Some(record.cookie),
            Fact::Srtt => known(record.srtt_us),
            Fact::MinRtt => known(record.min_rtt_us),
            Fact::Rto => Some(self.moment.us(record.rto_jiffies)),
            Fact::Age => Some(self.moment.age_ms(record.started_ns) * 1000),
            Fact::Cwnd => Some(record.snd_cwnd.into()),
            Fact::InFlight => Some(record.in_flight().into()),
            Fact::Retransmits => Some(record.total_retrans.into()),
            Fact::Sent => Some(record.bytes_sent),
            Fact::Received => Some(record.bytes_received),
            Fact::Unread => Some(record.unread_bytes.into()),
            Fact::Unsent => Some(record.unsent_bytes.into()),
            Fact::Unacked => Some(record.unacked_bytes.into()),
            Fact::Mss => Some(record.mss.into()),
            other => return of_key(&record.key, other),
        };
        number.map(Value::Number)
    }
}

impl Subject for Owner {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        match fact {
            Fact::Pid => Some(Value::Number(self.pid?.into())),
            Fact::Comm => borrowed(&self.comm),
            Fact::User => Some(Value::Number(self.uid.into())),
            Fact::Cgroup => borrowed(self.cgroup.as_deref()?),
            Fact::Unit => borrowed(self.unit.as_deref()?),
            Fact::Container => borrowed(self.container.as_deref()?),
            _ => None,
        }
    }
}

impl Subject for Connection {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        if fact.is_of_owner() {
            return self.owner.fact(fact);
        }
        let address = |address: IpAddr| Some(Value::Address(address));
        let number = match fact {
            Fact::Local => return address(self.local_address),
            Fact::Peer => return address(self.remote_address),
            Fact::State => return name(Cow::Borrowed(&self.state)),
            Fact::Direction => return name(Cow::Borrowed(&self.direction)),
            Fact::Service => return name(Cow::Borrowed(&self.service)),
            Fact::LocalPort => Some(self.local_port.into()),
            Fact::PeerPort => Some(self.remote_port.into()),
            Fact::Netns => Some(self.netns.into()),
            Fact::Cookie => Some(self.cookie),
            Fact::Srtt => self.srtt_us.map(u64::from),
            Fact::MinRtt => self.min_rtt_us.map(u64::from),
            Fact::Rto => Some(self.rto_us),
            Fact::Age => Some(self.age_ms * 1000),
            Fact::Cwnd => Some(self.cwnd_segments.into()),
            Fact::InFlight => Some(self.in_flight_segments.into()),
            Fact::Retransmits => Some(self.retransmits_total.into()),
            Fact::Sent => Some(self.sent_bytes),
            Fact::Received => Some(self.received_bytes),
            Fact::Unread => Some(self.unread_bytes.into()),
            Fact::Unsent => Some(self.unsent_bytes.into()),
            Fact::Unacked => Some(self.unacked_bytes.into()),
            Fact::Mss => Some(self.mss_bytes.into()),
            _ => None,
        };
        number.map(Value::Number)
    }
}

impl Subject for Reset {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        if fact.is_of_owner() {
            return self.owner.as_ref()?.fact(fact);
        }
        let socket = self.socket.as_ref();
        let number = match fact {
            Fact::Local => return self.local_address.map(Value::Address),
            Fact::Peer => return self.remote_address.map(Value::Address),
            Fact::State => return borrowed(self.state.as_deref()?),
            Fact::Cause => return borrowed(self.cause.as_deref()?),
            Fact::Origin => return borrowed(self.origin.as_deref()?),
            Fact::Reason => return borrowed(self.reason.as_deref()?),
            Fact::Kind => return name(Cow::Owned(format!("reset_{}", self.direction))),
            Fact::LocalPort => self.local_port.map(u64::from),
            Fact::PeerPort => self.remote_port.map(u64::from),
            Fact::Netns => Some(self.netns.into()),
            Fact::Cookie => self.cookie,
            Fact::Age => self.age_ms.map(|ms| ms * 1000),
            Fact::Srtt => socket.and_then(|socket| socket.srtt_us).map(u64::from),
            Fact::Cwnd => socket.map(|socket| socket.cwnd_segments.into()),
            Fact::Retransmits => socket.map(|socket| socket.retransmits_total.into()),
            Fact::Sent => socket.map(|socket| socket.sent_bytes),
            Fact::Received => socket.map(|socket| socket.received_bytes),
            Fact::Unread => socket.map(|socket| socket.unread_bytes.into()),
            Fact::Unsent => socket.map(|socket| socket.unsent_bytes.into()),
            Fact::Unacked => socket.map(|socket| socket.unacked_bytes.into()),
            _ => None,
        };
        number.map(Value::Number)
    }
}

impl Subject for ServiceTotals {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        let port = |direction: &str| {
            let port = self.service.parse().ok().filter(|_| self.direction == direction)?;
            Some(Value::Number(port))
        };
        match fact {
            Fact::Direction => borrowed(&self.direction),
            Fact::Service => borrowed(&self.service),
            Fact::LocalPort => port("inbound"),
            Fact::PeerPort => port("outbound"),
            Fact::Sent => Some(Value::Number(self.totals.sent_bytes)),
            Fact::Received => Some(Value::Number(self.totals.received_bytes)),
            Fact::Retransmits => Some(Value::Number(self.totals.retransmitted_segments.values().sum())),
            _ => None,
        }
    }
}

/// A name; an empty one is not known.
fn name(text: Cow<'_, str>) -> Option<Value<'_>> {
    (!text.is_empty()).then_some(Value::Text(text))
}

fn borrowed(text: &str) -> Option<Value<'_>> {
    name(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use super::super::Filter;
    use super::super::facts::TABLE;
    use super::*;
    use crate::aggregate::kept::Kept;
    use crate::api::Listing;
    use crate::api::connection::tests::{busy, named, shown};

    #[test]
    fn records_and_connections_know_the_same() {
        let mut quiet = busy(2);
        (quiet.pid, quiet.srtt_us, quiet.min_rtt_us, quiet.comm) = (0, 0, u32::MAX, [0; 16]);
        let moment = Moment { ktime_ns: 10_000_000_000, ticks_per_second: 250 };
        let (mut contained, mut unowned, names) = (busy(3), busy(4), named());
        contained.cgroup = 51;
        (unowned.pid, unowned.uid, unowned.cgroup, unowned.comm) = (0, 1000, 0, [0; 16]);
        for record in [busy(1), quiet, contained, unowned] {
            let facts = ConnFacts { record: &record, service: Service::Port(443), moment, names: Some(&names) };
            let connection = shown(&record);
            let known = TABLE.iter().filter(|entry| facts.fact(entry.fact).is_some()).count();
            assert!(known > 15, "{known}");
            for entry in TABLE {
                assert_eq!(facts.fact(entry.fact), connection.fact(entry.fact), "{}", entry.word);
            }
        }
    }

    #[test]
    fn owners_are_selected_by_what_is_known_of_them() {
        let (mut contained, mut unowned, mut older) = (busy(2), busy(3), busy(4));
        contained.cgroup = 51;
        (unowned.pid, unowned.uid, unowned.cgroup, unowned.comm) = (0, 1000, 0, [0; 16]);
        older.cgroup = 52;
        let all = [busy(1), contained, unowned, older];
        for (filter, selected) in [
            ("cgroup nginx.service", vec![1]),
            ("cgroup /system.slice/nginx.service", vec![1]),
            ("cgroup system.slice/docker-*", vec![2]),
            ("cgroup system.slice", vec![1, 2]),
            ("cgroup slice/nginx.service or cgroup nginx", vec![]),
            ("not cgroup nginx.service", vec![2]),
            ("unit nginx.service", vec![1]),
            ("unit docker-*", vec![2]),
            ("container 4f4f4f4f4f4f*", vec![2]),
            ("not known container", vec![1, 3, 4]),
            ("not known cgroup", vec![3, 4]),
            ("user 33", vec![1, 2, 4]),
            ("user 1000", vec![3]),
            ("comm nginx and pid 812", vec![1, 2, 4]),
        ] {
            let filter: Filter = filter.parse().unwrap();
            let found = all.iter().filter(|record| filter.selects(&shown(record)));
            assert_eq!(found.map(|record| record.cookie).collect::<Vec<_>>(), selected, "{filter}");
            let listing = Listing {
                ktime_ns: 10_000_000_000,
                records: all.iter().map(Kept::new).collect(),
                names: named(),
                ..Listing::default()
            };
            let found = listing.connections(250, Some(&filter));
            assert_eq!(found.iter().map(|found| found.cookie).collect::<Vec<_>>(), selected, "{filter}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_selected_either_way() {
        let connection = shown(&busy(1));
        let mut unknown = busy(2);
        (unknown.pid, unknown.uid) = (0, 33);
        let unknown = shown(&unknown);
        for (filter, of_known, of_unknown) in [
            ("pid 812", true, false),
            ("not pid 812", false, false),
            ("not pid 5", true, false),
            ("not pid 5 or port 443", true, true),
            ("not pid 5 and port 443", true, false),
            ("not known pid", false, true),
            ("kind close", false, false),
            ("port 443 and peer 203.0.113.0/24 and state established and direction inbound", true, true),
            ("host 10.0.0.1 and not host 10.0.0.2", true, true),
            ("port != 443", false, false),
            ("srtt > 41ms", false, false),
            ("srtt >= 41ms and sent > 1MB and retransmits > 0 and cwnd < 21 and age > 8s", true, true),
            ("ipv6", false, false),
            ("comm ngin* and user 33", true, true),
        ] {
            let filter: Filter = filter.parse().unwrap();
            assert_eq!((filter.selects(&connection), filter.selects(&unknown)), (of_known, of_unknown), "{filter}");
        }
    }
}
