//! A connection as the API shows it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tcpwatch_common::close::flag;
use tcpwatch_common::hist::{quantile, sketch_lower};
use tcpwatch_common::history;
use tcpwatch_common::limits::{application, ecn};
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::{Direction, ca_state};

use super::owner::Owner;
use super::text::printable;
use super::{Moment, ends, state_name};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;

type Name = Cow<'static, str>;

/// `snd_ssthresh` of a connection that has none yet (`TCP_INFINITE_SSTHRESH`, include/net/tcp.h).
pub(crate) const NO_SSTHRESH: u32 = 0x7fff_ffff;
/// `sk_pacing_rate` of a connection that is not paced (`~0UL`).
const NOT_PACED: u64 = u64::MAX;

/// One line of `/api/v1/connections`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of one connection, as one flat line of JSON has them")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Connection {
    /// The kernel's cookie of the socket, as in `ss -e`.
    pub(crate) cookie: u64,
    /// Inode number of the network namespace.
    pub(crate) netns: u32,
    /// Our address.
    pub(crate) local_address: IpAddr,
    /// Our port.
    pub(crate) local_port: u16,
    /// The peer's address.
    pub(crate) remote_address: IpAddr,
    /// The peer's port.
    pub(crate) remote_port: u16,
    /// State at the newest record.
    pub(crate) state: Name,
    /// The states it went through as far as they were seen, at most eight, the newest first; none before the first step.
    pub(crate) states: Vec<Name>,
    /// Since it came into its state; null when that was not seen.
    pub(crate) in_state_ms: Option<u64>,
    /// `inbound`, `outbound` or `unknown`.
    pub(crate) direction: Name,
    /// The service that its totals are counted under.
    pub(crate) service: Name,
    /// Process that owns it, as in `owner`; null when it is not known.
    pub(crate) pid: Option<u32>,
    /// Its name, made printable.
    pub(crate) comm: String,
    /// User that made the socket.
    pub(crate) uid: u32,
    /// Who owns it.
    pub(crate) owner: Owner,
    /// It is older than the daemon: counts since it was opened that are not the kernel's are since it was seen.
    pub(crate) partial: bool,
    /// Since the SYN was sent, or it was first seen.
    pub(crate) age_ms: u64,
    /// Since the newest record: everything else here is of that moment.
    pub(crate) reading_age_ms: u64,
    /// Smoothed RTT.
    pub(crate) srtt_us: Option<u32>,
    /// Its mean deviation.
    pub(crate) rtt_deviation_us: Option<u32>,
    /// Smallest RTT in the kernel's window.
    pub(crate) min_rtt_us: Option<u32>,
    /// Smoothed RTT over the smallest: what queues on the path add, and delayed ACKs.
    pub(crate) queueing_delay_us: Option<u32>,
    /// RTT as a receiver estimates it, from the data that fills its window. Never mixed with the others.
    pub(crate) receiver_rtt_us: Option<u32>,
    /// Last raw sample.
    pub(crate) last_rtt_us: Option<u32>,
    /// RTT of the handshake.
    pub(crate) handshake_us: Option<u32>,
    /// Of the raw samples, from two buckets an octave; null without samples.
    pub(crate) rtt_quantiles: Option<RttQuantiles>,
    /// Congestion window.
    pub(crate) cwnd_segments: u32,
    /// Slow-start threshold; null while there is none.
    pub(crate) ssthresh_segments: Option<u32>,
    /// Sent, and neither acknowledged nor believed lost.
    pub(crate) in_flight_segments: u32,
    /// Sent and believed lost.
    pub(crate) lost_segments: u32,
    /// Segments marked lost so far, wrongly or not.
    pub(crate) lost_segments_total: u32,
    /// Sent, selectively acknowledged, and not yet acknowledged as a whole.
    pub(crate) sacked_segments: u32,
    /// Sent again and not acknowledged.
    pub(crate) retransmitted_in_flight_segments: u32,
    /// Reordering that the sender reckons with before it takes a segment for lost.
    pub(crate) reordering_segments: u32,
    /// Reorderings seen.
    pub(crate) reorderings_seen: u32,
    /// How the sender judges the path.
    pub(crate) congestion_state: Name,
    /// Delivery rate at the last sample of it; null before the first.
    pub(crate) delivery_rate_bytes_per_second: Option<u64>,
    /// The application limited that sample: the path can do more.
    pub(crate) delivery_rate_application_limited: bool,
    /// Rate at which the kernel paces; null when it does not.
    pub(crate) pacing_rate_bytes_per_second: Option<u64>,
    /// Both ends agreed on ECN.
    pub(crate) ecn: bool,
    /// A segment with an ECN mark came in.
    pub(crate) ecn_seen: bool,
    /// Segments delivered with a congestion mark, as the peer tells.
    pub(crate) ce_delivered_segments: u32,
    /// The peer's receive window.
    pub(crate) send_window_bytes: u32,
    /// Our receive window.
    pub(crate) receive_window_bytes: u32,
    /// Sending maximum segment size.
    pub(crate) mss_bytes: u32,
    /// Maximum segment size that we announced.
    pub(crate) advertised_mss_bytes: u32,
    /// Name of the congestion control; null where the kernel does not tell.
    pub(crate) congestion_control: Option<String>,
    /// Retransmission timeout.
    pub(crate) rto_us: u64,
    /// Consecutive doublings of it.
    pub(crate) rto_backoff: u8,
    /// Payload sent, retransmissions included.
    pub(crate) sent_bytes: u64,
    /// Acknowledged by the peer, our SYN counted as one, as in tcp_info.
    pub(crate) acked_bytes: u64,
    /// Of it, sent again.
    pub(crate) retransmitted_bytes: u64,
    /// Received in order, a FIN counted as one.
    pub(crate) received_bytes: u64,
    /// Segments with payload sent.
    pub(crate) sent_segments: u32,
    /// Segments with payload received.
    pub(crate) received_segments: u32,
    /// Segments sent again, by the kernel's count of the socket.
    pub(crate) retransmits_total: u32,
    /// The same since it is watched, by cause.
    pub(crate) retransmits: Retransmits,
    /// Of these, proven needless.
    pub(crate) spurious_retransmits: u32,
    /// Retransmissions that the kernel refused.
    pub(crate) retransmit_failures: u32,
    /// Times in Recovery.
    pub(crate) recoveries: u32,
    /// Times in Loss.
    pub(crate) losses: u32,
    /// Time in Open: all the time since it is watched that is not in one of the following.
    pub(crate) open_us: u64,
    /// Time in Disorder.
    pub(crate) disorder_us: u32,
    /// Time in CWR: after ECN, or congestion in this host.
    pub(crate) cwr_us: u32,
    /// Time in Recovery.
    pub(crate) recovery_us: u32,
    /// Time in Loss.
    pub(crate) loss_us: u32,
    /// Time with data to send, by the kernel's chronographs: the sum of the next three.
    pub(crate) busy_us: u64,
    /// Of it, limited by the congestion window, or by the path.
    pub(crate) congestion_window_limited_us: u64,
    /// Of it, limited by the peer's receive window.
    pub(crate) receive_window_limited_us: u64,
    /// Of it, limited by our send buffer.
    pub(crate) send_buffer_limited_us: u64,
    /// Time since ESTABLISHED without data to send; null when it is not known since when.
    pub(crate) application_limited_us: Option<u64>,
    /// The application limits it now.
    pub(crate) application_limited: bool,
    /// Times that the peer's receive window became zero.
    pub(crate) peer_zero_windows: u32,
    /// Time that it was.
    pub(crate) peer_zero_window_us: u64,
    /// Times that our receive window became zero.
    pub(crate) local_zero_windows: u32,
    /// Time that it was.
    pub(crate) local_zero_window_us: u64,
    /// Times that the congestion window was reduced after a pause.
    pub(crate) idle_restarts: u32,
    /// Probes of a closed window, or keepalives, that were not answered.
    pub(crate) unanswered_probes: u8,
    /// Since the last ACK came in.
    pub(crate) since_ack_ms: u64,
    /// Since data was last sent.
    pub(crate) since_sent_ms: u64,
    /// Received and not read by the application.
    pub(crate) unread_bytes: u32,
    /// Written and not sent.
    pub(crate) unsent_bytes: u32,
    /// Sent and not acknowledged.
    pub(crate) unacked_bytes: u32,
    /// Memory of what waits to be sent or acknowledged.
    pub(crate) send_queue_memory_bytes: u32,
    /// The most of it that the send buffer allows.
    pub(crate) send_buffer_bytes: u32,
    /// What the receive buffer is tuned for in a round trip.
    pub(crate) receive_space_bytes: u32,
}

