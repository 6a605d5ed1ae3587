//! What limits a connection, and what would help: the rules behind `tcpwatch explain`.
//!
//! Pure and clockless: readings of connections, listeners and namespaces go in, verdicts with their evidence come out. A
//! rule of a connection is an entry of [`rules::RULES`]; it looks at [`facts::Facts`] and at nothing else.

pub(crate) mod command;
#[cfg(test)]
mod examples;
mod facts;
mod growth;
mod host;
mod rules;
mod service;
mod trouble;
mod verdict;

use tcpwatch_common::record::ConnRecord;

use self::facts::Facts;
pub(crate) use self::service::{IDS as SERVICE_IDS, Recent, ServiceVerdicts, Short, Sums};
pub(crate) use self::verdict::{Explained, Id, Subject, Verdict};
use crate::aggregate::kept::Kept;
use crate::aggregate::snapshot::{ListenerStats, NamespaceStats};
use crate::api::{Listing, Moment, line};
use crate::filter::Filter;

/// Segments in both directions below which nothing can be said of a connection.
const ENOUGH_SEGMENTS: u64 = 10;

/// What is known at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    /// Open connections.
    pub(crate) listing: Listing,
    /// When watching began, ns of CLOCK_MONOTONIC.
    pub(crate) began_ns: u64,
    /// Closed connections in sum, by group slot.
    pub(crate) closed: Vec<Sums>,
    /// Listening sockets.
    pub(crate) listeners: Vec<ListenerStats>,
    /// What the kernel counts in each network namespace.
    pub(crate) namespaces: Vec<NamespaceStats>,
}

impl Picture {
    const fn ktime_ns(&self) -> u64 {
        self.listing.ktime_ns
    }
}

/// Everything that is looked at: now, and at the beginning of the window if it does not go back to the start.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// This moment.
    pub(crate) now: Picture,
    /// The same at the beginning of the window; none for all that is known.
    pub(crate) before: Option<Picture>,
    /// Jiffies in a second.
    pub(crate) ticks_per_second: u32,
}

impl Sight {
    /// Verdicts as lines of JSON.
    pub(crate) fn lines(&self, filter: Option<&Filter>, all: bool) -> String {
        self.explained(filter, all).iter().map(line).collect()
    }

    /// Verdicts: with a filter, of the connections that it selects; without, of everything. Subjects without trouble only if
    /// `all` are wanted or a filter chose them; what is left out is counted in the last one.
    pub(crate) fn explained(&self, filter: Option<&Filter>, all: bool) -> Vec<Explained> {
        let ticks = self.ticks_per_second;
        let wanted =
            |record: &ConnRecord| filter.is_none_or(|filter| filter.selects(&self.now.listing.facts(record, ticks)));
        let mut explained = if filter.is_none() { self.services() } else { Vec::new() };
        if filter.is_none() {
            explained.extend(self.host());
        }
        let mut connections = self.connections(wanted);
        if !all && filter.is_none() {
            let summary = summary(&connections, self.before.is_none());
            connections.retain(Explained::is_trouble);
            connections.extend(summary);
        }
        explained.extend(connections);
        explained
    }

    /// Verdicts on every connection that `wanted` selects.
    pub(crate) fn connections(&self, wanted: impl Fn(&ConnRecord) -> bool) -> Vec<Explained> {
        let moment = Moment { ktime_ns: self.now.ktime_ns(), ticks_per_second: self.ticks_per_second };
        let mut before: Vec<&Kept> = self.before.iter().flat_map(|before| &before.listing.records).collect();
        before.sort_unstable_by_key(|kept| kept.cookie);
        let earlier = |cookie: u64| {
            let at = before.binary_search_by_key(&cookie, |kept| kept.cookie).ok()?;
            before.get(at).map(|kept| kept.record())
        };
        let chosen = self.now.listing.records.iter().map(Kept::record).filter(wanted);
        chosen.map(|record| self.connection(&record, earlier(record.cookie).as_ref(), moment)).collect()
    }

    fn connection(&self, record: &ConnRecord, before: Option<&ConnRecord>, moment: Moment) -> Explained {
        let facts = Facts::new(record, before, moment);
        let (local, remote) = crate::api::ends(&record.key);
        Explained {
            subject: Subject::Connection {
                cookie: record.cookie,
                local: local.to_string(),
                remote: remote.to_string(),
                state: crate::api::state_name(record.state).to_owned(),
                service: self.now.listing.service(record.slot).label(),
                pid: (record.pid != 0).then_some(record.pid),
                comm: crate::api::text::printable(&record.comm),
            },
            window_s: seconds(facts.window_us),
            window: window(facts.since_open),
            verdicts: judge(&facts),
        }
    }

