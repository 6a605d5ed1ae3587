//! THE TABLE of columns: what is shown of a connection, how wide, and by what it is sorted. `top`, `top --once` and the
//! `sort` of the API have it from here.

use std::cmp::Reverse;

use crate::api::connection::Connection;

/// A column.
#[derive(Debug)]
pub(crate) struct Column {
    /// Its name on the command line and in the API.
    pub(crate) name: &'static str,
    /// Its title.
    pub(crate) title: &'static str,
    /// What it shows.
    pub(crate) help: &'static str,
    /// Width on a terminal.
    pub(crate) width: u16,
    /// Those with the highest number go first where the terminal is narrow.
    pub(crate) rank: u8,
    /// Numbers are flush right.
    pub(crate) numeric: bool,
    /// What it shows of a connection.
    pub(crate) text: fn(&Connection) -> String,
    key: fn(&Connection) -> Key,
}

/// By what a column is sorted: numbers from the largest, everything else from the smallest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(Reverse<u64>),
    Text(String),
    Address(std::net::SocketAddr),
}

/// The columns, from left to right.
pub(crate) const COLUMNS: &[Column] = &[
    Column {
        name: "local",
        title: "LOCAL",
        help: "our address and port",
        width: 12,
        rank: 0,
        numeric: false,
        text: |c| c.local().to_string(),
        key: |c| Key::Address(c.local()),
    },
    Column {
        name: "remote",
        title: "REMOTE",
        help: "the peer's address and port",
        width: 18,
        rank: 0,
        numeric: false,
        text: |c| c.remote().to_string(),
        key: |c| Key::Address(c.remote()),
    },
    Column {
        name: "state",
        title: "STATE",
        help: "state of the connection",
        width: 11,
        rank: 3,
        numeric: false,
        text: |c| c.state.to_string(),
        key: |c| Key::Text(c.state.to_string()),
    },
    Column {
        name: "rtt",
        title: "RTT",
        help: "smoothed round-trip time",
        width: 6,
        rank: 1,
        numeric: true,
        text: |c| duration(c.srtt_us),
        key: |c| number(c.srtt_us.unwrap_or(0)),
    },
    Column {
        name: "min",
        title: "MIN",
        help: "smallest round-trip time in the kernel's window",
        width: 6,
        rank: 5,
        numeric: true,
        text: |c| duration(c.min_rtt_us),
        key: |c| number(c.min_rtt_us.unwrap_or(0)),
    },
    Column {
        name: "p99",
        title: "P99",
        help: "99th percentile of its round-trip times",
        width: 6,
        rank: 2,
        numeric: true,
        text: |c| duration(c.rtt_quantiles.map(|q| q.p99_us)),
        key: |c| number(c.rtt_quantiles.map_or(0, |q| q.p99_us)),
    },
    Column {
        name: "cwnd",
        title: "CWND",
        help: "congestion window, segments",
        width: 5,
        rank: 4,
        numeric: true,
        text: |c| c.cwnd_segments.to_string(),
        key: |c| number(c.cwnd_segments),
    },
    Column {
        name: "flight",
        title: "FLGHT",
        help: "segments in flight",
        width: 5,
        rank: 6,
        numeric: true,
        text: |c| c.in_flight_segments.to_string(),
        key: |c| number(c.in_flight_segments),
    },
    Column {
        name: "retrans",
        title: "RETR",
        help: "segments sent again",
        width: 5,
        rank: 1,
        numeric: true,
        text: |c| c.retransmits_total.to_string(),
        key: |c| number(c.retransmits_total),
    },
    Column {
        name: "sent",
        title: "SENT",
        help: "payload sent, bytes",
        width: 6,
        rank: 7,
        numeric: true,
        text: |c| bytes(c.sent_bytes),
        key: |c| number(c.sent_bytes),
    },
    Column {
        name: "received",
        title: "RECV",
        help: "payload received, bytes",
        width: 6,
        rank: 8,
        numeric: true,
        text: |c| bytes(c.received_bytes),
        key: |c| number(c.received_bytes),
    },
    Column {
        name: "rate",
        title: "RATE",
        help: "delivery rate at its last sample, bytes a second",
        width: 6,
        rank: 9,
        numeric: true,
        text: |c| c.delivery_rate_bytes_per_second.map_or_else(|| "-".to_owned(), bytes),
        key: |c| number(c.delivery_rate_bytes_per_second.unwrap_or(0)),
    },
    Column {
        name: "limit",
        title: "LIMIT",
        help: "what limited its sending for most of the time: application, cwnd, rwnd or sndbuf",
        width: 6,
        rank: 10,
        numeric: false,
        text: |c| limit(c).to_owned(),
        key: |c| Key::Text(limit(c).to_owned()),
    },
    Column {
        name: "owner",
        title: "OWNER",
        help: "name and number of the process that owns it",
        width: 10,
        rank: 1,
        numeric: false,
        text: owner,
        key: |c| Key::Text(owner(c)),
    },
    Column {
        name: "unit",
        title: "UNIT",
        help: "systemd unit of its owner",
        width: 16,
        rank: 9,
        numeric: false,
        text: |c| or_dash(c.owner.unit.as_deref()),
        key: |c| Key::Text(or_dash(c.owner.unit.as_deref())),
    },
    Column {
        name: "container",
        title: "CONTAINER",
        help: "id of its owner's container, 12 digits of it",
        width: 12,
        rank: 10,
        numeric: false,
        text: |c| or_dash(c.owner.container.as_deref().and_then(|id| id.get(..12))),
        key: |c| Key::Text(or_dash(c.owner.container.as_deref())),
    },
];

