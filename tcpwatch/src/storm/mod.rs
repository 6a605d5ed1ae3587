//! Storms of resets: many more of one service and cause than usual, for longer than a moment.
//!
//! Pure and clockless: made from the counters of each reading, which lose nothing, so that a recording replays to the
//! same storms. `detect` decides, `mute` says what is intended, `evidence` tells who and where; `tell` and `hook` are
//! the only parts with side effects, and only the daemon has them.

pub(crate) mod detect;
pub(crate) mod evidence;
pub(crate) mod hook;
pub(crate) mod mute;
pub(crate) mod tell;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tcpwatch_common::counters::group;
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::state::{Direction, STATES};

use self::detect::{Detector, Step, Window};
use self::evidence::{Detail, Evidence, StackShare};
use self::mute::Mute;
use crate::aggregate::resets::stacks::Stacks;
use crate::aggregate::snapshot::{GroupTotals, Service};

/// Causes of storms: those of resets sent, and all resets received together.
pub(crate) const CAUSES: [&str; ResetCause::ALL.len() + 1] = {
    let mut names = ["received"; ResetCause::ALL.len() + 1];
    let mut i = 0;
    while i < ResetCause::ALL.len() {
        names[i] = ResetCause::ALL[i].name();
        i += 1;
    }
    names
};
/// The place of resets received in [`CAUSES`].
pub(crate) const RECEIVED: usize = ResetCause::ALL.len();
/// Storms that ended and are still listed.
const MOST_ENDED: usize = 64;
/// For so long after it ended, a storm is shown as active to those who only look now and then.
const SHOWN_NS: u64 = 120 * SECOND_NS;
/// Readings closer together than this are looked at as one: somebody asked in between.
const WINDOW_NS: u64 = 900_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// What makes a storm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rules {
    /// Resets a second, of one service and cause, below which there is none.
    pub(crate) min_rate: u32,
    /// How many times the usual rate.
    pub(crate) factor: u32,
    /// How long the rate must have been low for the storm to be over, ns.
    pub(crate) hold_ns: u64,
    /// What is intended.
    pub(crate) mute: Mute,
}

impl Default for Rules {
    fn default() -> Self {
        Self { min_rate: 20, factor: 5, hold_ns: 15 * SECOND_NS, mute: Mute::default() }
    }
}

/// A service and the place of a cause in [`CAUSES`].
pub(crate) type Pair = (Direction, Service, usize);

/// A storm, under way or over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Storm {
    /// Which service and cause.
    pub(crate) pair: Pair,
    /// When it began, ns of CLOCK_MONOTONIC.
    pub(crate) start_ns: u64,
    /// When the rate was last high; the end, once it is over.
    pub(crate) last_ns: u64,
    /// It is over.
    pub(crate) over: bool,
    /// Resets a second that were usual before it.
    pub(crate) usual_rate: f64,
    /// Resets a second in the newest window.
    pub(crate) rate: f64,
    /// Most resets a second in a window.
    pub(crate) peak_rate: f64,
    /// Resets of this service and cause from `start_ns` to `last_ns`.
    pub(crate) resets: u64,
    /// Resets of this service by cause meanwhile, in the order of [`CAUSES`].
    pub(crate) by_cause: [u64; CAUSES.len()],
    /// Who, and where, as far as single resets were reported.
    pub(crate) evidence: Evidence,
    /// The kernel stacks of those.
    pub(crate) by_stack: Vec<StackShare>,
}

impl Storm {
    /// Its name: the same in the log, the events, the API and the hooks.
    pub(crate) fn id(&self) -> String {
        let (direction, service, _) = self.pair;
        let ms = self.start_ns / 1_000_000;
        format!("{}-{}-{}-{ms}", direction.name(), service.label(), self.cause())
    }

    /// Its cause.
    pub(crate) fn cause(&self) -> &'static str {
        CAUSES.get(self.pair.2).copied().unwrap_or("unknown")
    }
}

/// A beginning or an end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The storm; `over` tells which of the two it is.
    pub(crate) storm: Arc<Storm>,
    /// When it was found, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
}

impl Change {
    /// `start` or `end`.
    pub(crate) fn phase(&self) -> &'static str {
        if self.storm.over { "end" } else { "start" }
    }
}

/// Resets that are no storm because somebody intends them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Muted {
    /// Which service and cause.
    pub(crate) pair: Pair,
    /// What mutes them: `cause`, `port`, or `detail` for those whose peer or port was told by their details.
    pub(crate) by: &'static str,
    /// How many there were; by `detail`, those that were reported one by one.
    pub(crate) resets: u64,
}

