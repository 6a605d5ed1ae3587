//! What the rules look at: a connection over a window of time, in µs and bytes, all differences taken.

use tcpwatch_common::close::flag;
use tcpwatch_common::hist::{SKETCH_BUCKETS, sketch_lower};
use tcpwatch_common::limits;
use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::{TcpState, ca_state};

use crate::api::Moment;
use crate::api::connection::NO_SSTHRESH;

/// Segments of the initial window, as wide as the sums it is part of.
pub(super) const INITIAL_WINDOW: u64 = limits::INITIAL_WINDOW as u64;

/// A connection over a window: from its beginning, or from an earlier reading.
pub(super) struct Facts<'a> {
    /// The newest reading.
    pub(super) now: &'a ConnRecord,
    /// The window begins with the connection, or with what the kernel has kept of it.
    pub(super) since_open: bool,
    /// Length of the window, µs; of an older connection at least the time that its chronographs have counted.
    pub(super) window_us: u64,
    /// How old the newest reading is, µs: nothing has moved since, or no reading was due.
    pub(super) stale_us: u64,
    /// Since the last segment of the peer that acknowledged anything, µs.
    pub(super) since_ack_us: u64,
    /// Since data was last sent, µs.
    pub(super) since_sent_us: u64,
    /// Retransmission timeout at the newest reading, µs.
    pub(super) rto_us: u64,
    /// Time with data to send, µs.
    pub(super) busy_us: u64,
    /// Of it, limited by the congestion window; by the peer's receive window; by the send buffer.
    pub(super) limited_us: [u64; 3],
    /// Zero windows of the peer, and ours.
    pub(super) zero_windows: [u64; 2],
    /// How long they lasted, µs.
    pub(super) zero_us: [u64; 2],
    /// Time in Disorder, CWR, Recovery and Loss, µs.
    pub(super) ca_us: [u64; 4],
    /// Payload sent, with what was sent again.
    pub(super) sent_bytes: u64,
    /// Of it, sent again.
    pub(super) retransmitted_bytes: u64,
    /// Acknowledged payload.
    pub(super) acked_bytes: u64,
    /// Payload received.
    pub(super) received_bytes: u64,
    /// Segments with payload sent, and received.
    pub(super) sent_segments: u64,
    /// Segments with payload received.
    pub(super) received_segments: u64,
    /// Segments sent again, by the kernel's count.
    pub(super) retransmits: u64,
    /// The same by cause, as far as it was watched: fast, timeout, tail loss probe, SYN, SYN-ACK, other.
    pub(super) by_cause: [u64; 6],
    /// Of these, proven needless.
    pub(super) spurious: u64,
    /// Restarts after idle.
    pub(super) idle_restarts: u64,
    /// Raw RTT samples.
    pub(super) samples: u64,
    /// Their mean, µs; 0 without any.
    pub(super) mean_rtt_us: u64,
    /// Smallest RTT known, µs; 0 when none is.
    pub(super) min_rtt_us: u64,
    sketch: [u32; SKETCH_BUCKETS],
}

