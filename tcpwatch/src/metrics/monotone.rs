//! Counters that never go back.
//!
//! The kernel programs may take a count back for a moment: a connection that looked reset by its peer turns out to be
//! reset by us, and one word falls by one while another rises. Prometheus would take that for a restart and count
//! everything once more. So each word is shown as the largest that was ever shown. A pure structure: no clock, no lock.

use std::collections::BTreeMap;
use std::mem;

use tcpwatch_common::counters::{dist, group};
use tcpwatch_common::state::Direction;

use crate::aggregate::snapshot::{GroupTotals, Service, Snapshot};

/// What a list of words belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Words(Direction, Service),
    Dist(Direction, Service),
    AllWords(Direction),
    AllDist(Direction),
    Reasons,
    Events,
    Losses,
    Decode(&'static str),
    Program(String),
    Evicted,
    Thinned,
}

/// The largest words shown so far.
#[derive(Debug, Default)]
pub(crate) struct Monotone {
    shown: BTreeMap<Key, Vec<u64>>,
}

/// A snapshot that can be shown.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The snapshot, with every counter at least what it was when last shown.
    pub(crate) snapshot: Snapshot,
    /// Sums over the services of each direction, settled likewise.
    pub(crate) directions: Vec<GroupTotals>,
}

impl Monotone {
    /// Makes a snapshot fit to be shown after those before. What it does not list any more is forgotten.
    pub(crate) fn settle(&mut self, snapshot: &Snapshot) -> Settled {
        let mut step = Step { before: mem::take(&mut self.shown), shown: BTreeMap::new() };
        let mut directions: Vec<_> = Direction::ALL.iter().map(|&direction| sum(snapshot, direction)).collect();
        for totals in &mut directions {
            step.settle(Key::AllWords(totals.direction), &mut totals.words);
            step.settle(Key::AllDist(totals.direction), &mut totals.dist);
        }
        let mut snapshot = snapshot.clone();
        for totals in &mut snapshot.groups {
            step.settle(Key::Words(totals.direction, totals.service), &mut totals.words);
            step.settle(Key::Dist(totals.direction, totals.service), &mut totals.dist);
        }
        step.settle(Key::Reasons, &mut snapshot.reasons);
        let own = &mut snapshot.own;
        step.settle(Key::Events, &mut own.events);
        step.settle(Key::Losses, &mut own.losses);
        for (reason, count) in &mut own.decode_errors {
            step.settle(Key::Decode(reason), std::slice::from_mut(count));
        }
        for program in &mut own.programs {
            let mut words = [program.recursion_misses, program.runs.unwrap_or_default()];
            step.settle(Key::Program(program.name.clone()), &mut words);
            let [misses, runs] = words;
            program.recursion_misses = misses;
            program.runs = program.runs.map(|_| runs);
        }
        step.settle(Key::Evicted, std::slice::from_mut(&mut own.table.evicted));
        if let Some(governed) = &mut own.governed {
            step.settle(Key::Thinned, std::slice::from_mut(&mut governed.thinned_ns));
        }
        snapshot.states.iter_mut().for_each(|count| *count = counted(*count));
        self.shown = step.shown;
        Settled { snapshot, directions }
    }
}

/// The totals of a direction over all its services. A word below zero is taken into account as such.
fn sum(snapshot: &Snapshot, direction: Direction) -> GroupTotals {
    let zero = GroupTotals { direction, service: Service::Other, words: [0; group::WORDS], dist: [0; dist::WORDS] };
    snapshot.groups.iter().filter(|totals| totals.direction == direction).fold(zero, |mut all, totals| {
        let words = all.words.iter_mut().zip(totals.words).chain(all.dist.iter_mut().zip(totals.dist));
        words.for_each(|(sum, word)| *sum = sum.wrapping_add(word));
        all
    })
}

/// One pass: what was shown before, and what is shown now.
struct Step {
    before: BTreeMap<Key, Vec<u64>>,
    shown: BTreeMap<Key, Vec<u64>>,
}