/// All that is known of storms at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// Those under way, by service and cause.
    pub(crate) active: Vec<Arc<Storm>>,
    /// Those that are over, the newest first.
    pub(crate) ended: Vec<Arc<Storm>>,
    /// What would be none, ordered likewise.
    pub(crate) muted: Vec<Muted>,
    /// Pairs that are shown as active.
    pub(crate) shown: Vec<Pair>,
    /// How many storms each pair had so far.
    pub(crate) counts: BTreeMap<Pair, u64>,
    /// What began or ended with this reading.
    pub(crate) changes: Vec<Change>,
}

type Counts = [u64; CAUSES.len()];

/// What is known of one service.
#[derive(Default)]
struct Group {
    /// At the end of the last window.
    counts: Counts,
    /// At the last reading.
    latest: Counts,
    /// By the place of the cause; only those that were ever counted.
    pairs: BTreeMap<usize, Watched>,
}

#[derive(Default)]
struct Watched {
    detector: Detector,
    /// Details since the last window, and those of muted peers among them.
    details: [u64; 2],
    muted_details: u64,
    evidence: Evidence,
    /// What the service had counted when this began to be high.
    base: Counts,
}

/// Follows the resets of all services.
pub(crate) struct Storms {
    rules: Rules,
    groups: BTreeMap<(Direction, Service), Group>,
    /// First and last reading that was looked at.
    first_ns: Option<u64>,
    last_ns: u64,
    /// Pairs that are shown for a while although their storm is over.
    held: BTreeMap<Pair, u64>,
    ended: VecDeque<Arc<Storm>>,
    counts: BTreeMap<Pair, u64>,
}

impl Storms {
    /// Begins with nothing.
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            groups: BTreeMap::new(),
            first_ns: None,
            last_ns: 0,
            held: BTreeMap::new(),
            ended: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Takes a reset that was reported one by one; `cause` is its place in [`CAUSES`].
    pub(crate) fn observe(&mut self, service: (Direction, Service), cause: usize, detail: &Detail) {
        let (_, named) = service;
        let muted = self.rules.mute.detail(named, detail);
        let watched = self.groups.entry(service).or_default().pairs.entry(cause).or_default();
        let [all, of_muted] = &mut watched.details;
        *all += 1;
        if muted {
            *of_muted += 1;
            watched.muted_details += 1;
        } else {
            watched.evidence.add(detail);
        }
    }

    /// Whether the rate of a service and cause is high, so that details may belong to a storm.
    pub(crate) fn high(&self, service: (Direction, Service), cause: usize) -> bool {
        let watched = self.groups.get(&service).and_then(|group| group.pairs.get(&cause));
        watched.is_some_and(|watched| watched.detector.high())
    }

    /// Whether one of the details of a service and cause was explained.
    pub(crate) fn has_example(&self, service: (Direction, Service), cause: usize) -> bool {
        let watched = self.groups.get(&service).and_then(|group| group.pairs.get(&cause));
        watched.is_some_and(|watched| watched.evidence.example.is_some())
    }

    /// Takes the counters of a moment.
    pub(crate) fn read(&mut self, ktime_ns: u64, groups: &[GroupTotals], stacks: &Stacks) -> Report {
        let mut changes = Vec::new();
        match self.first_ns {
            None => {
                self.first_ns = Some(ktime_ns);
                self.last_ns = ktime_ns;
                for totals in groups {
                    self.groups.entry((totals.direction, totals.service)).or_default().counts = counts(totals);
                }
            }
            Some(first_ns) if ktime_ns.saturating_sub(self.last_ns) >= WINDOW_NS => {
                let window = Window {
                    from_ns: self.last_ns,
                    to_ns: ktime_ns,
                    first: self.last_ns == first_ns,
                    watched_ns: ktime_ns.saturating_sub(first_ns),
                };
                for totals in groups {
                    self.look(totals, &window, stacks, &mut changes);
                }
                self.last_ns = ktime_ns;
            }
            Some(_) => {}
        }
        for totals in groups {
            self.groups.entry((totals.direction, totals.service)).or_default().latest = counts(totals);
        }
        for change in &changes {
            let pair = change.storm.pair;
            if change.storm.over {
                self.held.insert(pair, ktime_ns.saturating_add(SHOWN_NS));
                self.ended.push_front(Arc::clone(&change.storm));
                self.ended.truncate(MOST_ENDED);
            } else {
                *self.counts.entry(pair).or_default() += 1;
            }
        }
        self.held.retain(|_, until| *until > ktime_ns);
        self.report(changes, stacks)
    }

