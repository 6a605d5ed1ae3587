//! Round-trip times as a sender's kernel measures them, derived from the record of the relay.
//!
//! A sender's time for a segment runs from its transmission (the arrival in the relay) to the receipt of the
//! acknowledgement that first covers it (the departure towards the sender). Linux takes two times from one
//! acknowledgement (`tcp_clean_rtx_queue`): that of the OLDEST newly acknowledged segment feeds `srtt`, that of
//! the NEWEST feeds `min_rtt` and congestion control. It takes neither from a segment that was retransmitted
//! (Karn), and no `srtt` sample at all when the same acknowledgement also covers a retransmitted segment and
//! nothing was newly sacked.

use std::collections::HashMap;

use super::packet::{Flags, Flow, Segment};
use super::record::{Origin, Record, median};

/// What one acknowledgement says about the round-trip time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RttSample {
    /// The direction of the data, from the sender whose time this is.
    pub flow: Flow,
    /// The [`super::Packet::number`] of the acknowledgement.
    pub ack_number: u64,
    /// When the acknowledgement left the relay towards the sender.
    pub at_ns: u64,
    /// The time of the newest newly acknowledged segment that was sent once: as for `min_rtt`.
    pub newest_ns: u64,
    /// The time of the oldest such segment: as for `srtt`.
    pub oldest_ns: u64,
    /// How many such segments there were.
    pub segments: u32,
    /// Whether the acknowledgement covered retransmitted segments too: Linux then takes its sample for `srtt`
    /// only from newly sacked segments.
    pub with_retransmitted: bool,
    /// Whether it acknowledged a SYN.
    pub handshake: bool,
}

impl Record {
    /// The samples of every flow, in the order in which acknowledgements left the relay.
    pub fn rtt_samples(&self) -> Vec<RttSample> {
        let mut events: Vec<(u64, u64, Event, &Segment)> = Vec::new();
        for packet in &self.packets {
            let Some(segment) = &packet.segment else { continue };
            // What a kernel sent starts its clock on arrival here, lost later or not; the other kernel's clock
            // stops when the same packet leaves.
            if packet.origin == Origin::Sender {
                events.push((packet.arrived_ns, packet.number, Event::Sent, segment));
            }
            if let Some(departed_ns) = packet.departed_ns() {
                events.push((departed_ns, packet.number, Event::Received, segment));
            }
        }
        events.sort_by_key(|(at_ns, number, event, _)| (*at_ns, *number, *event));

        let mut senders: HashMap<Flow, Sender> = HashMap::new();
        let mut samples = Vec::new();
        for (at_ns, number, event, segment) in events {
            match event {
                Event::Sent => senders.entry(segment.flow).or_default().sent(at_ns, segment),
                Event::Received if segment.flags.has(Flags::ACK) => {
                    if let Some(sender) = senders.get_mut(&segment.flow.reversed()) {
                        samples.extend(sender.acknowledged(at_ns, number, segment));
                    }
                }
                Event::Received => {}
            }
        }
        samples
    }

    /// The samples of one flow.
    pub fn rtt_samples_of(&self, flow: Flow) -> Vec<RttSample> {
        self.rtt_samples().into_iter().filter(|sample| sample.flow == flow).collect()
    }
}

/// The median of the samples' newest times in nanoseconds, handshakes left out.
pub fn median_rtt_ns(samples: &[RttSample]) -> Option<u64> {
    median(samples.iter().filter(|sample| !sample.handshake).map(|sample| sample.newest_ns).collect())
}

/// What `srtt` of the sender is after the samples of one flow, in nanoseconds: the first sample, then an eighth of
/// each next one's difference (RFC 6298, as in Linux). Samples of acknowledgements that also cover retransmitted
/// segments are left out, as Linux does when nothing was newly sacked.
pub fn smoothed_rtt_ns(samples: &[RttSample]) -> Option<u64> {
    let mut taken = samples.iter().filter(|sample| !sample.with_retransmitted).map(|sample| sample.oldest_ns as f64);
    let first = taken.next()?;
    Some(taken.fold(first, |smoothed, sample| smoothed + (sample - smoothed) / 8.0) as u64)
}

