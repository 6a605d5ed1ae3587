//! The daemon as a process, from /proc/self: the numbers that every exporter has. What cannot be read is left out.

use std::fs;
use std::path::Path;

/// Readings of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    /// User and system time, s.
    pub(crate) cpu_seconds: Option<f64>,
    /// Resident memory.
    pub(crate) resident_bytes: Option<u64>,
    /// Virtual memory.
    pub(crate) virtual_bytes: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// Limit of open file descriptors; none when there is no limit.
    pub(crate) max_fds: Option<u64>,
    /// Threads.
    pub(crate) threads: Option<u64>,
    /// Start, in seconds since the epoch.
    pub(crate) start_time_seconds: Option<f64>,
}

/// Units in which the kernel counts.
#[derive(Clone, Copy, Debug)]
struct Units {
    ticks_per_second: f64,
    page_bytes: u64,
}

impl Process {
    /// Reads below `proc`, which is /proc.
    pub(crate) fn read(proc: &Path) -> Self {
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        let units = Units { ticks_per_second, page_bytes: crate::sys::page_size() };
        let own = proc.join("self");
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let mut process =
            Self::parse(&text(&own.join("stat")), &text(&own.join("limits")), &text(&proc.join("stat")), units);
        process.open_fds = fs::read_dir(own.join("fd")).ok().map(|entries| entries.count() as u64);
        process
    }

    fn parse(stat: &str, limits: &str, host_stat: &str, units: Units) -> Self {
        // The name of the program is in parentheses and may hold anything; numbering is that of proc(5), from 3.
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
        let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second;
        let boot = host_stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user + system)),
            resident_bytes: field(24).map(|pages| pages * units.page_bytes),
            virtual_bytes: field(23),
            open_fds: None,
            max_fds: limits
                .lines()
                .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok()),
            threads: field(20),
            start_time_seconds: boot.zip(field(22)).map(|(boot, start)| boot as f64 + seconds(start)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNITS: Units = Units { ticks_per_second: 100.0, page_bytes: 4096 };
    const STAT: &str = "812 (a) S (b) S 1 812 812 0 -1 4194560 2051 0 0 0 150 75 0 0 20 0 3 0 250 \
                        6103040 512 18446744073709551615 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
                          Max open files            1024                 524288               files\n";

    #[test]
    fn fields_are_found_behind_any_program_name() {
        let expected = Process {
            cpu_seconds: Some(2.25),
            resident_bytes: Some(512 * 4096),
            virtual_bytes: Some(6_103_040),
            open_fds: None,
            max_fds: Some(1024),
            threads: Some(3),
            start_time_seconds: Some(1_700_000_002.5),
        };
        assert_eq!(Process::parse(STAT, LIMITS, "cpu 1 2\nbtime 1700000000\n", UNITS), expected);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(Process::parse("", "Max open files unlimited unlimited files", "", UNITS), Process::default());
    }

    #[test]
    fn this_process_has_all_of_it() {
        let process = Process::read(Path::new("/proc"));
        assert!(process.resident_bytes > Some(0) && process.threads > Some(0) && process.open_fds > Some(2));
        assert!(process.cpu_seconds.is_some() && process.start_time_seconds > Some(1.6e9));
    }

    proptest! {
        #[test]
        fn any_text_is_read(stat in "[0-9 ()a-z]{0,300}", limits in ".{0,80}", host in "(btime [0-9]{0,25}\n)?.{0,20}") {
            let _process = Process::parse(&stat, &limits, &host, UNITS);
        }
    }
}
