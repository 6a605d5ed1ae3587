//! Exemplars: of each bucket of round-trip times and each counter of resets, the newest connection that entered it. A
//! cookie or the fingerprint of a stack leads from a graph to `tcpwatch top`, `trace` and `resets`; addresses do not.
//! Bounded by the number of groups, buckets and causes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tcpwatch_common::counters::group;
use tcpwatch_common::hist::log2;
use tcpwatch_common::record::{ConnRecord, Kind, ResetRecord};
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::state::Direction;

use super::snapshot::Service;

/// Older ones are not shown: whoever looks wants to find the connection.
const KEPT_NS: u64 = 600_000_000_000;
/// Round trips below 2^5 µs are one bucket.
const LOWEST: u32 = 4;

/// One connection that was counted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exemplar {
    /// The kernel's number of the socket; 0 where there was none.
    pub(crate) cookie: u64,
    /// Fingerprint of the stack, of a reset that we sent.
    pub(crate) stack: Option<Arc<str>>,
    /// The sample, µs; 0 for a reset.
    pub(crate) us: u32,
    /// When, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
}

/// A group, and the number of a bucket or the index of a word.
pub(crate) type Place = (Direction, Service, usize);

/// Those of a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Exemplars {
    /// Of round-trip times: those below 32 µs are bucket 0, and each bucket after it has twice the edge.
    pub(crate) rtt: BTreeMap<Place, Exemplar>,
    /// Of resets, by the word that counts them.
    pub(crate) resets: BTreeMap<Place, Exemplar>,
}

/// The newest by group slot.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    rtt: BTreeMap<(u32, usize), Exemplar>,
    /// With the key of the stack, whose names may not be known yet.
    resets: BTreeMap<(u32, usize), (Exemplar, u64)>,
}

impl Newest {
    /// Takes a record of a connection; the one before it had counted so many `samples`.
    pub(crate) fn connection(&mut self, conn: &ConnRecord, samples: u32) {
        if conn.rtt_samples == samples || conn.rtt_last_us == 0 {
            return;
        }
        let bucket = log2(conn.rtt_last_us).max(LOWEST) - LOWEST;
        let (us, ktime_ns) = (conn.rtt_last_us, conn.header.ktime_ns);
        self.rtt.insert((conn.slot, bucket as usize), Exemplar { cookie: conn.cookie, stack: None, us, ktime_ns });
    }

    /// Takes a reset.
    pub(crate) fn reset(&mut self, kind: Kind, reset: &ResetRecord) {
        let origin = ResetOrigin::ALL.into_iter().find(|origin| *origin as u8 == reset.origin);
        let word = match (kind, origin, ResetCause::from_u8(reset.cause)) {
            (Kind::ResetReceived, ..) => group::received(reset.state),
            (_, Some(origin), Some(cause)) => group::resets(origin, cause),
            _ => return,
        };
        let exemplar = Exemplar { cookie: reset.cookie, stack: None, us: 0, ktime_ns: reset.header.ktime_ns };
        self.resets.insert((reset.slot, word), (exemplar, reset.stack));
    }

    /// Those that are recent, by the groups that are shown.
    pub(crate) fn shown(
        &mut self,
        now_ns: u64,
        group_of: impl Fn(u32) -> (Direction, Service),
        fingerprint: impl Fn(u64) -> Option<Arc<str>>,
    ) -> Exemplars {
        let recent = |exemplar: &Exemplar| now_ns.saturating_sub(exemplar.ktime_ns) <= KEPT_NS;
        self.rtt.retain(|_, exemplar| recent(exemplar));
        self.resets.retain(|_, (exemplar, _)| recent(exemplar));
        let mut all = Exemplars::default();
        for ((slot, bucket), exemplar) in &self.rtt {
            let (direction, service) = group_of(*slot);
            keep(&mut all.rtt, (direction, service, *bucket), exemplar.clone());
        }
        for ((slot, word), (exemplar, stack)) in &self.resets {
            let (direction, service) = group_of(*slot);
            let exemplar = Exemplar { stack: fingerprint(*stack), ..exemplar.clone() };
            if exemplar.cookie != 0 || exemplar.stack.is_some() {
                keep(&mut all.resets, (direction, service, *word), exemplar);
            }
        }
        all
    }
}

/// Several slots may be shown as one group: the newest stays.
fn keep(all: &mut BTreeMap<Place, Exemplar>, place: Place, exemplar: Exemplar) {
    if all.get(&place).is_none_or(|other| other.ktime_ns <= exemplar.ktime_ns) {
        all.insert(place, exemplar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::resets::tests::reset_record;
    use crate::aggregate::tests::conn_record;

    fn shown(newest: &mut Newest, now_ns: u64) -> Exemplars {
        newest.shown(now_ns, |_| (Direction::Inbound, Service::Other), |key| (key == 5).then(|| "five".into()))
    }

    #[test]
    fn a_sample_is_taken_once_and_into_its_bucket() {
        let mut newest = Newest::default();
        let mut conn = conn_record(7);
        (conn.rtt_samples, conn.rtt_last_us) = (3, 100);
        newest.connection(&conn, 0);
        (conn.header.ktime_ns, conn.rtt_last_us) = (2_000, 31);
        newest.connection(&conn, 3);
        let rtt = shown(&mut newest, 3_000).rtt;
        assert_eq!(rtt.len(), 1, "without a new sample there is no new exemplar");
        // 64 to 128 µs.
        let exemplar = &rtt[&(Direction::Inbound, Service::Other, 2)];
        assert_eq!((exemplar.cookie, exemplar.us, exemplar.ktime_ns), (7, 100, 1_000));
    }

    #[test]
    fn of_slots_that_share_a_group_the_newest_is_shown_and_the_old_go() {
        let mut newest = Newest::default();
        for (slot, at) in [(4, 50), (5, 90), (6, 70)] {
            let mut reset = reset_record(Kind::Reset, at, ResetCause::LingerZero, at);
            (reset.slot, reset.stack) = (slot, if slot == 5 { 5 } else { 0 });
            newest.reset(Kind::Reset, &reset);
        }
        // Neither a socket nor a stack: it leads nowhere.
        newest.reset(Kind::Reset, &reset_record(Kind::Reset, 0, ResetCause::NoListener, 60));
        let resets = shown(&mut newest, 100).resets;
        let all: Vec<_> = resets.values().map(|e| (e.cookie, e.stack.as_deref())).collect();
        assert_eq!(all, [(90, Some("five"))]);
        assert_eq!(shown(&mut newest, 91 + KEPT_NS), Exemplars::default());
        assert!(newest.resets.is_empty());
    }
}
