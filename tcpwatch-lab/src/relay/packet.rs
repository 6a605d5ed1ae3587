//! What the relay understands of a packet: the fields of its TCP header that rules ask about and the record keeps.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};

/// The flag bits of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// FIN: the sender has no more data.
    pub const FIN: Self = Self(0x01);
    /// SYN: opens a connection.
    pub const SYN: Self = Self(0x02);
    /// RST: aborts a connection.
    pub const RST: Self = Self(0x04);
    /// PSH: the end of a write.
    pub const PSH: Self = Self(0x08);
    /// ACK: the acknowledgement number counts.
    pub const ACK: Self = Self(0x10);

    /// Both sets of flags.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// As tcpdump prints them: `S.` is a SYN-ACK.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [(Self::FIN, 'F'), (Self::SYN, 'S'), (Self::RST, 'R'), (Self::PSH, 'P'), (Self::ACK, '.')]
        {
            if self.has(flag) {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// The blocks of a SACK option: sequence ranges `[from, to)`, as sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [(u32, u32); 4],
    count: u8,
}

impl SackBlocks {
    /// The blocks in the order of the packet.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..usize::from(self.count)]
    }

    /// Whether the packet has no SACK block.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a block; a fifth, which no TCP header has room for, is left out.
    pub fn push(&mut self, block: (u32, u32)) {
        if let Some(place) = self.blocks.get_mut(usize::from(self.count)) {
            *place = block;
            self.count += 1;
        }
    }
}

/// One direction of a TCP connection: who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// The sender's address and port.
    pub src: SocketAddr,
    /// The receiver's address and port.
    pub dst: SocketAddr,
}

impl Flow {
    /// The other direction of the same connection.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }
}

/// A TCP segment: what its headers say, and whether it is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sender and the receiver on the wire (IPv4 is IPv4 here, also of a socket that maps it into IPv6).
    pub flow: Flow,
    /// The sequence number of the first byte.
    pub seq: u32,
    /// The acknowledgement number; meaningless without [`Flags::ACK`].
    pub ack: u32,
    /// The flags.
    pub flags: Flags,
    /// The window as in the header, not scaled.
    pub window: u16,
    /// Bytes of data.
    pub payload: u32,
    /// The blocks of the SACK option.
    pub sack: SackBlocks,
    /// The timestamp option: value and echo.
    pub timestamps: Option<(u32, u32)>,
    /// Whether the relay has already seen the first sequence number of this segment (data, SYN or FIN) from the
    /// same sender, dropped or not: the sender retransmits.
    pub retransmission: bool,
}

impl Segment {
    /// Reads an IPv4 or IPv6 packet; `None` when it holds no TCP segment.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let (src, dst) = match sliced.net? {
            NetSlice::Ipv4(ip) => (IpAddr::V4(ip.header().source_addr()), IpAddr::V4(ip.header().destination_addr())),
            NetSlice::Ipv6(ip) => (IpAddr::V6(ip.header().source_addr()), IpAddr::V6(ip.header().destination_addr())),
            NetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
        let (sack, timestamps) = options(&tcp);
        let flow =
            Flow { src: SocketAddr::new(src, tcp.source_port()), dst: SocketAddr::new(dst, tcp.destination_port()) };
        Some(Self {
            flow,
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            flags: flags(&tcp),
            window: tcp.window_size(),
            payload: tcp.payload().len() as u32,
            sack,
            timestamps,
            retransmission: false,
        })
    }

    /// How many sequence numbers the segment takes: its bytes, one more for SYN and one for FIN.
    pub fn length(&self) -> u32 {
        self.payload + u32::from(self.flags.has(Flags::SYN)) + u32::from(self.flags.has(Flags::FIN))
    }

    /// The sequence number after the segment.
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length())
    }

    /// Whether it opens a connection: SYN without ACK.
    pub fn is_syn(&self) -> bool {
        self.flags.has(Flags::SYN) && !self.flags.has(Flags::ACK)
    }

    /// Whether it answers a SYN.
    pub fn is_syn_ack(&self) -> bool {
        self.flags.has(Flags::SYN.with(Flags::ACK))
    }

    /// Whether it only acknowledges: no data, no SYN, FIN or RST.
    pub fn is_pure_ack(&self) -> bool {
        self.length() == 0 && self.flags.has(Flags::ACK) && !self.flags.has(Flags::RST)
    }
}

