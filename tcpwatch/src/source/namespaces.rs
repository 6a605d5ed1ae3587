//! Network namespaces of the host, found by inode, and what the kernel counts in each. No descriptor of one is kept: a
//! namespace that nobody else holds shall end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::listeners::netns_inode;
use crate::aggregate::snapshot::NamespaceStats;
use crate::config::Config;
use crate::kernel::iterate::within;
use crate::sys;

/// Namespaces that are looked at; a host with more shows the first ones.
const MOST: usize = 256;

/// A path by which each namespace can be entered, by inode. `more` are paths that the configuration names.
pub(crate) fn find(more: &[PathBuf]) -> BTreeMap<u32, PathBuf> {
    let mut found = BTreeMap::new();
    let mut note = |path: PathBuf| {
        if found.len() < MOST
            && let Ok(inode) = netns_inode(&path)
        {
            found.entry(inode).or_insert(path);
        }
    };
    note("/proc/self/ns/net".into());
    more.iter().cloned().for_each(&mut note);
    for folder in ["/run/netns", "/run/docker/netns"] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            note(entry.path());
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            note(entry.path().join("ns/net"));
        }
    }
    found
}

/// What the kernel counts in the namespace at `path`.
pub(crate) fn read(inode: u32, path: &Path) -> io::Result<NamespaceStats> {
    let (sockstat, netstat) = within(path, || {
        Ok((
            fs::read_to_string("/proc/thread-self/net/sockstat")?,
            fs::read_to_string("/proc/thread-self/net/netstat")?,
        ))
    })?;
    Ok(NamespaceStats {
        netns: inode,
        time_wait: in_line(&sockstat, "TCP:", "tw").unwrap_or(0),
        listen_overflows: in_table(&netstat, "TcpExt:", "ListenOverflows").unwrap_or(0),
    })
}

/// Network namespaces and what the kernel counts in them.
pub(crate) struct Surroundings {
    configured: Vec<PathBuf>,
    filtered: Vec<u32>,
    known: BTreeMap<u32, PathBuf>,
    searched_ns: u64,
    /// The newest reading, by inode.
    pub(crate) stats: Vec<NamespaceStats>,
}

/// How often namespaces are looked for, ns.
const SEARCH_NS: u64 = 10_000_000_000;

impl Surroundings {
    /// Has not looked yet; `filtered` are the only ones of interest, if there are any.
    pub(crate) fn new(config: &Config, filtered: Vec<u32>) -> Self {
        Self { configured: config.netns.clone(), filtered, known: BTreeMap::new(), searched_ns: 0, stats: Vec::new() }
    }

    /// Reads them, and looks for new ones from time to time.
    pub(crate) fn look(&mut self) {
        let now = sys::monotonic_ns();
        if self.known.is_empty() || now - self.searched_ns >= SEARCH_NS {
            self.known = find(&self.configured);
            if !self.filtered.is_empty() {
                self.known.retain(|inode, _| self.filtered.contains(inode));
            }
            self.searched_ns = now;
        }
        // One that cannot be read has ended, or its last process has: the next search will tell.
        self.stats = self.known.iter().filter_map(|(inode, path)| read(*inode, path).ok()).collect();
    }
}

/// `TCP: inuse 5 orphan 0 tw 2 …`
fn in_line(text: &str, line: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|l| l.strip_prefix(line))?.split_ascii_whitespace();
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

/// Two lines with the same beginning: names, then values.
fn in_table(text: &str, line: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(line));
    let column = lines.next()?.split_ascii_whitespace().position(|word| word == name)?;
    lines.next()?.split_ascii_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let sockstat = "sockets: used 290\nTCP: inuse 5 orphan 1 tw 17 alloc 9 mem 1\nUDP: inuse 2\n";
        assert_eq!(in_line(sockstat, "TCP:", "tw"), Some(17));
        assert_eq!(in_line(sockstat, "TCP:", "nothing"), None);
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 3 4\nIpExt: InOctets\nIpExt: 1\n";
        assert_eq!(in_table(netstat, "TcpExt:", "ListenOverflows"), Some(3));
        assert_eq!(in_table(netstat, "TcpExt:", "Nothing"), None);
    }

    #[test]
    fn the_own_namespace_is_always_found() {
        let own = netns_inode(Path::new("/proc/self/ns/net")).unwrap();
        assert!(find(&[]).contains_key(&own));
    }
}
