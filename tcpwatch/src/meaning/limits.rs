//! Settings and fill levels of a network namespace that explain resets, read once a second.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::proc_net::in_line;

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
    /// `net.ipv4.tcp_mem`, pages, of the whole host: the last of its three numbers.
    pub(crate) memory_limit_pages: Option<u64>,
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
        let (max_orphans, memory_limit_pages) = (host.max_orphans, host.memory_limit_pages);
        Self {
            max_orphans: self.max_orphans.or(max_orphans),
            memory_limit_pages: self.memory_limit_pages.or(memory_limit_pages),
            ..self
        }
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
            memory_limit_pages: numbers("ipv4/tcp_mem").get(2).copied(),
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
            memory_limit_pages: Some(3),
            memory_pages: Some(11),
            ..Limits::default()
        };
        assert_eq!(limits, expected);
        assert_eq!(change("a", Some(1), "0"), "`sysctl -w a=0`, undone by `sysctl -w a=1`");
    }
}
