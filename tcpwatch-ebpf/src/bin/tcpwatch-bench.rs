//! Yardsticks for `cargo xtask bench kernel`: what a program costs that does nothing, and what it costs on tcp_probe
//! to answer the same question in the usual ways. Never part of the daemon.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(unreachable_pub, missing_docs, reason = "entry points are found by section, not by path")]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand the context over")]

use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint};
use aya_ebpf::maps::{LruHashMap, RingBuf};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use tcpwatch_common::hist::{rtt_bucket, sketch_bucket};
use tcpwatch_ebpf::emit::now_ns;
use tcpwatch_ebpf::sock::TcpSock;

/// What a tool that sends every event to user space needs at the least: when, which socket, and the three fields that
/// tcp_probe's hot path reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Event {
    pub ktime_ns: u64,
    pub ports: u32,
    pub srtt: u32,
    pub delivered: u32,
    pub snd_cwnd: u32,
}

#[map]
static BENCH_RING: RingBuf = RingBuf::with_byte_size(1 << 22, 0);

/// State in an LRU hash, keyed by cookie.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hashed {
    pub samples: u64,
    pub srtt: u32,
    pub delivered: u32,
    pub sketch: [u32; 40],
}

#[map]
static BENCH_LRU: LruHashMap<u64, Hashed> = LruHashMap::with_max_entries(65_536, 0);

/// `BPF_RB_NO_WAKEUP`: the cheapest way to submit; the reader polls.
const NO_WAKEUP: u64 = 1;

#[btf_tracepoint(function = "tcp_probe")]
pub fn bench_empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn bench_empty_raw(_ctx: RawTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "tcp_probe")]
pub fn bench_ringbuf(ctx: BtfTracePointContext) -> i32 {
    let Some(sock) = TcpSock::cast(ctx.arg(0)) else { return 0 };
    if let Some(mut entry) = BENCH_RING.reserve::<Event>(0) {
        entry.write(Event {
            ktime_ns: now_ns(),
            ports: u32::from(sock.local_port()) << 16 | u32::from(sock.remote_port()),
            srtt: sock.srtt_us(),
            delivered: sock.delivered(),
            snd_cwnd: sock.snd_cwnd(),
        });
        entry.submit(NO_WAKEUP);
    }
    0
}

#[btf_tracepoint(function = "tcp_probe")]
pub fn bench_lru(ctx: BtfTracePointContext) -> i32 {
    let Some(sock) = TcpSock::cast(ctx.arg(0)) else { return 0 };
    let key = sock.cookie();
    let Some(found) = BENCH_LRU.get_ptr_mut(key) else {
        let _full = BENCH_LRU.insert(key, Hashed { samples: 0, srtt: 0, delivered: 0, sketch: [0; 40] }, 0);
        return 0;
    };
    // SAFETY: a value of the map; a benchmark does not mind a lost update.
    let state = unsafe { &mut *found };
    state.samples += 1;
    state.srtt = sock.srtt_us();
    state.delivered = sock.delivered();
    let bucket = sketch_bucket(rtt_bucket(state.srtt >> 3)) as usize;
    if bucket < 40 {
        state.sketch[bucket] += 1;
    }
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
