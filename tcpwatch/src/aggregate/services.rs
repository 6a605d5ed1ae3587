//! Which services get a place of their own in the counters and labels.
//!
//! Two things are given out. A *slot* makes the kernel count a service apart; there are 36, and a port gets one when
//! something listens on it, or when connections to it last. A *label* makes it visible; there are 16 by default, and a
//! slot gets one when it first counts anything. Neither is ever taken back while the daemon runs: a series does not
//! flap and no count moves from one label to another. What has no label is in `other`. A port scan gets nothing.

use std::collections::HashMap;

use tcpwatch_common::counters::{service_key, slot};
use tcpwatch_common::state::Direction;

use super::snapshot::Service;

/// Length of a window in which traffic to a remote port is noted once.
const WINDOW_NS: u64 = 10_000_000_000;
/// Windows with traffic after which it counts as lasting.
const LASTING: u32 = 3;
/// A remote port without traffic for so many windows begins anew.
const FORGET_WINDOWS: u64 = 30;
/// Remote ports under observation; past it the one seen longest ago goes.
const CANDIDATES: usize = 1024;

/// A slot to tell the kernel programs of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Key of the service (`counters::service_key`).
    pub(crate) key: u32,
    /// Its slot.
    pub(crate) slot: u32,
}

#[derive(Clone, Copy)]
struct Candidate {
    window: u64,
    seen: u32,
}

#[derive(Clone, Copy)]
struct Place {
    direction: Direction,
    port: u16,
    labelled: bool,
}

/// The slots and labels given out.
pub(crate) struct Services {
    places: Vec<Place>,
    by_key: HashMap<u32, u32>,
    candidates: HashMap<u16, Candidate>,
    labels_left: usize,
}

impl Services {
    /// `labels` of them at most; `always` have a slot and a label in both directions from the start.
    pub(crate) fn new(labels: usize, always: &[u16]) -> Self {
        let mut services =
            Self { places: Vec::new(), by_key: HashMap::new(), candidates: HashMap::new(), labels_left: labels };
        for port in always {
            services.grant(Direction::Inbound, *port);
            services.grant(Direction::Outbound, *port);
        }
        // Shown at 0 before anything is counted, so that a rate sees their first burst.
        services.label(|_| true);
        services
    }

    /// Everything given out so far.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let mut all: Vec<_> = self.by_key.iter().map(|(key, slot)| Grant { key: *key, slot: *slot }).collect();
        all.sort_unstable_by_key(|g| g.slot);
        all
    }

    /// Slots in use, the fixed ones included.
    pub(crate) fn used(&self) -> u32 {
        slot::FIRST_FREE + self.places.len() as u32
    }

    /// Something listens on `port`.
    pub(crate) fn listening(&mut self, port: u16) -> Option<Grant> {
        self.grant(Direction::Inbound, port)
    }

    /// An outgoing connection to `port` was opened or is in use, at `now_ns` of CLOCK_MONOTONIC.
    pub(crate) fn outbound(&mut self, port: u16, now_ns: u64) -> Option<Grant> {
        if self.by_key.contains_key(&service_key(Direction::Outbound, port)) {
            return None;
        }
        let window = now_ns / WINDOW_NS;
        if self.candidates.len() >= CANDIDATES && !self.candidates.contains_key(&port) {
            let oldest = self.candidates.iter().min_by_key(|(port, c)| (c.window, **port)).map(|(port, _)| *port);
            self.candidates.remove(&oldest?);
        }
        let candidate = self.candidates.entry(port).or_insert(Candidate { window, seen: 1 });
        if window > candidate.window + FORGET_WINDOWS {
            candidate.seen = 0;
        }
        if window != candidate.window {
            *candidate = Candidate { window, seen: candidate.seen + 1 };
        }
        if candidate.seen < LASTING {
            return None;
        }
        self.candidates.remove(&port);
        self.grant(Direction::Outbound, port)
    }

    fn grant(&mut self, direction: Direction, port: u16) -> Option<Grant> {
        let key = service_key(direction, port);
        if self.by_key.contains_key(&key) || self.used() as usize >= slot::COUNT {
            return None;
        }
        let slot = self.used();
        self.places.push(Place { direction, port, labelled: false });
        self.by_key.insert(key, slot);
        Some(Grant { key, slot })
    }

    /// Gives labels, while there are any, to slots that `counted` something.
    pub(crate) fn label(&mut self, counted: impl Fn(u32) -> bool) {
        for (i, place) in self.places.iter_mut().enumerate() {
            if !place.labelled && self.labels_left > 0 && counted(slot::FIRST_FREE + i as u32) {
                place.labelled = true;
                self.labels_left -= 1;
            }
        }
    }

    /// Direction and label under which a slot is shown.
    pub(crate) fn shown(&self, slot: u32) -> (Direction, Service) {
        match slot {
            0..slot::NONE => (Direction::from_u8(slot as u8), Service::Other),
            slot::NONE => (Direction::Unknown, Service::None),
            _ => match self.places.get((slot - slot::FIRST_FREE) as usize) {
                Some(place) if place.labelled => (place.direction, Service::Port(place.port)),
                Some(place) => (place.direction, Service::Other),
                None => (Direction::Unknown, Service::Other),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_listener_gets_a_slot_at_once_and_a_label_with_its_first_count() {
        let mut services = Services::new(1, &[]);
        let grant = services.listening(443).unwrap();
        assert_eq!(grant, Grant { key: service_key(Direction::Inbound, 443), slot: slot::FIRST_FREE });
        assert_eq!(services.listening(443), None, "once");
        services.label(|_| false);
        assert_eq!(services.shown(grant.slot), (Direction::Inbound, Service::Other));
        services.label(|_| true);
        assert_eq!(services.shown(grant.slot), (Direction::Inbound, Service::Port(443)));
        let second = services.listening(80).unwrap();
        services.label(|_| true);
        assert_eq!(services.shown(second.slot), (Direction::Inbound, Service::Other), "no label left");
        assert_eq!(services.shown(grant.slot), (Direction::Inbound, Service::Port(443)), "and none taken back");
    }

    #[test]
    fn a_remote_port_gets_a_slot_only_when_traffic_lasts() {
        let mut services = Services::new(16, &[]);
        for second in [0, 1, 2, 9, 10, 19] {
            assert_eq!(services.outbound(5432, second * SECOND), None, "{second}");
        }
        assert!(services.outbound(5432, 20 * SECOND).is_some());
        assert_eq!(services.outbound(80, 0), None);
        assert_eq!(services.outbound(80, 11 * SECOND), None);
        assert_eq!(services.outbound(80, 2000 * SECOND), None, "long ago is forgotten");
    }

    #[test]
    fn a_scan_of_every_port_gets_nothing_and_stays_bounded() {
        let mut services = Services::new(16, &[]);
        for port in 0..=u16::MAX {
            assert_eq!(services.outbound(port, u64::from(port) * SECOND / 1000), None);
        }
        assert!(services.candidates.len() <= CANDIDATES);
        assert_eq!(services.used(), slot::FIRST_FREE);
    }

    #[test]
    fn slots_end_and_configured_ports_come_first() {
        let mut services = Services::new(16, &[443]);
        assert_eq!(services.grants().len(), 2);
        assert_eq!(services.shown(slot::FIRST_FREE), (Direction::Inbound, Service::Port(443)));
        let mut given = 0;
        for port in 1..1000 {
            given += usize::from(services.listening(port).is_some());
        }
        assert_eq!(given, slot::COUNT - slot::FIRST_FREE as usize - 2);
        assert_eq!(services.used() as usize, slot::COUNT);
    }
}