/// The column that is sorted by when nothing else is asked for.
pub(crate) const DEFAULT: &str = "sent";

/// A name that is none of a column.
#[derive(Debug, thiserror::Error)]
#[error("there is no column {0:?}; there are {names}", names = names().join(", "))]
pub(crate) struct NoColumn(String);

/// The names of the columns.
pub(crate) fn names() -> Vec<&'static str> {
    COLUMNS.iter().map(|column| column.name).collect()
}

/// The column of this name.
pub(crate) fn find(name: &str) -> Result<&'static Column, NoColumn> {
    COLUMNS.iter().find(|column| column.name == name).ok_or_else(|| NoColumn(name.to_owned()))
}

/// Sorts by a column; the cookie decides between equals, so that rows do not jump.
pub(crate) fn sort(connections: &mut [Connection], column: &Column, reversed: bool) {
    connections.sort_by_cached_key(|connection| ((column.key)(connection), connection.cookie));
    if reversed {
        connections.reverse();
    }
}

/// The columns that fit into `width`, and how wide each is; the addresses share what is left.
pub(crate) fn fitting(width: u16) -> Vec<(&'static Column, u16)> {
    let total = |shown: &[&Column]| shown.iter().map(|column| column.width + 1).sum::<u16>().saturating_sub(1);
    let mut shown: Vec<&'static Column> = COLUMNS.iter().collect();
    while total(&shown) > width {
        let Some(last) = shown.iter().map(|column| column.rank).max().filter(|rank| *rank > 0) else { break };
        shown.retain(|column| column.rank != last);
    }
    let addresses = shown.iter().filter(|column| column.rank == 0).count() as u16;
    let spare = width.saturating_sub(total(&shown)) / addresses.max(1);
    shown.into_iter().map(|column| (column, column.width + if column.rank == 0 { spare.min(32) } else { 0 })).collect()
}

fn number(value: impl Into<u64>) -> Key {
    Key::Number(Reverse(value.into()))
}

fn owner(connection: &Connection) -> String {
    match connection.pid {
        Some(pid) => format!("{}/{pid}", connection.comm),
        None => "-".to_owned(),
    }
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn limit(connection: &Connection) -> &'static str {
    let all = [
        (connection.application_limited_us.unwrap_or(0), "app"),
        (connection.congestion_window_limited_us, "cwnd"),
        (connection.receive_window_limited_us, "rwnd"),
        (connection.send_buffer_limited_us, "sndbuf"),
    ];
    all.into_iter().filter(|(us, _)| *us > 0).max_by_key(|(us, _)| *us).map_or("-", |(_, name)| name)
}

/// A time in µs, in at most seven characters.
pub(crate) fn duration(us: Option<u32>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us @ ..1_000) => format!("{us}us"),
        Some(us @ ..10_000) => format!("{:.2}ms", f64::from(us) / 1e3),
        Some(us @ ..100_000) => format!("{:.1}ms", f64::from(us) / 1e3),
        Some(us @ ..1_000_000) => format!("{:.0}ms", f64::from(us) / 1e3),
        Some(us) => format!("{:.2}s", f64::from(us) / 1e6),
    }
}

/// A number of bytes in at most six characters.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};

    #[test]
    fn names_are_unique_and_titles_fit() {
        for (i, column) in COLUMNS.iter().enumerate() {
            assert!(COLUMNS[..i].iter().all(|other| other.name != column.name), "{}", column.name);
            assert!(column.title.len() <= usize::from(column.width), "{}", column.name);
        }
        assert!(find(DEFAULT).is_ok());
        assert!(find("x").unwrap_err().to_string().contains("there are local, remote, state"));
    }

    #[test]
    fn what_fits_is_shown_and_the_addresses_get_the_rest() {
        for width in [80, 120, 200] {
            let shown = fitting(width);
            let total: u16 = shown.iter().map(|(_, width)| width + 1).sum();
            assert!(total - 1 <= width, "{width}");
            assert!(["local", "remote", "rtt", "owner"].iter().all(|n| shown.iter().any(|(c, _)| c.name == *n)));
        }
        assert_eq!(fitting(200).len(), COLUMNS.len());
        assert_eq!(fitting(1).len(), 2);
    }

    #[test]
    fn numbers_come_from_the_largest_and_names_from_the_smallest() {
        let mut all: Vec<_> = [(1, 5), (2, 9), (3, 9)]
            .map(|(cookie, bytes_sent)| {
                let mut record = busy(cookie);
                record.bytes_sent = bytes_sent;
                record.key.local_port = 100 - cookie as u16;
                shown(&record)
            })
            .into();
        let mut order = |name, reversed| {
            sort(&mut all, find(name).unwrap(), reversed);
            all.iter().map(|c| c.cookie).collect::<Vec<_>>()
        };
        assert_eq!(order("sent", false), [2, 3, 1]);
        assert_eq!(order("local", false), [3, 2, 1]);
        assert_eq!(order("local", true), [1, 2, 3]);
    }

    #[test]
    fn values_keep_their_width() {
        for us in [0, 999, 1_000, 9_999, 10_000, 99_999, 100_000, 999_999, 1_000_000, 99_000_000] {
            assert!(duration(Some(us)).len() <= 7, "{us}: {}", duration(Some(us)));
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1.0K"), (999_499, "999K"), (1_500_000, "1.5M")] {
            assert_eq!(bytes(count), text);
        }
        assert!(bytes(u64::MAX).len() <= 6);
    }
}
