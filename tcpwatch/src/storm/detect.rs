//! Whether the resets of one service and cause are a storm.
//!
//! What is usual is a mean of the past (10 minutes, and 6 hours beside it) that a burst cannot lift: what exceeds the
//! threshold enters only up to it, and a storm not at all. A storm
//! - *begins* when the rate was at least `min_rate` and `factor` times the usual one for three seconds after the window
//!   in which that was first so. A burst of two seconds, such as a proxy that restarts and resets all its connections,
//!   is none, however large.
//! - *begins* likewise at `CEILING` times `min_rate` when that is twice what was usual in the last hours: a ramp that is
//!   too slow for the rule above is still a storm at some height, and not before.
//! - *is over* when the rate was below half of what it took to begin for `hold`.
//!
//! What the daemon finds at its start is taken as usual, unless it is at the ceiling: nobody can tell since when it is so.

use super::{Rules, SECOND_NS};

/// How long the rate must be high after the first window in which it was.
const ENTER_NS: u64 = 3 * SECOND_NS;
/// Times `min_rate`: a storm even if it came slowly.
const CEILING: f64 = 50.0;
/// Times what was usual in the last hours, for those.
const CEILING_FACTOR: f64 = 2.0;
/// Memory of what is usual.
const RECENT_SECONDS: f64 = 600.0;
const LONG_SECONDS: f64 = 6.0 * 3600.0;
/// A mean over less than this would follow a single window.
const LEAST_SECONDS: f64 = 60.0;

/// The time between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Its beginning, ns.
    pub(crate) from_ns: u64,
    /// Its end, ns.
    pub(crate) to_ns: u64,
    /// It is the first of all.
    pub(crate) first: bool,
    /// From the first reading of all to its end, ns.
    pub(crate) watched_ns: u64,
}

/// What a window brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// No news.
    Nothing,
    /// A storm is under way.
    Started,
    /// It is over.
    Ended,
}

/// A time of many resets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct High {
    /// Beginning of the first window with a high rate.
    pub(crate) start_ns: u64,
    /// End of that window.
    first_ns: u64,
    /// End of the last such window.
    pub(crate) last_high_ns: u64,
    /// What was usual before, resets a second.
    pub(crate) usual: f64,
    /// Below it the rate is low again.
    low: f64,
    /// Of the newest window, resets a second.
    pub(crate) rate: f64,
    /// The highest.
    pub(crate) peak: f64,
    /// Up to `last_high_ns`.
    pub(crate) resets: u64,
    /// Since then.
    tail: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Quiet,
    /// High, and not for long enough.
    Rising(High),
    Storm(High),
    /// Until the next window.
    Over(High),
}

/// Follows one service and cause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Detector {
    state: State,
    recent: f64,
    long: f64,
}

impl Detector {
    /// Takes the resets of a window.
    pub(crate) fn step(&mut self, rules: &Rules, window: &Window, resets: u64) -> Step {
        let seconds = window.to_ns.saturating_sub(window.from_ns).max(1) as f64 / SECOND_NS as f64;
        let rate = resets as f64 / seconds;
        if window.first {
            let found = rate.min(ceiling(rules) / f64::from(rules.factor));
            (self.recent, self.long) = (found, found);
        }
        match &mut self.state {
            State::Quiet | State::Over(_) => {
                self.state = match self.entered(rules, rate) {
                    Some(level) => State::Rising(High {
                        start_ns: window.from_ns,
                        first_ns: window.to_ns,
                        last_high_ns: window.to_ns,
                        usual: self.recent,
                        low: level / 2.0,
                        rate,
                        peak: rate,
                        resets,
                        tail: 0,
                    }),
                    None => State::Quiet,
                };
                self.learn(rules, window, rate, seconds);
            }
            State::Rising(high) => {
                high.add(window, rate, resets);
                let (long_enough, mut high) = (window.to_ns.saturating_sub(high.first_ns) >= ENTER_NS, *high);
                match self.entered(rules, rate) {
                    Some(_) if long_enough => {
                        self.state = State::Storm(high);
                        return Step::Started;
                    }
                    Some(level) => {
                        high.low = level / 2.0;
                        self.state = State::Rising(high);
                    }
                    None => self.state = State::Quiet,
                }
                self.learn(rules, window, rate, seconds);
            }
            State::Storm(high) => {
                high.add(window, rate, resets);
                if window.to_ns.saturating_sub(high.last_high_ns) >= rules.hold_ns {
                    self.state = State::Over(*high);
                    return Step::Ended;
                }
            }
        }
        Step::Nothing
    }

    /// The level that this rate exceeds.
    fn entered(&self, rules: &Rules, rate: f64) -> Option<f64> {
        let unusual = f64::from(rules.min_rate).max(self.recent * f64::from(rules.factor));
        let high = ceiling(rules).max(self.long * CEILING_FACTOR);
        let level = unusual.min(high);
        (rate >= level).then_some(level)
    }

    fn learn(&mut self, rules: &Rules, window: &Window, rate: f64, seconds: f64) {
        if window.first {
            return;
        }
        let unusual = f64::from(rules.min_rate).max(self.recent * f64::from(rules.factor));
        let rate = rate.min(unusual);
        let watched = (window.watched_ns as f64 / SECOND_NS as f64).max(LEAST_SECONDS);
        for (mean, memory) in [(&mut self.recent, RECENT_SECONDS), (&mut self.long, LONG_SECONDS)] {
            let weight = (seconds / watched.min(memory)).min(1.0);
            *mean += (rate - *mean) * weight;
        }
    }

    /// The rate is or was just now high: what is seen may belong to a storm.
    pub(crate) fn high(&self) -> bool {
        matches!(self.state, State::Rising(_) | State::Storm(_))
    }

    /// The storm that is under way.
    pub(crate) fn storm(&self) -> Option<&High> {
        match &self.state {
            State::Storm(high) => Some(high),
            State::Quiet | State::Rising(_) | State::Over(_) => None,
        }
    }

    /// The storm that is under way, or ended with this window.
    pub(crate) fn storm_or_last(&self) -> High {
        match self.state {
            State::Rising(high) | State::Storm(high) | State::Over(high) => high,
            State::Quiet => High::default(),
        }
    }
}

impl High {
    fn add(&mut self, window: &Window, rate: f64, resets: u64) {
        self.rate = rate;
        self.peak = self.peak.max(rate);
        self.tail += resets;
        if rate >= self.low {
            self.resets += std::mem::take(&mut self.tail);
            self.last_high_ns = window.to_ns;
        }
    }
}

fn ceiling(rules: &Rules) -> f64 {
    f64::from(rules.min_rate) * CEILING
}