/// RTT quantiles of a connection's raw samples.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct RttQuantiles {
    /// Median.
    pub(crate) p50_us: u32,
    /// 90th percentile.
    pub(crate) p90_us: u32,
    /// 99th percentile.
    pub(crate) p99_us: u32,
    /// How many samples.
    pub(crate) samples: u32,
}

/// Segments sent again, by cause.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Retransmits {
    pub(crate) fast: u32,
    pub(crate) timeout: u32,
    pub(crate) tail_loss_probe: u32,
    pub(crate) syn: u32,
    pub(crate) syn_ack: u32,
    pub(crate) other: u32,
}

impl Connection {
    /// What a record says at a moment; the names of user and control group are not in it.
    pub(crate) fn new(record: &ConnRecord, service: Service, moment: Moment) -> Self {
        let (local, remote) = ends(&record.key);
        let known = |us: u32| (us > 0 && us != u32::MAX).then_some(us);
        let [fast, timeout, tail_loss_probe, syn, syn_ack, other] = record.retrans;
        let [recoveries, losses] = record.recoveries;
        let [disorder_us, cwr_us, recovery_us, loss_us] = record.ca_us;
        let ticks = u64::from(moment.ticks_per_second.max(1));
        let us = |jiffies: u32| u64::from(jiffies) * 1_000_000 / ticks;
        let ms = |jiffies: u32| u64::from(jiffies) * 1000 / ticks;
        let [congestion_limited, receive_limited, buffer_limited] = record.limited_jiffies.map(us);
        let busy_us = congestion_limited + receive_limited + buffer_limited;
        let since_us = |since_ns: u64| record.header.ktime_ns.saturating_sub(since_ns) / 1000;
        let watched_us = since_us(if record.established_ns == 0 { record.started_ns } else { record.established_ns });
        let disturbed_us = record.ca_us.into_iter().map(u64::from).sum();
        let [peer_zero_windows, local_zero_windows] = record.zero_windows;
        let [peer_zero_window_us, local_zero_window_us] = record.zero_jiffies.map(us);
        Self {
            cookie: record.cookie,
            netns: record.key.netns,
            local_address: local.ip(),
            local_port: local.port(),
            remote_address: remote.ip(),
            remote_port: remote.port(),
            state: state_name(record.state).into(),
            states: history::states(record.history).map(|state| state.name().into()).collect(),
            in_state_ms: in_state_ms(record, moment),
            direction: Direction::from_u8(record.direction).name().into(),
            service: service.label().into(),
            pid: (record.pid != 0).then_some(record.pid),
            comm: printable(&record.comm),
            uid: record.uid,
            owner: Owner::new(&owners::Owner::of(record), &Names::default()),
            partial: record.flags & flag::PARTIAL != 0,
            age_ms: moment.age_ms(record.started_ns),
            reading_age_ms: moment.age_ms(record.header.ktime_ns),
            srtt_us: known(record.srtt_us),
            rtt_deviation_us: known(record.srtt_us).map(|_| record.mdev_us),
            min_rtt_us: known(record.min_rtt_us),
            queueing_delay_us: known(record.srtt_us)
                .zip(known(record.min_rtt_us))
                .map(|(smoothed, smallest)| smoothed.saturating_sub(smallest)),
            receiver_rtt_us: known(record.rcv_rtt_us),
            last_rtt_us: (record.rtt_samples > 0).then_some(record.rtt_last_us),
            handshake_us: known(record.handshake_us),
            rtt_quantiles: quantiles(record),
            cwnd_segments: record.snd_cwnd,
            ssthresh_segments: (record.snd_ssthresh < NO_SSTHRESH).then_some(record.snd_ssthresh),
            in_flight_segments: record.in_flight(),
            lost_segments: record.lost_out,
            lost_segments_total: record.lost,
            sacked_segments: record.sacked_out,
            retransmitted_in_flight_segments: record.retrans_out,
            reordering_segments: record.reordering,
            reorderings_seen: record.reord_seen,
            congestion_state: ca_state::name(record.ca_state).into(),
            delivery_rate_bytes_per_second: delivery_rate(record),
            delivery_rate_application_limited: record.application & application::LIMITED_RATE != 0,
            pacing_rate_bytes_per_second: (1..NOT_PACED).contains(&record.pacing_rate).then_some(record.pacing_rate),
            ecn: record.ecn_flags & ecn::NEGOTIATED != 0,
            ecn_seen: record.ecn_flags & ecn::SEEN != 0,
            ce_delivered_segments: record.delivered_ce,
            send_window_bytes: record.snd_wnd,
            receive_window_bytes: record.rcv_wnd,
            mss_bytes: record.mss,
            advertised_mss_bytes: record.advmss,
            congestion_control: Some(printable(&record.congestion)).filter(|name| !name.is_empty()),
            rto_us: us(record.rto_jiffies),
            rto_backoff: record.backoff,
            sent_bytes: record.bytes_sent,
            acked_bytes: record.bytes_acked,
            retransmitted_bytes: record.bytes_retrans,
            received_bytes: record.bytes_received,
            sent_segments: record.data_segs_out,
            received_segments: record.data_segs_in,
            retransmits_total: record.total_retrans,
            retransmits: Retransmits { fast, timeout, tail_loss_probe, syn, syn_ack, other },
            spurious_retransmits: record.spurious,
            retransmit_failures: record.retrans_failed,
            recoveries,
            losses,
            open_us: watched_us.saturating_sub(disturbed_us),
            disorder_us,
            cwr_us,
            recovery_us,
            loss_us,
            busy_us,
            congestion_window_limited_us: congestion_limited,
            receive_window_limited_us: receive_limited,
            send_buffer_limited_us: buffer_limited,
            application_limited_us: (record.established_ns != 0).then(|| watched_us.saturating_sub(busy_us)),
            application_limited: record.application & application::LIMITS_NOW != 0,
            peer_zero_windows,
            peer_zero_window_us,
            local_zero_windows,
            local_zero_window_us,
            idle_restarts: record.idle_restarts,
            unanswered_probes: record.probes_out,
            since_ack_ms: ms(record.since_ack_jiffies),
            since_sent_ms: ms(record.since_sent_jiffies),
            unread_bytes: record.unread_bytes,
            unsent_bytes: record.unsent_bytes,
            unacked_bytes: record.unacked_bytes,
            send_queue_memory_bytes: record.queued_bytes,
            send_buffer_bytes: record.send_buffer,
            receive_space_bytes: record.rcv_space,
        }
    }