    /// Verdicts on services, by the connections that they opened and closed.
    pub(crate) fn services(&self) -> Vec<Explained> {
        let before = self.before.as_ref().map(|before| before.closed.as_slice());
        let sums = service::by_service(&self.now.closed, before, |slot| self.now.listing.services.get(slot).copied());
        let from_ns = self.before.as_ref().map_or(self.now.began_ns, Picture::ktime_ns);
        let told = sums.into_iter().map(|((direction, service), short)| Explained {
            subject: Subject::Service { direction: direction.name().to_owned(), service: service.label() },
            window_s: seconds(self.now.ktime_ns().saturating_sub(from_ns) / 1000),
            window: window(self.before.is_none()),
            verdicts: service::judge(&short),
        });
        told.filter(|explained| !explained.verdicts.is_empty()).collect()
    }

    /// Verdicts on listeners and network namespaces that are in trouble.
    pub(crate) fn host(&self) -> Vec<Explained> {
        host::judge(&self.now, self.before.as_ref())
    }
}

/// How many connections had nothing to complain of, as a subject of their own; none when every connection had.
fn summary(connections: &[Explained], since_open: bool) -> Option<Explained> {
    let count = |id: Id| connections.iter().filter(|e| e.verdicts.iter().any(|v| v.id == id)).count();
    let (healthy, unknown) = (count(Id::Healthy), count(Id::NotEnoughData));
    if healthy + unknown == 0 {
        return None;
    }
    let verdict = |id, count: usize, words: &str| Verdict {
        id,
        confidence: 1.0,
        share: None,
        evidence: verdict::evidence! { connections: count },
        sentence: format!("{count} connections {words}"),
        remedy: String::new(),
    };
    let mut verdicts = Vec::new();
    if healthy > 0 {
        verdicts.push(verdict(Id::Healthy, healthy, "are limited by nothing but their path"));
    }
    if unknown > 0 {
        verdicts.push(verdict(Id::NotEnoughData, unknown, "carried too little to tell"));
    }
    let longest = connections.iter().map(|e| e.window_s).fold(0.0, f64::max);
    Some(Explained { subject: Subject::Others {}, window_s: longest, window: window(since_open), verdicts })
}

