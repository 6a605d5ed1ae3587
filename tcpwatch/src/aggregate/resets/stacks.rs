//! Stacks of resets by fingerprint: a number made of the cause and the names of the functions, so that it is the same
//! after a reboot. Bounded: what is beyond counts as `other`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::recording::ResetStack;

/// Fingerprints of their own.
pub(crate) const MOST: usize = 128;
/// What stacks beyond the first [`MOST`] count as.
pub(crate) const OTHER: &str = "other";
/// Stacks that the table of the programs has at most; a recording may not have more either.
const MOST_KEYS: usize = tcpwatch_common::stack::STACKS as usize;

/// A stack under its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StackTotals {
    /// 16 hexadecimal digits, or [`OTHER`].
    pub(crate) fingerprint: Arc<str>,
    /// Number of the origin.
    pub(crate) origin: u8,
    /// Number of the cause.
    pub(crate) cause: u8,
    /// The functions, the innermost first; empty where the kernel does not tell.
    pub(crate) frames: Arc<[String]>,
    /// Resets.
    pub(crate) count: u64,
}

/// Every stack that was told.
#[derive(Default)]
pub(crate) struct Stacks {
    /// Place of each key of the programs.
    places: BTreeMap<u64, usize>,
    totals: Vec<StackTotals>,
}

impl Stacks {
    /// Takes a stack that was not there before.
    pub(crate) fn tell(&mut self, stack: &ResetStack) {
        if self.places.len() >= MOST_KEYS || self.places.contains_key(&stack.key) {
            return;
        }
        let fingerprint = fingerprint(stack.origin, stack.cause, &stack.frames);
        let full = self.totals.len() >= MOST;
        let known = |name: &str| self.totals.iter().position(|totals| &*totals.fingerprint == name);
        let known = known(&fingerprint).or_else(|| known(OTHER).filter(|_| full));
        let place = known.unwrap_or_else(|| {
            let (name, frames) =
                if full { (OTHER.into(), [].into()) } else { (fingerprint.into(), stack.frames.as_slice().into()) };
            let (origin, cause) = if full { (u8::MAX, u8::MAX) } else { (stack.origin, stack.cause) };
            self.totals.push(StackTotals { fingerprint: name, origin, cause, frames, count: 0 });
            self.totals.len() - 1
        });
        self.places.insert(stack.key, place);
    }

    /// The stacks with what was counted of each key.
    pub(crate) fn count(&self, counts: &[(u64, u64)]) -> Vec<StackTotals> {
        let mut totals = self.totals.clone();
        for (key, count) in counts {
            if let Some(stack) = self.places.get(key).and_then(|place| totals.get_mut(*place)) {
                stack.count = stack.count.saturating_add(*count);
            }
        }
        totals
    }

    /// The fingerprint of a key.
    pub(crate) fn fingerprint(&self, key: u64) -> Option<Arc<str>> {
        Some(Arc::clone(&self.of(key)?.fingerprint))
    }

    /// The stack of a key; nothing was counted in it.
    pub(crate) fn of(&self, key: u64) -> Option<&StackTotals> {
        self.totals.get(*self.places.get(&key)?)
    }
}

/// FNV-1a over origin, cause and names: short, without a key, and the same everywhere.
fn fingerprint(origin: u8, cause: u8, frames: &[String]) -> String {
    let names = frames.iter().flat_map(|name| name.bytes().chain([0]));
    let hash = [origin, cause]
        .into_iter()
        .chain(names)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(key: u64, cause: u8, frames: &[&str]) -> ResetStack {
        ResetStack { key, origin: 0, cause, frames: frames.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn stacks_with_the_same_names_and_cause_are_one() {
        let mut stacks = Stacks::default();
        for told in [stack(1, 3, &["a", "b"]), stack(2, 3, &["a", "b"]), stack(3, 4, &["a", "b"]), stack(4, 3, &["ab"])]
        {
            stacks.tell(&told);
        }
        let counted = stacks.count(&[(1, 10), (2, 5), (3, 1), (4, 2), (99, 7)]);
        assert_eq!(counted.iter().map(|s| s.count).collect::<Vec<_>>(), [15, 1, 2]);
        assert_eq!(stacks.fingerprint(1), stacks.fingerprint(2));
        // It is written into dashboards: it may not change.
        assert_eq!(&*counted[0].fingerprint, "513e0a78401df377");
    }

    #[test]
    fn what_is_beyond_the_bound_is_other_and_still_counted() {
        let mut stacks = Stacks::default();
        let counts: Vec<_> = (1..=2000_u64).map(|key| (key, 1)).collect();
        for (key, _) in &counts {
            stacks.tell(&stack(*key, 0, &[&format!("function_{key}")]));
        }
        let counted = stacks.count(&counts);
        assert_eq!(counted.len(), MOST + 1);
        assert_eq!(&*counted[MOST].fingerprint, OTHER);
        assert_eq!(counted[MOST].count, (MOST_KEYS - MOST) as u64);
    }
}