fn flags(tcp: &TcpSlice<'_>) -> Flags {
    let set = [
        (tcp.fin(), Flags::FIN),
        (tcp.syn(), Flags::SYN),
        (tcp.rst(), Flags::RST),
        (tcp.psh(), Flags::PSH),
        (tcp.ack(), Flags::ACK),
    ];
    set.into_iter().filter(|(is_set, _)| *is_set).fold(Flags::default(), |flags, (_, flag)| flags.with(flag))
}

fn options(tcp: &TcpSlice<'_>) -> (SackBlocks, Option<(u32, u32)>) {
    let mut sack = SackBlocks::default();
    let mut timestamps = None;
    for option in tcp.options_iterator().flatten() {
        match option {
            TcpOptionElement::SelectiveAcknowledgement(first, rest) => {
                sack.push(first);
                rest.into_iter().flatten().for_each(|block| sack.push(block));
            }
            TcpOptionElement::Timestamp(value, echo) => timestamps = Some((value, echo)),
            _ => {}
        }
    }
    (sack, timestamps)
}

/// How many flows are followed to tell retransmissions; beyond it all are forgotten and begun anew.
const MAX_FLOWS: usize = 65_536;

/// Tells first transmissions from retransmissions, flow by flow.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    highest_end: HashMap<Flow, u32>,
}

impl Tracker {
    /// Marks `segment` if it sends again what its flow has sent before.
    pub(crate) fn mark(&mut self, segment: &mut Segment) {
        if segment.length() == 0 {
            return;
        }
        if self.highest_end.len() >= MAX_FLOWS {
            self.highest_end.clear();
        }
        let end = segment.end();
        let highest = self.highest_end.entry(segment.flow).or_insert(segment.seq);
        // A SYN of another connection with the same ports starts its flow anew; its own repetition ends where
        // the first one ended.
        if segment.flags.has(Flags::SYN) && *highest != end {
            *highest = end;
            return;
        }
        segment.retransmission = is_before(segment.seq, *highest);
        if is_before(*highest, end) {
            *highest = end;
        }
    }
}

/// Whether sequence number `a` comes before `b`, on the circle of 32-bit numbers.
pub(crate) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(seq: u32, payload: u32, flags: Flags) -> Segment {
        let flow = Flow { src: "10.0.0.1:1".parse().unwrap(), dst: "10.0.0.2:2".parse().unwrap() };
        Segment {
            flow,
            seq,
            ack: 0,
            flags,
            window: 0,
            payload,
            sack: SackBlocks::default(),
            timestamps: None,
            retransmission: false,
        }
    }

    fn marked(tracker: &mut Tracker, seq: u32, payload: u32, flags: Flags) -> bool {
        let mut segment = segment(seq, payload, flags);
        tracker.mark(&mut segment);
        segment.retransmission
    }

    #[test]
    fn retransmissions_are_told_also_across_the_end_of_the_numbers() {
        let mut tracker = Tracker::default();
        assert!(!marked(&mut tracker, u32::MAX - 10, 0, Flags::SYN));
        assert!(marked(&mut tracker, u32::MAX - 10, 0, Flags::SYN), "a SYN sent again");
        assert!(!marked(&mut tracker, u32::MAX - 9, 100, Flags::ACK));
        assert!(!marked(&mut tracker, 90, 10, Flags::ACK));
        assert!(marked(&mut tracker, u32::MAX - 9, 100, Flags::ACK));
        assert!(!marked(&mut tracker, 100, 0, Flags::ACK), "an acknowledgement is never a retransmission");
        assert!(!marked(&mut tracker, 100, 0, Flags::FIN.with(Flags::ACK)));
        assert!(marked(&mut tracker, 100, 0, Flags::FIN.with(Flags::ACK)));
    }

    #[test]
    fn a_new_connection_with_the_same_ports_starts_anew() {
        let mut tracker = Tracker::default();
        assert!(!marked(&mut tracker, 5_000, 0, Flags::SYN));
        assert!(!marked(&mut tracker, 5_001, 10, Flags::ACK));
        assert!(!marked(&mut tracker, 100, 0, Flags::SYN));
        assert!(!marked(&mut tracker, 101, 10, Flags::ACK));
        assert!(marked(&mut tracker, 101, 10, Flags::ACK));
    }

    #[test]
    fn packets_that_hold_no_tcp_are_none() {
        assert_eq!(Segment::parse(&[]), None);
        assert_eq!(Segment::parse(&[0x45, 0, 0]), None);
    }

    #[test]
    fn flags_print_as_tcpdump_does() {
        assert_eq!(Flags::SYN.with(Flags::ACK).to_string(), "S.");
    }
}
