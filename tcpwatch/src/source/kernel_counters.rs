//! What the kernel itself counts in a network namespace, and that beside what our programs count there.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tcpwatch_common::counters::netns;

use crate::aggregate::snapshot::{Compared, NamespaceStats};
use crate::kernel::iterate::within;
use crate::kernel::maps::ByNamespace;
use crate::meaning::Limits;
use crate::proc_net::{in_line, in_table};
use crate::sys;

/// Attempts to read our counters while the kernel's stand still.
const ATTEMPTS: usize = 3;

/// The kernel's counters that are compared, as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Raw {
    retransmitted: u64,
    resets: u64,
    aborts_failed: u64,
    no_routes: u64,
}

impl Raw {
    /// Reads them in the namespace that the thread is in; also the text of netstat, which has more that is of use.
    fn read() -> io::Result<(Self, String)> {
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let netstat = fs::read_to_string("/proc/thread-self/net/netstat")?;
        // Absent where IPv6 is switched off.
        let snmp6 = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
        let missing = |name| io::Error::other(format!("/proc/net/snmp has no {name}"));
        let raw = Self {
            retransmitted: in_table(&snmp, "Tcp:", "RetransSegs").ok_or_else(|| missing("RetransSegs"))?,
            resets: in_table(&snmp, "Tcp:", "OutRsts").ok_or_else(|| missing("OutRsts"))?,
            aborts_failed: in_table(&netstat, "TcpExt:", "TCPAbortFailed").unwrap_or(0),
            no_routes: in_line(&snmp6, "", "Ip6OutNoRoutes").unwrap_or(0),
        };
        Ok((raw, netstat))
    }
}

/// Both sides at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair {
    kernel: Raw,
    ours: [u64; netns::WORDS],
}

impl Pair {
    /// Reads ours between two readings of the kernel's that agree; `None` when they never do. Also the last netstat.
    fn read(inode: u32, ours: &ByNamespace) -> io::Result<(Option<Self>, String)> {
        let (mut before, mut netstat) = Raw::read()?;
        for _ in 0..ATTEMPTS {
            let ours = ours.read(inode).map_err(io::Error::other)?;
            let kernel;
            (kernel, netstat) = Raw::read()?;
            if kernel == before {
                return Ok((Some(Self { kernel, ours }), netstat));
            }
            before = kernel;
        }
        Ok((None, netstat))
    }

    /// What came since `base`; `None` when a counter went down: the namespace is another one.
    fn since(&self, base: &Self) -> Option<Compared> {
        let [retransmits, resets] = self.ours;
        let [base_retransmits, base_resets] = base.ours;
        Some(Compared {
            kernel_retransmitted_segments: self.kernel.retransmitted.checked_sub(base.kernel.retransmitted)?,
            retransmitted_segments: retransmits.checked_sub(base_retransmits)?,
            kernel_resets_sent: self.kernel.resets.checked_sub(base.kernel.resets)?,
            resets_sent: resets.checked_sub(base_resets)?,
            kernel_aborts_failed: self.kernel.aborts_failed.checked_sub(base.kernel.aborts_failed)?,
            kernel_ipv6_no_routes: self.kernel.no_routes.checked_sub(base.kernel.no_routes)?,
        })
    }
}

/// One network namespace and what is known of its counters.
#[derive(Debug)]
pub(super) struct Watched {
    /// The kernel's number of this namespace, which unlike the inode is never given to another; 0 before Linux 5.14.
    cookie: u64,
    base: Option<Pair>,
    /// Of namespaces that had this inode before.
    before: Compared,
    /// The newest reading.
    pub(super) stats: NamespaceStats,
    /// Settings that explain resets.
    pub(super) limits: Arc<Limits>,
}

impl Watched {
    /// Nothing read yet.
    pub(super) fn new(inode: u32) -> Self {
        let stats = NamespaceStats { netns: inode, ..NamespaceStats::default() };
        Self { cookie: 0, base: None, before: Compared::default(), stats, limits: Arc::default() }
    }

    /// Reads what the kernel counts in the namespace at `path`.
    pub(super) fn look(&mut self, path: &Path, ours: &ByNamespace, host: &Limits) -> io::Result<()> {
        let inode = self.stats.netns;
        let (cookie, (pair, netstat), sockstat, limits, ports) = within(path, || {
            let sockstat = fs::read_to_string("/proc/thread-self/net/sockstat")?;
            let limits = Limits::of_thread(&sockstat);
            Ok((
                sys::netns_cookie().unwrap_or(0),
                Pair::read(inode, ours)?,
                sockstat,
                limits,
                fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default(),
            ))
        })?;
        let mut ports = ports.split_ascii_whitespace().map_while(|word| word.parse().ok());
        self.stats.port_range = [ports.next().unwrap_or(0), ports.next().unwrap_or(0)];
        self.limits = Arc::new(limits.on(host));
        self.stats.time_wait = in_line(&sockstat, "TCP:", "tw").unwrap_or(0);
        self.stats.listen_overflows = in_table(&netstat, "TcpExt:", "ListenOverflows").unwrap_or(0);
        if let Some(pair) = pair {
            self.compare(cookie, pair);
        }
        Ok(())
    }

    fn compare(&mut self, cookie: u64, pair: Pair) {
        let since = self.base.as_ref().filter(|_| cookie == self.cookie).and_then(|base| pair.since(base));
        if let Some(since) = since {
            self.stats.compared = self.before.plus(since);
        } else {
            self.before = self.stats.compared;
            self.cookie = cookie;
            self.base = Some(pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(retransmitted: u64, resets: u64, ours: [u64; 2]) -> Pair {
        Pair { kernel: Raw { retransmitted, resets, ..Raw::default() }, ours }
    }

    #[test]
    fn both_sides_count_from_the_first_reading() {
        let mut watched = Watched::new(7);
        watched.compare(1, pair(100, 50, [3, 4]));
        assert_eq!(watched.stats.compared, Compared::default());
        watched.compare(1, pair(110, 51, [13, 4]));
        let Compared { kernel_retransmitted_segments, retransmitted_segments, kernel_resets_sent, resets_sent, .. } =
            watched.stats.compared;
        assert_eq!((kernel_retransmitted_segments, retransmitted_segments), (10, 10));
        assert_eq!((kernel_resets_sent, resets_sent), (1, 0));
    }

    #[test]
    fn a_namespace_that_got_the_number_of_another_begins_anew_and_nothing_is_taken_back() {
        for (cookie, next) in [(2, pair(500, 500, [9, 9])), (1, pair(0, 0, [9, 9]))] {
            let mut watched = Watched::new(7);
            watched.compare(1, pair(100, 50, [0, 0]));
            watched.compare(1, pair(109, 59, [9, 9]));
            let before = watched.stats.compared;
            watched.compare(cookie, next);
            assert_eq!(watched.stats.compared, before);
            watched.compare(cookie, pair(next.kernel.retransmitted + 1, next.kernel.resets + 2, [10, 11]));
            let now = watched.stats.compared;
            assert_eq!((now.kernel_retransmitted_segments, now.retransmitted_segments), (10, 10));
            assert_eq!((now.kernel_resets_sent, now.resets_sent), (11, 11));
        }
    }
}
