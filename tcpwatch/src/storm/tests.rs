//! Series of resets, and what they make.

use std::collections::BTreeMap;

use super::evidence::Process;
use super::mute::Prefix;
use super::*;
use crate::meaning::Meaning;
use crate::metrics::sample;

const LINGER: usize = ResetCause::LingerZero as usize;
const PAIR: Pair = (Direction::Inbound, Service::Port(443), LINGER);

/// A storm as it is when it begins or ends.
pub(crate) fn change(over: bool) -> Change {
    let mut by_cause = [0; CAUSES.len()];
    (by_cause[LINGER], by_cause[ResetCause::UnreadData as usize]) = (4000, 3);
    let mut evidence = Evidence::default();
    for peer in ["192.0.2.1", "192.0.2.1", "2001:db8::1"] {
        let owner = Process { comm: "a proxy".to_owned(), unit: Some("proxy.service".to_owned()), container: None };
        let example =
            Meaning { sentence: "A proxy did it.".into(), remedy: "Ask \"why\".".into(), ..Meaning::default() };
        let detail = detail(peer);
        evidence.add(&Detail { owner: Some(owner), stack: 7, example: Some(Arc::new(example)), ..detail });
    }
    let share = StackShare {
        fingerprint: "3610e821fdace9da".into(),
        frames: ["tcp_send_active_reset", "__tcp_close"].map(str::to_owned).into(),
        resets: 3,
    };
    let storm = Storm {
        pair: PAIR,
        start_ns: 2_000_000_000,
        last_ns: 9_000_000_000,
        over,
        usual_rate: 2.0,
        rate: 500.0,
        peak_rate: 900.0,
        resets: 4000,
        by_cause,
        evidence,
        by_stack: vec![share],
    };
    Change { storm: Arc::new(storm), ktime_ns: 9_000_000_000 }
}

/// A reset of port 443.
fn detail(peer: &str) -> Detail {
    Detail { peer: peer.parse().unwrap(), port: 443, owner: None, stack: 0, example: None }
}

/// Plays resets of one service and cause.
struct Player {
    storms: Storms,
    groups: Vec<GroupTotals>,
    now_ns: u64,
    /// Second and phase of everything that began or ended.
    changes: Vec<(f64, &'static str, Arc<Storm>)>,
    report: Report,
}

impl Player {
    fn new(rules: Rules) -> Self {
        let groups = sample::empty().groups;
        let mut player = Self {
            storms: Storms::new(rules),
            groups,
            now_ns: 500 * SECOND_NS,
            changes: Vec::new(),
            report: Report::default(),
        };
        player.read(0);
        player
    }

    fn seconds(&self) -> f64 {
        (self.now_ns - 500 * SECOND_NS) as f64 / SECOND_NS as f64
    }

    fn read(&mut self, resets: u64) {
        let totals = self.groups.iter_mut().find(|g| (g.direction, g.service) == (PAIR.0, PAIR.1)).unwrap();
        let word = &mut totals.words[group::resets(ResetOrigin::Active, ResetCause::LingerZero)];
        *word = word.wrapping_add(resets);
        self.report = self.storms.read(self.now_ns, &self.groups, &Stacks::default());
        let seconds = self.seconds();
        self.changes.extend(self.report.changes.iter().map(|c| (seconds, c.phase(), Arc::clone(&c.storm))));
    }

    /// So many resets in each of some seconds.
    fn play(&mut self, seconds: u64, resets: impl Fn(u64) -> u64) -> &mut Self {
        for second in 0..seconds {
            self.now_ns += SECOND_NS;
            self.read(resets(second));
        }
        self
    }

    fn phases(&self) -> Vec<&'static str> {
        self.changes.iter().map(|(_, phase, _)| *phase).collect()
    }
}

fn player() -> Player {
    Player::new(Rules::default())
}

