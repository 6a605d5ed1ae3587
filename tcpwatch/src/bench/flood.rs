//! What a flood of resets costs others while tcpwatch watches: the throughput of a victim on the same host, in pairs
//! with and without it. The traffic is made by the example that calls this; here is what is made of the numbers.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

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

/// Prints what the pairs say.
pub fn report(pairs: &[Pair], json: bool) -> Result<()> {
    let report = summary(pairs);
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{report}")?;
        return Ok(());
    }
    for name in ["victim_ratio", "resets_ratio", "without_bytes_per_second", "resets_per_second", "daemon_cpus"] {
        writeln!(out, "{name:<26} {:>16}   95 %: {}", report[name].to_string(), report[format!("{name}_ci95")])?;
    }
    writeln!(out, "{} pairs; at most {} % may be lost: {}", pairs.len(), LIMIT * 100.0, report["verdict"])?;
    Ok(())
}

fn summary(pairs: &[Pair]) -> Value {
    let of = |value: fn(&Pair) -> f64| Median::of(&pairs.iter().map(value).collect::<Vec<_>>());
    let ratio = of(|pair| pair.with.bytes_per_second / pair.without.bytes_per_second);
    let mut object = serde_json::Map::new();
    Median::put(ratio, "victim_ratio", &mut object);
    Median::put(of(|p| p.with.resets_per_second / p.without.resets_per_second), "resets_ratio", &mut object);
    Median::put(of(|p| p.without.bytes_per_second), "without_bytes_per_second", &mut object);
    Median::put(of(|p| p.with.resets_per_second), "resets_per_second", &mut object);
    Median::put(of(|p| p.with.daemon_cpus), "daemon_cpus", &mut object);
    object.insert("pairs".to_owned(), json!(pairs.len()));
    object.insert("verdict".to_owned(), json!(ratio.map_or("no measurement", verdict)));
    Value::Object(object)
}

/// What the interval says about the limit.
fn verdict(ratio: Median) -> &'static str {
    if ratio.low >= 1.0 - LIMIT {
        "kept"
    } else if ratio.high < 1.0 - LIMIT {
        "exceeded"
    } else {
        "unresolved: the interval is wider than the limit"
    }
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
        let verdict = |ratios: &[f64]| summary(&ratios.iter().map(|r| pair(*r)).collect::<Vec<_>>())["verdict"].clone();
        assert_eq!(verdict(&[0.99; 20]), "kept");
        assert_eq!(verdict(&[0.9; 20]), "exceeded");
        let wide: Vec<_> = (0..20).map(|i| if i % 2 == 0 { 0.8 } else { 1.2 }).collect();
        assert!(verdict(&wide).as_str().unwrap().starts_with("unresolved"));
        assert_eq!(verdict(&[]), "no measurement");
    }
}
