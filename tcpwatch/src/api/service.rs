//! Services as the API shows them: totals since the daemon started, and what happens each second.

use serde::{Deserialize, Serialize};
use tcpwatch_common::counters::dist;
use tcpwatch_common::hist::{RTT_BUCKETS, quantile, rtt_lower};

use super::status::Totals;
use crate::aggregate::snapshot::{GroupTotals, Snapshot};

/// One line of `/api/v1/services`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ServiceTotals {
    /// `inbound`, `outbound` or `unknown`.
    pub(crate) direction: String,
    /// A port, `other` or `none`.
    pub(crate) service: String,
    /// Since the daemon started.
    pub(crate) totals: Totals,
    /// Length of the window that rates and quantiles are of.
    pub(crate) window_s: f64,
    /// In the window, each second; null until there is one.
    pub(crate) rates: Option<Rates>,
    /// Of the raw RTT samples in the window; null without samples.
    pub(crate) rtt_quantiles: Option<Quantiles>,
}

/// What happens each second.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[expect(clippy::struct_field_names, reason = "units are in the names of fields")]
pub(crate) struct Rates {
    /// Connections opened.
    pub(crate) opened_per_second: f64,
    /// Connections closed.
    pub(crate) closed_per_second: f64,
    /// Payload sent.
    pub(crate) sent_bytes_per_second: f64,
    /// Payload received.
    pub(crate) received_bytes_per_second: f64,
    /// Segments sent again.
    pub(crate) retransmitted_segments_per_second: f64,
    /// RSTs sent.
    pub(crate) resets_sent_per_second: f64,
    /// RSTs that ended a connection.
    pub(crate) resets_received_per_second: f64,
}

/// RTT quantiles, from sixteen buckets an octave.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Quantiles {
    /// Median.
    pub(crate) p50_us: f64,
    /// 90th percentile.
    pub(crate) p90_us: f64,
    /// 99th percentile.
    pub(crate) p99_us: f64,
    /// How many samples.
    pub(crate) samples: u64,
}

/// The services of `now`; rates since `before`, an earlier picture.
pub(crate) fn services(now: &Snapshot, before: Option<&Snapshot>) -> Vec<ServiceTotals> {
    let before = before.filter(|before| before.ktime_ns < now.ktime_ns);
    let window_s = before.map_or(0.0, |before| (now.ktime_ns - before.ktime_ns) as f64 / 1e9);
    let earlier = |group: &GroupTotals| {
        let same = |other: &&GroupTotals| (other.direction, other.service) == (group.direction, group.service);
        before.and_then(|before| before.groups.iter().find(same))
    };
    let one = |group: &GroupTotals| {
        let totals = Totals::of([group]);
        let then = earlier(group);
        // A group that was not there had counted nothing.
        let rates = before.map(|_| Rates::between(&Totals::of(then), &totals, window_s));
        ServiceTotals {
            direction: group.direction.name().to_owned(),
            service: group.service.label(),
            totals,
            window_s,
            rates,
            rtt_quantiles: before.and_then(|_| quantiles(group, then)),
        }
    };
    now.groups.iter().map(one).collect()
}

impl Rates {
    fn between(before: &Totals, now: &Totals, seconds: f64) -> Self {
        let change = |of: fn(&Totals) -> u64| of(now).saturating_sub(of(before)) as f64 / seconds;
        Self {
            opened_per_second: change(|t| t.opened),
            closed_per_second: change(|t| t.closed.values().sum()),
            sent_bytes_per_second: change(|t| t.sent_bytes),
            received_bytes_per_second: change(|t| t.received_bytes),
            retransmitted_segments_per_second: change(|t| t.retransmitted_segments.values().sum()),
            resets_sent_per_second: change(|t| t.resets_sent.values().sum()),
            resets_received_per_second: change(|t| t.resets_received),
        }
    }
}

fn quantiles(now: &GroupTotals, before: Option<&GroupTotals>) -> Option<Quantiles> {
    let of = |group: &GroupTotals, bucket: usize| group.dist.get(dist::RTT + bucket).copied().unwrap_or(0);
    let counts: Vec<u64> = (0..RTT_BUCKETS)
        .map(|bucket| of(now, bucket).saturating_sub(before.map_or(0, |before| of(before, bucket))))
        .collect();
    let at = |q| quantile(counts.iter().copied(), rtt_lower, q);
    let samples = counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    Some(Quantiles { p50_us: at(0.5)?, p90_us: at(0.9)?, p99_us: at(0.99)?, samples })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::metrics::sample;
    use tcpwatch_common::counters::group;

    /// Services with rates and quantiles.
    pub(crate) fn busy() -> Vec<ServiceTotals> {
        let before = sample::full(1);
        let mut now = sample::full(1);
        now.ktime_ns = before.ktime_ns + 4_000_000_000;
        for group in &mut now.groups {
            group.words[group::OPENED] += 8;
            group.dist[dist::RTT + 40] += 100;
        }
        services(&now, Some(&before))
    }

    #[test]
    fn rates_and_quantiles_are_of_the_window() {
        for service in busy() {
            let (rates, quantiles) = (service.rates.unwrap(), service.rtt_quantiles.unwrap());
            assert!((rates.opened_per_second - 2.0).abs() < 1e-9 && rates.closed_per_second < 1e-9, "{rates:?}");
            assert!((service.window_s - 4.0).abs() < 1e-9 && quantiles.samples == 100, "{quantiles:?}");
            let bucket = rtt_lower(40) as f64..=rtt_lower(41) as f64;
            assert!(bucket.contains(&quantiles.p50_us) && bucket.contains(&quantiles.p99_us), "{quantiles:?}");
        }
        let alone = services(&sample::full(1), None);
        assert!(alone.iter().all(|s| s.rates.is_none() && s.rtt_quantiles.is_none()));
    }
}
