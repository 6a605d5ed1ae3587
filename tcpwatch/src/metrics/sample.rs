//! Snapshots for tests: one where nothing happened yet, and one where everything did.

use std::collections::BTreeSet;
use std::sync::Arc;

use tcpwatch_common::counters::{dist, group, reason};
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::state::{Direction, STATES, TcpState};

use super::catalog::{DECODE_REASONS, MOST_LISTENERS, MOST_NAMESPACES, MOST_PROGRAMS};
use crate::aggregate::exemplars::{Exemplar, Exemplars};
use crate::aggregate::resets::{self, stacks::StackTotals};
use crate::aggregate::snapshot::{
    Compared, Facts, Governed, GroupTotals, ListenerStats, NamespaceStats, ProbeState, ProbeStatus, ProgramStats,
    RttQuantiles, SelfStats, Service, Snapshot, TableStats,
};
use crate::storm::Report;

fn totals(direction: Direction, service: Service) -> GroupTotals {
    GroupTotals { direction, service, words: [0; group::WORDS], dist: [0; dist::WORDS] }
}

/// The fixed groups and one service, without any event.
pub(crate) fn empty() -> Snapshot {
    let mut groups = vec![totals(Direction::Inbound, Service::Port(443)), totals(Direction::Unknown, Service::None)];
    groups.extend(Direction::ALL.map(|direction| totals(direction, Service::Other)));
    groups.sort_by_key(|totals| (totals.direction, totals.service));
    Snapshot {
        ktime_ns: 1_000_000_000,
        facts: Arc::new(Facts::default()),
        groups,
        rtt: Vec::new(),
        listeners: Vec::new(),
        namespaces: Vec::new(),
        compared: Compared::default(),
        unreadable_namespaces: 0,
        states: [0; STATES],
        reasons: vec![0; reason::WORDS],
        stacks: Vec::new(),
        storms: Report::default(),
        exemplars: Exemplars::default(),
        verdicts: BTreeSet::new(),
        own: SelfStats::default(),
    }
}

