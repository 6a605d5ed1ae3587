//! The kernel stack of a reset: read once, cut at softirq entry, counted by what is left of it.
//!
//! Below the softirq are the frames of whatever was interrupted, which would make one closed port many stacks. Every loop
//! here is without a branch: the verifier would follow each, at each frame.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_stack;
use tcpwatch_common::counters::Loss;
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::stack::{CUTS, FRAMES, StackCount, path};

use super::reset::Program;
use crate::add::atomic_add;
use crate::config::{STACK_CUTS, STACK_FRAMES, STACK_PATHS, frozen};
use crate::count;
use crate::maps::{STACK_SCRATCH, STACKS};

/// Spreads the bits of an address over the hash; an odd number without a pattern.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The stack of the call that a program hangs on.
pub struct Stack {
    count: &'static mut StackCount,
    hash: u64,
    /// Bits of `stack::path`.
    pub path: u64,
}

impl Stack {
    /// Reads and cuts it; `None` when the kernel does not give it.
    #[inline(always)]
    pub fn read<C: EbpfContext>(ctx: &C, program: Program, origin: ResetOrigin) -> Option<Self> {
        let scratch = STACK_SCRATCH.get_ptr_mut(program as u32)?;
        // SAFETY: a value of the map that only the calling program uses, and no program nests in itself.
        let count = unsafe { &mut *scratch };
        let size = size_of::<[u64; FRAMES]>() as u32;
        // SAFETY: the buffer has the size that is given; what the stack does not fill, the kernel sets to zero.
        if unsafe { bpf_get_stack(ctx.as_ptr(), count.ips.as_mut_ptr().cast(), size, 0) } <= 0 {
            return None;
        }
        let most = u64::from(frozen(&STACK_FRAMES));
        // All ones down to the cut, then 0.
        let mut above = u64::MAX;
        let mut hash = 0_u64;
        for (i, place) in count.ips.iter_mut().enumerate() {
            let mut cut = 0;
            for range in &STACK_CUTS[..CUTS.len()] {
                cut |= frozen(range).holds(*place);
            }
            // 1 from the frame on that is one too many.
            cut |= (i as u64).wrapping_sub(most) >> 63 ^ 1;
            above &= cut.wrapping_sub(1);
            *place &= above;
            hash = (hash ^ *place).wrapping_mul(MIX);
            hash ^= hash >> 29;
        }
        let mut path = 0;
        if matches!(origin, ResetOrigin::Active) {
            for ip in &count.ips {
                for (bit, range) in STACK_PATHS.iter().enumerate() {
                    path |= frozen(range).holds(*ip) << bit;
                }
            }
        }
        Some(Self { count, hash, path })
    }

    /// Adds one to its count; returns its key, or 0 when the table refused it.
    #[inline(always)]
    pub fn add(self, origin: ResetOrigin, cause: ResetCause) -> u64 {
        // 0 is no key.
        let key = (self.hash ^ ((origin as u64) << 8 | cause as u64)).wrapping_mul(MIX) | 1;
        if let Some(known) = STACKS.get_ptr_mut(key) {
            // SAFETY: a value of the map.
            unsafe { atomic_add(&raw mut (*known).count, 1) };
            return key;
        }
        let entry = self.count;
        entry.count = 1;
        (entry.origin, entry.cause) = (origin as u8, cause as u8);
        entry.reserved = [0; 6];
        let entry: &StackCount = entry;
        if STACKS.insert(key, entry, count::BPF_NOEXIST).is_ok() {
            return key;
        }
        // Another CPU was first, or the table is full.
        if let Some(known) = STACKS.get_ptr_mut(key) {
            // SAFETY: a value of the map.
            unsafe { atomic_add(&raw mut (*known).count, 1) };
            key
        } else {
            count::lost(Loss::MapStack);
            0
        }
    }
}

const _: () = assert!(path::FUNCTIONS.len() < 64);
