//! The record of the relay: every packet that came by, when it came, when it left, and what it was.
//!
//! This is the truth that tests compare tcpwatch's numbers against; [`super::rtt`] derives round-trip times
//! from it.

use super::Direction;
use super::packet::{Flags, Flow, Segment};

/// Why the relay did not pass a packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// A rule said so.
    Rule,
    /// The queue of the rate limit was full.
    Queue,
    /// More packets were on their way in this direction than the relay holds.
    Backlog,
    /// The kernel on the other side did not take it (interface down, malformed).
    Refused,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is on its way, to depart at this time.
    Pending {
        /// When it is to depart, in nanoseconds of `CLOCK_MONOTONIC`.
        due_ns: u64,
    },
    /// It was handed to the other side.
    Delivered {
        /// Immediately before the receiving kernel got it.
        departed_ns: u64,
        /// When the receiving kernel had processed it: TCP acted on it between these two times.
        processed_ns: u64,
    },
    /// It was not passed on.
    Dropped(DropReason),
}

/// Where a packet of the record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The namespace on the sending side.
    Sender,
    /// A rule: it is a copy of the packet with this [`Packet::number`].
    CopyOf(u64),
    /// [`super::Path::inject`].
    Injected,
}

/// One packet of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Counts packets of both directions in the order of their arrival, from 0.
    pub number: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// When the relay got it, in nanoseconds of `CLOCK_MONOTONIC`.
    pub arrived_ns: u64,
    /// Bytes of the whole IP packet.
    pub length: u32,
    /// Where it comes from.
    pub origin: Origin,
    /// By how much a rule delayed it beyond the others, so that they could overtake it.
    pub held_ns: u64,
    /// What became of it.
    pub fate: Fate,
    /// Its TCP segment; `None` for any other protocol.
    pub segment: Option<Segment>,
}

impl Packet {
    /// When it left the relay, if it did.
    pub fn departed_ns(&self) -> Option<u64> {
        match self.fate {
            Fate::Delivered { departed_ns, .. } => Some(departed_ns),
            Fate::Pending { .. } | Fate::Dropped(_) => None,
        }
    }

    /// How long it was in the relay, if it left.
    pub fn transit_ns(&self) -> Option<u64> {
        Some(self.departed_ns()?.saturating_sub(self.arrived_ns))
    }

    /// Whether it was not passed on.
    pub fn is_dropped(&self) -> bool {
        matches!(self.fate, Fate::Dropped(_))
    }
}

/// What the relay did in one direction, counted also where the record has no room for the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets, those dropped, copied and injected included.
    pub packets: u64,
    /// Bytes of the packets that were handed to the other side.
    pub delivered_bytes: u64,
    /// Packets that were handed to the other side.
    pub delivered: u64,
    /// Packets dropped by rules.
    pub dropped_by_rule: u64,
    /// Packets dropped for want of room: in the queue of the rate, in the relay, or on the other side.
    pub dropped_for_room: u64,
    /// Packets that a rule held back.
    pub held: u64,
    /// Copies that a rule made.
    pub copies: u64,
    /// Segments that their sender sent again.
    pub retransmissions: u64,
    /// The longest time that a packet was in the relay.
    pub longest_transit_ns: u64,
}

impl Totals {
    /// Packets that were not passed on.
    pub fn dropped(&self) -> u64 {
        self.dropped_by_rule + self.dropped_for_room
    }

    fn arrived(&mut self, packet: &Packet) {
        self.packets += 1;
        self.held += u64::from(packet.held_ns > 0);
        self.copies += u64::from(matches!(packet.origin, Origin::CopyOf(_)));
        let again = packet.origin == Origin::Sender && packet.segment.as_ref().is_some_and(|s| s.retransmission);
        self.retransmissions += u64::from(again);
        self.resolved(packet.fate, packet.arrived_ns, packet.length);
    }

    fn resolved(&mut self, fate: Fate, arrived_ns: u64, length: u32) {
        match fate {
            Fate::Pending { .. } => {}
            Fate::Delivered { departed_ns, .. } => {
                self.delivered += 1;
                self.delivered_bytes += u64::from(length);
                self.longest_transit_ns = self.longest_transit_ns.max(departed_ns.saturating_sub(arrived_ns));
            }
            Fate::Dropped(DropReason::Rule) => self.dropped_by_rule += 1,
            Fate::Dropped(DropReason::Queue | DropReason::Backlog | DropReason::Refused) => self.dropped_for_room += 1,
        }
    }
}

/// The packets of a path, in the order of their arrival.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The packets.
    pub packets: Vec<Packet>,
    /// Packets that came when the record was full: they were relayed and are in `totals`, but not in `packets`.
    pub unrecorded: u64,
    /// What happened in each direction, forward first.
    pub totals: [Totals; 2],
}

impl Record {
    /// The TCP segments that went one way, with their packets; those that were injected or copied are left out.
    pub fn segments(&self, direction: Direction) -> impl Iterator<Item = (&Packet, &Segment)> {
        let sent = self.packets.iter().filter(move |p| p.direction == direction && p.origin == Origin::Sender);
        sent.filter_map(|packet| packet.segment.as_ref().map(|segment| (packet, segment)))
    }

    /// How many segments with data, SYN or FIN were sent again in one direction, dropped ones included: what the
    /// sender counts as `RetransSegs`.
    pub fn retransmissions(&self, direction: Direction) -> usize {
        self.segments(direction).filter(|(_, segment)| segment.retransmission).count()
    }

