//! TCP segments made by hand and injected from the relay: what no honest kernel would send, such as forged resets.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;

use crate::relay::{Direction, Flags, Flow, Path, Record};

/// Routers' and hosts' usual distance limit.
const TTL: u8 = 64;

/// A TCP segment to be built. Checksums come out right; all else is as given, right or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSegment {
    /// Who it claims to be from, and whom it is for. Both IPv4 or both IPv6.
    pub flow: Flow,
    /// The sequence number.
    pub seq: u32,
    /// The acknowledgement number; left out (0) without [`Flags::ACK`].
    pub ack: u32,
    /// The flags.
    pub flags: Flags,
    /// The window, not scaled.
    pub window: u16,
    /// The data.
    pub payload: Vec<u8>,
}

impl RawSegment {
    /// A segment without data, window 0.
    pub fn new(flow: Flow, seq: u32, ack: u32, flags: Flags) -> Self {
        Self { flow, seq, ack, flags, window: 0, payload: Vec::new() }
    }

    /// A reset: believed at once when `seq` is the very next that the receiver expects ([`Record::next_seq`]),
    /// challenged when it is elsewhere in the window, ignored outside it (RFC 5961).
    pub fn reset(flow: Flow, seq: u32) -> Self {
        Self::new(flow, seq, 0, Flags::RST)
    }

    /// The IP packet that holds the segment.
    ///
    /// # Errors
    /// When one address is IPv4 and the other IPv6, or the data does not fit into a packet.
    pub fn to_packet(&self) -> Result<Vec<u8>> {
        let Flow { src, dst } = self.flow;
        let ip = match (src.ip(), dst.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
            (from, to) => bail!("a packet cannot go from {from} to {to}: they are of different families"),
        };
        let mut tcp = ip.tcp(src.port(), dst.port(), self.seq, self.window);
        if self.flags.has(Flags::FIN) {
            tcp = tcp.fin();
        }
        if self.flags.has(Flags::SYN) {
            tcp = tcp.syn();
        }
        if self.flags.has(Flags::RST) {
            tcp = tcp.rst();
        }
        if self.flags.has(Flags::PSH) {
            tcp = tcp.psh();
        }
        if self.flags.has(Flags::ACK) {
            tcp = tcp.ack(self.ack);
        }
        let mut packet = Vec::with_capacity(tcp.size(self.payload.len()));
        tcp.write(&mut packet, &self.payload).context("cannot build a TCP segment")?;
        Ok(packet)
    }
}

impl Path {
    /// Injects a segment towards the end that has its destination address; see [`Path::inject`].
    ///
    /// # Errors
    /// When no end has the address, or as [`RawSegment::to_packet`] and [`Path::inject`].
    pub fn inject_segment(&self, segment: &RawSegment) -> Result<()> {
        let to = segment.flow.dst.ip();
        let is = |end: usize| to == IpAddr::V4(Self::IPV4[end]) || to == IpAddr::V6(Self::IPV6[end]);
        let direction = match (is(0), is(1)) {
            (true, _) => Direction::Backward,
            (_, true) => Direction::Forward,
            _ => bail!("neither end of the path has the address {to}"),
        };
        self.inject(direction, segment.to_packet()?)
    }
}

impl Record {
    /// The sequence number that the receiver of a flow expects next, as far as delivered segments without gaps
    /// tell: one after the highest delivered.
    pub fn next_seq(&self, flow: Flow) -> Option<u32> {
        let delivered = self.packets.iter().filter(|packet| packet.departed_ns().is_some());
        let segments = delivered.filter_map(|packet| packet.segment.as_ref()).filter(|segment| segment.flow == flow);
        // Ports can be used again, so only what follows the last SYN counts.
        segments.fold(None, |highest, segment| match highest {
            Some(_) if segment.flags.has(Flags::SYN) && !segment.retransmission => Some(segment.end()),
            Some(highest) if (segment.end().wrapping_sub(highest) as i32) <= 0 => Some(highest),
            _ => Some(segment.end()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Segment;

    fn round_trip(src: &str, dst: &str) {
        let flow = Flow { src: src.parse().unwrap(), dst: dst.parse().unwrap() };
        let flags = Flags::RST.with(Flags::ACK);
        let raw = RawSegment { payload: vec![1, 2, 3], ..RawSegment::new(flow, 0xffff_fff0, 7, flags) };
        let segment = Segment::parse(&raw.to_packet().unwrap()).unwrap();
        assert_eq!((segment.flow, segment.seq, segment.ack, segment.flags), (flow, 0xffff_fff0, 7, flags));
        assert_eq!(segment.payload, 3);
    }

    #[test]
    fn a_segment_reads_back_as_it_was_built() {
        round_trip("10.77.0.1:1000", "10.77.0.2:80");
        round_trip("[fd77::1]:1000", "[fd77::2]:80");
    }

    #[test]
    fn families_cannot_be_mixed() {
        let flow = Flow { src: "10.77.0.1:1".parse().unwrap(), dst: "[fd77::2]:2".parse().unwrap() };
        assert!(RawSegment::reset(flow, 0).to_packet().is_err());
    }
}
