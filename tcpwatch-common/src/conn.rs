//! A connection: its addresses, and the state that the kernel programs keep in the socket.

use crate::hist::SKETCH_BUCKETS;
use crate::wire::wire;

/// Bytes of a task's name, `TASK_COMM_LEN`.
pub const COMM_LEN: usize = 16;
/// Bytes of the name of a congestion control, `TCP_CA_NAME_MAX`.
pub const CONGESTION_LEN: usize = 16;

wire! {
    /// Both ends of a connection. IPv4 addresses, also those of a dual-stack socket, are in their v4-mapped form
    /// (`::ffff:a.b.c.d`); ports are in host byte order.
    pub struct ConnKey {
        /// Our address.
        pub local: [u8; 16],
        /// The peer's address.
        pub remote: [u8; 16],
        /// Our port.
        pub local_port: u16,
        /// The peer's port.
        pub remote_port: u16,
        /// 4 or 6: the IP version on the wire.
        pub ip_version: u16,
        /// Padding.
        pub reserved: u16,
        /// Inode number of the network namespace.
        pub netns: u32,
    }
}

impl ConnKey {
    /// All zero: a key that was not read yet.
    pub const EMPTY: Self =
        Self { local: [0; 16], remote: [0; 16], local_port: 0, remote_port: 0, ip_version: 0, reserved: 0, netns: 0 };
}

wire! {
    /// The value of the socket storage: what tcp_probe needs on every segment comes first, in one cache line.
    ///
    /// With the 72 bytes of the storage header it fits into a slab of 512 bytes. The programs that write it hold
    /// the socket's lock, apart from the reset programs, which do not write it, and the iterators, which write the owner
    /// and, atomically, what was flushed.
    pub struct Conn {
        /// Jiffy from which tcp_probe may emit the next record.
        pub next_emit: u64,
        /// Sum of the raw RTT samples, µs.
        pub rtt_sum_us: u64,
        /// `srtt_us` as stored (shifted left by 3) at the last reading.
        pub srtt: u32,
        /// `delivered` at the last reading.
        pub delivered: u32,
        /// Group slot of the counters and histograms.
        pub slot: u32,
        /// Raw RTT samples counted.
        pub rtt_samples: u32,
        /// Last raw sample, µs.
        pub rtt_last_us: u32,
        /// Smallest raw sample, µs; `u32::MAX` before the first.
        pub rtt_min_us: u32,
        /// Largest raw sample, µs.
        pub rtt_max_us: u32,
        /// Smallest congestion window at a sample since the last record, segments; `u32::MAX` before the first.
        pub cwnd_min: u32,
        /// Largest congestion window at a sample since the last record, segments.
        pub cwnd_max: u32,
        /// Congestion window at the last segment, segments.
        pub cwnd_seen: u32,
        /// `lsndtime` at the last segment: the jiffy in which data was last sent.
        pub sent_at: u32,
        /// Non-zero since a retransmission: an unchanged srtt is then no evidence of an equal sample.
        pub rtt_guard: u8,
        /// 1 once the fields below have their first values.
        pub begun: u8,
        /// Bits of [`crate::limits::zero`]: the windows that were zero at the last segment.
        pub zero: u8,
        /// Bucket of `cwnd_seen` in the histogram of windows.
        pub cwnd_bucket: u8,
        /// Coarse histogram of the raw RTT samples.
        pub sketch: [u32; SKETCH_BUCKETS],
        /// When the SYN was sent, or the connection was first seen; ns of CLOCK_MONOTONIC.
        pub started_ns: u64,
        /// When it reached ESTABLISHED; ns of CLOCK_MONOTONIC, 0 before.
        pub established_ns: u64,
        /// `bytes_sent` already in the group's counter, or not ours.
        pub flushed_sent: u64,
        /// Payload bytes received already in the group's counter, or not ours.
        pub flushed_received: u64,
        /// `data_segs_out` already in the group's counter, or not ours; wide, so that it can be exchanged atomically.
        pub flushed_segments: u64,
        /// Jiffies limited by the congestion window (low half) and by the receive window (high half) that are already in the
        /// group's counters, or not ours.
        pub flushed_windows: u64,
        /// The same for the send buffer (low half), and the jiffy of that flush (high half).
        pub flushed_buffer: u64,
        /// Jiffies with a zero window of the peer (low half) and of ours (high half) that are already in the group's counters.
        pub flushed_zero: u64,
        /// Non-zero once somebody takes the baseline of a connection that is older than we: the iterators and tcp_probe
        /// may see it first at the same time.
        pub claimed: u64,
        /// `dsack_dups` already in the group's counter, or not ours.
        pub flushed_dsacks: u32,
        /// `total_retrans` already attributed to a cause, or not ours.
        pub retrans_seen: u32,
        /// Retransmitted segments by cause.
        pub retrans: [u32; 6],
        /// Retransmitted segments proven spurious.
        pub spurious: u32,
        /// Retransmissions that the kernel refused.
        pub retrans_failed: u32,
        /// Handshake RTT, µs; 0 when it is not known.
        pub handshake_us: u32,
        /// How often this socket was connected before.
        pub generation: u32,
        /// Entered Recovery, and Loss.
        pub recoveries: [u32; 2],
        /// Process that owns it; 0 when it is not known.
        pub pid: u32,
        /// When the congestion state last changed, µs of CLOCK_MONOTONIC (wraps).
        pub ca_since_us: u32,
        /// Time in Disorder, CWR, Recovery and Loss, µs, the running interval left out.
        pub ca_us: [u32; 4],
        /// Jiffies with a zero window of the peer, and of ours; while it lasts, less the jiffy at which it began.
        pub zero_jiffies: [u32; 2],
        /// `segs_in + segs_out` at the last record: what did not change since has nothing new to tell.
        pub told_segments: u32,
        /// Times that the congestion window was reduced after a pause.
        pub idle_restarts: u32,
        /// Times that the peer's window became zero, and ours; as many as fit.
        pub zero_windows: [u16; 2],
        /// Congestion state at the last change.
        pub ca_state: u8,
        /// [`crate::state::Direction`].
        pub direction: u8,
        /// Bits of [`crate::close::flag`].
        pub flags: u8,
        /// State that is in the gauge for this socket; 0 for none.
        pub gauged: u8,
        /// Name of the process that owns it.
        pub comm: [u8; COMM_LEN],
        /// Id of the owner's control group, of the socket's while no owner is known; 0 for none.
        pub cgroup: u64,
        /// Effective user of the owner.
        pub owner_uid: u32,
        /// Pass over the files that last found the owner holding it.
        pub owner_pass: u16,
        /// [`crate::owner::OwnerKind`].
        pub owner_kind: u8,
        /// Padding.
        pub owner_reserved: u8,
        /// The states it went through, see [`crate::history`]; CLOSE is never among them.
        pub history: u32,
        /// When it came to the newest of them, ms of CLOCK_MONOTONIC (wraps); 0 when that was not seen.
        pub state_since_ms: u32,
    }
}

