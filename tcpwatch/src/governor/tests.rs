//! The law against loads as they are: the interval and the thinning act on what is used.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BUDGET: Budget = Budget { cpu: 0.1, records_per_second: 1000.0 };

/// What causes use: some of it whatever the governor does, some by busy connections, some by what enters the histograms.
#[derive(Clone, Copy, Debug)]
struct Load {
    fixed: f64,
    busy: f64,
    record_cpu: f64,
    histograms: f64,
}

const NOTHING: Load = Load { fixed: 0.0, busy: 0.0, record_cpu: 0.0, histograms: 0.0 };

/// A host that is governed.
struct Host {
    governor: Governor,
    used: Used,
    records: f64,
    noise: u32,
}

impl Host {
    fn new(wanted: Duration) -> Self {
        let used = Used::default();
        Self { governor: Governor::new(wanted, BUDGET, used), used, records: 0.0, noise: 1 }
    }

    /// Up to five in a hundred up or down.
    fn noise(&mut self) -> f64 {
        self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0.95 + f64::from(self.noise >> 16) / 655_360.0
    }

    /// A second under this load; whether anything changed at its end.
    fn second(&mut self, load: Load) -> bool {
        let records = load.busy / self.governor.interval().as_secs_f64() * self.noise();
        let histograms = load.histograms / f64::from(1 << self.governor.thinning_shift());
        let cpu = (load.fixed + histograms) * self.noise() + records * load.record_cpu;
        self.records += records;
        self.used.at += SECOND;
        self.used.cpu += Duration::from_secs_f64(cpu);
        self.used.records = self.records as u64;
        self.governor.adjust(self.used)
    }

    fn seconds(&mut self, n: u32, load: Load) -> u32 {
        (0..n).map(|_| u32::from(self.second(load))).sum()
    }

    /// More where more is held back.
    fn held_back(&self) -> (u32, Duration) {
        (self.governor.thinning_shift(), self.governor.interval())
    }

    /// What is used of the budgets under this load from now on.
    fn share(&self, load: Load) -> f64 {
        let records = load.busy / self.governor.interval().as_secs_f64();
        let histograms = load.histograms / f64::from(1 << self.governor.thinning_shift());
        let cpu = load.fixed + histograms + records * load.record_cpu;
        (cpu / BUDGET.cpu).max(records / BUDGET.records_per_second)
    }
}

fn load() -> impl Strategy<Value = Load> {
    // A record costs up to 100 µs, so that either budget may be the one that is short.
    (0.0..0.2, 0.0..200_000.0, 0.0..1e-4, 0.0..0.5).prop_map(|(fixed, busy, record_cpu, histograms)| Load {
        fixed,
        busy,
        record_cpu,
        histograms,
    })
}

proptest! {
    #[test]
    fn a_constant_load_is_met_once_and_for_all(load in load(), wanted_ms in 100..20_000_u64) {
        let mut host = Host::new(Duration::from_millis(wanted_ms));
        // A load a little below a budget may be above it for a while, once; nothing may be given back after that.
        let (mut came_back, mut reversals) = (false, 0);
        let mut before = host.held_back();
        for _ in 0..1500 {
            host.second(load);
            let now = host.held_back();
            reversals += u32::from(now > before && came_back);
            came_back = if now == before { came_back } else { now < before };
            before = now;
        }
        prop_assert_eq!(reversals, 0, "it swings");
        let most = host.governor.interval() == LONGEST_INTERVAL
            && (host.governor.thinning_shift() == MOST_SHIFT || load.fixed + load.record_cpu * load.busy / 60.0 < BUDGET.cpu);
        prop_assert!(host.share(load) < 1.06 || most, "{} of a budget", host.share(load));
    }

    #[test]
    fn nothing_is_held_back_after_the_load_went(load in load(), wanted_ms in 100..20_000_u64, rest in 0.0..0.035) {
        let mut host = Host::new(Duration::from_millis(wanted_ms));
        host.seconds(120, load);
        // Less than half of what a change aims at: the histograms might take twice of what is used.
        let rest = Load { fixed: rest, ..NOTHING };
        host.seconds(if rest.fixed < 0.001 { 26 } else { 120 }, rest);
        prop_assert_eq!(host.governor.level(), 0);
        prop_assert_eq!(host.governor.interval(), Duration::from_millis(wanted_ms));
        prop_assert_eq!(host.seconds(300, rest), 0);
    }

    #[test]
    fn histograms_are_thinned_only_when_the_interval_cannot_grow(loads in prop::collection::vec(load(), 1..8)) {
        let mut host = Host::new(SECOND);
        for load in loads {
            for _ in 0..40 {
                host.second(load);
                let governor = &host.governor;
                prop_assert!(governor.thinning_shift() == 0 || governor.interval() == LONGEST_INTERVAL);
                prop_assert!(governor.interval() >= SECOND && governor.interval() <= LONGEST_INTERVAL);
            }
        }
    }
}

#[test]
fn many_connections_share_the_records_and_the_first_seconds_are_enough() {
    let mut host = Host::new(SECOND);
    let load = Load { busy: 40_000.0, ..NOTHING };
    host.seconds(1, NOTHING);
    host.seconds(6, load);
    assert_eq!((host.governor.level(), host.governor.thinning_shift()), (1, 0));
    assert!(host.share(load) < 1.0, "{}", host.share(load));
    assert!(host.share(load) > LOW, "{}", host.share(load));
}

#[test]
fn records_alone_thin_no_histogram() {
    let mut host = Host::new(SECOND);
    host.seconds(100, Load { busy: 1e6, ..NOTHING });
    assert_eq!((host.governor.interval(), host.governor.level()), (LONGEST_INTERVAL, 1));
}

#[test]
fn time_with_thin_histograms_is_counted() {
    let mut host = Host::new(SECOND);
    host.seconds(10, NOTHING);
    assert_eq!(host.governor.state().thinned_ns, 0);
    let mut thin = 0;
    for _ in 0..60 {
        thin += u64::from(host.governor.thinning_shift() > 0);
        host.second(Load { fixed: 0.3, ..NOTHING });
    }
    let state = host.governor.state();
    assert_eq!((state.level, state.thinned_ns), (2, thin * 1_000_000_000));
    assert!(thin > 10 && state.one_in == 1 << MOST_SHIFT);
    assert!((290_000..310_000).contains(&state.cpu_millionths), "{state:?}");
}

#[test]
fn one_busy_second_is_no_load() {
    let mut host = Host::new(SECOND);
    host.seconds(10, NOTHING);
    // 2.5 times what a second may have, as when a scraper comes.
    assert!(!host.second(Load { fixed: 0.25, ..NOTHING }));
    assert_eq!(host.seconds(20, NOTHING), 0);
}
