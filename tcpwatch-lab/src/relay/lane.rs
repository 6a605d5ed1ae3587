//! One direction of a path in the hands of a test: its impairment and its rules.

use std::time::Duration;

use super::Direction;
use super::engine::{Shared, lock};
use super::impair::{Impairment, Rate};
use super::rules::{Action, Match, RuleHandle};

/// One direction of a path. Its settings can be changed at any time; they hold for packets that arrive later.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    shared: &'a Shared,
    direction: Direction,
}

impl<'a> Lane<'a> {
    pub(crate) fn new(shared: &'a Shared, direction: Direction) -> Self {
        Self { shared, direction }
    }

    /// What happens to every packet now.
    pub fn impairment(&self) -> Impairment {
        lock(&self.shared.lanes[self.direction as usize]).shaper.impairment()
    }

    /// Replaces what happens to every packet. Without reordering, packets still keep behind those before them.
    pub fn set_impairment(&self, impairment: Impairment) {
        self.change(|_| impairment);
    }

    /// Changes the one-way delay only.
    pub fn set_delay(&self, delay: Duration) {
        self.change(|now| Impairment { delay, ..now });
    }

    /// Changes the rate limit only; `None` lifts it.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.change(|now| Impairment { rate, ..now });
    }

    fn change(&self, change: impl FnOnce(Impairment) -> Impairment) {
        let shaper = &mut lock(&self.shared.lanes[self.direction as usize]).shaper;
        shaper.set(change(shaper.impairment()));
    }

    /// Adds a rule. Every rule sees every packet, so rules count independently of each other; of a packet that
    /// several take, dropping wins and holding adds up.
    pub fn add_rule(&self, matching: Match, action: Action) -> RuleHandle {
        lock(&self.shared.lanes[self.direction as usize]).rules.add(matching, action)
    }

    /// Removes all rules.
    pub fn clear_rules(&self) {
        lock(&self.shared.lanes[self.direction as usize]).rules.clear();
    }

    /// Drops the packets of a match.
    pub fn drop_when(&self, matching: Match) -> RuleHandle {
        self.add_rule(matching, Action::Drop)
    }

    /// Drops the `n`th segment with data from now on, counted from 1 over all connections.
    pub fn drop_nth_data(&self, n: u64) -> RuleHandle {
        self.drop_when(Match::data().nth(n))
    }

    /// Drops the `n`th segment with data and its retransmissions, `times` packets in all.
    pub fn drop_nth_data_times(&self, n: u64, times: u64) -> RuleHandle {
        self.drop_when(Match::data().nth_and_again(n, times))
    }

    /// Drops the next `count` SYNs.
    pub fn drop_syns(&self, count: u64) -> RuleHandle {
        self.drop_when(Match::syn().first(count))
    }

    /// Drops the next `count` SYN-ACKs.
    pub fn drop_syn_acks(&self, count: u64) -> RuleHandle {
        self.drop_when(Match::syn_ack().first(count))
    }

    /// Drops a share of all packets, drawn from a seed.
    pub fn drop_share(&self, share: f64, seed: u64) -> RuleHandle {
        self.drop_when(Match::any().probability(share, seed))
    }

    /// Drops what is larger than `mtu` bytes and tells no one, as a router does whose ICMP messages are filtered.
    pub fn mtu_black_hole(&self, mtu: u32) -> RuleHandle {
        self.drop_when(Match::larger_than(mtu))
    }

    /// Lets a share of the segments with data, drawn from a seed, leave so much later: those after them overtake them.
    pub fn reorder_share(&self, share: f64, extra: Duration, seed: u64) -> RuleHandle {
        self.hold(Match::data().probability(share, seed), extra)
    }

    /// Lets a share of the segments with data, drawn from a seed, arrive twice.
    pub fn duplicate_share(&self, share: f64, seed: u64) -> RuleHandle {
        self.duplicate(Match::data().probability(share, seed), 1, Duration::ZERO)
    }

    /// Drops everything until the handle switches it off.
    pub fn blackhole(&self) -> RuleHandle {
        self.drop_when(Match::any())
    }

    /// Lets the packets of a match leave so much later; others may overtake them.
    pub fn hold(&self, matching: Match, extra: Duration) -> RuleHandle {
        self.add_rule(matching, Action::Hold(extra))
    }

    /// Lets the packets of a match be followed by so many copies, each `gap` after the one before.
    pub fn duplicate(&self, matching: Match, copies: u32, gap: Duration) -> RuleHandle {
        self.add_rule(matching, Action::Duplicate { copies, gap })
    }
}
