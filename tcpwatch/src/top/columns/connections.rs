//! The table of connections.

use super::{Column, Key, Kind, Row, bytes, causes, container, duration, number, or_dash, table};
use crate::api::connection::{Connection, delivery_rate, quantiles};
use crate::api::{ends, state_name};
use crate::filter::ConnFacts;

impl Row for Connection {
    type Key = for<'n> fn(ConnFacts<'_, 'n>) -> Key<'n>;
    type Id = u64;
    const COLUMNS: &'static [Column<Self>] = table! {
        "local" "LOCAL" 12 0 Address ["local_address", "local_port"] "our address and port",
            |c| c.local().to_string(), |f| Key::Address(ends(&f.record.key).0);
        "remote" "REMOTE" 18 0 Address ["remote_address", "remote_port"] "the peer's address and port",
            |c| c.remote().to_string(), |f| Key::Address(ends(&f.record.key).1);
        "state" "STATE" 11 3 Text ["state"] "state of the connection",
            |c| c.state.to_string(), |f| Key::Text(state_name(f.record.state));
        "rtt" "RTT" 6 1 Number ["srtt_us"] "smoothed round-trip time",
            |c| duration(c.srtt_us), |f| number(f.record.srtt_us);
        "min" "MIN" 6 6 Number ["min_rtt_us"] "smallest round-trip time in the kernel's window",
            |c| duration(c.min_rtt_us),
            |f| number(if f.record.min_rtt_us == u32::MAX { 0 } else { f.record.min_rtt_us });
        "p99" "P99" 6 5 Number ["rtt_quantiles.p99_us"] "99th percentile of its round-trip times",
            |c| duration(c.rtt_quantiles.map(|q| q.p99_us)),
            |f| number(quantiles(f.record).map_or(0, |q| q.p99_us));
        "cwnd" "CWND" 5 4 Number ["cwnd_segments"] "congestion window, segments",
            |c| c.cwnd_segments.to_string(), |f| number(f.record.snd_cwnd);
        "flight" "FLGHT" 5 7 Number ["in_flight_segments"] "segments in flight",
            |c| c.in_flight_segments.to_string(), |f| number(f.record.in_flight());
        "retrans" "RETR" 5 1 Number ["retransmits_total"] "segments sent again",
            |c| c.retransmits_total.to_string(), |f| number(f.record.total_retrans);
        "causes" "BY CAUSE" 9 9 Text
            ["retransmits.fast", "retransmits.timeout", "retransmits.tail_loss_probe", "retransmits.syn",
             "retransmits.syn_ack", "retransmits.other"]
            "sent again by cause: f fast, t timeout, p tail loss probe, s SYN, a SYN-ACK, o other",
            |c| {
                let r = c.retransmits;
                causes([r.fast, r.timeout, r.tail_loss_probe, r.syn, r.syn_ack, r.other].map(u64::from))
            },
            |f| number(f.record.retrans.iter().fold(0_u64, |sum, count| sum + u64::from(*count)));
        "sent" "SENT" 6 7 Number ["sent_bytes"] "payload sent, bytes",
            |c| bytes(c.sent_bytes), |f| number(f.record.bytes_sent);
        "received" "RECV" 6 8 Number ["received_bytes"] "payload received, bytes",
            |c| bytes(c.received_bytes), |f| number(f.record.bytes_received);
        "rate" "RATE" 6 8 Number ["delivery_rate_bytes_per_second"] "delivery rate at its last sample, bytes a second",
            |c| c.delivery_rate_bytes_per_second.map_or_else(|| "-".to_owned(), bytes),
            |f| number(delivery_rate(f.record).unwrap_or(0));
        "limit" "LIMIT" 6 2 Text ["application_limited"]
            "what limited its sending for most of the time: app(lication), cwnd, rwnd or sndbuf",
            |c| shares(c).first().map_or("-", |(_, name)| name).to_owned(),
            |f| Key::text(limit(&f));
        "limits" "LIMITS" 17 11 Text
            ["application_limited_us", "congestion_window_limited_us", "receive_window_limited_us",
             "send_buffer_limited_us"]
            "the two limits that took most of the time, and their shares of it",
            |c| limits(c), |f| Key::text(limit(&f));
        "zero" "ZWIN" 4 10 Number ["peer_zero_windows", "local_zero_windows"]
            "times that a receive window was zero, the peer's and ours",
            |c| (u64::from(c.peer_zero_windows) + u64::from(c.local_zero_windows)).to_string(),
            |f| number(f.record.zero_windows.iter().fold(0_u64, |sum, count| sum + u64::from(*count)));
        "owner" "OWNER" 10 1 Text ["owner.comm", "pid"] "name and number of the process that owns it",
            |c| c.pid.map_or_else(|| "-".to_owned(), |pid| format!("{}/{pid}", c.comm)),
            |f| if f.record.pid == 0 { Key::Nothing } else { Key::Name(f.record.comm, f.record.pid) };
        "unit" "UNIT" 16 12 Text ["owner.unit"] "systemd unit of its owner",
            |c| or_dash(c.owner.unit.as_deref()),
            |f| Key::text(f.cgroup().and_then(|group| group.unit.as_deref()));
        "container" "CONTAINER" 12 13 Text ["owner.container"] "id of its owner's container, 12 digits of it",
            |c| container(c.owner.container.as_deref()),
            |f| Key::text(f.cgroup().and_then(|group| group.container.as_deref()));
    };
    const DEFAULT: &'static str = "sent";

    fn id(&self) -> u64 {
        self.cookie
    }
}

