//! Rules that pick single packets out of one direction and drop, hold or duplicate them.
//!
//! A [`Match`] says which packets; [`super::Lane`] gives it to the relay with what to do, and returns a
//! [`RuleHandle`] that counts, switches and removes the rule while traffic runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;

use super::packet::Segment;
use super::record::Packet;

/// Which packets a rule takes. Begins with a kind (`data()`, `syn()`, ...) and is narrowed step by step; each
/// step counts only what the steps before it let through: `Match::data().port(80).nth(3)` is the third data
/// segment from or to port 80.
pub struct Match {
    test: Box<dyn FnMut(&Packet) -> bool + Send>,
}

impl Match {
    /// The packets for which `test` holds. It runs in the relay's thread: it must not block.
    pub fn when(test: impl FnMut(&Packet) -> bool + Send + 'static) -> Self {
        Self { test: Box::new(test) }
    }

    /// The TCP segments for which `test` holds.
    pub fn segment(mut test: impl FnMut(&Segment) -> bool + Send + 'static) -> Self {
        Self::when(move |packet| packet.segment.as_ref().is_some_and(&mut test))
    }

    /// Every packet, TCP or not.
    pub fn any() -> Self {
        Self::when(|_| true)
    }

    /// Every TCP segment.
    pub fn tcp() -> Self {
        Self::segment(|_| true)
    }

    /// Segments with data, retransmissions included.
    pub fn data() -> Self {
        Self::segment(|segment| segment.payload > 0)
    }

    /// SYN without ACK.
    pub fn syn() -> Self {
        Self::segment(Segment::is_syn)
    }

    /// SYN with ACK.
    pub fn syn_ack() -> Self {
        Self::segment(Segment::is_syn_ack)
    }

    /// Segments with FIN.
    pub fn fin() -> Self {
        Self::segment(|segment| segment.flags.has(super::Flags::FIN))
    }

    /// Segments with RST.
    pub fn rst() -> Self {
        Self::segment(|segment| segment.flags.has(super::Flags::RST))
    }

    /// Acknowledgements without data, SYN, FIN or RST.
    pub fn pure_ack() -> Self {
        Self::segment(Segment::is_pure_ack)
    }

    /// Segments whose first sequence number has been seen before.
    pub fn retransmission() -> Self {
        Self::segment(|segment| segment.retransmission)
    }

    /// IP packets of more than so many bytes.
    pub fn larger_than(bytes: u32) -> Self {
        Self::when(move |packet| packet.length > bytes)
    }

    /// Only those for which `test` holds too.
    #[must_use]
    pub fn and(mut self, mut test: impl FnMut(&Packet) -> bool + Send + 'static) -> Self {
        Self::when(move |packet| (self.test)(packet) && test(packet))
    }