impl Step {
    fn settle(&mut self, key: Key, words: &mut [u64]) {
        for word in words.iter_mut() {
            *word = counted(*word);
        }
        if let Some(before) = self.before.remove(&key) {
            words.iter_mut().zip(before).for_each(|(word, before)| *word = before.max(*word));
        }
        self.shown.insert(key, words.to_vec());
    }
}

/// A word as a count: one that fell below zero, and so wrapped, counts nothing.
fn counted(word: u64) -> u64 {
    if word > i64::MAX as u64 { 0 } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::sample;
    use proptest::prelude::*;
    use tcpwatch_common::close::CloseCause;
    use tcpwatch_common::state::TcpState;

    const SENT: usize = group::closed(CloseCause::ResetSent);
    const RECEIVED: usize = group::closed(CloseCause::ResetReceived);

    #[test]
    fn a_count_that_is_taken_back_stays_until_it_is_passed() {
        let mut monotone = Monotone::default();
        let mut snapshot = sample::empty();
        let mut shown = |values: [u64; 2]| {
            snapshot.groups[0].words[SENT] = values[0];
            snapshot.groups[0].words[RECEIVED] = values[1];
            let words = monotone.settle(&snapshot).snapshot.groups[0].words;
            [words[SENT], words[RECEIVED]]
        };
        assert_eq!(shown([5, 7]), [5, 7]);
        assert_eq!(shown([6, 6]), [6, 7]);
        assert_eq!(shown([6, 7]), [6, 7]);
        assert_eq!(shown([6, 8]), [6, 8]);
    }

    #[test]
    fn a_word_below_zero_shows_as_zero() {
        let mut snapshot = sample::empty();
        snapshot.groups[0].words[RECEIVED] = u64::MAX;
        snapshot.states[TcpState::Established as usize] = u64::MAX - 3;
        let settled = Monotone::default().settle(&snapshot);
        assert_eq!(settled.snapshot.groups[0].words[RECEIVED], 0);
        assert_eq!(settled.snapshot.states[TcpState::Established as usize], 0);
    }

    #[test]
    fn directions_are_sums_that_take_negative_words_into_account() {
        let mut snapshot = sample::empty();
        let group = snapshot.groups[0].clone();
        snapshot.groups.push(GroupTotals { service: Service::Port(9), ..group });
        snapshot.groups[0].words[RECEIVED] = 5;
        snapshot.groups.last_mut().unwrap().words[RECEIVED] = u64::MAX;
        let direction = snapshot.groups[0].direction;
        let settled = Monotone::default().settle(&snapshot);
        let all = settled.directions.iter().find(|totals| totals.direction == direction).unwrap();
        assert_eq!(all.words[RECEIVED], 4);
    }

    #[test]
    fn a_group_that_left_begins_anew_but_its_direction_does_not_fall() {
        let mut monotone = Monotone::default();
        let mut snapshot = sample::empty();
        snapshot.groups[0].words[SENT] = 9;
        let direction = snapshot.groups[0].direction as usize;
        monotone.settle(&snapshot);
        let group = snapshot.groups.remove(0);
        assert_eq!(monotone.settle(&snapshot).directions[direction].words[SENT], 9);
        snapshot.groups.insert(0, group);
        snapshot.groups[0].words[SENT] = 1;
        let settled = monotone.settle(&snapshot);
        assert_eq!(settled.snapshot.groups[0].words[SENT], 1);
        assert_eq!(settled.directions[direction].words[SENT], 9);
    }

    proptest! {
        #[test]
        fn nothing_shown_ever_falls(values in proptest::collection::vec((any::<u64>(), 0_u64..100), 1..30)) {
            let mut monotone = Monotone::default();
            let mut snapshot = sample::empty();
            let mut last = [0, 0, 0];
            for (any, small) in values {
                snapshot.groups[0].words[SENT] = small;
                snapshot.own.losses[0] = any;
                snapshot.own.table.evicted = small;
                let now = monotone.settle(&snapshot).snapshot;
                let now = [now.groups[0].words[SENT], now.own.losses[0], now.own.table.evicted];
                prop_assert!(now.iter().zip(last).all(|(now, last)| *now >= last), "{last:?} then {now:?}");
                prop_assert!(now[0] >= small && i64::try_from(now[1]).is_ok());
                last = now;
            }
        }
    }
}