/// So many services, every counter with a value of its own, and as many programs as there can be.
pub(crate) fn full(services: u16) -> Snapshot {
    let mut snapshot = empty();
    snapshot.groups.retain(|totals| !matches!(totals.service, Service::Port(_)));
    let ports = (0..services).map(|i| match i % 2 {
        0 => totals(Direction::Inbound, Service::Port(443 + i)),
        _ => totals(Direction::Outbound, Service::Port(5432 + i)),
    });
    snapshot.groups.extend(ports);
    snapshot.groups.sort_by_key(|totals| (totals.direction, totals.service));
    for (i, totals) in (0..).zip(&mut snapshot.groups) {
        // Only resets are counted without a service.
        let counted = totals.service != Service::None;
        (1..).zip(&mut totals.words).for_each(|(j, word)| *word = 1000 * i + j);
        (1..).zip(&mut totals.dist).for_each(|(j, word)| *word = if counted { 10 * i + j } else { 0 });
    }
    snapshot.rtt.extend(Direction::ALL.map(|direction| RttQuantiles {
        direction,
        samples: 100,
        p50_seconds: 0.001,
        p90_seconds: 0.0025,
        p99_seconds: 0.125,
    }));
    let listeners = if services > 1 { MOST_LISTENERS + 2 } else { 1 };
    snapshot.listeners.extend((0..listeners).map(|i| ListenerStats {
        address: format!("0.0.0.0:{}", 1 + i),
        queue: 1,
        limit: 128,
        drops: 2,
        half_open: 1,
    }));
    let namespaces = if services > 1 { MOST_NAMESPACES as u32 + 1 } else { 1 };
    snapshot.namespaces.extend((0..namespaces).map(|i| NamespaceStats {
        netns: 4_026_531_840 + i,
        time_wait: 3,
        listen_overflows: 4,
        compared: compared(),
        port_range: [32_768, 60_999],
    }));
    snapshot.compared = compared();
    snapshot.unreadable_namespaces = 1;
    (0..).zip(&mut snapshot.states).for_each(|(i, count)| *count = 10 + i);
    snapshot.states[TcpState::LastAck as usize] = 0_u64.wrapping_sub(1);
    for origin in ResetOrigin::ALL {
        let numbers = if services > 1 { 0..64 } else { 0..3 };
        numbers.for_each(|number| snapshot.reasons[reason::index(origin, number, 6)] = 5 + u64::from(number));
    }
    let stacks = if services > 1 { resets::stacks::MOST + 1 } else { 1 };
    snapshot.stacks.extend((0..stacks).map(|i| StackTotals {
        fingerprint: if i == resets::stacks::MOST { resets::stacks::OTHER.into() } else { format!("{i:016x}").into() },
        origin: 1,
        cause: 3,
        frames: ["tcp_v4_send_reset", "tcp_v4_rcv"].map(ToOwned::to_owned).into(),
        count: 7 + i as u64,
    }));
    let change = crate::storm::tests::change(false);
    snapshot.storms.shown.push(change.storm.pair);
    snapshot.storms.counts.insert(change.storm.pair, 3);
    snapshot.storms.active.push(change.storm);
    for totals in &snapshot.groups {
        let mark = |us, stack: Option<&str>| Exemplar {
            cookie: 4711,
            stack: stack.map(Into::into),
            us,
            ktime_ns: 900_000_000,
        };
        let (direction, service) = (totals.direction, totals.service);
        snapshot.exemplars.rtt.insert((direction, service, 5), mark(700, None));
        snapshot.exemplars.rtt.insert((direction, service, 6), mark(1024, None));
        let sent = group::resets(ResetOrigin::Active, ResetCause::LingerZero);
        snapshot.exemplars.resets.insert((direction, service, sent), mark(0, Some("513e0a78401df377")));
        let received = group::received(TcpState::Established as u8);
        snapshot.exemplars.resets.insert((direction, service, received), mark(0, None));
    }
    snapshot.verdicts.insert((Direction::Inbound, Service::Other, crate::explain::Id::NotReused));
    snapshot.facts = Arc::new(facts());
    let most = if services > 1 { MOST_PROGRAMS } else { 2 };
    let program = |i: usize| ProgramStats {
        name: if i == 0 { "tcp_probe".to_owned() } else { format!("program_{i}") },
        runs: Some(1000 + i as u64),
        mean_run_seconds: Some(1.5e-7),
        recursion_misses: i as u64,
    };
    snapshot.own = SelfStats {
        decode_errors: DECODE_REASONS.into_iter().zip(1..).collect(),
        programs: (0..most).map(program).collect(),
        ring_bytes: 1 << 20,
        ring_used_bytes: 4096,
        map_bytes: 3 << 20,
        table: TableStats { entries: 12, capacity: 100_000, evicted: 2 },
        sample_interval_seconds: 1.5,
        governed: Some(Governed {
            level: 2,
            one_in: 4,
            thinned_ns: 12_500_000_000,
            cpu_millionths: 213_000,
            cpu_budget_millionths: 200_000,
            records_thousandths: 4_100_500,
            records_budget_thousandths: 5_000_000,
        }),
        ..SelfStats::default()
    };
    (1..).zip(&mut snapshot.own.events).for_each(|(i, count)| *count = i);
    (1..).zip(&mut snapshot.own.losses).for_each(|(i, count)| *count = i);
    snapshot
}

fn facts() -> Facts {
    let probe = |probe: &str, hook: &'static str, state| ProbeStatus {
        probe: probe.to_owned(),
        hook: hook.into(),
        required: false,
        state,
        loses: "resets sent".into(),
    };
    Facts {
        kernel_release: "6.18.0-test".to_owned(),
        ticks_per_second: 250,
        sampling_mode: "every-ack".into(),
        reasons: ["none", "not_specified", "no_socket"].map(ToOwned::to_owned).to_vec(),
        probes: vec![
            probe("tcp_probe", "tp_btf", ProbeState::Attached),
            probe("tcp_send_reset", "tp_btf", ProbeState::Unsupported("no reason".to_owned())),
            probe("tcp_v4_send_reset", "fentry", ProbeState::Broken("EPERM".to_owned())),
        ],
        no_symbols: None,
    }
}

const fn compared() -> Compared {
    Compared {
        kernel_retransmitted_segments: 200,
        retransmitted_segments: 199,
        kernel_resets_sent: 50,
        resets_sent: 50,
        kernel_aborts_failed: 1,
        kernel_ipv6_no_routes: 2,
    }
}
