//! Network namespaces of the host, found by inode, and what the kernel counts in each. No descriptor of one is kept: a
//! namespace that nobody else holds shall end.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tcpwatch_common::counters::netns;

use super::kernel_counters::Watched;
use super::listeners::netns_inode;
use crate::aggregate::snapshot::{Compared, NamespaceStats};
use crate::config::Config;
use crate::kernel::maps::ByNamespace;
use crate::meaning::Limits;
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

/// Network namespaces and what the kernel counts in them.
pub(crate) struct Surroundings {
    configured: Vec<PathBuf>,
    filtered: Vec<u32>,
    known: BTreeMap<u32, PathBuf>,
    watched: BTreeMap<u32, Watched>,
    /// Namespaces that were looked for and not found, with what was counted in them.
    strangers: BTreeMap<u32, [u64; netns::WORDS]>,
    /// Of namespaces that ended, as they were read last.
    ended: Compared,
    searched_ns: u64,
    /// Where the next look begins when there are more namespaces than one look may visit.
    next: u32,
    /// Namespaces where our programs counted something and nobody can tell what the kernel did.
    pub(crate) unreadable: u64,
}

/// How often namespaces are looked for, ns.
const SEARCH_NS: u64 = 10_000_000_000;
/// How often at most, when something was counted in one that is not known, ns.
const SEARCH_AGAIN_NS: u64 = 2_000_000_000;
/// Namespaces visited in one look: each takes a thread and some files of /proc, about 0.2 ms.
const VISITS: usize = 16;

impl Surroundings {
    /// Has not looked yet; `filtered` are the only ones of interest, if there are any.
    pub(crate) fn new(config: &Config, filtered: Vec<u32>) -> Self {
        Self {
            configured: config.netns.clone(),
            filtered,
            known: BTreeMap::new(),
            watched: BTreeMap::new(),
            strangers: BTreeMap::new(),
            ended: Compared::default(),
            searched_ns: 0,
            next: 0,
            unreadable: 0,
        }
    }

    /// Reads them, some of them when they are many, and looks for new ones from time to time.
    pub(crate) fn look(&mut self, ours: &mut ByNamespace) {
        let now = sys::monotonic_ns();
        let strange = |inode: &u32| !self.known.contains_key(inode) && !self.strangers.contains_key(inode);
        let strangers = ours.inodes().any(|inode| strange(&inode));
        let pause = if strangers { SEARCH_AGAIN_NS } else { SEARCH_NS };
        if self.searched_ns == 0 || now.saturating_sub(self.searched_ns) >= pause {
            self.search(ours);
            self.searched_ns = now;
        }
        let order = self.known.range(self.next..).chain(self.known.range(..self.next));
        // Only settings of the whole host are taken from it, no levels.
        let host = Limits::of_thread("");
        let mut last = None;
        for (inode, path) in order.take(VISITS) {
            let watched = self.watched.entry(*inode).or_insert_with(|| Watched::new(*inode));
            // One that cannot be read has ended, or its last process has: the next search will tell.
            if watched.look(path, ours, &host).is_err() {
                self.searched_ns = 0;
            }
            last = Some(*inode);
        }
        self.next = last.map_or(0, |inode| inode.wrapping_add(1));
        self.unreadable = ours.inodes().filter(|inode| !self.watched.contains_key(inode)).count() as u64;
    }

    /// Namespaces that nobody names: they are looked for once, and forgotten when nothing happens in them any more.
    fn note_strangers(&mut self, ours: &mut ByNamespace) {
        let before = std::mem::take(&mut self.strangers);
        for inode in ours.inodes().filter(|inode| !self.known.contains_key(inode)).collect::<Vec<_>>() {
            let counted = ours.read(inode).unwrap_or_default();
            if before.get(&inode) == Some(&counted) {
                ours.forget(inode);
            } else {
                self.strangers.insert(inode, counted);
            }
        }
    }

    fn search(&mut self, ours: &mut ByNamespace) {
        self.known = find(&self.configured);
        if !self.filtered.is_empty() {
            self.known.retain(|inode, _| self.filtered.contains(inode));
        }
        let (known, ended) = (&self.known, &mut self.ended);
        self.watched.retain(|inode, watched| {
            let stays = known.contains_key(inode);
            if !stays {
                *ended = ended.plus(watched.stats.compared);
                ours.forget(*inode);
            }
            stays
        });
        self.note_strangers(ours);
    }

    /// The newest readings, by inode.
    pub(crate) fn stats(&self) -> Vec<NamespaceStats> {
        self.watched.values().map(|watched| watched.stats).collect()
    }

    /// Settings that explain resets, by inode.
    pub(crate) fn limits(&self) -> BTreeMap<u32, Arc<Limits>> {
        self.watched.iter().map(|(inode, watched)| (*inode, Arc::clone(&watched.limits))).collect()
    }

    /// The kernel's counters beside ours, of all namespaces that were ever read.
    pub(crate) fn compared(&self) -> Compared {
        self.watched.values().fold(self.ended, |sum, watched| sum.plus(watched.stats.compared))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_own_namespace_is_always_found() {
        let own = netns_inode(Path::new("/proc/self/ns/net")).unwrap();
        assert!(find(&[]).contains_key(&own));
    }
}
