//! What the daemon freezes into the programs before they are loaded. The verifier sees constants, and drops every
//! branch that they rule out.

use tcpwatch_common::layout::{Field, Layout};
use tcpwatch_common::reset::REASONS;
use tcpwatch_common::stack::{self, Range, path};

/// Places of the kernel's fields.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::ABSENT;

/// Namespaces that can be named in a filter.
pub const NETNS_FILTER: usize = 8;

/// 1 when tcp_retransmit_skb has its `err` argument.
#[unsafe(no_mangle)]
pub static RETRANSMIT_HAS_ERR: u32 = 0;
/// 1 when tcp_send_reset has its `reason` argument.
#[unsafe(no_mangle)]
pub static RESET_HAS_REASON: u32 = 0;
/// 1 when every state and record shall be kept to the namespaces of [`NETNS`].
#[unsafe(no_mangle)]
pub static NETNS_FILTERED: u32 = 0;
/// Inode numbers of the namespaces to watch; 0 fills up.
#[unsafe(no_mangle)]
pub static NETNS: [u32; NETNS_FILTER] = [0; NETNS_FILTER];
/// Jiffies in a second.
#[unsafe(no_mangle)]
pub static HZ: u32 = 250;
/// Records a second and CPU that tcp_retransmit_skb, tcp_retransmit_synack and the reset programs may each emit.
#[unsafe(no_mangle)]
pub static DETAIL_PER_SECOND: u32 = 1000;
/// Bytes that wait in the ring from which every record wakes the daemon.
#[unsafe(no_mangle)]
pub static WAKE_BYTES: u32 = 0;
/// 1: look at a socket at most once a jiffy; 0: on every segment.
#[unsafe(no_mangle)]
pub static TICK_MODE: u32 = 0;
/// `ReasonHint` of each kernel reason.
#[unsafe(no_mangle)]
pub static REASON_HINTS: [u8; REASONS] = [0; REASONS];
/// Where the functions of `stack::CUTS` lie; none where the daemon may not see addresses.
#[unsafe(no_mangle)]
pub static STACK_CUTS: [Range; stack::CUTS.len()] = [Range::NONE; stack::CUTS.len()];
/// Where the functions of `stack::path` lie.
#[unsafe(no_mangle)]
pub static STACK_PATHS: [Range; path::FUNCTIONS.len()] = [Range::NONE; path::FUNCTIONS.len()];
/// How many frames make the key of a stack.
#[unsafe(no_mangle)]
pub static STACK_FRAMES: u32 = stack::FRAMES_UNCUT;

/// Reads a frozen global, so that neither compiler nor linker takes its initial value for granted.
#[inline(always)]
pub fn frozen<T: Copy>(global: &'static T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(global) }
}

/// The byte offset of a field.
#[inline(always)]
pub fn offset(field: &'static Field) -> u16 {
    frozen(&field.offset)
}

/// Whether a namespace is watched.
#[inline(always)]
pub fn watched(netns: u32) -> bool {
    if frozen(&NETNS_FILTERED) == 0 {
        return true;
    }
    let mut found = false;
    for wanted in &NETNS {
        found |= frozen(wanted) == netns;
    }
    found
}
