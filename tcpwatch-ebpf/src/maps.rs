//! Every map, with what it holds and who writes it.

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{self, DIST_ENTRIES, GAUGE_WORDS, Loss, dist, group, netns, reason, slot};
use tcpwatch_common::record::{ConnRecord, ResetRecord};
use tcpwatch_common::stack::{self, StackCount};

/// State per socket: made when it is first seen, freed by the kernel with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<Conn> = SkStorage::new();

/// Records, in order of their making. The size is set by the daemon (`ring_bytes`).
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Counters by group slot. Several programs add: atomic.
#[map]
pub static GROUPS: PerCpuArray<[u64; group::WORDS]> = PerCpuArray::with_max_entries(slot::COUNT as u32, 0);

/// Distributions by group slot: the lower half belongs to tcp_probe, the upper half is added to atomically.
#[map]
pub static DISTS: PerCpuArray<[u64; dist::WORDS]> = PerCpuArray::with_max_entries(DIST_ENTRIES as u32, 0);

/// RSTs sent by origin, kernel reason and IP version.
#[map]
pub static REASONS: PerCpuArray<[u64; reason::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Retransmissions and resets once more, by inode of the network namespace; the daemon removes those that ended.
#[map]
pub static NAMESPACES: PerCpuHashMap<u32, [u64; netns::WORDS]> = PerCpuHashMap::with_max_entries(netns::MOST as u32, 0);

/// What could not be kept, by [`Loss`].
#[map]
pub static LOSSES: PerCpuArray<[u64; Loss::ALL.len()]> = PerCpuArray::with_max_entries(1, 0);

/// Connections by state; a word goes up and down, and may be negative on one CPU.
#[map]
pub static GAUGES: PerCpuArray<[u64; GAUGE_WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Slots of services, by `service_key`; written by the daemon.
#[map]
pub static SERVICES: HashMap<u32, u32> = HashMap::with_max_entries(256, 0);

/// Listening sockets by `netns << 16 | port`: how many.
#[map]
pub static LISTENERS: HashMap<u64, u64> = HashMap::with_max_entries(8192, 0);

/// A connection that a reset is ending: ties the close to the reset that precedes or follows it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Closing {
    /// Jiffy of the close.
    pub jiffy: u64,
    /// The socket's cookie.
    pub cookie: u64,
    /// When it began, or was first seen; ns of CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// The states it went through.
    pub history: u32,
    /// When it came to the newest of them, ms of CLOCK_MONOTONIC.
    pub state_since_ms: u32,
    /// Group slot of the connection.
    pub slot: u32,
    /// State before CLOSE.
    pub old_state: u8,
    /// 1 when it was counted as closed by a received reset.
    pub counted_received: u8,
    /// Padding.
    pub reserved: [u8; 2],
}

/// Closes by reset, by address of the socket; entries are good for a jiffy or two, the rest is left to the LRU.
#[map]
pub static CLOSING: LruHashMap<u64, Closing> = LruHashMap::with_max_entries(4096, 0);

/// Records that may still be emitted in the current second.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tokens {
    /// Jiffy at which the second began.
    pub since: u64,
    /// Records emitted since.
    pub used: u64,
}

/// One bucket a program (`counters::bucket`) and CPU.
#[map]
pub static TOKENS: PerCpuArray<Tokens> = PerCpuArray::with_max_entries(counters::bucket::COUNT, 0);

/// What the daemon changes while the programs run, by `counters::setting`.
#[map]
pub static SETTINGS: Array<u64> = Array::with_max_entries(counters::setting::COUNT, 0);

/// Who was looked at in this jiffy: tick mode only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Admitted {
    /// Hash and ports of the socket.
    pub identity: u64,
    /// The jiffy.
    pub jiffy: u64,
}

/// Entries of [`ADMITTED`]; a power of two.
pub const ADMITTED_ENTRIES: u32 = 4096;

/// Direct-mapped, by hash of the socket.
#[map]
pub static ADMITTED: PerCpuArray<Admitted> = PerCpuArray::with_max_entries(ADMITTED_ENTRIES, 0);

/// Who read from a socket a moment ago.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Reader {
    /// Hash and port of the socket.
    pub socket: u64,
    /// The jiffy.
    pub jiffy: u64,
    /// The process.
    pub pid: u32,
    /// Padding.
    pub reserved: u32,
}

/// Entries of [`READERS`]; a power of two.
pub const READERS_ENTRIES: u32 = 1024;

/// Direct-mapped, by hash of the socket; tcp_rcv_space_adjust alone.
#[map]
pub static READERS: PerCpuArray<Reader> = PerCpuArray::with_max_entries(READERS_ENTRIES, 0);

/// Where the reset programs build their record: one value a program and CPU.
#[map]
pub static RESET_SCRATCH: PerCpuArray<ResetRecord> = PerCpuArray::with_max_entries(3, 0);

/// Stacks of resets sent, by a hash of their frames, origin and cause. Nothing is ever taken out of it.
#[map]
pub static STACKS: HashMap<u64, StackCount> = HashMap::with_max_entries(stack::STACKS, 0);

/// Where the reset programs read the stack, likewise.
#[map]
pub static STACK_SCRATCH: PerCpuArray<StackCount> = PerCpuArray::with_max_entries(3, 0);

/// Where the iterators build their record: they run one after the other.
#[map]
pub static ITERATOR_SCRATCH: PerCpuArray<ConnRecord> = PerCpuArray::with_max_entries(1, 0);
