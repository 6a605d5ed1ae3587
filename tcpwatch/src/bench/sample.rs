//! What paired measurements add up to: a median, and how far it can be trusted.

use serde_json::json;

/// A median with its 95 % interval by order statistics, which presumes nothing of the distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    /// The median.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Median {
    /// Of `values`; `None` when there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        // The number of values below the true median is binomial: mean n/2, deviation √n/2.
        let half = 1.96 * (n as f64).sqrt() / 2.0;
        let low = ((n as f64 / 2.0 - half).floor().max(0.0)) as usize;
        let high = ((n as f64 / 2.0 + half).ceil() as usize).min(n.checked_sub(1)?);
        let value =
            if n % 2 == 1 { *sorted.get(n / 2)? } else { f64::midpoint(*sorted.get(n / 2 - 1)?, *sorted.get(n / 2)?) };
        Some(Self { value, low: *sorted.get(low)?, high: *sorted.get(high)? })
    }

    /// So often in a second, of a time in ns; `None` where the time may be none.
    pub fn per_second(self) -> Option<Self> {
        let rate = |ns: f64| 1e9 / ns;
        (self.low > 0.0).then(|| Self { value: rate(self.value), low: rate(self.high), high: rate(self.low) })
    }

    /// As JSON: the value, and its interval under `<name>_ci95`.
    pub(crate) fn put(this: Option<Self>, name: &str, object: &mut serde_json::Map<String, serde_json::Value>) {
        let rounded = |v: f64| (v * 1000.0).round() / 1000.0;
        object.insert(name.to_owned(), this.map_or(json!(null), |m| json!(rounded(m.value))));
        object.insert(format!("{name}_ci95"), this.map_or(json!(null), |m| json!([rounded(m.low), rounded(m.high)])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_narrows() {
        assert_eq!(Median::of(&[]), None);
        let time = Median { value: 100.0, low: 50.0, high: 200.0 };
        assert_eq!(time.per_second(), Some(Median { value: 1e7, low: 5e6, high: 2e7 }));
        assert_eq!(Median { low: -1.0, ..time }.per_second(), None);
        assert_eq!(Median::of(&[3.0]), Some(Median { value: 3.0, low: 3.0, high: 3.0 }));
        let few: Vec<_> = (0..9).map(f64::from).collect();
        assert_eq!(Median::of(&few), Some(Median { value: 4.0, low: 1.0, high: 8.0 }));
        let many: Vec<_> = (0..100).map(f64::from).collect();
        let median = Median::of(&many).unwrap();
        assert!((49.0..=50.0).contains(&median.value) && median.high - median.low < 25.0, "{median:?}");
    }
}
