//! Copies of kernel memory, for what is not reached by typed loads: cold paths only.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::mem::MaybeUninit;
use tcpwatch_common::layout::{ABSENT, Field};

use crate::config::offset;

/// An integer, or an array of them, at an address of the kernel; `None` when nothing is there.
#[inline(always)]
pub fn copy<T: Copy>(base: u64, at: u16) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let from = base.wrapping_add(u64::from(at)) as *const u8;
    // SAFETY: the helper checks the address, and fills the value or fails; a wrong address is no fault.
    let failed = unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.cast()) };
    if failed != 0 {
        return None;
    }
    // SAFETY: filled; every T is an integer or an array of them.
    Some(unsafe { value.assume_init() })
}

/// A field of the structure at `base`; zero when this kernel does not have it, or nothing is there.
#[inline(always)]
pub fn field<T: Copy + Default>(base: u64, field: &'static Field) -> T {
    let at = offset(field);
    if base == 0 || at == ABSENT {
        return T::default();
    }
    copy(base, at).unwrap_or_default()
}