#[test]
fn a_storm_is_told_within_5_seconds_and_its_end_within_30() {
    let mut player = player();
    player.play(60, |_| 2).play(40, |second| if second == 7 { 900 } else { 300 });
    assert_eq!(player.phases(), ["start"]);
    let (at, _, storm) = player.changes[0].clone();
    assert!((64.0..65.5).contains(&at), "began at 60 and was told at {at}");
    assert_eq!(storm.start_ns, 560 * SECOND_NS);
    assert!((storm.usual_rate - 2.0).abs() < 0.1, "{}", storm.usual_rate);
    assert_eq!(player.report.active.len(), 1);
    assert_eq!(player.report.shown, [PAIR]);
    player.play(60, |_| 2);
    assert_eq!(player.phases(), ["start", "end"]);
    let (at, _, storm) = player.changes[1].clone();
    assert!(at <= 130.0, "ended at 100 and was told at {at}");
    assert_eq!((storm.resets, storm.peak_rate, storm.last_ns), (300 * 39 + 900, 900.0, 600 * SECOND_NS));
    assert_eq!(storm.by_cause[LINGER], 300 * 39 + 900 + 2 * 15);
    assert!(player.report.active.is_empty() && player.report.ended.len() == 1);
    assert_eq!(player.report.counts, BTreeMap::from([(PAIR, 1)]));
    // For two minutes more whoever looks now and then still sees it.
    player.play(74, |_| 2);
    assert_eq!(player.report.shown, [PAIR]);
    player.play(2, |_| 2);
    assert_eq!(player.report.shown, []);
    assert_eq!(player.phases().len(), 2);
}

#[test]
fn a_proxy_that_restarts_is_none() {
    for burst in [[20_000, 0, 0], [9_000, 9_000, 0], [5_000, 10_000, 5_000]] {
        let mut player = player();
        player.play(60, |_| 1).play(3, |second| burst[second as usize]).play(300, |_| 1);
        assert!(player.changes.is_empty(), "{burst:?}");
        // And it has not changed what is usual: a storm of a size that is small beside it is one.
        player.play(10, |_| 60);
        assert_eq!(player.phases(), ["start"], "{burst:?}");
    }
}

#[test]
fn health_checks_that_reset_are_none() {
    // Steady from the start, steady and low, or many at a time at regular intervals.
    player_without_storm("steady", |_| 150);
    player_without_storm("from ten balancers", |_| 10);
    player_without_storm("every 5 s", |second| if second % 5 == 0 { 500 } else { 0 });
    player_without_storm("every 10 s over two readings", |second| if second % 10 < 2 { 300 } else { 0 });
}

fn player_without_storm(what: &str, resets: impl Fn(u64) -> u64) {
    let mut player = player();
    player.play(1800, resets);
    assert!(player.changes.is_empty(), "{what}: {:?}", player.changes);
}

#[test]
fn a_client_that_aborts_now_and_then_is_none() {
    // Pages that are left before they have loaded: some resets at once, and seconds of nothing.
    player_without_storm("a browser", |second| [12, 0, 0, 7, 3, 0, 15, 0, 0, 0, 1][second as usize % 11]);
}

#[test]
fn a_slow_ramp_is_none_until_it_is_one_at_any_rate() {
    let mut player = player();
    player.play(3600, |_| 50);
    // To ten times as much in an hour: more traffic.
    player.play(3600, |second| 50 + second / 8);
    assert!(player.changes.is_empty(), "{:?}", player.changes);
    // To a thousand: whatever came before, this is one.
    player.play(3600, |second| 500 + second / 4);
    assert_eq!(player.phases(), ["start"]);
    let (at, _, storm) = player.changes[0].clone();
    assert!((1000.0..1300.0).contains(&storm.rate), "{} at {at}", storm.rate);
    // A quick one is a storm long before.
    let mut player = self::player();
    player.play(60, |_| 2).play(30, |second| 5 * second);
    assert_eq!(player.phases(), ["start"]);
}

#[test]
fn what_the_daemon_finds_is_usual_unless_it_is_very_much() {
    player_without_storm("found", |_| 190);
    let mut player = player();
    player.play(20, |_| 1200);
    assert_eq!(player.phases(), ["start"]);
}

#[test]
fn a_storm_with_pauses_is_one() {
    let mut player = player();
    player.play(10, |_| 0).play(120, |second| if second % 12 < 4 { 400 } else { 0 }).play(30, |_| 0);
    assert_eq!(player.phases(), ["start", "end"]);
    assert_eq!(player.report.ended[0].resets, 400 * 40);
}