fn window(since_open: bool) -> String {
    if since_open { "since_open" } else { "interval" }.to_owned()
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// All that the rules say of a connection, the most important first; `healthy` or `not_enough_data` when that is nothing.
fn judge(facts: &Facts<'_>) -> Vec<Verdict> {
    let mut found: Vec<(&rules::Rule, Verdict)> = Vec::new();
    for rule in rules::RULES {
        if found.iter().any(|(earlier, _)| earlier.hides.contains(&rule.id)) {
            continue;
        }
        if let Some(verdict) = (rule.check)(facts) {
            found.push((rule, verdict));
        }
    }
    let mut verdicts: Vec<Verdict> = found.into_iter().map(|(_, verdict)| verdict).collect();
    if verdicts.is_empty() {
        verdicts.push(unremarkable(facts));
    }
    let sampled = facts.sampled();
    if sampled < 1.0 {
        // What RTT samples and marks of a sender say is of that part only.
        let sampled = (sampled * 1000.0).round() / 1000.0;
        for verdict in &mut verdicts {
            verdict.evidence.insert("sampled_share".to_owned(), sampled.into());
        }
    }
    verdicts
}

fn unremarkable(facts: &Facts<'_>) -> Verdict {
    let segments = facts.sent_segments + facts.received_segments;
    let evidence = verdict::evidence! {
        sent_segments: facts.sent_segments,
        received_segments: facts.received_segments,
        retransmitted_segments: facts.retransmits,
        busy_us: facts.busy_us,
        receive_window_limited_us: facts.limited_us[1],
        send_buffer_limited_us: facts.limited_us[2],
        cwnd_segments: facts.now.snd_cwnd,
        in_flight_segments: facts.now.packets_out,
        send_buffer_bytes: facts.now.send_buffer,
        srtt_us: facts.now.srtt_us,
        min_rtt_us: facts.min_rtt_us,
    };
    let (id, confidence, sentence) = if segments < ENOUGH_SEGMENTS || facts.opening() {
        (Id::NotEnoughData, 1.0, format!("{segments} segments with data are too few to tell"))
    } else {
        let busy = facts::part(facts.busy_us, facts.window_us) * 100.0;
        let sentence =
            format!("nothing limits it but its path: data was waiting {busy:.0} % of the time, nothing was lost");
        let lossless = facts.needed_retransmits() == 0;
        let sentence = if lossless {
            sentence
        } else {
            format!(
                "{} of {} segments were sent again, which cost no time worth mentioning",
                facts.needed_retransmits(),
                facts.sent_segments
            )
        };
        (Id::Healthy, 0.9, sentence)
    };
    Verdict { id, confidence, share: None, evidence, sentence, remedy: String::new() }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    use tcpwatch_common::hist::sketch_lower;
    use tcpwatch_common::state::TcpState;

    use super::*;
    use crate::aggregate::tests::conn_record;

    /// Of a connection that nothing has happened to.
    fn quiet(cookie: u64, state: TcpState) -> ConnRecord {
        let mut record = conn_record(cookie);
        (record.state, record.established_ns) = (state as u8, 1_000_000_000);
        (record.snd_wnd, record.rcv_wnd, record.snd_cwnd, record.mss) = (65_535, 65_535, 10, 1448);
        (record.data_segs_out, record.data_segs_in) = (20, 20);
        (record.bytes_sent, record.bytes_received) = (10_000, 10_000);
        record
    }

    /// Ten minutes after the beginning.
    fn sight(records: Vec<ConnRecord>) -> Sight {
        let records = records
            .into_iter()
            .map(|mut record| {
                record.header.ktime_ns = 601_000_000_000;
                Kept::new(&record)
            })
            .collect();
        let listing = Listing { ktime_ns: 601_000_000_000, records, ..Listing::default() };
        let now = Picture { listing, ..Picture::default() };
        Sight { now, before: None, ticks_per_second: 250 }
    }

    fn ids(explained: &[Explained]) -> Vec<Id> {
        explained.iter().flat_map(|e| e.verdicts.iter().map(|v| v.id)).collect()
    }

    fn said_of(record: &ConnRecord) -> Vec<Id> {
        ids(&sight(vec![*record]).connections(|_| true))
    }

    #[test]
    fn a_socket_ten_minutes_in_close_wait_is_a_leak_and_a_young_one_is_not() {
        let mut record = quiet(1, TcpState::CloseWait);
        (record.since_ack_jiffies, record.since_sent_jiffies) = (600 * 250, 600 * 250);
        assert_eq!(said_of(&record), [Id::CloseWaitLeak]);
        let mut young = record;
        young.since_ack_jiffies = 9 * 250;
        assert_eq!(said_of(&young), [Id::Healthy]);
        let mut sends = record;
        sends.unsent_bytes = 1;
        assert!(!said_of(&sends).contains(&Id::CloseWaitLeak));
    }

    #[test]
    fn a_lone_probe_is_no_loss_and_three_are() {
        let mut record = quiet(1, TcpState::Established);
        (record.retrans[2], record.total_retrans) = (1, 1);
        assert_eq!(said_of(&record), [Id::Healthy]);
        (record.retrans[2], record.total_retrans) = (3, 3);
        assert_eq!(said_of(&record), [Id::Loss]);
    }

    #[test]
    fn a_full_send_buffer_below_both_windows_is_too_small() {
        let mut record = quiet(1, TcpState::Established);
        (record.snd_cwnd, record.snd_wnd, record.send_buffer) = (160, 3_000_000, 80_000);
        (record.unacked_bytes, record.data_segs_out, record.bytes_sent) = (66_000, 2_000, 2_896_000);
        record.queued_bytes = 76_000;
        record.limited_jiffies = [590 * 250, 0, 2 * 250];
        assert_eq!(said_of(&record), [Id::SendBuffer]);
        // The kernel's clock never runs when an ACK comes before the writer has found no room.
        record.limited_jiffies = [590 * 250, 0, 0];
        assert_eq!(said_of(&record), [Id::SendBuffer]);
        record.send_buffer = 800_000;
        assert!(!said_of(&record).contains(&Id::SendBuffer));
    }

    #[test]
    fn a_full_window_without_a_queue_limits_and_one_that_fills_the_path_does_not() {
        let mut record = quiet(1, TcpState::Established);
        (record.snd_cwnd, record.packets_out, record.snd_ssthresh, record.snd_wnd) = (30, 30, 12, 200_000);
        (record.unsent_bytes, record.unacked_bytes, record.data_segs_out) = (80_000, 43_440, 100_000);
        (record.bytes_sent, record.bytes_acked, record.min_rtt_us) = (144_800_000, 144_756_560, 100_000);
        record.limited_jiffies = [599 * 250, 0, 0];
        let at = |record: &ConnRecord, rtt_us: u64| {
            let mut record = *record;
            let bucket = (0..record.sketch.len()).rfind(|bucket| sketch_lower(*bucket) <= rtt_us).unwrap();
            (record.sketch[bucket], record.rtt_samples, record.rtt_sum_us) = (1000, 1000, 1000 * rtt_us);
            said_of(&record)
        };
        assert_eq!(at(&record, 101_000), [Id::CongestionWindow]);
        assert_eq!(at(&record, 170_000), [Id::Healthy]);
        record.unsent_bytes = 0;
        assert_eq!(at(&record, 101_000), [Id::Healthy]);
    }

    #[test]
    fn restarts_after_which_an_initial_window_is_enough_cost_nothing() {
        let mut record = quiet(1, TcpState::Established);
        (record.idle_restarts, record.cwnd_max, record.rtt_samples, record.rtt_sum_us) = (10, 200, 100, 5_000_000);
        (record.bytes_acked, record.limited_jiffies) = (110_000, [5 * 250, 0, 0]);
        assert_eq!(said_of(&record), [Id::Healthy]);
        (record.bytes_sent, record.bytes_acked) = (5_500_000, 5_500_000);
        assert_eq!(said_of(&record), [Id::IdleRestart]);
    }

    #[test]
    fn queues_are_told_from_half_of_their_limit_on() {
        let mut sight = sight(Vec::new());
        let listener = ListenerStats { limit: 100, ..ListenerStats::default() };
        sight.now.listeners = vec![
            ListenerStats { queue: 49, half_open: 49, ..listener.clone() },
            ListenerStats { queue: 50, ..listener.clone() },
            ListenerStats { half_open: 50, ..listener },
        ];
        let namespace = NamespaceStats { port_range: [32_768, 60_999], ..NamespaceStats::default() };
        sight.now.namespaces =
            vec![NamespaceStats { time_wait: 999, ..namespace }, NamespaceStats { time_wait: 20_000, ..namespace }];
        let host = sight.host();
        assert_eq!(ids(&host), [Id::ListenQueue, Id::SynBacklog, Id::TimeWaitPressure]);
        assert_eq!(host[2].verdicts[0].evidence["ports_left_to_one_destination"], 8_232);
    }

    #[test]
    fn fifty_thousand_connections_are_explained_each() {
        let mut records: Vec<_> = (0..50_000).map(|cookie| quiet(cookie, TcpState::Established)).collect();
        records.iter_mut().step_by(1000).for_each(|record| record.retrans[0] = 2);
        records.iter_mut().step_by(1000).for_each(|record| record.total_retrans = 2);
        let sight = sight(records);
        let began = Instant::now();
        let lines = sight.lines(None, false);
        println!("50,000 connections took {:?}", began.elapsed());
        assert_eq!(lines.lines().filter(|line| line.contains("\"loss\"")).count(), 50);
        let last: Explained = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!((last.subject, &last.verdicts[0].evidence["connections"]), (Subject::Others {}, &49_950.into()));
    }

    /// A line for each kind of subject.
    pub(crate) fn lines() -> String {
        let mut record = quiet(1, TcpState::Established);
        (record.retrans[0], record.total_retrans, record.pid) = (2, 2, 7);
        let verdicts = sight(vec![record]).connections(|_| true).remove(0);
        let service = Subject::Service { direction: "inbound".into(), service: "443".into() };
        let listener = Subject::Listener { address: "0.0.0.0:443".into() };
        let others = [service, listener, Subject::Host { netns: 7 }, Subject::Others {}];
        let others = others.map(|subject| Explained { subject, ..verdicts.clone() });
        line(&verdicts) + &others.iter().map(line).collect::<String>()
    }
}
