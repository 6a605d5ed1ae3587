//! A connection as the API shows it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tcpwatch_common::close::flag;
use tcpwatch_common::hist::{quantile, sketch_lower};
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::{Direction, ca_state};

use super::owner::Owner;
use super::text::printable;
use super::{Moment, ends, state_name};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;

type Name = Cow<'static, str>;

/// `snd_ssthresh` of a connection that has none yet (`TCP_INFINITE_SSTHRESH`, include/net/tcp.h).
const NO_SSTHRESH: u32 = 0x7fff_ffff;

/// One line of `/api/v1/connections`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
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
    /// How the sender judges the path.
    pub(crate) congestion_state: Name,
    /// The peer's receive window.
    pub(crate) send_window_bytes: u32,
    /// Our receive window.
    pub(crate) receive_window_bytes: u32,
    /// Sending maximum segment size.
    pub(crate) mss_bytes: u32,
    /// Retransmission timeout.
    pub(crate) rto_ms: u64,
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
    /// Time in it.
    pub(crate) recovery_us: u32,
    /// Times in Loss.
    pub(crate) losses: u32,
    /// Time in it.
    pub(crate) loss_us: u32,
    /// Received and not read by the application.
    pub(crate) unread_bytes: u32,
    /// Written and not sent.
    pub(crate) unsent_bytes: u32,
    /// Sent and not acknowledged.
    pub(crate) unacked_bytes: u32,
}

/// RTT quantiles of a connection's raw samples.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
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
        let age = |since_ns: u64| moment.ktime_ns.saturating_sub(since_ns) / 1_000_000;
        let known = |us: u32| (us > 0 && us != u32::MAX).then_some(us);
        let [fast, timeout, tail_loss_probe, syn, syn_ack, other] = record.retrans;
        let [recoveries, losses] = record.recoveries;
        let [recovery_us, loss_us] = record.ca_us;
        let gone = record.sacked_out.saturating_add(record.lost_out);
        Self {
            cookie: record.cookie,
            netns: record.key.netns,
            local_address: local.ip(),
            local_port: local.port(),
            remote_address: remote.ip(),
            remote_port: remote.port(),
            state: state_name(record.state).into(),
            direction: Direction::from_u8(record.direction).name().into(),
            service: service.label().into(),
            pid: (record.pid != 0).then_some(record.pid),
            comm: printable(&record.comm),
            uid: record.uid,
            owner: Owner::new(&owners::Owner::of(record), &Names::default()),
            partial: record.flags & flag::PARTIAL != 0,
            age_ms: age(record.started_ns),
            reading_age_ms: age(record.header.ktime_ns),
            srtt_us: known(record.srtt_us),
            rtt_deviation_us: known(record.srtt_us).map(|_| record.mdev_us),
            min_rtt_us: known(record.min_rtt_us),
            last_rtt_us: (record.rtt_samples > 0).then_some(record.rtt_last_us),
            handshake_us: known(record.handshake_us),
            rtt_quantiles: quantiles(record),
            cwnd_segments: record.snd_cwnd,
            ssthresh_segments: (record.snd_ssthresh < NO_SSTHRESH).then_some(record.snd_ssthresh),
            // `tcp_packets_in_flight`.
            in_flight_segments: record.packets_out.saturating_sub(gone).saturating_add(record.retrans_out),
            lost_segments: record.lost_out,
            congestion_state: ca_state::name(record.ca_state).into(),
            send_window_bytes: record.snd_wnd,
            receive_window_bytes: record.rcv_wnd,
            mss_bytes: record.mss,
            rto_ms: u64::from(record.rto_jiffies) * 1000 / u64::from(moment.ticks_per_second.max(1)),
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
            recovery_us,
            losses,
            loss_us,
            unread_bytes: record.unread_bytes,
            unsent_bytes: record.unsent_bytes,
            unacked_bytes: record.unacked_bytes,
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

fn quantiles(record: &ConnRecord) -> Option<RttQuantiles> {
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

    use tcpwatch_common::hist::{rtt_bucket, sketch_bucket};
    use tcpwatch_common::state::TcpState;

    use super::*;
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
        (record.pid, record.uid) = (812, 33);
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
        (record.recoveries, record.ca_us) = ([1, 0], [52_000, 0]);
        (record.unread_bytes, record.unsent_bytes, record.unacked_bytes) = (7, 1000, 17_376);
        record
    }

    /// The same as the API shows it.
    pub(crate) fn shown(record: &ConnRecord) -> Connection {
        Connection::new(record, Service::Port(443), Moment { ktime_ns: 10_000_000_000, ticks_per_second: 250 })
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