#[test]
fn scrapes_in_between_and_readings_that_come_late_change_nothing() {
    let mut player = player();
    player.play(20, |_| 0);
    for step in 0..200 {
        player.now_ns += 100_000_000;
        player.read(if step < 100 { 40 } else { 0 });
    }
    assert_eq!(player.phases(), ["start", "end"][..1]);
    let mut late = self::player();
    late.play(20, |_| 0);
    // A burst of two seconds seen by a daemon that got no processor for eight.
    late.now_ns += 8 * SECOND_NS;
    late.read(10_000);
    late.play(60, |_| 0);
    assert!(late.changes.is_empty());
}

#[test]
fn a_count_that_is_taken_back_is_no_burst() {
    let mut player = player();
    for second in 0..30 {
        player.now_ns += SECOND_NS;
        player.read(if second % 2 == 0 { 1_u64.wrapping_neg() } else { 1 });
    }
    assert!(player.changes.is_empty());
}

#[test]
fn what_is_muted_is_counted_and_no_storm() {
    for (mute, by) in [
        (Mute { causes: vec!["linger_zero".to_owned()], ..Mute::default() }, "cause"),
        (Mute { ports: vec![443], ..Mute::default() }, "port"),
    ] {
        let mut player = Player::new(Rules { mute, ..Rules::default() });
        player.play(60, |_| 5000);
        assert!(player.changes.is_empty() && player.report.shown.is_empty());
        assert_eq!(player.report.muted, [Muted { pair: PAIR, by, resets: 300_000 }]);
    }
}

#[test]
fn resets_of_muted_peers_do_not_count_towards_a_storm() {
    let mute = Mute { peers: vec![Prefix::parse("192.0.2.0/24").unwrap()], ..Mute::default() };
    let run = |muted_of_ten: u64| {
        let mut player = Player::new(Rules { mute: mute.clone(), ..Rules::default() });
        player.play(5, |_| 0);
        for _ in 0..10 {
            for i in 0..10 {
                let peer = if i < muted_of_ten { "192.0.2.9" } else { "198.51.100.1" };
                let detail = detail(peer);
                player.storms.observe((PAIR.0, PAIR.1), LINGER, &detail);
            }
            // Details are throttled: ten stand for a hundred.
            player.play(1, |_| 100);
        }
        player
    };
    let muted = run(9);
    assert!(muted.changes.is_empty(), "10 a second are left");
    assert_eq!(muted.report.muted, [Muted { pair: PAIR, by: "detail", resets: 90 }]);
    let mixed = run(5);
    assert_eq!(mixed.phases(), ["start"]);
    let peers = mixed.report.active[0].evidence.peers.first(4);
    assert_eq!(peers.len(), 1, "the muted one has no part in it: {peers:?}");
}

#[test]
fn services_and_causes_are_apart_and_the_share_tells_of_both() {
    let mut player = player();
    player.play(10, |_| 0);
    for _ in 0..10 {
        let none = player.groups.iter_mut().find(|g| g.service == Service::None).unwrap();
        none.words[group::resets(ResetOrigin::Passive, ResetCause::NoListener)] += 100;
        none.words[group::resets(ResetOrigin::Passive, ResetCause::TimeWait)] += 10;
        none.words[group::received(1)] += 40;
        player.play(1, |_| 0);
    }
    let mut causes: Vec<_> = player.changes.iter().map(|(_, _, storm)| storm.id()).collect();
    causes.sort();
    assert_eq!(causes, ["unknown-none-no_listener-510000", "unknown-none-received-510000"]);
    let storm = player.report.active.iter().find(|storm| storm.cause() == "no_listener").unwrap();
    assert_eq!(storm.by_cause[ResetCause::TimeWait as usize], 100);
    assert_eq!(storm.by_cause[RECEIVED], 400);
}

proptest::proptest! {
    #[test]
    fn whatever_comes_starts_and_ends_take_turns(
        rates in proptest::collection::vec(proptest::prop_oneof![0_u64..30, 0_u64..100_000], 1..200),
        gaps in proptest::collection::vec(1_u64..5_000, 1..200),
    ) {
        let mut player = player();
        for (rate, gap_ms) in rates.into_iter().zip(gaps) {
            player.now_ns += gap_ms * 1_000_000;
            player.read(rate);
        }
        let phases = player.phases();
        proptest::prop_assert!(phases.iter().enumerate().all(|(i, phase)| *phase == ["start", "end"][i % 2]));
        proptest::prop_assert_eq!(player.report.active.len(), phases.len() % 2);
    }
}
