//! Settings and fill levels of a network namespace that explain resets, read once a second.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::proc_net::in_line;

/// Numbers that are read.
pub(crate) const WORDS: usize = 12;

/// What was read; `None` where the kernel does not have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `net.ipv4.tcp_abort_on_overflow`.
    pub(crate) abort_on_overflow: Option<u64>,
    /// `net.core.somaxconn`.
    pub(crate) somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_orphans`, of the whole host.
    pub(crate) max_orphans: Option<u64>,
    /// Orphans of the whole host.
    pub(crate) orphans: Option<u64>,
    /// `net.ipv4.tcp_mem`, pages, of the whole host: its three numbers.
    pub(crate) tcp_mem_pages: [Option<u64>; 3],
    /// Pages in use by TCP.
    pub(crate) memory_pages: Option<u64>,
    /// `net.ipv4.tcp_keepalive_time`, s.
    pub(crate) keepalive_time_s: Option<u64>,
    /// `net.ipv4.tcp_keepalive_intvl`, s.
    pub(crate) keepalive_interval_s: Option<u64>,
    /// `net.ipv4.tcp_keepalive_probes`.
    pub(crate) keepalive_probes: Option<u64>,
    /// `net.ipv4.tcp_fin_timeout`, s.
    pub(crate) fin_timeout_s: Option<u64>,
}

impl Limits {
    /// Of the namespace that the thread is in, whose /proc/net/sockstat is given.
    pub(crate) fn of_thread(sockstat: &str) -> Self {
        Self::read(Path::new("/proc/sys/net"), sockstat)
    }

    /// The same with what belongs to the whole host, which other namespaces do not show: `host` was read in our own.
    pub(crate) fn on(self, host: &Self) -> Self {
        let tcp_mem_pages = if self.tcp_mem_pages == [None; 3] { host.tcp_mem_pages } else { self.tcp_mem_pages };
        Self { max_orphans: self.max_orphans.or(host.max_orphans), tcp_mem_pages, ..self }
    }

    /// Every number, in an order that stays: recordings have them.
    pub(crate) fn words(&mut self) -> [&mut Option<u64>; WORDS] {
        let Self {
            abort_on_overflow,
            somaxconn,
            max_orphans,
            orphans,
            tcp_mem_pages: [low, pressure, high],
            memory_pages,
            keepalive_time_s,
            keepalive_interval_s,
            keepalive_probes,
            fin_timeout_s,
        } = self;
        [
            abort_on_overflow,
            somaxconn,
            max_orphans,
            orphans,
            low,
            pressure,
            high,
            memory_pages,
            keepalive_time_s,
            keepalive_interval_s,
            keepalive_probes,
            fin_timeout_s,
        ]
    }

    /// The three numbers of `net.ipv4.tcp_mem`, the last one times `factor`, as `sysctl` takes them.
    pub(super) fn tcp_mem(&self, factor: u64) -> Option<String> {
        let [low, pressure, high] = self.tcp_mem_pages;
        Some(format!("{} {} {}", low?, pressure?, high?.saturating_mul(factor)))
    }

    /// From the settings in a folder, and the levels.
    fn read(sys: &Path, sockstat: &str) -> Self {
        let numbers = |name: &str| -> Vec<u64> {
            let text = fs::read_to_string(sys.join(name)).unwrap_or_default();
            text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let number = |name| numbers(name).first().copied();
        let level = |name| in_line(sockstat, "TCP:", name);
        Self {
            abort_on_overflow: number("ipv4/tcp_abort_on_overflow"),
            somaxconn: number("core/somaxconn"),
            max_orphans: number("ipv4/tcp_max_orphans"),
            orphans: level("orphan"),
            tcp_mem_pages: [0, 1, 2].map(|i| numbers("ipv4/tcp_mem").get(i).copied()),
            memory_pages: level("mem"),
            keepalive_time_s: number("ipv4/tcp_keepalive_time"),
            keepalive_interval_s: number("ipv4/tcp_keepalive_intvl"),
            keepalive_probes: number("ipv4/tcp_keepalive_probes"),
            fin_timeout_s: number("ipv4/tcp_fin_timeout"),
        }
    }
}

/// A setting, as `sysctl` writes it.
pub(super) fn setting(name: &str, value: Option<u64>) -> String {
    value.map_or_else(|| name.to_owned(), |value| format!("{name} = {value}"))
}

/// How a setting is changed and changed back.
pub(super) fn change(name: &str, from: Option<u64>, to: &str) -> String {
    let undo = from.map_or_else(String::new, |from| format!(", undone by `sysctl -w {name}={from}`"));
    format!("`sysctl -w {name}={to}`{undo}")
}

/// A number or nothing.
pub(super) fn value(number: Option<u64>) -> Value {
    number.map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_levels_are_read_and_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("ipv4")).unwrap();
        fs::write(folder.path().join("ipv4/tcp_mem"), "1\t2\t3\n").unwrap();
        fs::write(folder.path().join("ipv4/tcp_abort_on_overflow"), "1\n").unwrap();
        let sockstat = "sockets: used 9\nTCP: inuse 4 orphan 7 tw 0 alloc 5 mem 11\n";
        let limits = Limits::read(folder.path(), sockstat);
        let expected = Limits {
            abort_on_overflow: Some(1),
            orphans: Some(7),
            tcp_mem_pages: [Some(1), Some(2), Some(3)],
            memory_pages: Some(11),
            ..Limits::default()
        };
        assert_eq!(limits, expected);
        assert_eq!(limits.tcp_mem(2).as_deref(), Some("1 2 6"));
        assert_eq!(Limits::default().on(&limits).tcp_mem(1).as_deref(), Some("1 2 3"));
        assert_eq!(change("a", Some(1), "0"), "`sysctl -w a=0`, undone by `sysctl -w a=1`");
    }
}
