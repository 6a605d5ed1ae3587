//! Changing a word that another program, or another CPU, may be changing.
//!
//! TCP's backlog runs in process context with softirqs enabled, so one of our programs can interrupt another between
//! its load and its store. A word that only one program writes needs no care: the kernel never nests a program in itself.

/// The same number, of which the compiler knows nothing any more: it cannot keep a second copy, of which the verifiers
/// before 6.13 do not see that a check of the first one bounds it too.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn opaque(n: usize) -> usize {
    let mut n = n as u64;
    // SAFETY: changes nothing. One instruction, as line numbers would be given twice to the next if there were none.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) n, options(nomem, nostack, preserves_flags)) };
    n as usize
}

/// The same number.
#[cfg(not(target_arch = "bpf"))]
pub fn opaque(n: usize) -> usize {
    n
}

/// Adds `n` to `*word` in one instruction.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub unsafe fn atomic_add(word: *mut u64, n: u64) {
    // SAFETY: one BPF_ATOMIC add on memory that the caller vouches for. The prebuilt `core` for BPF has no AtomicU64.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) n, options(nostack)) }
}

/// Adds `n` to `*word`.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn atomic_add(word: *mut u64, n: u64) {
    // SAFETY: as the caller vouches; the host never runs these programs.
    unsafe { *word = (*word).wrapping_add(n) }
}

/// Puts `new` into `*word` and returns what was there.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub unsafe fn exchange(word: *mut u64, new: u64) -> u64 {
    let mut value = new;
    // SAFETY: one BPF_XCHG on memory that the caller vouches for.
    unsafe { core::arch::asm!("{1} = xchg_64({0} + 0, {1})", in(reg) word, inout(reg) value, options(nostack)) }
    value
}

/// Puts `new` into `*word` and returns what was there.
///
/// # Safety
/// `word` points into a map value and is aligned.
#[cfg(not(target_arch = "bpf"))]
pub unsafe fn exchange(word: *mut u64, new: u64) -> u64 {
    // SAFETY: as the caller vouches; the host never runs these programs.
    unsafe { core::ptr::replace(word, new) }
}

/// Puts `new` into `word` and returns what was there. An exchange costs as much as twenty other instructions, and most of the
/// time nothing has changed.
#[inline(always)]
pub fn put(word: &mut u64, new: u64) -> u64 {
    // SAFETY: a field of a map value.
    let before = unsafe { core::ptr::read_volatile(word) };
    if before == new {
        return new;
    }
    // SAFETY: as above; another CPU may have put something there since.
    unsafe { exchange(word, new) }
}