    fn look(&mut self, totals: &GroupTotals, window: &Window, stacks: &Stacks, changes: &mut Vec<Change>) {
        let Self { rules, groups, .. } = self;
        let group = groups.entry((totals.direction, totals.service)).or_default();
        let before_all = std::mem::replace(&mut group.counts, counts(totals));
        for (cause, (now, before)) in group.counts.iter().zip(&before_all).enumerate() {
            let more = more(*now, *before);
            if more == 0 && !group.pairs.contains_key(&cause) {
                continue;
            }
            let watched = group.pairs.entry(cause).or_default();
            let [all, of_muted] = std::mem::take(&mut watched.details);
            let pair = (totals.direction, totals.service, cause);
            if rules.mute.pair(pair).is_some() {
                continue;
            }
            // Counters know no peers: where details were throttled, those that came stand for the others.
            let resets = if of_muted > 0 { more - more * of_muted.min(all) / all } else { more };
            let was_high = watched.detector.high();
            let step = watched.detector.step(rules, window, resets);
            if watched.detector.high() && !was_high {
                watched.base = before_all;
            }
            match step {
                Step::Started | Step::Ended => {
                    let over = step == Step::Ended;
                    let storm = storm(pair, watched, &group.counts, over, stacks);
                    changes.push(Change { storm: Arc::new(storm), ktime_ns: window.to_ns });
                }
                Step::Nothing => {}
            }
            if !watched.detector.high() {
                watched.evidence = Evidence::default();
            }
        }
    }

    fn report(&self, changes: Vec<Change>, stacks: &Stacks) -> Report {
        let mut report = Report {
            ended: self.ended.iter().cloned().collect(),
            counts: self.counts.clone(),
            changes,
            shown: self.held.keys().copied().collect(),
            ..Report::default()
        };
        for ((direction, service), group) in &self.groups {
            for (cause, watched) in &group.pairs {
                let pair = (*direction, *service, *cause);
                if watched.detector.storm().is_some() {
                    report.active.push(Arc::new(storm(pair, watched, &group.counts, false, stacks)));
                    report.shown.push(pair);
                }
                let all = group.latest.get(*cause).copied().unwrap_or_default();
                let muted = match self.rules.mute.pair(pair) {
                    Some(by) => Some((by, all)),
                    None => (watched.muted_details > 0).then_some(("detail", watched.muted_details)),
                };
                if let Some((by, resets)) = muted.filter(|(_, resets)| *resets > 0) {
                    report.muted.push(Muted { pair, by, resets });
                }
            }
        }
        report.shown.sort_unstable();
        report.shown.dedup();
        report
    }
}

/// A storm as it is now.
fn storm(pair: Pair, watched: &Watched, now: &Counts, over: bool, stacks: &Stacks) -> Storm {
    let state = watched.detector.storm_or_last();
    let mut by_cause = [0; CAUSES.len()];
    for ((share, now), before) in by_cause.iter_mut().zip(now).zip(&watched.base) {
        *share = more(*now, *before);
    }
    Storm {
        pair,
        start_ns: state.start_ns,
        last_ns: state.last_high_ns,
        over,
        usual_rate: state.usual,
        rate: state.rate,
        peak_rate: state.peak,
        resets: state.resets,
        by_cause,
        by_stack: watched.evidence.by_stack(stacks),
        evidence: watched.evidence.clone(),
    }
}

/// How much a count grew. One that was taken back did not.
fn more(now: u64, before: u64) -> u64 {
    let more = now.wrapping_sub(before);
    if more > i64::MAX as u64 { 0 } else { more }
}

/// The resets of a group by cause.
fn counts(totals: &GroupTotals) -> Counts {
    let word = |index: usize| totals.words.get(index).copied().unwrap_or_default();
    let mut counts = [0; CAUSES.len()];
    for (count, cause) in counts.iter_mut().zip(ResetCause::ALL) {
        *count =
            ResetOrigin::ALL.iter().fold(0, |sum: u64, origin| sum.wrapping_add(word(group::resets(*origin, cause))));
    }
    if let Some(received) = counts.get_mut(RECEIVED) {
        *received = (0..STATES as u8).fold(0, |sum: u64, state| sum.wrapping_add(word(group::received(state))));
    }
    counts
}

/// The peer of a detail, as mutes and shares know it.
pub(crate) fn peer(address: [u8; 16]) -> IpAddr {
    std::net::Ipv6Addr::from(address).to_canonical()
}

#[cfg(test)]
pub(crate) mod tests;