/// Names of limits.
const LIMITS: [&str; 4] = ["app", "cwnd", "rwnd", "sndbuf"];

/// What limited it, as parts of the time since it was established; what took most comes first.
pub(in crate::top) fn shares(connection: &Connection) -> Vec<(f64, &'static str)> {
    let times = [
        connection.application_limited_us.unwrap_or(0),
        connection.congestion_window_limited_us,
        connection.receive_window_limited_us,
        connection.send_buffer_limited_us,
    ];
    let all = times.iter().fold(0_u64, |sum, us| sum.saturating_add(*us)).max(1) as f64;
    let mut shares: Vec<_> = times.into_iter().zip(LIMITS).filter(|(us, _)| *us > 0).collect();
    // The last of equals is the one that is told.
    shares.reverse();
    shares.sort_by_key(|(us, _)| std::cmp::Reverse(*us));
    shares.into_iter().map(|(us, name)| (us as f64 / all, name)).collect()
}

fn limits(connection: &Connection) -> String {
    let two: Vec<_> =
        shares(connection).iter().take(2).map(|(share, name)| format!("{name} {:.0}%", share * 100.0)).collect();
    if two.is_empty() { "-".to_owned() } else { two.join(" ") }
}

/// The same by the record: what took most.
fn limit(facts: &ConnFacts<'_, '_>) -> Option<&'static str> {
    let record = facts.record;
    let [congestion, receive, buffer] = record.limited_jiffies.map(|jiffies| facts.moment.us(jiffies));
    let watched_us = match record.established_ns {
        0 => 0,
        since => record.header.ktime_ns.saturating_sub(since) / 1000,
    };
    let application = watched_us.saturating_sub(congestion + receive + buffer);
    let times = [application, congestion, receive, buffer].into_iter().zip(LIMITS);
    times.filter(|(us, _)| *us > 0).max_by_key(|(us, _)| *us).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::kept::Kept;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::{Listing, Selection};

    #[test]
    fn records_are_sorted_as_connections_say() {
        let records: Vec<_> = (0..200_u64)
            .map(|i| {
                let mut record = busy(i);
                (record.srtt_us, record.total_retrans) = ((i * 7919 % 97) as u32 * 100, (i % 7) as u32);
                record.state = 1 + (i % 11) as u8;
                record.limited_jiffies = [(i % 3) as u32 * 5000, (i % 5) as u32 * 900, (i % 2) as u32 * 9000];
                record.pid = (i % 9) as u32;
                Kept::new(&record)
            })
            .collect();
        let listing = Listing { ktime_ns: 10_000_000_000, records, ..Listing::default() };
        for column in Connection::COLUMNS {
            let all = Selection { sort: Some(column), ..Selection::default() };
            let words = |selection: &Selection| -> Vec<_> {
                let (page, total) = listing.page(250, selection);
                assert_eq!(total, 200);
                page.into_iter().map(|r| ((column.text)(&listing.connection(&r.record(), 250)), r.cookie)).collect()
            };
            let sorted = words(&all);
            // Equal words are neighbours, whatever the order.
            let mut texts: Vec<_> = sorted.iter().map(|(text, _)| text).collect();
            texts.dedup();
            let apart = texts.len();
            texts.sort();
            texts.dedup();
            let by_other = ["owner", "limits"].contains(&column.name);
            assert!(texts.len() == apart || by_other, "{}: {sorted:?}", column.name);
            let page =
                words(&Selection { offset: 50, limit: 20, ..Selection { sort: Some(column), ..Selection::default() } });
            assert_eq!(page, sorted[50..70], "{}", column.name);
            let mut turned = words(&Selection { reversed: true, sort: Some(column), ..Selection::default() });
            turned.reverse();
            assert_eq!(turned, sorted, "{}", column.name);
        }
    }

    #[test]
    fn the_limit_is_the_same_by_the_record_and_by_the_connection() {
        let moment = crate::api::Moment { ktime_ns: 10_000_000_000, ticks_per_second: 250 };
        for (limited, established_ns) in [([0; 3], 0), ([500, 250, 125], 1_040_000_000), ([1, 1999, 3], 1_500_000_000)]
        {
            let mut record = busy(1);
            (record.limited_jiffies, record.established_ns) = (limited, established_ns);
            let service = crate::aggregate::snapshot::Service::Other;
            let facts = ConnFacts { record: &record, service, moment, names: None };
            assert_eq!(limit(&facts), shares(&shown(&record)).first().map(|(_, name)| *name), "{limited:?}");
        }
    }
}