// Header of a socket storage element on 6.x, and the slab it must fit.
const _: () = assert!(size_of::<Conn>() + 72 <= 512, "the state of a socket no longer fits a 512-byte slab");
const _: () = assert!(core::mem::offset_of!(Conn, sketch) <= 64, "the hot fields no longer fit one cache line");

impl Conn {
    /// Nothing known yet.
    pub const EMPTY: Self = Self {
        next_emit: 0,
        rtt_sum_us: 0,
        srtt: 0,
        delivered: 0,
        slot: 0,
        rtt_samples: 0,
        rtt_last_us: 0,
        rtt_min_us: u32::MAX,
        rtt_max_us: 0,
        cwnd_min: u32::MAX,
        cwnd_max: 0,
        cwnd_seen: 0,
        sent_at: 0,
        rtt_guard: 0,
        begun: 0,
        zero: 0,
        cwnd_bucket: 0,
        sketch: [0; SKETCH_BUCKETS],
        started_ns: 0,
        established_ns: 0,
        flushed_sent: 0,
        flushed_received: 0,
        flushed_segments: 0,
        flushed_windows: 0,
        flushed_buffer: 0,
        flushed_zero: 0,
        claimed: 0,
        flushed_dsacks: 0,
        retrans_seen: 0,
        retrans: [0; 6],
        spurious: 0,
        retrans_failed: 0,
        handshake_us: 0,
        generation: 0,
        recoveries: [0; 2],
        pid: 0,
        ca_since_us: 0,
        ca_us: [0; 4],
        zero_jiffies: [0; 2],
        told_segments: 0,
        idle_restarts: 0,
        zero_windows: [0; 2],
        ca_state: 0,
        direction: 0,
        flags: 0,
        gauged: 0,
        comm: [0; COMM_LEN],
        cgroup: 0,
        owner_uid: 0,
        owner_pass: 0,
        owner_kind: 0,
        owner_reserved: 0,
        history: 0,
        state_since_ms: 0,
    };
}