    /// Our end.
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local_address, self.local_port)
    }

    /// The peer's end.
    pub(crate) fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote_address, self.remote_port)
    }
}

/// Since it came into its state. The word wraps after 49 days: what is older than that is not told.
fn in_state_ms(record: &ConnRecord, moment: Moment) -> Option<u64> {
    let age_ms = moment.age_ms(record.started_ns);
    let in_state_ms = u64::from(((moment.ktime_ns / 1_000_000) as u32).wrapping_sub(record.state_since_ms));
    (record.history != 0 && record.state_since_ms != 0 && age_ms < u64::from(u32::MAX)).then(|| in_state_ms.min(age_ms))
}

/// `tcp_compute_delivery_rate`, net/ipv4/tcp.c.
pub(crate) fn delivery_rate(record: &ConnRecord) -> Option<u64> {
    let bytes = u64::from(record.rate_delivered) * u64::from(record.mss);
    let rate = bytes.saturating_mul(1_000_000).checked_div(u64::from(record.rate_interval_us))?;
    (rate > 0).then_some(rate)
}

/// Of the raw RTT samples.
pub(crate) fn quantiles(record: &ConnRecord) -> Option<RttQuantiles> {
    let counts = record.sketch.iter().map(|count| u64::from(*count));
    let at = |q| {
        let us = quantile(counts.clone(), sketch_lower, q)?;
        // The buckets are wide; what was seen bounds what can be true.
        Some((us as u32).min(record.rtt_max_us).max(record.rtt_min_us.min(record.rtt_max_us)))
    };
    Some(RttQuantiles { p50_us: at(0.5)?, p90_us: at(0.9)?, p99_us: at(0.99)?, samples: record.rtt_samples })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use tcpwatch_common::hist::{rtt_bucket, sketch_bucket};
    use tcpwatch_common::owner::OwnerKind;
    use tcpwatch_common::state::TcpState;

    use super::*;
    use crate::aggregate::owners::Named;
    use crate::aggregate::tests::conn_record;

    /// A record with every field that the API shows.
    pub(crate) fn busy(cookie: u64) -> ConnRecord {
        let mut record = conn_record(cookie);
        record.header.ktime_ns = 9_500_000_000;
        record.started_ns = 1_000_000_000;
        record.key.local = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        record.key.remote = Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().octets();
        (record.key.local_port, record.key.remote_port) = (443, 51_234);
        (record.key.ip_version, record.key.netns) = (4, 4_026_531_840);
        (record.state, record.direction) = (TcpState::Established as u8, 1);
        record.history = history::push(0, TcpState::SynRecv as u8, TcpState::Established as u8);
        record.state_since_ms = 1_040;
        (record.pid, record.uid, record.owner_uid, record.owner_kind) = (812, 0, 33, OwnerKind::Read as u8);
        record.cgroup = 50;
        record.comm[..5].copy_from_slice(b"nginx");
        (record.srtt_us, record.mdev_us, record.min_rtt_us, record.handshake_us) = (41_000, 2_000, 39_000, 40_500);
        (record.rtt_samples, record.rtt_last_us, record.rtt_min_us, record.rtt_max_us) = (10, 42_000, 39_000, 61_000);
        record.sketch[sketch_bucket(rtt_bucket(41_000)) as usize] = 9;
        record.sketch[sketch_bucket(rtt_bucket(61_000)) as usize] = 1;
        (record.snd_cwnd, record.snd_ssthresh) = (20, 14);
        (record.packets_out, record.sacked_out, record.lost_out, record.retrans_out) = (12, 3, 2, 1);
        (record.snd_wnd, record.rcv_wnd, record.mss, record.rto_jiffies) = (65_535, 131_072, 1448, 61);
        (record.bytes_sent, record.bytes_acked, record.bytes_retrans, record.bytes_received) =
            (1_500_000, 1_482_624, 4_344, 12_345);
        (record.data_segs_out, record.data_segs_in, record.total_retrans) = (1040, 9, 3);
        record.retrans = [2, 0, 1, 0, 0, 0];
        (record.recoveries, record.ca_us) = ([1, 0], [1_500, 700, 52_000, 0]);
        (record.established_ns, record.limited_jiffies) = (1_040_000_000, [500, 250, 125]);
        (record.zero_windows, record.zero_jiffies) = ([2, 1], [100, 25]);
        (record.rate_delivered, record.rate_interval_us, record.pacing_rate) = (20, 41_000, 1_400_000);
        (record.ecn_flags, record.delivered_ce, record.application) = (9, 4, application::LIMITED_RATE);
        (record.advmss, record.queued_bytes, record.send_buffer) = (1460, 23_040, 87_040);
        (record.rcv_rtt_us, record.rcv_space) = (43_000, 14_600);
        (record.reordering, record.reord_seen, record.lost, record.idle_restarts) = (5, 1, 6, 3);
        (record.since_ack_jiffies, record.since_sent_jiffies) = (10, 11);
        record.congestion[..5].copy_from_slice(b"cubic");
        (record.unread_bytes, record.unsent_bytes, record.unacked_bytes) = (7, 1000, 17_376);
        record
    }

    /// The names of its owner, and control group 51, a container's.
    pub(crate) fn named() -> Arc<Names> {
        let mut owners = owners::Owners::default();
        owners.named(Named::User, 33, b"www-data");
        owners.named(Named::Cgroup, 50, b"/system.slice/nginx.service");
        owners.named(Named::Cgroup, 51, format!("/system.slice/docker-{}.scope", "4f".repeat(32)).as_bytes());
        Arc::clone(owners.names())
    }

    /// The same as the API shows it.
    pub(crate) fn shown(record: &ConnRecord) -> Connection {
        let moment = Moment { ktime_ns: 10_000_000_000, ticks_per_second: 250 };
        let connection = Connection::new(record, Service::Port(443), moment);
        Connection { owner: Owner::new(&owners::Owner::of(record), &named()), ..connection }
    }

    #[test]
    fn lines_are_as_agreed_and_can_be_read_back() {
        let mut quiet = conn_record(2);
        quiet.key.ip_version = 6;
        quiet.key.remote[15] = 1;
        (quiet.min_rtt_us, quiet.rtt_min_us, quiet.snd_ssthresh) = (u32::MAX, u32::MAX, NO_SSTHRESH);
        quiet.flags = flag::PARTIAL;
        quiet.comm = *b"\x1b[2J\xffhostile\n\"\\x";
        let all = [shown(&busy(1)), shown(&quiet)];
        let text: String = all.iter().map(super::super::line).collect();
        crate::golden::check("tests/golden/connections.jsonl", &text);
        for (line, one) in text.lines().zip(all) {
            assert_eq!(serde_json::from_str::<Connection>(line).unwrap(), one);
        }
    }

    #[test]
    fn quantiles_stay_between_what_was_seen() {
        let quantiles = shown(&busy(1)).rtt_quantiles.unwrap();
        assert!((39_000..=49_152).contains(&quantiles.p50_us) && quantiles.p99_us <= 61_000, "{quantiles:?}");
        let mut odd = busy(1);
        (odd.rtt_min_us, odd.rtt_max_us) = (50, 20);
        assert_eq!(shown(&odd).rtt_quantiles.unwrap().p50_us, 20);
    }
}
