//! What a flood of resets costs others while tcpwatch watches: the throughput of a victim on the same host, in pairs
//! with and without it. The traffic is made by the example that calls this; here is what is made of the numbers.

use super::report::{Cell, Goal, Report, Table};
use super::sample::Median;

/// One measurement of the victim under the flood.
#[derive(Clone, Copy, Debug)]
pub struct Half {
    /// Of the victim.
    pub bytes_per_second: f64,
    /// Of the flood, by the kernel's count.
    pub resets_per_second: f64,
    /// Of the daemon, in processors; 0 without it.
    pub daemon_cpus: f64,
}

/// Two of them, one right after the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Without tcpwatch.
    pub without: Half,
    /// With it.
    pub with: Half,
}

/// What the victim may lose.
const LIMIT: f64 = 0.03;

/// What the pairs say.
pub fn report(pairs: &[Pair]) -> Report {
    let of = |value: fn(&Pair) -> f64| Median::of(&pairs.iter().map(value).collect::<Vec<_>>());
    let ratio = of(|pair| pair.with.bytes_per_second / pair.without.bytes_per_second);
    let mut report = Report::new("flood");
    let mut table = Table::new("A bulk transfer beside a flood of resets", &["median [95 %]"]);
    for (name, words, median) in [
        ("victim_ratio", "throughput of the victim, with tcpwatch to without", ratio),
        (
            "resets_ratio",
            "resets a second, with tcpwatch to without",
            of(|p| p.with.resets_per_second / p.without.resets_per_second),
        ),
        ("without_bytes_per_second", "throughput without tcpwatch, bytes/s", of(|p| p.without.bytes_per_second)),
        ("resets_per_second", "resets a second", of(|p| p.with.resets_per_second)),
        ("daemon_cpus", "the daemon, CPUs", of(|p| p.with.daemon_cpus)),
    ] {
        report.median(name, median);
        table.row(words, vec![Cell::median(median)]);
    }
    report.set("pairs", pairs.len());
    let goal = Goal::at_least("throughput of a bulk transfer beside a flood of resets, ratio", ratio, 1.0 - LIMIT);
    report.set("verdict", goal.verdict());
    report.table(table);
    report.goal(goal);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_of_the_interval_and_not_of_the_median() {
        let pair = |ratio: f64| {
            let half = |bytes_per_second| Half { bytes_per_second, resets_per_second: 10.0, daemon_cpus: 0.1 };
            Pair { without: half(100.0), with: half(100.0 * ratio) }
        };
        let verdict = |ratios: &[f64]| {
            let pairs: Vec<_> = ratios.iter().map(|ratio| pair(*ratio)).collect();
            report(&pairs).json(false)["verdict"].as_str().unwrap().to_owned()
        };
        assert_eq!(verdict(&[0.99; 20]), "reached");
        assert_eq!(verdict(&[0.9; 20]), "not reached");
        let wide: Vec<_> = (0..20).map(|i| if i % 2 == 0 { 0.8 } else { 1.2 }).collect();
        assert!(verdict(&wide).starts_with("unresolved, width"));
        assert_eq!(verdict(&[]), "not measured");
    }
}