impl<'a> Facts<'a> {
    /// Of a connection since it was opened, or since `before`.
    pub(super) fn new(now: &'a ConnRecord, before: Option<&ConnRecord>, moment: Moment) -> Self {
        // A socket that was connected anew since counts from zero.
        let before =
            before.filter(|before| before.generation == now.generation && before.total_retrans <= now.total_retrans);
        let wide = |field: fn(&ConnRecord) -> u64| field(now).saturating_sub(before.map_or(0, field));
        let one = |field: fn(&ConnRecord) -> u32| u64::from(field(now).wrapping_sub(before.map_or(0, field)));
        let time = |field: fn(&ConnRecord) -> u32| moment.us(field(now).wrapping_sub(before.map_or(0, field)));
        let stale_us = moment.ktime_ns.saturating_sub(now.header.ktime_ns) / 1000;
        let mut limited_us =
            [time(|r| r.limited_jiffies[0]), time(|r| r.limited_jiffies[1]), time(|r| r.limited_jiffies[2])];
        let mut zero_us = [time(|r| r.zero_jiffies[0]), time(|r| r.zero_jiffies[1])];
        // What was going on at the last reading goes on: had anything moved, there would be a newer one.
        // Before the handshake is over there is no window yet that could be closed.
        let waits = !opening(now) && (now.unacked_bytes > 0 || now.unsent_bytes > 0);
        let [congestion, receiver, _] = &mut limited_us;
        if waits && now.snd_wnd == 0 {
            *receiver += stale_us;
        } else if waits {
            *congestion += stale_us;
        }
        let [peer_zero, local_zero] = &mut zero_us;
        if waits && now.snd_wnd == 0 {
            *peer_zero += stale_us;
        }
        if now.rcv_wnd == 0 && now.unread_bytes > 0 {
            *local_zero += stale_us;
        }
        let busy_us = limited_us.iter().sum();
        let began_ns = match before {
            Some(before) => before.header.ktime_ns,
            None if now.established_ns > 0 => now.established_ns,
            None => now.started_ns,
        };
        let samples = one(|r| r.rtt_samples);
        let mut sketch = now.sketch;
        if let Some(before) = before {
            sketch.iter_mut().zip(before.sketch).for_each(|(now, before)| *now = now.wrapping_sub(before));
        }
        let known = |us: u32| (us > 0 && us != u32::MAX).then_some(u64::from(us));
        // The kernel forgets the smallest RTT after a while (tcp_min_rtt_wlen); the smallest sample is ours.
        let smallest = [known(now.min_rtt_us), known(now.rtt_min_us), known(now.handshake_us)];
        Self {
            now,
            since_open: before.is_none(),
            window_us: (moment.ktime_ns.saturating_sub(began_ns) / 1000).max(busy_us),
            stale_us,
            since_ack_us: moment.us(now.since_ack_jiffies) + stale_us,
            since_sent_us: moment.us(now.since_sent_jiffies) + stale_us,
            rto_us: moment.us(now.rto_jiffies),
            busy_us,
            limited_us,
            zero_windows: [one(|r| r.zero_windows[0]), one(|r| r.zero_windows[1])],
            zero_us,
            ca_us: [one(|r| r.ca_us[0]), one(|r| r.ca_us[1]), one(|r| r.ca_us[2]), one(|r| r.ca_us[3])],
            sent_bytes: wide(|r| r.bytes_sent),
            retransmitted_bytes: wide(|r| r.bytes_retrans),
            // The kernel counts our SYN.
            acked_bytes: wide(|r| r.bytes_acked.saturating_sub(1)),
            received_bytes: wide(|r| r.bytes_received),
            sent_segments: one(|r| r.data_segs_out),
            received_segments: one(|r| r.data_segs_in),
            retransmits: one(|r| r.total_retrans),
            by_cause: [
                one(|r| r.retrans[0]),
                one(|r| r.retrans[1]),
                one(|r| r.retrans[2]),
                one(|r| r.retrans[3]),
                one(|r| r.retrans[4]),
                one(|r| r.retrans[5]),
            ],
            spurious: one(|r| r.spurious),
            idle_restarts: one(|r| r.idle_restarts),
            samples,
            mean_rtt_us: wide(|r| r.rtt_sum_us).checked_div(samples).unwrap_or(0),
            min_rtt_us: smallest.into_iter().flatten().min().unwrap_or(0),
            sketch,
        }
    }

    /// A state, as a number of the kernel's.
    pub(super) fn is(&self, state: TcpState) -> bool {
        self.now.state == state as u8
    }

    /// Its handshake is not over.
    pub(super) fn opening(&self) -> bool {
        opening(self.now)
    }

    /// It was established when it was read.
    pub(super) fn open(&self) -> bool {
        self.is(TcpState::Established) || self.is(TcpState::CloseWait) || self.closing_with_data()
    }

    /// This end has closed its direction and data of it is still on the way.
    fn closing_with_data(&self) -> bool {
        (self.is(TcpState::FinWait1) || self.is(TcpState::LastAck) || self.is(TcpState::Closing))
            && self.now.unacked_bytes > 1
    }

    /// Older than tcpwatch: what only tcpwatch counts is not of its whole life.
    pub(super) fn partial(&self) -> bool {
        self.since_open && self.now.flags & flag::PARTIAL != 0
    }

    /// The window has grown without a setback. Leaving slow start for a longer round trip (HyStart) or a full pipe (bbr) is none.
    pub(super) fn never_set_back(&self) -> bool {
        let [_, reduced_us, recovery_us, loss_us] = self.ca_us;
        self.needed_retransmits() == 0 && reduced_us + recovery_us + loss_us == 0 && self.in_open()
    }

