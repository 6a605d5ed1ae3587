//! What the kernel says of our programs: runs, run time, and the events it withheld.

use std::os::fd::AsFd;

use aya::Ebpf;

use super::maps::{fdinfo, field};
use crate::aggregate::snapshot::ProgramStats;

/// Statistics of every attached program. Runs are counted by the kernel only while its BPF statistics are on, which
/// taxes every program of the host; withheld events (recursion misses) always.
pub(crate) fn programs(ebpf: &Ebpf) -> Vec<ProgramStats> {
    let mut all: Vec<_> = ebpf
        .programs()
        .filter_map(|(name, program)| {
            let text = fdinfo(program.fd().ok()?.as_fd()).ok()?;
            let runs = field(&text, "run_cnt").unwrap_or(0);
            let nanoseconds = field(&text, "run_time_ns").unwrap_or(0);
            Some(ProgramStats {
                name: name.to_owned(),
                runs: (runs > 0).then_some(runs),
                mean_run_seconds: (runs > 0).then(|| nanoseconds as f64 / runs as f64 / 1e9),
                recursion_misses: field(&text, "recursion_misses").unwrap_or(0),
            })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}
