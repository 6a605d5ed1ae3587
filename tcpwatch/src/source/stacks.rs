//! Kernel stacks of resets: reads the table of the programs, gives each new stack its functions' names, once.

use std::collections::{BTreeMap, BTreeSet};

use tcpwatch_common::stack::StackCount;

use crate::kernel::symbols::{self, Symbols};
use crate::recording::ResetStack;

/// What was read so far.
pub(crate) struct Stacks {
    symbols: Symbols,
    names: BTreeMap<u64, String>,
    /// Key and count of each, in the order in which they were first seen.
    counts: Vec<(u64, u64)>,
    places: BTreeMap<u64, usize>,
}

impl Stacks {
    /// None yet.
    pub(crate) fn new(symbols: Symbols) -> Self {
        Self { symbols, names: BTreeMap::new(), counts: Vec::new(), places: BTreeMap::new() }
    }

    /// Takes a reading of the table; returns the stacks that were not there before.
    pub(crate) fn update(&mut self, mut table: Vec<(u64, StackCount)>) -> Vec<ResetStack> {
        table.sort_unstable_by_key(|(key, _)| *key);
        let mut fresh = Vec::new();
        for (key, stack) in table {
            if let Some((_, count)) = self.places.get(&key).and_then(|place| self.counts.get_mut(*place)) {
                // A table that is read while it grows may show an entry twice, and never with less.
                *count = stack.count.max(*count);
            } else {
                self.places.insert(key, self.counts.len());
                self.counts.push((key, stack.count));
                fresh.push((key, stack));
            }
        }
        self.resolve(&fresh);
        fresh.iter().map(|(key, stack)| self.told(*key, stack)).collect()
    }

    /// Key and count of each stack.
    pub(crate) fn counts(&self) -> &[(u64, u64)] {
        &self.counts
    }

    fn resolve(&mut self, fresh: &[(u64, StackCount)]) {
        let ips = fresh.iter().flat_map(|(_, stack)| stack.ips);
        let new: BTreeSet<u64> = ips.filter(|ip| *ip != 0 && !self.names.contains_key(ip)).collect();
        if !new.is_empty() {
            self.names.append(&mut self.symbols.names(&new));
        }
    }

    fn told(&self, key: u64, stack: &StackCount) -> ResetStack {
        let names = stack.ips.iter().take_while(|ip| **ip != 0).filter_map(|ip| self.names.get(ip).cloned());
        ResetStack { key, origin: stack.origin, cause: stack.cause, frames: symbols::story(names) }
    }
}
