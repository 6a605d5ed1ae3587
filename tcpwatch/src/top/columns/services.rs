//! The table of services.

use super::{Column, Key, Kind, Row, bytes, causes, count, duration, number, table};
use crate::api::service::{Quantiles, Rates, ServiceTotals};

impl Row for ServiceTotals {
    type Key = for<'a> fn(&'a Self) -> Key<'a>;
    type Id = (String, String);
    const COLUMNS: &'static [Column<Self>] = table! {
        "service" "SERVICE" 7 0 Text ["service"] "its port, other or none",
            |s| s.service.clone(),
            // Ports as numbers, before words.
            |s| s.service.parse::<u16>().map_or(Key::Text(&s.service), |port| number(u16::MAX - port));
        "direction" "DIRECTION" 9 0 Text ["direction"] "inbound, outbound or unknown: which end opened",
            |s| s.direction.clone(), |s| Key::Text(&s.direction);
        "opened" "OPEN/S" 6 2 Number ["rates.opened_per_second"] "connections opened each second, of the last 10 to 20 s",
            |s| rate(s, |r| r.opened_per_second), |s| by_rate(s, |r| r.opened_per_second);
        "closed" "CLOS/S" 6 5 Number ["rates.closed_per_second"] "connections closed each second",
            |s| rate(s, |r| r.closed_per_second), |s| by_rate(s, |r| r.closed_per_second);
        "out" "OUT/S" 6 1 Number ["rates.sent_bytes_per_second"] "payload sent each second, bytes",
            |s| rate(s, |r| r.sent_bytes_per_second), |s| by_rate(s, |r| r.sent_bytes_per_second);
        "in" "IN/S" 6 1 Number ["rates.received_bytes_per_second"] "payload received each second, bytes",
            |s| rate(s, |r| r.received_bytes_per_second), |s| by_rate(s, |r| r.received_bytes_per_second);
        "p50" "RTT P50" 7 3 Number ["rtt_quantiles.p50_us"] "median of its round-trip times, of the last 10 to 20 s",
            |s| duration(s.rtt_quantiles.map(|q| q.p50_us as u32)), |s| by_rtt(s, |q| q.p50_us);
        "p99" "P99" 6 2 Number ["rtt_quantiles.p99_us"] "99th percentile of them",
            |s| duration(s.rtt_quantiles.map(|q| q.p99_us as u32)), |s| by_rtt(s, |q| q.p99_us);
        "resent" "RETR/S" 6 1 Number ["rates.retransmitted_segments_per_second"] "segments sent again each second",
            |s| rate(s, |r| r.retransmitted_segments_per_second),
            |s| by_rate(s, |r| r.retransmitted_segments_per_second);
        "retrans" "RETR" 5 4 Number [] "segments sent again since the daemon began",
            |s| count(again(s)), |s| number(again(s));
        "causes" "BY CAUSE" 14 6 Text
            ["totals.retransmitted_segments.fast", "totals.retransmitted_segments.timeout",
             "totals.retransmitted_segments.tail_loss_probe", "totals.retransmitted_segments.syn",
             "totals.retransmitted_segments.syn_ack", "totals.retransmitted_segments.other"]
            "sent again by cause: f fast, t timeout, p tail loss probe, s SYN, a SYN-ACK, o other",
            |s| causes(by_cause(s)), |s| number(again(s));
        "rst_sent" "RST>/S" 6 1 Number ["rates.resets_sent_per_second"] "RSTs sent each second",
            |s| rate(s, |r| r.resets_sent_per_second), |s| by_rate(s, |r| r.resets_sent_per_second);
        "rst_received" "RST</S" 6 2 Number ["rates.resets_received_per_second"]
            "RSTs received that ended a connection, each second",
            |s| rate(s, |r| r.resets_received_per_second), |s| by_rate(s, |r| r.resets_received_per_second);
        "connections" "OPENED" 6 7 Number ["totals.opened"] "connections opened since the daemon began",
            |s| count(s.totals.opened), |s| number(s.totals.opened);
        "sent" "SENT" 6 8 Number ["totals.sent_bytes"] "payload sent since the daemon began, bytes",
            |s| bytes(s.totals.sent_bytes), |s| number(s.totals.sent_bytes);
        "received" "RECV" 6 8 Number ["totals.received_bytes"] "payload received since the daemon began, bytes",
            |s| bytes(s.totals.received_bytes), |s| number(s.totals.received_bytes);
    };
    const DEFAULT: &'static str = "out";

    fn id(&self) -> Self::Id {
        (self.direction.clone(), self.service.clone())
    }
}

fn rate(service: &ServiceTotals, of: fn(&Rates) -> f64) -> String {
    service.rates.as_ref().map_or_else(|| "-".to_owned(), |rates| per_second(of(rates)))
}

/// A rate in at most six characters.
pub(in crate::top) fn per_second(rate: f64) -> String {
    if rate > 0.0 && rate < 99.95 { format!("{rate:.1}") } else { bytes(rate.round() as u64) }
}

/// Rates are told to a tenth, and sorted to a thousandth.
fn by_rate<'a>(service: &ServiceTotals, of: fn(&Rates) -> f64) -> Key<'a> {
    service.rates.as_ref().map_or(Key::Nothing, |rates| number((of(rates) * 1e3) as u64))
}

fn by_rtt<'a>(service: &ServiceTotals, of: fn(&Quantiles) -> f64) -> Key<'a> {
    service.rtt_quantiles.as_ref().map_or(Key::Nothing, |quantiles| number(of(quantiles) as u64))
}

fn again(service: &ServiceTotals) -> u64 {
    service.totals.retransmitted_segments.values().fold(0, |sum, count| sum.saturating_add(*count))
}

fn by_cause(service: &ServiceTotals) -> [u64; 6] {
    ["fast", "timeout", "tail_loss_probe", "syn", "syn_ack", "other"]
        .map(|cause| service.totals.retransmitted_segments.get(cause).copied().unwrap_or(0))
}
