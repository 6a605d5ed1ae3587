//! The budget of periodic records.

use std::time::Duration;

/// Lengthens the interval of periodic records when there are more of them than the budget allows.
pub(crate) struct Governor {
    wanted: Duration,
    /// The interval that holds now.
    pub(crate) interval: Duration,
    budget: f64,
    seen: u64,
}

/// The interval never grows past this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

impl Governor {
    /// Begins with the interval that is wanted.
    pub(crate) fn new(wanted: Duration, records_per_second: u32) -> Self {
        Self { wanted, interval: wanted, budget: f64::from(records_per_second), seen: 0 }
    }

    /// `samples` have come so far, and `elapsed` is the time since the last call; true when the interval changed.
    pub(crate) fn adjust(&mut self, samples: u64, elapsed: Duration) -> bool {
        let rate = (samples - self.seen) as f64 / elapsed.as_secs_f64();
        self.seen = samples;
        // As many connections report in each interval as are busy: that number is what the budget is shared by.
        let busy = rate * self.interval.as_secs_f64();
        let needed = Duration::from_secs_f64(busy / self.budget).clamp(self.wanted, LONGEST_INTERVAL.max(self.wanted));
        // A change within a tenth is noise.
        let ratio = needed.as_secs_f64() / self.interval.as_secs_f64();
        if (0.9..=1.1).contains(&ratio) {
            return false;
        }
        self.interval = needed;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_interval_grows_with_the_load_and_shrinks_again() {
        let mut governor = Governor::new(SECOND, 1000);
        assert!(!governor.adjust(500, SECOND), "within the budget");
        assert!(governor.adjust(500 + 4000, SECOND));
        assert_eq!(governor.interval, 4 * SECOND);
        assert!(!governor.adjust(4500 + 1000, SECOND), "4000 busy connections report every 4 s");
        assert!(governor.adjust(5500, SECOND), "nobody reports");
        assert_eq!(governor.interval, SECOND);
        assert!(governor.adjust(10_000_000, SECOND));
        assert_eq!(governor.interval, LONGEST_INTERVAL);
    }
}
