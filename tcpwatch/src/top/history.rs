//! What was seen over time: of the host, and of the few connections that are on the screen or near it.

use std::collections::{HashMap, VecDeque};

use crate::api::connection::Connection;
use crate::api::status::{Status, Totals};

/// Pictures that are remembered: four minutes of them.
const KEPT: usize = 240;

/// Of the host, each second between two pictures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Connections opened.
    pub(crate) opened: f64,
    /// Connections closed.
    pub(crate) closed: f64,
    /// Bytes sent.
    pub(crate) sent_bytes: f64,
    /// Bytes received.
    pub(crate) received_bytes: f64,
    /// Segments sent again.
    pub(crate) retransmitted: f64,
    /// The same, of a hundred with payload.
    pub(crate) retransmitted_percent: f64,
    /// RSTs sent, and received ones that ended a connection.
    pub(crate) resets: f64,
    /// Time of the processor that tcpwatch took, of a hundred; of the kernel programs too while the kernel measures them.
    pub(crate) cpu_percent: Option<f64>,
}

impl Rates {
    /// Between two pictures.
    pub(crate) fn between(before: &Status, now: &Status) -> Option<Self> {
        let seconds = now.ktime_ns.checked_sub(before.ktime_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let change = |of: fn(&Totals) -> u64| of(&now.totals).saturating_sub(of(&before.totals)) as f64;
        let segments = change(|totals| totals.sent_segments);
        let again = change(|totals| totals.retransmitted_segments.values().sum());
        let cpu = |status: &Status| {
            let programs = status.own.programs.iter();
            let programs = programs.filter_map(|program| Some(program.runs? as f64 * program.mean_run_ns? / 1e9));
            Some(status.own.cpu_seconds? + programs.sum::<f64>())
        };
        let cpu = cpu(now).zip(cpu(before)).map(|(now, before)| (now - before).max(0.0) / seconds * 100.0);
        Some(Self {
            opened: change(|totals| totals.opened) / seconds,
            closed: change(|totals| totals.closed.values().sum()) / seconds,
            sent_bytes: change(|totals| totals.sent_bytes) / seconds,
            received_bytes: change(|totals| totals.received_bytes) / seconds,
            retransmitted: again / seconds,
            retransmitted_percent: if segments > 0.0 { again / segments * 100.0 } else { 0.0 },
            resets: change(|totals| totals.resets_sent.values().sum::<u64>() + totals.resets_received) / seconds,
            cpu_percent: cpu,
        })
    }
}

/// The last rates, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Trend(VecDeque<Rates>);

impl Trend {
    /// Takes the newest; none begins anew.
    pub(crate) fn add(&mut self, rates: Option<Rates>) {
        match rates {
            Some(rates) => push(&mut self.0, rates),
            None => self.0.clear(),
        }
    }

    /// The newest.
    pub(crate) fn newest(&self) -> Option<&Rates> {
        self.0.back()
    }

    /// What tcpwatch took lately: the mean of up to ten pictures, because the kernel counts in ticks.
    pub(crate) fn cpu_percent(&self) -> Option<f64> {
        let lately: Vec<f64> = self.0.iter().rev().take(10).filter_map(|rates| rates.cpu_percent).collect();
        (!lately.is_empty()).then(|| lately.iter().sum::<f64>() / lately.len() as f64)
    }

    /// The last `many` of a rate, in thousandths, the newest last.
    pub(crate) fn last(&self, many: usize, of: fn(&Rates) -> f64) -> Vec<u64> {
        self.0.iter().skip(self.0.len().saturating_sub(many)).map(|rates| (of(rates) * 1e3) as u64).collect()
    }
}

/// A connection at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    pub(crate) srtt_us: Option<u32>,
    pub(crate) cwnd: u32,
    pub(crate) in_flight: u32,
    pub(crate) moved_bytes: u64,
    pub(crate) retransmits: u32,
}

/// What was seen of connections.
#[derive(Debug, Default)]
pub(crate) struct History(HashMap<u64, VecDeque<Sample>>);

