//! What the kernel says of our programs: runs, run time, and the events it withheld.

use std::os::fd::AsFd;
use std::time::Duration;

use aya::Ebpf;

use super::iterate;
use super::maps::{fdinfo, field};
use crate::aggregate::snapshot::ProgramStats;

/// Run time of the programs of which `programs` tells that is not in the time of this process, while the kernel measures
/// it: iterators run when we read them.
pub(crate) fn foreign_time(programs: &[ProgramStats]) -> Duration {
    let time = |program: &ProgramStats| Some(program.runs? as f64 * program.mean_run_seconds?);
    let foreign = programs.iter().filter(|program| !iterate::PROGRAMS.contains(&program.name.as_str()));
    Duration::try_from_secs_f64(foreign.filter_map(time).sum()).unwrap_or_default()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterators_run_in_our_own_time() {
        let program = |name: &str, runs| ProgramStats {
            name: name.to_owned(),
            runs,
            mean_run_seconds: runs.map(|_| 1e-7),
            recursion_misses: 0,
        };
        let all = [program("tcp_probe", Some(20_000_000)), program("read_sockets", Some(1_000_000))];
        assert_eq!(foreign_time(&all), Duration::from_secs(2));
        assert_eq!(foreign_time(&[program("tcp_probe", None)]), Duration::ZERO, "not measured");
    }
}
