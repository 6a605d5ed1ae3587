//! The records of the ring buffer. Each repeats what is cumulative, so that a lost one costs freshness and no more.

use crate::conn::{COMM_LEN, CONGESTION_LEN, ConnKey};
use crate::hist::SKETCH_BUCKETS;
use crate::wire::{Wire, wire};

/// Version of everything in this crate that crosses from kernel to user space or into a recorded file.
pub const ABI: u16 = 1;

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// A connection reached ESTABLISHED: [`ConnRecord`].
    Open = 1,
    /// Its periodic reading, or its first one when it is older than the daemon: [`ConnRecord`].
    Sample = 2,
    /// It reached CLOSE; the final totals: [`ConnRecord`].
    Close = 3,
    /// A segment was sent again: [`RetransmitRecord`].
    Retransmit = 4,
    /// A RST was sent: [`ResetRecord`].
    Reset = 5,
    /// A RST ended a full socket: [`ResetRecord`].
    ResetReceived = 6,
    /// A listener began or ended: [`ListenerRecord`].
    Listener = 7,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Open, Self::Sample, Self::Close, Self::Retransmit, Self::Reset, Self::ResetReceived, Self::Listener];

    /// The kind with this number.
    pub fn from_u16(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The value of the metric label `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Sample => "sample",
            Self::Close => "close",
            Self::Retransmit => "retransmit",
            Self::Reset => "reset_sent",
            Self::ResetReceived => "reset_received",
            Self::Listener => "listener",
        }
    }
}

wire! {
    /// How every record begins.
    pub struct Header {
        /// [`Kind`].
        pub kind: u16,
        /// [`ABI`].
        pub abi: u16,
        /// Length of the whole record, bytes.
        pub len: u32,
        /// When it was made, ns of CLOCK_MONOTONIC.
        pub ktime_ns: u64,
    }
}

wire! {
    /// Everything known of a connection: open, sample and close.
    pub struct ConnRecord {
        /// Kind, length, time.
        pub header: Header,
        /// The kernel's cookie of the socket.
        pub cookie: u64,
        /// When the SYN was sent, or it was first seen; ns of CLOCK_MONOTONIC.
        pub started_ns: u64,
        /// When it reached ESTABLISHED; 0 before.
        pub established_ns: u64,
        /// Payload bytes sent, retransmissions included.
        pub bytes_sent: u64,
        /// Payload bytes retransmitted.
        pub bytes_retrans: u64,
        /// Payload bytes acknowledged by the peer.
        pub bytes_acked: u64,
        /// Bytes received in order as the kernel counts them: payload, and one for a FIN.
        pub bytes_received: u64,
        /// Sum of the raw RTT samples, µs.
        pub rtt_sum_us: u64,
        /// Rate at which the kernel paces, bytes a second; all ones means that it does not.
        pub pacing_rate: u64,
        /// Both ends.
        pub key: ConnKey,
        /// Group slot.
        pub slot: u32,
        /// How often this socket was connected before.
        pub generation: u32,
        /// Process that owns it; 0 when it is not known.
        pub pid: u32,
        /// User that owns the socket.
        pub uid: u32,
        /// Smoothed RTT, µs.
        pub srtt_us: u32,
        /// Mean deviation of the RTT, µs.
        pub mdev_us: u32,
        /// Smallest RTT in the kernel's window (tcp_min_rtt_wlen), µs; `u32::MAX` before the first sample.
        pub min_rtt_us: u32,
        /// Raw samples counted.
        pub rtt_samples: u32,
        /// Last raw sample, µs.
        pub rtt_last_us: u32,
        /// Smallest raw sample, µs; `u32::MAX` before the first.
        pub rtt_min_us: u32,
        /// Largest raw sample, µs.
        pub rtt_max_us: u32,
        /// Handshake RTT, µs; 0 when it is not known.
        pub handshake_us: u32,
        /// Congestion window, segments.
        pub snd_cwnd: u32,
        /// Slow-start threshold, segments; 0x7fffffff means none yet.
        pub snd_ssthresh: u32,
        /// Smallest congestion window at a sample since the last record.
        pub cwnd_min: u32,
        /// Largest congestion window at a sample since the last record.
        pub cwnd_max: u32,
        /// Segments sent and not acknowledged.
        pub packets_out: u32,
        /// Of these, selectively acknowledged.
        pub sacked_out: u32,
        /// Of these, believed lost.
        pub lost_out: u32,
        /// Of these, sent again.
        pub retrans_out: u32,
        /// The peer's receive window, bytes.
        pub snd_wnd: u32,
        /// Our receive window, bytes.
        pub rcv_wnd: u32,
        /// Sending maximum segment size, bytes.
        pub mss: u32,
        /// Retransmission timeout, jiffies.
        pub rto_jiffies: u32,
        /// Segments sent.
        pub segs_out: u32,
        /// Segments received.
        pub segs_in: u32,
        /// Segments with payload sent.
        pub data_segs_out: u32,
        /// Segments with payload received.
        pub data_segs_in: u32,
        /// Segments delivered to the peer.
        pub delivered: u32,
        /// Segments retransmitted, as the kernel counts on this socket.
        pub total_retrans: u32,
        /// Segments retransmitted since we watch, by [`crate::retransmit::RetransmitCause`].
        pub retrans: [u32; 6],
        /// Retransmissions proven spurious.
        pub spurious: u32,
        /// Retransmissions that the kernel refused.
        pub retrans_failed: u32,
        /// Duplicates that the peer reported by DSACK.
        pub dsack_dups: u32,
        /// Received bytes that the application has not read.
        pub unread_bytes: u32,
        /// Written bytes that were not sent yet.
        pub unsent_bytes: u32,
        /// Sent bytes that were not acknowledged.
        pub unacked_bytes: u32,
        /// Times in Recovery, and in Loss.
        pub recoveries: [u32; 2],
        /// Time in Disorder, CWR, Recovery and Loss, µs.
        pub ca_us: [u32; 4],
        /// Jiffies with data to send, limited by the congestion window, by the peer's receive window, by the send buffer:
        /// the kernel's chronographs, the running interval included.
        pub limited_jiffies: [u32; 3],
        /// Times that the peer's window became zero, and ours.
        pub zero_windows: [u32; 2],
        /// Jiffies with a zero window of the peer, and of ours.
        pub zero_jiffies: [u32; 2],
        /// Times that the congestion window was reduced after a pause (RFC 2861).
        pub idle_restarts: u32,
        /// Segments delivered in the interval of the last delivery rate sample.
        pub rate_delivered: u32,
        /// That interval, µs.
        pub rate_interval_us: u32,
        /// Segments delivered with an ECN congestion mark.
        pub delivered_ce: u32,
        /// Maximum segment size that we announced, bytes.
        pub advmss: u32,
        /// Memory of what waits to be sent or acknowledged, bytes.
        pub queued_bytes: u32,
        /// The most of it that the send buffer allows, bytes.
        pub send_buffer: u32,
        /// RTT as estimated from received data, µs.
        pub rcv_rtt_us: u32,
        /// Space that the receive buffer is tuned for, bytes.
        pub rcv_space: u32,
        /// Reordering that the sender reckons with, segments.
        pub reordering: u32,
        /// Reorderings seen.
        pub reord_seen: u32,
        /// Segments marked lost so far.
        pub lost: u32,
        /// Jiffies since the last ACK was received.
        pub since_ack_jiffies: u32,
        /// Jiffies since data was last sent.
        pub since_sent_jiffies: u32,
        /// `sk_err`.
        pub sk_err: i32,
        /// State after the event.
        pub state: u8,
        /// State before it.
        pub old_state: u8,
        /// [`crate::state::Direction`].
        pub direction: u8,
        /// Bits of [`crate::close::flag`].
        pub flags: u8,
        /// Congestion state.
        pub ca_state: u8,
        /// Exponential backoff of the retransmission timer.
        pub backoff: u8,
        /// [`crate::close::CloseCause`] of a close.
        pub cause: u8,
        /// Zero-window or keepalive probes that were not answered.
        pub probes_out: u8,
        /// Bits of `ecn_flags`, see [`crate::limits::ecn`].
        pub ecn_flags: u8,
        /// Bits of [`crate::limits::application`].
        pub application: u8,
        /// Padding.
        pub reserved: u8,
        /// 1 when the application switched Nagle's algorithm off (TCP_NODELAY).
        pub nodelay: u8,
        /// Name of the congestion control.
        pub congestion: [u8; CONGESTION_LEN],
        /// Id of the owner's control group, of the socket's while no owner is known; 0 for none.
        pub cgroup: u64,
        /// Effective user of the owner.
        pub owner_uid: u32,
        /// [`crate::owner::OwnerKind`].
        pub owner_kind: u8,
        /// Bits of [`crate::owner::flag`].
        pub owner_flags: u8,
        /// Padding.
        pub owner_reserved: u16,
        /// Name of the process that owns it.
        pub comm: [u8; COMM_LEN],
        /// The states it went through, see [`crate::history`].
        pub history: u32,
        /// When it came to the newest of them, ms of CLOCK_MONOTONIC (wraps); 0 when that was not seen.
        pub state_since_ms: u32,
        /// Coarse RTT histogram.
        pub sketch: [u32; SKETCH_BUCKETS],
    }
}

impl ConnRecord {
    /// Segments sent, and neither acknowledged nor believed lost: `tcp_packets_in_flight`.
    pub fn in_flight(&self) -> u32 {
        let gone = self.sacked_out.saturating_add(self.lost_out);
        self.packets_out.saturating_sub(gone).saturating_add(self.retrans_out)
    }
}

wire! {
    /// One call of the kernel's retransmission, or a SYN-ACK sent again.
    pub struct RetransmitRecord {
        /// Kind, length, time.
        pub header: Header,
        /// The kernel's cookie of the socket; of the listener for a SYN-ACK.
        pub cookie: u64,
        /// Both ends; for a SYN-ACK the listener's address only.
        pub key: ConnKey,
        /// First sequence number.
        pub seq: u32,
        /// Payload bytes.
        pub bytes: u32,
        /// Segments counted.
        pub segments: u32,
        /// Smoothed RTT, µs.
        pub srtt_us: u32,
        /// Congestion window, segments.
        pub snd_cwnd: u32,
        /// Segments in flight.
        pub packets_out: u32,
        /// The peer's receive window, bytes.
        pub snd_wnd: u32,
        /// Negative errno of a transmit that the kernel refused.
        pub err: i32,
        /// [`crate::retransmit::RetransmitCause`].
        pub cause: u8,
        /// State.
        pub state: u8,
        /// Congestion state.
        pub ca_state: u8,
        /// Exponential backoff.
        pub backoff: u8,
    }
}

wire! {
    /// A RST sent, or received by a full socket.
    pub struct ResetRecord {
        /// Kind, length, time.
        pub header: Header,
        /// The kernel's cookie of the socket; 0 when there is none.
        pub cookie: u64,
        /// When the SYN was sent, or the connection was first seen, ns of CLOCK_MONOTONIC; 0 when that is not known.
        pub started_ns: u64,
        /// Payload bytes sent, retransmissions included.
        pub bytes_sent: u64,
        /// Payload bytes received in order.
        pub bytes_received: u64,
        /// Time of SO_LINGER, jiffies.
        pub linger_jiffies: u64,
        /// Key of the kernel stack in the map of stacks; 0 without one.
        pub stack: u64,
        /// Both ends; local is this host.
        pub key: ConnKey,
        /// Group slot.
        pub slot: u32,
        /// The kernel's reason, a number of its `enum sk_rst_reason`; `u32::MAX` when it gives none.
        pub reason: u32,
        /// Sequence number of the segment that caused it.
        pub seq: u32,
        /// Acknowledgement number of the segment that caused it.
        pub ack: u32,
        /// Received bytes that the application had not read.
        pub unread_bytes: u32,
        /// Written bytes that were not sent.
        pub unsent_bytes: u32,
        /// Sent bytes that were not acknowledged.
        pub unacked_bytes: u32,
        /// Smoothed RTT, µs; 0 before the first sample.
        pub srtt_us: u32,
        /// Congestion window, segments.
        pub snd_cwnd: u32,
        /// Segments retransmitted, as the kernel counts on this socket.
        pub total_retrans: u32,
        /// The states it went through, see [`crate::history`]; 0 when that is not known.
        pub history: u32,
        /// When it came to the newest of them, ms of CLOCK_MONOTONIC (wraps); 0 when that was not seen.
        pub state_since_ms: u32,
        /// User that owns the socket.
        pub uid: u32,
        /// [`crate::reset::ResetOrigin`].
        pub origin: u8,
        /// [`crate::reset::ResetCause`].
        pub cause: u8,
        /// State of the socket at that moment; 0 without a socket.
        pub state: u8,
        /// TCP flags of the segment that caused it.
        pub tcp_flags: u8,
        /// Exponential backoff of the retransmission timer.
        pub backoff: u8,
        /// Which of the fields are facts: bits of [`crate::reset::known`].
        pub known: u8,
        /// Probes (of keepalive or of a zero window) that went unanswered.
        pub probes_out: u8,
        /// Padding.
        pub reserved: u8,
    }
}

wire! {
    /// A listener began or ended, or its periodic reading.
    pub struct ListenerRecord {
        /// Kind, length, time.
        pub header: Header,
        /// The kernel's cookie of the socket.
        pub cookie: u64,
        /// The address and port it listens on.
        pub key: ConnKey,
        /// Limit of its accept queue.
        pub backlog: u32,
        /// Connections that wait in its accept queue.
        pub queue: u32,
        /// Segments it dropped, `sk_drops`.
        pub drops: u32,
        /// Handshakes that are under way.
        pub half_open: u32,
        /// 1: a reading of an iterator, not something that happened.
        pub periodic: u32,
        /// 1: it listens now; 0: it ended.
        pub up: u32,
        /// Process that owns it; 0 when it is not known.
        pub pid: u32,
        /// Id of the owner's control group; 0 for none.
        pub cgroup: u64,
        /// Effective user of the owner.
        pub owner_uid: u32,
        /// [`crate::owner::OwnerKind`].
        pub owner_kind: u32,
        /// Name of the process that owns it.
        pub comm: [u8; COMM_LEN],
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    /// Fewer bytes than the record has, or than its header says.
    TooShort,
    /// Made by another version of the kernel programs.
    AbiMismatch(u16),
    /// A number that is no [`Kind`].
    UnknownKind(u16),
}

impl DecodeError {
    /// The value of the metric label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::AbiMismatch(_) => "abi_mismatch",
            Self::UnknownKind(_) => "unknown_kind",
        }
    }
}

/// A record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "it lives on the stack of the one task that decodes, and is not stored")]
pub enum Record {
    /// Open, sample or close.
    Conn(Kind, ConnRecord),
    /// A segment sent again.
    Retransmit(RetransmitRecord),
    /// A RST sent or received.
    Reset(Kind, ResetRecord),
    /// A listener.
    Listener(ListenerRecord),
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let header = Header::read(bytes).ok_or(DecodeError::TooShort)?;
    if header.abi != ABI {
        return Err(DecodeError::AbiMismatch(header.abi));
    }
    let kind = Kind::from_u16(header.kind).ok_or(DecodeError::UnknownKind(header.kind))?;
    let bytes = bytes.get(..header.len as usize).ok_or(DecodeError::TooShort)?;
    Ok(match kind {
        Kind::Open | Kind::Sample | Kind::Close => Record::Conn(kind, read(bytes)?),
        Kind::Retransmit => Record::Retransmit(read(bytes)?),
        Kind::Reset | Kind::ResetReceived => Record::Reset(kind, read(bytes)?),
        Kind::Listener => Record::Listener(read(bytes)?),
    })
}

fn read<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::read(bytes).ok_or(DecodeError::TooShort)
}

/// Writes a record as the kernel would; `None` when `bytes` has no room.
pub fn encode<T: Wire>(record: &T, bytes: &mut [u8]) -> Option<usize> {
    record.write(bytes)?;
    Some(size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The layout that version 1 of the ABI stands for: a change of these numbers is a new version.
    #[test]
    fn layout_is_that_of_this_abi_version() {
        assert_eq!(ABI, 1);
        assert_eq!(
            [
                size_of::<Header>(),
                size_of::<ConnRecord>(),
                size_of::<RetransmitRecord>(),
                size_of::<ResetRecord>(),
                size_of::<ListenerRecord>(),
                core::mem::offset_of!(ConnRecord, key),
                core::mem::offset_of!(ConnRecord, sketch),
                core::mem::offset_of!(ResetRecord, reason),
            ],
            [16, 640, 104, 168, 128, 88, 480, 112]
        );
    }

    fn header(kind: Kind, len: usize) -> Header {
        Header { kind: kind as u16, abi: ABI, len: len as u32, ktime_ns: 42 }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            let _outcome = decode(&bytes);
        }

        #[test]
        fn any_body_of_a_right_header_comes_back(kind in 1_u16..=7, body in proptest::collection::vec(any::<u8>(), 800)) {
            let kind = Kind::from_u16(kind).unwrap();
            let len = match kind {
                Kind::Open | Kind::Sample | Kind::Close => size_of::<ConnRecord>(),
                Kind::Retransmit => size_of::<RetransmitRecord>(),
                Kind::Reset | Kind::ResetReceived => size_of::<ResetRecord>(),
                Kind::Listener => size_of::<ListenerRecord>(),
            };
            let mut bytes = body;
            header(kind, len).write(&mut bytes).unwrap();
            bytes.truncate(len);
            let mut again = vec![0; len];
            let written = match decode(&bytes).unwrap() {
                Record::Conn(_, r) => encode(&r, &mut again),
                Record::Retransmit(r) => encode(&r, &mut again),
                Record::Reset(_, r) => encode(&r, &mut again),
                Record::Listener(r) => encode(&r, &mut again),
            };
            prop_assert_eq!(written, Some(len));
            prop_assert_eq!(&again, &bytes);
            for short in [0, 1, 15, 16, len - 1] {
                prop_assert_eq!(decode(&bytes[..short]), Err(DecodeError::TooShort));
            }
        }
    }

    #[test]
    fn other_versions_and_kinds_are_named() {
        let mut bytes = [0; 16];
        Header { kind: 99, abi: ABI, len: 16, ktime_ns: 0 }.write(&mut bytes).unwrap();
        assert_eq!(decode(&bytes), Err(DecodeError::UnknownKind(99)));
        Header { kind: 1, abi: 7, len: 16, ktime_ns: 0 }.write(&mut bytes).unwrap();
        assert_eq!(decode(&bytes), Err(DecodeError::AbiMismatch(7)));
    }
}
