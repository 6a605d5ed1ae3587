//! Keeps tcpwatch within its budgets of CPU time and periodic records.
//!
//! Over a budget the sample interval grows first, up to a minute. When that is not enough for the CPU time, RTT samples are
//! left out of the histograms. Counters never lose anything. When the load goes, all of it is taken back.
//!
//! The law is proportional, with a dead band: above a budget, back off so that [`TARGET`] of it would be used if use went
//! down as the interval goes up; below [`LOW`] of it, come back by no more than would use `TARGET` if all of the use went
//! up as the interval goes down. What is used never goes up faster than that, so that coming back cannot lead above a
//! budget, and a constant load cannot make it swing.

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use tcpwatch_common::thinning::MOST_SHIFT;

use crate::aggregate::snapshot::Governed;

/// The interval never grows past this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);
/// What a change aims at, of a budget.
const TARGET: f64 = 0.8;
/// Of a budget: what is held back is given back when less is used.
const LOW: f64 = 0.6;
/// Use above a budget is believed when it would be above it over this time.
const SPIKE: Duration = Duration::from_secs(3);
/// Use below a budget is believed after this time.
const CALM: Duration = Duration::from_secs(5);
/// The interval grows by no more than this in one step: a spike says little about what follows.
const STEEPEST: f64 = 8.0;

/// What may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Of one CPU.
    pub(crate) cpu: f64,
    /// Periodic records.
    pub(crate) records_per_second: f64,
}

/// What was used since the beginning, at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// The moment, by the monotonic clock.
    pub(crate) at: Duration,
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Periodic records.
    pub(crate) records: u64,
}

/// What is used in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    /// Of one CPU.
    cpu: f64,
    /// Periodic records.
    records: f64,
}

impl Used {
    /// Rates since `before`, as if at least `least` had passed.
    fn since(&self, before: &Self, least: Duration) -> Rates {
        let seconds = self.at.saturating_sub(before.at).max(least).as_secs_f64();
        Rates {
            cpu: self.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds,
            records: self.records.saturating_sub(before.records) as f64 / seconds,
        }
    }
}

impl Budget {
    /// What is used of both budgets, 1 being all of it.
    fn shares(&self, rates: Rates) -> Rates {
        Rates { cpu: rates.cpu / self.cpu, records: rates.records / self.records_per_second }
    }
}

/// Changes the interval of periodic records and how many RTT samples enter the histograms.
pub(crate) struct Governor {
    budget: Budget,
    wanted: Duration,
    interval: Duration,
    thinning_shift: u32,
    /// Since when use is measured: the last change, or the end of a calm time.
    window: Used,
    last: Used,
    /// A change was made at the last call: what was used since is neither of before nor of after it.
    settling: bool,
    rates: Rates,
    thinned: Duration,
}

impl Governor {
    /// Begins with the interval that is wanted; `used` is what was used before.
    pub(crate) fn new(wanted: Duration, budget: Budget, used: Used) -> Self {
        Self {
            budget,
            wanted,
            interval: wanted,
            thinning_shift: 0,
            window: used,
            last: used,
            settling: true,
            rates: Rates::default(),
            thinned: Duration::ZERO,
        }
    }

    /// The interval that holds now.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// How thin the histograms are now, see `tcpwatch_common::thinning`.
    pub(crate) fn thinning_shift(&self) -> u32 {
        self.thinning_shift
    }

    /// What is shown of it.
    pub(crate) fn state(&self) -> Governed {
        Governed {
            level: self.level().into(),
            one_in: 1 << self.thinning_shift,
            thinned_ns: self.thinned.as_nanos() as u64,
            cpu_millionths: (self.rates.cpu * 1e6).round() as u64,
            cpu_budget_millionths: (self.budget.cpu * 1e6).round() as u64,
            records_thousandths: (self.rates.records * 1e3).round() as u64,
            records_budget_thousandths: (self.budget.records_per_second * 1e3).round() as u64,
        }
    }

    /// 0: nothing is held back; 1: the interval is longer than wanted; 2: the histograms are thinned, too.
    pub(crate) fn level(&self) -> u32 {
        if self.thinning_shift > 0 { 2 } else { u32::from(self.interval > self.wanted) }
    }

    /// To be called about once a second with what was used so far; true when the interval or the thinning changed.
    pub(crate) fn adjust(&mut self, used: Used) -> bool {
        let since_last = used.since(&self.last, Duration::ZERO);
        if used.at > self.last.at {
            self.rates.cpu += (since_last.cpu - self.rates.cpu) / 4.0;
            self.rates.records += (since_last.records - self.rates.records) / 4.0;
        }
        if self.thinning_shift > 0 {
            self.thinned += used.at.saturating_sub(self.last.at);
        }
        self.last = used;
        if std::mem::replace(&mut self.settling, false) {
            self.window = used;
            return false;
        }
        let before = (self.interval, self.thinning_shift);
        let over = self.budget.shares(used.since(&self.window, SPIKE));
        let shares = self.budget.shares(used.since(&self.window, Duration::ZERO));
        let enough = used.at.saturating_sub(self.window.at) >= CALM;
        if over.cpu > 1.0 || over.records > 1.0 {
            self.back_off(shares);
        } else if enough {
            self.come_back(shares);
        }
        if enough {
            self.window = used;
        }
        self.settling = before != (self.interval, self.thinning_shift);
        self.settling
    }

    fn back_off(&mut self, shares: Rates) {
        let longest = LONGEST_INTERVAL.max(self.wanted);
        if self.interval < longest {
            let factor = (shares.cpu.max(shares.records) / TARGET).clamp(1.0, STEEPEST);
            self.interval = self.interval.mul_f64(factor).min(longest);
        } else if shares.cpu > 1.0 && self.thinning_shift < MOST_SHIFT {
            self.thinning_shift += 1;
        }
    }

    fn come_back(&mut self, shares: Rates) {
        if shares.cpu < LOW {
            let mut room = room(shares.cpu);
            while self.thinning_shift > 0 && room >= 2.0 {
                self.thinning_shift -= 1;
                room /= 2.0;
            }
            if self.thinning_shift == 0 && shares.records < LOW {
                let factor = room.min(self::room(shares.records)).max(1.0);
                self.interval = self.interval.div_f64(factor).max(self.wanted);
            }
        }
    }
}

impl fmt::Display for Governor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cpu, records) = (self.budget.cpu * 100.0, self.budget.records_per_second);
        match self.level() {
            0 => write!(f, "within the budgets again: nothing is held back"),
            1 => write!(
                f,
                "to keep within {cpu} % of a CPU and {records} records a second, busy connections are reported every \
                 {:.1} s",
                self.interval.as_secs_f64()
            ),
            _ => write!(
                f,
                "to keep within {cpu} % of a CPU, one RTT sample in {} enters the histograms",
                1 << self.thinning_shift
            ),
        }
    }
}

/// By how much use could go up to [`TARGET`].
fn room(share: f64) -> f64 {
    // Far more than anything here can be divided by.
    (TARGET / share).min(1e6)
}