    /// Where slow start ended, segments; none while it goes on.
    pub(super) fn ssthresh(&self) -> Option<u32> {
        (self.now.snd_ssthresh < NO_SSTHRESH).then_some(self.now.snd_ssthresh)
    }

    /// Nothing is suspected lost.
    pub(super) fn in_open(&self) -> bool {
        self.now.ca_state == ca_state::OPEN
    }

    /// The share of the window during which each segment was looked at: a connection that one end has closed is only read once
    /// an interval.
    pub(super) fn sampled(&self) -> f64 {
        if self.opening() || self.is(TcpState::Established) || self.now.state_since_ms == 0 {
            return 1.0;
        }
        let now_ms = (self.now.header.ktime_ns / 1_000_000) as u32;
        let half_us = u64::from(now_ms.wrapping_sub(self.now.state_since_ms)) * 1000 + self.stale_us;
        1.0 - part(half_us, self.window_us)
    }

    /// Loss is being repaired after a timeout.
    pub(super) fn in_loss(&self) -> bool {
        self.now.ca_state == ca_state::LOSS
    }

    /// Retransmissions that the data needed.
    pub(super) fn needed_retransmits(&self) -> u64 {
        let [.., syn, syn_ack, _] = self.by_cause;
        self.retransmits.saturating_sub(syn + syn_ack).saturating_sub(self.spurious)
    }

    /// Payload of a segment, on average.
    pub(super) fn payload(&self) -> u64 {
        self.sent_bytes.checked_div(self.sent_segments).unwrap_or(0)
    }

    /// Segment size that the path takes, never 0.
    pub(super) fn mss(&self) -> u64 {
        u64::from(self.now.mss.max(1))
    }

    /// Share of the RTT samples between two values, µs, as fine as the coarse histogram is.
    pub(super) fn samples_between(&self, from_us: u64, to_us: u64) -> f64 {
        let within = |bucket: &usize| sketch_lower(bucket + 1) > from_us && sketch_lower(*bucket) < to_us;
        let counted: u64 = self.sketch.iter().enumerate().filter(|(b, _)| within(b)).map(|(_, n)| u64::from(*n)).sum();
        let all: u64 = self.sketch.iter().map(|n| u64::from(*n)).sum();
        part(counted, all)
    }

    /// Median of the RTT samples, µs; 0 without any.
    pub(super) fn median_rtt_us(&self) -> u64 {
        let counts = self.sketch.iter().map(|count| u64::from(*count));
        tcpwatch_common::hist::quantile(counts, sketch_lower, 0.5).map_or(0, |us| us as u64)
    }

    /// The RTT that the window was paid for, µs: the mean of its samples, else what the kernel has smoothed.
    pub(super) fn rtt_us(&self) -> u64 {
        if self.samples > 0 { self.mean_rtt_us } else { u64::from(self.now.srtt_us).max(self.min_rtt_us) }
    }
}

fn opening(record: &ConnRecord) -> bool {
    record.state == TcpState::SynSent as u8 || record.state == TcpState::SynRecv as u8
}

/// `a` of `b`, from 0 to 1; 0 of nothing.
pub(super) fn part(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { (a as f64 / b as f64).min(1.0) }
}

/// Rounds of slow start from the initial window until so many bytes were sent: 10, 20, 40… segments.
pub(super) fn slow_start_rounds(bytes: u64, mss: u64, initial: u64) -> u64 {
    let (mut rounds, mut flight, mut left) = (0, initial.max(1), bytes.div_ceil(mss.max(1)));
    while left > 0 && rounds < 64 {
        rounds += 1;
        left = left.saturating_sub(flight);
        flight = flight.saturating_mul(2);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_start_doubles_from_the_initial_window() {
        let rounds = |segments: u64| slow_start_rounds(segments * 1448, 1448, INITIAL_WINDOW);
        assert_eq!([0, 1, 10, 11, 30, 31, 70, 630].map(rounds), [0, 1, 1, 2, 2, 3, 3, 6]);
        assert_eq!(slow_start_rounds(512 * 1024, 1448, 100), 3);
        assert_eq!(slow_start_rounds(u64::MAX, 1, 1), 64);
    }

    #[test]
    fn parts_are_between_0_and_1() {
        for (part, expected) in [(part(0, 0), 0.0), (part(5, 0), 0.0), (part(1, 2), 0.5), (part(3, 2), 1.0)] {
            assert!((part - expected).abs() < 1e-9, "{part} {expected}");
        }
    }
}