/// The two moments at which a segment matters, in the order in which they follow without delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Sent,
    Received,
}

/// A segment that was sent and is not yet acknowledged.
#[derive(Debug)]
struct Outstanding {
    seq: i64,
    end: i64,
    sent_ns: u64,
    retransmitted: bool,
    syn: bool,
}

/// What a sender of one flow has outstanding.
#[derive(Debug, Default)]
struct Sender {
    /// The latest sequence number seen, beyond 32 bits: what others are counted from.
    base: Option<i64>,
    outstanding: Vec<Outstanding>,
}

impl Sender {
    fn sent(&mut self, at_ns: u64, segment: &Segment) {
        if segment.length() == 0 {
            return;
        }
        if segment.is_syn() && !segment.retransmission {
            *self = Self::default();
        }
        let seq = self.unwrapped(segment.seq);
        let end = seq + i64::from(segment.length());
        let mut overlaps = false;
        for old in self.outstanding.iter_mut().filter(|old| old.seq < end && seq < old.end) {
            old.retransmitted = true;
            overlaps = true;
        }
        self.base = Some(self.base.unwrap_or(end).max(end));
        // A segment that was acknowledged already and is sent again starts no clock either.
        if !overlaps && !segment.retransmission {
            let syn = segment.flags.has(Flags::SYN);
            self.outstanding.push(Outstanding { seq, end, sent_ns: at_ns, retransmitted: false, syn });
        }
    }

    fn acknowledged(&mut self, at_ns: u64, ack_number: u64, answer: &Segment) -> Option<RttSample> {
        let upto = self.unwrapped(answer.ack);
        let sacked: Vec<(i64, i64)> =
            answer.sack.as_slice().iter().map(|(from, to)| (self.unwrapped(*from), self.unwrapped(*to))).collect();
        let is_covered = |segment: &mut Outstanding| {
            segment.end <= upto || sacked.iter().any(|(from, to)| *from <= segment.seq && segment.end <= *to)
        };
        let covered: Vec<Outstanding> = self.outstanding.extract_if(.., is_covered).collect();
        let clean = || covered.iter().filter(|segment| !segment.retransmitted);
        let newest = clean().map(|segment| segment.sent_ns).max()?;
        let oldest = clean().map(|segment| segment.sent_ns).min()?;
        Some(RttSample {
            flow: answer.flow.reversed(),
            ack_number,
            at_ns,
            newest_ns: at_ns.saturating_sub(newest),
            oldest_ns: at_ns.saturating_sub(oldest),
            segments: clean().count() as u32,
            with_retransmitted: covered.iter().any(|segment| segment.retransmitted),
            handshake: clean().any(|segment| segment.syn),
        })
    }