    /// How many segments with data were sent in one direction, retransmitted and dropped ones included.
    pub fn data_segments(&self, direction: Direction) -> usize {
        self.segments(direction).filter(|(_, segment)| segment.payload > 0).count()
    }

    /// How many segments with RST were sent in one direction, dropped ones included.
    pub fn resets(&self, direction: Direction) -> usize {
        self.segments(direction).filter(|(_, segment)| segment.flags.has(Flags::RST)).count()
    }

    /// How many packets of one direction were not passed on.
    pub fn dropped(&self, direction: Direction) -> usize {
        self.packets.iter().filter(|packet| packet.direction == direction && packet.is_dropped()).count()
    }

    /// The directions of connections seen, in the order in which they first appeared.
    pub fn flows(&self) -> Vec<Flow> {
        let mut flows = Vec::new();
        for segment in self.packets.iter().filter_map(|packet| packet.segment.as_ref()) {
            if !flows.contains(&segment.flow) {
                flows.push(segment.flow);
            }
        }
        flows
    }

    /// The median time in the relay of the packets that one direction delivered, in nanoseconds.
    pub fn median_transit_ns(&self, direction: Direction) -> Option<u64> {
        let delivered = self.packets.iter().filter(|packet| packet.direction == direction);
        median(delivered.filter_map(Packet::transit_ns).collect())
    }

    /// Adds a packet if there is room, and says whether there was.
    pub(crate) fn push(&mut self, packet: Packet, cap: usize) {
        self.totals[packet.direction as usize].arrived(&packet);
        if self.packets.len() < cap {
            self.packets.push(packet);
        } else {
            self.unrecorded += 1;
        }
    }

    /// Notes what became of a packet that was pending; in the totals only when it is not in the record (which may have
    /// been full or cleared).
    pub(crate) fn resolve(&mut self, number: u64, sent: Sent, fate: Fate) {
        self.totals[sent.direction as usize].resolved(fate, sent.arrived_ns, sent.length);
        // Numbers only grow along the record, but have gaps where it was full.
        if let Ok(place) = self.packets.binary_search_by_key(&number, |packet| packet.number) {
            self.packets[place].fate = fate;
        }
    }
}

/// What the totals need of a packet when its fate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sent {
    pub(crate) direction: Direction,
    pub(crate) arrived_ns: u64,
    pub(crate) length: u32,
}

/// The middle value; of an even number the lower of the two in the middle.
pub fn median(mut values: Vec<u64>) -> Option<u64> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable(middle).1)
}

/// Packets made by hand, for the tests of this module and its neighbours.
#[cfg(test)]
pub(crate) mod test_packets {
    use super::super::packet::SackBlocks;
    use super::*;

    const FLOW: (&str, &str) = ("10.77.0.1:1000", "10.77.0.2:80");

    fn packet(direction: Direction, segment: Segment) -> Packet {
        Packet {
            number: 0,
            direction,
            arrived_ns: 0,
            length: 40 + segment.payload,
            origin: Origin::Sender,
            held_ns: 0,
            fate: Fate::Pending { due_ns: 0 },
            segment: Some(segment),
        }
    }

    /// Data from A to B.
    pub(crate) fn data(seq: u32, payload: u32) -> Packet {
        let flow = Flow { src: FLOW.0.parse().unwrap(), dst: FLOW.1.parse().unwrap() };
        let segment = Segment {
            flow,
            seq,
            ack: 1,
            flags: Flags::ACK,
            window: 100,
            payload,
            sack: SackBlocks::default(),
            timestamps: None,
            retransmission: false,
        };
        packet(Direction::Forward, segment)
    }

    /// An acknowledgement from B to A.
    pub(crate) fn ack(ack: u32) -> Packet {
        let mut answer = data(1, 0);
        answer.direction = Direction::Backward;
        if let Some(segment) = &mut answer.segment {
            segment.flow = segment.flow.reversed();
            segment.ack = ack;
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::test_packets::data;
    use super::*;

    const SENT: Sent = Sent { direction: Direction::Forward, arrived_ns: 0, length: 41 };

    fn numbered(number: u64) -> Packet {
        Packet { number, ..data(number as u32, 1) }
    }

    #[test]
    fn a_full_record_counts_what_it_leaves_out() {
        let mut record = Record::default();
        (0..5).for_each(|n| record.push(numbered(n), 3));
        assert_eq!((record.packets.len(), record.unrecorded), (3, 2));
        record.resolve(4, SENT, Fate::Dropped(DropReason::Rule));
        record.resolve(1, SENT, Fate::Dropped(DropReason::Rule));
        assert_eq!(record.dropped(Direction::Forward), 1);
        let totals = record.totals[Direction::Forward as usize];
        assert_eq!((totals.packets, totals.dropped()), (5, 2), "the totals have no limit");
    }

    #[test]
    fn a_packet_is_resolved_where_numbers_have_gaps() {
        let mut record = Record::default();
        for n in [3, 7, 8] {
            record.push(numbered(n), 10);
        }
        record.resolve(7, SENT, Fate::Delivered { departed_ns: 5, processed_ns: 6 });
        assert_eq!(record.packets[1].transit_ns(), Some(5));
        assert_eq!(record.median_transit_ns(Direction::Forward), Some(5));
    }

    #[test]
    fn the_median_is_a_value_that_occurred() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![9, 1, 5]), Some(5));
        assert_eq!(median(vec![9, 1, 5, 7]), Some(5));
    }
}
