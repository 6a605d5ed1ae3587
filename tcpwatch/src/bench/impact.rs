//! What watching costs those who are watched: the same traffic with nothing attached, with programs that do nothing, with the
//! daemon, and with bpftrace doing a part of it. The traffic is made by the example; here is what is made of the numbers.

use super::report::{Cell, Goal, Report, Table};
use super::sample::Median;

/// Who watches.
pub const WATCHERS: [&str; 5] =
    ["nobody", "programs that do nothing", "tcpwatch, every ACK", "tcpwatch, once a tick", "bpftrace"];
/// The first of them.
pub const NOBODY: usize = 0;
/// What the kernel takes to come to a program on each of the tracepoints that ours are on all the time: the floor.
pub const EMPTY: usize = 1;
/// The daemon as it is configured when nobody says otherwise.
pub const EVERY_ACK: usize = 2;
/// The last.
pub const BPFTRACE: usize = 4;

/// What the traffic was like under one of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// One connection as fast as it can.
    pub bytes_per_second: f64,
    /// One connection, one question at a time.
    pub requests_per_second: f64,
    /// The same of a connection that was accepted just now.
    pub new_requests_per_second: f64,
    /// Half of the answers came within.
    pub p50_us: f64,
    /// All but one in a hundred.
    pub p99_us: f64,
    /// Connections, one after the other.
    pub connections_per_second: f64,
    /// CPUs that the daemon took with the connections; 0 where there is none.
    pub daemon_cpus: f64,
}

/// The traffic under one of [`WATCHERS`], and just before or after with nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    /// With the watcher.
    pub with: Run,
    /// With nobody.
    pub without: Run,
}

/// One after the other, with each of [`WATCHERS`]; `None` where there was none, and for nobody.
pub type Round = [Option<Pair>; WATCHERS.len()];

/// What may be lost of throughput and of the rate of requests, and of connections.
const LIMITS: [f64; 2] = [0.02, 0.05];

type Figure = (&'static str, &'static str, fn(&Run) -> f64, Option<f64>);

/// Name in JSON, in words, the figure, and the ratio that must be reached.
const FIGURES: [Figure; 6] = [
    ("bulk", "bulk throughput", |run| run.bytes_per_second, Some(1.0 - LIMITS[0])),
    ("requests", "requests a second", |run| run.requests_per_second, Some(1.0 - LIMITS[0])),
    ("new_requests", "requests a second, just accepted", |run| run.new_requests_per_second, None),
    ("p50", "latency, p50", |run| run.p50_us, None),
    ("p99", "latency, p99", |run| run.p99_us, None),
    ("connections", "connections a second", |run| run.connections_per_second, Some(1.0 - LIMITS[1])),
];

/// What the rounds say; `no_bpftrace` is why it was not there.
pub fn report(rounds: &[Round], no_bpftrace: Option<&str>) -> Report {
    let mut report = Report::new("impact");
    report.set("rounds", rounds.len());
    let of = |watcher: usize, value: &dyn Fn(&Run) -> f64| {
        let pairs = rounds.iter().flat_map(|round| round.iter().enumerate());
        let pairs = pairs.filter_map(|(with, pair)| pair.as_ref().map(|pair| (with, pair)));
        let runs = pairs.filter_map(|(with, pair)| match watcher {
            NOBODY => Some(&pair.without),
            watcher => (with == watcher).then_some(&pair.with),
        });
        Median::of(&runs.map(value).collect::<Vec<_>>())
    };
    let columns = [
        "bulk, MB/s",
        "requests/s",
        "requests/s, just accepted",
        "p50, µs",
        "p99, µs",
        "connections/s",
        "the daemon, CPUs",
    ];
    let mut table = Table::new("The same traffic, watched by", &columns);
    for (watcher, name) in WATCHERS.iter().enumerate() {
        if let Some(reason) = no_bpftrace.filter(|_| watcher == BPFTRACE) {
            table.row(*name, vec![Cell::skipped(reason)]);
            continue;
        }
        let cells: [&dyn Fn(&Run) -> f64; 7] = [
            &|run| run.bytes_per_second / 1e6,
            &|run| run.requests_per_second,
            &|run| run.new_requests_per_second,
            &|run| run.p50_us,
            &|run| run.p99_us,
            &|run| run.connections_per_second,
            &|run| run.daemon_cpus,
        ];
        table.row(*name, cells.iter().map(|value| Cell::median(of(watcher, value))).collect());
    }
    report.table(table);
    let columns = FIGURES.map(|(_, words, ..)| words);
    let mut table = Table::new("Ratio to nobody just before or after", &columns);
    for (watcher, name) in WATCHERS.iter().enumerate().skip(1) {
        let mut cells = Vec::new();
        for (key, words, value, least) in FIGURES {
            let ratio = |round: &Round| {
                let pair = round.get(watcher)?.as_ref()?;
                Some(value(&pair.with) / value(&pair.without))
            };
            let ratio = Median::of(&rounds.iter().filter_map(ratio).collect::<Vec<_>>());
            cells.push(Cell::median(ratio));
            report.median(&format!("{key}_ratio_{watcher}"), ratio);
            if let Some(least) = least.filter(|_| ![EMPTY, BPFTRACE].contains(&watcher)) {
                report.goal(Goal::at_least(&format!("{words} with {name}, ratio to without"), ratio, least));
            }
        }
        table.row(*name, cells);
    }
    report.table(table);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_rounds_and_hold_against_the_limits() {
        let run = |speed: f64| Run {
            bytes_per_second: 1e9 * speed,
            requests_per_second: 1e5 * speed,
            new_requests_per_second: 1e5 * speed,
            p50_us: 10.0 / speed,
            p99_us: 20.0 / speed,
            connections_per_second: 1e4 * speed,
            daemon_cpus: 0.1,
        };
        // The machine slows down all the time, and what is measured with it.
        let round = |i: i32| {
            let now = 1.0 / f64::from(i + 1);
            let pair = |speed: f64| Some(Pair { with: run(now * speed), without: run(now) });
            [None, pair(1.0), pair(0.99), pair(0.9), None]
        };
        let report = report(&(0..20).map(round).collect::<Vec<_>>(), Some("there is none"));
        let object = report.json(false);
        let verdicts: Vec<_> = object["goals"].as_array().unwrap().iter().map(|goal| &goal["verdict"]).collect();
        assert_eq!(verdicts, ["reached", "reached", "reached", "not reached", "not reached", "not reached"]);
        assert_eq!(object["bulk_ratio_2"], 0.99);
        assert!(report.text().contains("skipped: there is none"));
    }
}