    /// A sequence number as a count that does not wrap, the one nearest to what was sent last.
    fn unwrapped(&self, seq: u32) -> i64 {
        let Some(base) = self.base else { return i64::from(seq) };
        base + i64::from(seq.wrapping_sub(base as u32) as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::test_packets::{ack, data};
    use super::super::record::{DropReason, Fate, Packet};
    use super::*;

    /// A record of packets with the arrival and the departure (`None`: dropped) of each.
    fn record(packets: impl IntoIterator<Item = (Packet, u64, Option<u64>)>) -> Record {
        let mut record = Record::default();
        for (number, (mut packet, arrived_ns, departed)) in packets.into_iter().enumerate() {
            packet.number = number as u64;
            packet.arrived_ns = arrived_ns;
            packet.fate = departed.map_or(Fate::Dropped(DropReason::Rule), |departed_ns| Fate::Delivered {
                departed_ns,
                processed_ns: departed_ns,
            });
            record.packets.push(packet);
        }
        record
    }

    fn again(seq: u32, payload: u32) -> Packet {
        let mut packet = data(seq, payload);
        packet.segment.as_mut().unwrap().retransmission = true;
        packet
    }

    fn sack(upto: u32, block: (u32, u32)) -> Packet {
        let mut packet = ack(upto);
        packet.segment.as_mut().unwrap().sack.push(block);
        packet
    }

    fn times(record: &Record) -> Vec<(u64, u64)> {
        record.rtt_samples().iter().map(|sample| (sample.newest_ns, sample.oldest_ns)).collect()
    }

    #[test]
    fn a_sample_runs_from_arrival_to_the_departure_of_the_ack() {
        let record = record([(data(0, 100), 1_000, Some(11_000)), (ack(100), 12_000, Some(22_000))]);
        let samples = record.rtt_samples();
        assert_eq!(samples.len(), 1);
        assert_eq!((samples[0].newest_ns, samples[0].at_ns, samples[0].ack_number), (21_000, 22_000, 1));
        assert_eq!(median_rtt_ns(&samples), Some(21_000));
    }

    #[test]
    fn an_ack_of_two_segments_gives_the_newest_and_the_oldest() {
        let record = record([
            (data(0, 100), 0, Some(50)),
            (data(100, 100), 10, Some(60)),
            (ack(200), 70, Some(100)),
            (ack(200), 80, Some(110)),
        ]);
        assert_eq!(times(&record), [(90, 100)], "the repeated acknowledgement gives none");
    }

    #[test]
    fn a_retransmitted_segment_gives_no_sample() {
        let record = record([
            (data(0, 100), 0, None),
            (again(0, 100), 200, Some(250)),
            (ack(100), 260, Some(300)),
            (data(100, 100), 300, Some(350)),
            (ack(200), 360, Some(400)),
        ]);
        assert_eq!(times(&record), [(100, 100)]);
    }

    #[test]
    fn an_ack_over_a_mended_hole_says_so() {
        let record = record([
            (data(0, 100), 0, None),
            (data(100, 100), 10, Some(60)),
            (again(0, 100), 200, Some(250)),
            (ack(200), 260, Some(300)),
        ]);
        let samples = record.rtt_samples();
        assert_eq!(times(&record), [(290, 290)]);
        assert!(samples[0].with_retransmitted);
    }

    #[test]
    fn a_sacked_segment_gives_its_sample_once() {
        let record = record([
            (data(0, 100), 0, None),
            (data(100, 100), 10, Some(60)),
            (sack(0, (100, 200)), 70, Some(110)),
            (again(0, 100), 120, Some(170)),
            (ack(200), 180, Some(220)),
        ]);
        assert_eq!(times(&record), [(100, 100)]);
    }

    #[test]
    fn a_lost_ack_gives_none_and_the_next_covers_it() {
        let record = record([
            (data(0, 100), 0, Some(50)),
            (ack(100), 60, None),
            (data(100, 100), 90, Some(140)),
            (ack(200), 150, Some(200)),
        ]);
        assert_eq!(times(&record), [(110, 200)]);
    }

    #[test]
    fn sequence_numbers_may_wrap() {
        let start = u32::MAX - 99;
        let record = record([
            (data(start, 100), 0, Some(50)),
            (data(0, 100), 10, Some(60)),
            (ack(0), 60, Some(100)),
            (ack(100), 70, Some(120)),
        ]);
        assert_eq!(times(&record), [(100, 100), (110, 110)]);
    }

    #[test]
    fn smoothing_moves_by_an_eighth() {
        let record = record([
            (data(0, 100), 0, Some(50)),
            (ack(100), 60, Some(800)),
            (data(100, 100), 1000, Some(1050)),
            (ack(200), 1060, Some(2600)),
        ]);
        assert_eq!(smoothed_rtt_ns(&record.rtt_samples()), Some(900));
        assert_eq!(smoothed_rtt_ns(&[]), None);
    }

    #[test]
    fn a_handshake_is_marked_and_left_out_of_the_median() {
        let mut syn = data(0, 0);
        syn.segment.as_mut().unwrap().flags = Flags::SYN;
        let mut syn_ack = ack(1);
        syn_ack.segment.as_mut().unwrap().flags = Flags::SYN.with(Flags::ACK);
        let record = record([(syn, 0, Some(10)), (syn_ack, 20, Some(30))]);
        let samples = record.rtt_samples();
        assert_eq!(times(&record), [(30, 30)]);
        assert!(samples[0].handshake);
        assert_eq!(median_rtt_ns(&samples), None);
    }
}