    /// Only those from or to `port`.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.and(move |packet| {
            packet.segment.as_ref().is_some_and(|s| s.flow.src.port() == port || s.flow.dst.port() == port)
        })
    }

    /// Only the `n`th, counted from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        self.counted(move |count| count == n)
    }

    /// Only the first `n`.
    #[must_use]
    pub fn first(self, n: u64) -> Self {
        self.counted(move |count| count <= n)
    }

    /// Only the `n`th, counted from 1, and all after it.
    #[must_use]
    pub fn from_nth(self, n: u64) -> Self {
        self.counted(move |count| count >= n)
    }

    /// Only every `n`th: the `n`th, the `2n`th and so on.
    #[must_use]
    pub fn every_nth(self, n: u64) -> Self {
        self.counted(move |count| count.is_multiple_of(n))
    }

    /// Only those at the places of a pattern that have an `x`, `"..x.xx"` say; after its end it begins anew. An empty
    /// pattern has no such place.
    #[must_use]
    pub fn pattern(self, pattern: &str) -> Self {
        let places: Vec<bool> = pattern.chars().map(|place| place == 'x').collect();
        self.counted(move |count| {
            let place = (count - 1).checked_rem(places.len() as u64);
            place.is_some_and(|place| places[place as usize])
        })
    }

    /// Only a share of them, drawn for each from a seed: the same seed and packets give the same choice.
    #[must_use]
    pub fn probability(self, share: f64, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        self.and(move |_| random.f64() < share)
    }

    /// The `n`th of the matched segments, counted from 1, and further `times - 1` times the same sequence number of
    /// the same flow: what it takes to drop a segment and its retransmissions. Retransmissions are recognised by
    /// their first byte.
    #[must_use]
    pub fn nth_and_again(self, n: u64, times: u64) -> Self {
        let mut inner = self.nth(n);
        let mut taken = None;
        let mut left = times;
        Self::segment_of(move |packet, segment| {
            let is_nth = (inner.test)(packet);
            if is_nth {
                taken = Some((segment.flow, segment.seq));
            }
            let again = taken == Some((segment.flow, segment.seq)) && segment.length() > 0;
            if !again || left == 0 {
                return false;
            }
            left -= 1;
            true
        })
    }

    fn segment_of(mut test: impl FnMut(&Packet, &Segment) -> bool + Send + 'static) -> Self {
        Self::when(move |packet| packet.segment.as_ref().is_some_and(|segment| test(packet, segment)))
    }

    fn counted(self, mut is_wanted: impl FnMut(u64) -> bool + Send + 'static) -> Self {
        let mut count = 0;
        self.and(move |_| {
            count += 1;
            is_wanted(count)
        })
    }
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Match").finish_non_exhaustive()
    }
}

/// What a rule does with the packets it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The packet goes nowhere.
    Drop,
    /// The packet leaves so much later, and those after it may overtake it.
    Hold(Duration),
    /// The packet leaves, and after it so many copies, each `gap` later than the one before.
    Duplicate {
        /// How many copies beside the packet itself.
        copies: u32,
        /// The time between the packet and its first copy, and between copies.
        gap: Duration,
    },
}

#[derive(Debug)]
struct RuleState {
    enabled: AtomicBool,
    removed: AtomicBool,
    hits: AtomicU64,
}

/// A rule in the relay. Dropping the handle leaves the rule as it is.
#[derive(Clone, Debug)]
pub struct RuleHandle {
    state: Arc<RuleState>,
}

impl RuleHandle {
    /// How many packets the rule has taken.
    pub fn hits(&self) -> u64 {
        self.state.hits.load(Ordering::Acquire)
    }

    /// Switches the rule on or off. While it is off it neither takes nor counts packets.
    pub fn set_enabled(&self, enabled: bool) {
        self.state.enabled.store(enabled, Ordering::Release);
    }

    /// Takes the rule out for good.
    pub fn remove(&self) {
        self.state.removed.store(true, Ordering::Release);
    }
}

/// A rule as the relay holds it.
#[derive(Debug)]
struct Rule {
    matching: Match,
    action: Action,
    state: Arc<RuleState>,
}

/// What the rules of a direction together want done with one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) drop: bool,
    /// Extra delay outside the order of packets.
    pub(crate) hold: Option<Duration>,
    /// Copies and the time between them.
    pub(crate) copies: Option<(u32, Duration)>,
}