impl History {
    /// Takes what these are at a moment. A moment before the last one begins anew.
    pub(crate) fn add<'a>(&mut self, ktime_ns: u64, connections: impl IntoIterator<Item = &'a Connection>) {
        for connection in connections {
            let samples = self.0.entry(connection.cookie).or_default();
            if samples.back().is_some_and(|last| last.ktime_ns > ktime_ns) {
                samples.clear();
            }
            if samples.back().is_none_or(|last| last.ktime_ns < ktime_ns) {
                let sample = Sample {
                    ktime_ns,
                    srtt_us: connection.srtt_us,
                    cwnd: connection.cwnd_segments,
                    in_flight: connection.in_flight_segments,
                    moved_bytes: connection.sent_bytes.saturating_add(connection.received_bytes),
                    retransmits: connection.retransmits_total,
                };
                push(samples, sample);
            }
        }
    }

    /// Forgets those that were not seen at this moment.
    pub(crate) fn forget_before(&mut self, ktime_ns: u64) {
        self.0.retain(|_, samples| samples.back().is_some_and(|last| last.ktime_ns == ktime_ns));
    }

    /// Of one of them, the newest last.
    pub(crate) fn of(&self, cookie: u64) -> impl DoubleEndedIterator<Item = &Sample> + ExactSizeIterator + Clone {
        const NONE: &VecDeque<Sample> = &VecDeque::new();
        self.0.get(&cookie).unwrap_or(NONE).iter()
    }

    /// Changes of a count from each moment to the next.
    pub(crate) fn changes(&self, cookie: u64, of: fn(&Sample) -> u64) -> Vec<u64> {
        let samples = self.of(cookie);
        samples.clone().zip(samples.skip(1)).map(|(a, b)| of(b).saturating_sub(of(a))).collect()
    }
}

fn push<T>(all: &mut VecDeque<T>, newest: T) {
    if all.len() == KEPT {
        all.pop_front();
    }
    all.push_back(newest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::status::tests::full;

    #[test]
    fn rates_are_differences_by_time() {
        let (mut before, mut now) = (full(), full());
        (before.ktime_ns, now.ktime_ns) = (1_000_000_000, 3_000_000_000);
        now.totals.opened += 10;
        now.totals.sent_segments += 200;
        *now.totals.retransmitted_segments.get_mut("fast").unwrap() += 5;
        *now.totals.resets_sent.get_mut("bad_ack").unwrap() += 4;
        now.totals.resets_received += 2;
        now.own.cpu_seconds = before.own.cpu_seconds.map(|seconds| seconds + 0.002);
        let rates = Rates::between(&before, &now).unwrap();
        for (rate, truth) in [
            (rates.opened, 5.0),
            (rates.retransmitted, 2.5),
            (rates.retransmitted_percent, 2.5),
            (rates.resets, 3.0),
            (rates.cpu_percent.unwrap(), 0.1),
        ] {
            assert!((rate - truth).abs() < 1e-6, "{rates:?}");
        }
        assert_eq!(Rates::between(&now, &now), None);
        let mut trend = Trend::default();
        trend.add(Some(rates));
        assert_eq!(trend.last(5, |rates| rates.opened), [5_000]);
        trend.add(None);
        assert!(trend.newest().is_none());
    }

    #[test]
    fn only_what_was_given_last_is_remembered_and_no_more_than_that() {
        let mut history = History::default();
        let (one, mut other) = (shown(&busy(1)), shown(&busy(2)));
        for second in 0..1000 {
            other.retransmits_total = second as u32 * 3;
            history.add(second * 1_000_000_000, [&one, &other]);
        }
        assert_eq!(history.of(2).len(), KEPT);
        assert!(history.changes(2, |sample| sample.retransmits.into()).iter().all(|change| *change == 3));
        history.add(1_000_000_000_000, [&one, &one]);
        history.forget_before(1_000_000_000_000);
        assert_eq!((history.of(1).len(), history.of(2).len()), (KEPT, 0));
        history.add(5, [&one]);
        assert_eq!(history.of(1).len(), 1, "a recording was turned back");
    }
}
