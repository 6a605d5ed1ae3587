//! Where and when it was measured.

use std::fs;

use serde_json::{Value, json};

use crate::sys;

/// What a reader needs to know to compare.
pub(super) fn describe() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let memory = read("/proc/meminfo");
    let total_kb = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let load = read("/proc/loadavg");
    let load: Vec<f64> = load.split(' ').take(3).filter_map(|word| word.parse().ok()).collect();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory_bytes": total_kb.unwrap_or(0_u64) * 1024,
        "clocksource": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "jit": read("/proc/sys/net/core/bpf_jit_enable"),
        "load_before": load,
        "unix_seconds": sys::unix_ns() / 1_000_000_000,
        "commit": env!("TCPWATCH_COMMIT"),
        "version": env!("CARGO_PKG_VERSION"),
    })
}