/// The rules of one direction.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    pub(crate) fn add(&mut self, matching: Match, action: Action) -> RuleHandle {
        let state = Arc::new(RuleState {
            enabled: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            hits: AtomicU64::new(0),
        });
        self.rules.push(Rule { matching, action, state: Arc::clone(&state) });
        RuleHandle { state }
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Asks every rule, so that what one counts does not depend on what another drops.
    pub(crate) fn judge(&mut self, packet: &Packet) -> Verdict {
        self.rules.retain(|rule| !rule.state.removed.load(Ordering::Acquire));
        let mut verdict = Verdict::default();
        for rule in &mut self.rules {
            if !rule.state.enabled.load(Ordering::Acquire) || !(rule.matching.test)(packet) {
                continue;
            }
            rule.state.hits.fetch_add(1, Ordering::AcqRel);
            match rule.action {
                Action::Drop => verdict.drop = true,
                Action::Hold(extra) => verdict.hold = Some(verdict.hold.unwrap_or_default() + extra),
                Action::Duplicate { copies, gap } => verdict.copies = Some((copies, gap)),
            }
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::test_packets::{ack, data};
    use super::*;

    fn hits(matching: Match, packets: &[Packet]) -> Vec<usize> {
        let mut rules = Rules::default();
        rules.add(matching, Action::Drop);
        let dropped = packets.iter().enumerate().filter(|(_, packet)| rules.judge(packet).drop);
        dropped.map(|(n, _)| n).collect()
    }

    #[test]
    fn the_nth_data_segment_is_counted_among_data() {
        let packets = [data(0, 10), ack(1), data(10, 10), data(20, 10), data(30, 10)];
        assert_eq!(hits(Match::data().nth(3), &packets), [3]);
        assert_eq!(hits(Match::data().first(2), &packets), [0, 2]);
        assert_eq!(hits(Match::data().from_nth(3), &packets), [3, 4]);
        assert_eq!(hits(Match::data().every_nth(2), &packets), [2, 4]);
        assert_eq!(hits(Match::pure_ack(), &packets), [1]);
    }

    #[test]
    fn a_pattern_repeats() {
        let packets: Vec<Packet> = (0..8).map(|n| data(n * 10, 10)).collect();
        assert_eq!(hits(Match::data().pattern(".x.x"), &packets), [1, 3, 5, 7]);
        assert_eq!(hits(Match::data().pattern("xx..."), &packets), [0, 1, 5, 6]);
        assert_eq!(hits(Match::data().pattern(""), &packets), [0; 0]);
    }

    #[test]
    fn size_is_that_of_the_packet() {
        let packets = [data(0, 10), data(10, 1000), ack(1)];
        assert_eq!(hits(Match::larger_than(50), &packets), [1]);
    }

    #[test]
    fn a_segment_is_taken_again() {
        let packets = [data(0, 10), data(10, 10), data(20, 10), data(10, 10), data(10, 10), data(10, 10)];
        assert_eq!(hits(Match::data().nth_and_again(2, 3), &packets), [1, 3, 4]);
    }

    #[test]
    fn chance_repeats_with_its_seed() {
        let packets: Vec<Packet> = (0..1000).map(|n| data(n * 10, 10)).collect();
        let first = hits(Match::any().probability(0.1, 7), &packets);
        assert!((50..150).contains(&first.len()), "{}", first.len());
        assert_eq!(first, hits(Match::any().probability(0.1, 7), &packets));
        assert_ne!(first, hits(Match::any().probability(0.1, 8), &packets));
    }

    #[test]
    fn rules_count_on_their_own() {
        let mut rules = Rules::default();
        let second = rules.add(Match::data().nth(2), Action::Drop);
        let third = rules.add(Match::data().nth(3), Action::Drop);
        for n in 0..5 {
            rules.judge(&data(n * 10, 10));
        }
        assert_eq!((second.hits(), third.hits()), (1, 1));
    }

    #[test]
    fn a_rule_is_switched_and_removed() {
        let mut rules = Rules::default();
        let rule = rules.add(Match::any(), Action::Hold(Duration::from_millis(1)));
        assert_eq!(rules.judge(&data(0, 1)).hold, Some(Duration::from_millis(1)));
        rule.set_enabled(false);
        assert_eq!(rules.judge(&data(0, 1)), Verdict::default());
        rule.set_enabled(true);
        rule.remove();
        assert_eq!(rules.judge(&data(0, 1)), Verdict::default());
        assert_eq!(rule.hits(), 1);
    }
}
