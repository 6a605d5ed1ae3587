//! `/metrics/connections`: some connections as metrics, for those who accept the cardinality.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};

use super::Pages;
use super::params::{Params, Refusal};
use crate::api::connection::Connection;
use crate::metrics::Format;
use crate::sys;

/// Connections that are shown, at most.
const MOST: usize = 200;
/// Connections that are shown when nothing is said.
const USUAL: usize = 20;

const OFF: &str =
    "it is off, because each connection becomes a series; set connection_metrics = true in the configuration\n";

/// What makes a connection come before others: the larger, the sooner.
type Order = fn(&Connection) -> u64;

/// By what connections are chosen.
const SORTS: [(&str, Order); 4] = [
    ("retransmits", |c| c.retransmits_total.into()),
    ("srtt", |c| c.srtt_us.unwrap_or(0).into()),
    ("bytes", |c| c.sent_bytes.saturating_add(c.received_bytes)),
    ("cwnd", |c| c.cwnd_segments.into()),
];

struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Connection) -> Option<f64>,
}

fn seconds(us: Option<u32>) -> Option<f64> {
    us.map(|us| f64::from(us) / 1e6)
}

const METRICS: [Metric; 8] = [
    Metric { name: "srtt_seconds", kind: "gauge", help: "Smoothed round-trip time.", value: |c| seconds(c.srtt_us) },
    Metric {
        name: "min_rtt_seconds",
        kind: "gauge",
        help: "Smallest round-trip time in the kernel's window.",
        value: |c| seconds(c.min_rtt_us),
    },
    Metric {
        name: "congestion_window_segments",
        kind: "gauge",
        help: "Congestion window.",
        value: |c| Some(c.cwnd_segments.into()),
    },
    Metric {
        name: "slow_start_threshold_segments",
        kind: "gauge",
        help: "Slow-start threshold; absent while there is none.",
        value: |c| c.ssthresh_segments.map(f64::from),
    },
    Metric {
        name: "retransmitted_segments_total",
        kind: "counter",
        help: "Segments sent again.",
        value: |c| Some(c.retransmits_total.into()),
    },
    Metric {
        name: "sent_bytes_total",
        kind: "counter",
        help: "Payload sent, retransmissions included.",
        value: |c| Some(c.sent_bytes as f64),
    },
    Metric {
        name: "received_bytes_total",
        kind: "counter",
        help: "Received in order, a FIN counted as one byte.",
        value: |c| Some(c.received_bytes as f64),
    },
    Metric {
        name: "unacked_bytes",
        kind: "gauge",
        help: "Sent and not acknowledged.",
        value: |c| Some(c.unacked_bytes.into()),
    },
];

/// How many connections are wanted, and which.
pub(super) fn asked(uri: &Uri) -> Result<(usize, Order), Refusal> {
    let params = Params::of(uri, &["top", "sort"])?;
    let most = params.number("top", MOST)?.unwrap_or(USUAL);
    let by = |name: &str| {
        let sort = SORTS.iter().find(|(sort, _)| *sort == name).map(|(_, by)| *by);
        let names = SORTS.map(|(sort, _)| sort).join(", ");
        sort.ok_or_else(|| format!("sort is {name:?}; it must be one of {names}"))
    };
    let [(_, usual), ..] = SORTS;
    Ok((most, params.get("sort", by)?.unwrap_or(usual)))
}

pub(super) async fn connections(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    if !pages.connection_metrics {
        return Err((StatusCode::NOT_FOUND, OFF).into_response());
    }
    let (most, sort) = asked(&uri).map_err(Refusal::into_response)?;
    let listing = pages.listing().await?;
    let text = pages.in_turn(move || text(listing.connections(sys::ticks_per_second(), None), most, sort)).await?;
    Ok(([(header::CONTENT_TYPE, Format::Text.content_type())], text).into_response())
}

fn text(mut connections: Vec<Connection>, most: usize, sort: Order) -> String {
    connections.sort_by_cached_key(|c| (Reverse(sort(c)), c.cookie));
    // A scrape with the same series twice is refused: an old connection may still be there beside the new one.
    let mut seen = HashSet::new();
    let mut shown: Vec<(String, Connection)> = Vec::new();
    for connection in connections {
        if shown.len() == most {
            break;
        }
        let labels = format!(
            "local=\"{}\",remote=\"{}\",netns=\"{}\",direction=\"{}\",service=\"{}\"",
            connection.local(),
            connection.remote(),
            connection.netns,
            connection.direction,
            connection.service
        );
        if seen.insert(labels.clone()) {
            shown.push((labels, connection));
        }
    }
    let mut text = String::new();
    for Metric { name, kind, help, value } in METRICS {
        let _to_memory =
            writeln!(text, "# HELP tcpwatch_connection_{name} {help}\n# TYPE tcpwatch_connection_{name} {kind}");
        for (labels, connection) in &shown {
            if let Some(value) = value(connection) {
                let _to_memory = writeln!(text, "tcpwatch_connection_{name}{{{labels}}} {value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};

    #[test]
    fn the_first_by_an_order_are_shown_and_no_series_twice() {
        let connections = |count: u64| {
            let one = |cookie| {
                let mut record = busy(cookie);
                (record.total_retrans, record.key.remote_port) = (cookie as u32 / 2, 1000 + (cookie / 2) as u16);
                shown(&record)
            };
            (0..count).map(one).collect()
        };
        let (_, by_retransmits) = SORTS[0];
        let lines = text(connections(1000), MOST, by_retransmits);
        let series: Vec<_> = lines.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series.len(), MOST * METRICS.len());
        assert_eq!(
            series.iter().map(|line| line.rsplit_once(' ').unwrap().0).collect::<HashSet<_>>().len(),
            series.len()
        );
        let first = "tcpwatch_connection_srtt_seconds{local=\"10.0.0.1:443\",remote=\"203.0.113.9:1499\",\
                     netns=\"4026531840\",direction=\"inbound\",service=\"443\"} 0.041";
        assert_eq!(series[0], first);
    }
}
