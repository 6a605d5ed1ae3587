//! Copies of kernel memory, for what is not reached by typed loads: cold paths only.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::mem::MaybeUninit;
use tcpwatch_common::layout::{ABSENT, Field};

use crate::config::{LAYOUT, offset};

/// An integer, or an array of them, at an address of the kernel; `None` when nothing is there.
#[inline(always)]
pub fn copy<T: Copy>(base: *const u8, at: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    if !copy_to(value.as_mut_ptr(), base, at) {
        return None;
    }
    // SAFETY: filled when the helper did not fail; every T is an integer or an array of them.
    Some(unsafe { value.assume_init() })
}

/// The same into a place; false when nothing is there.
#[inline(always)]
pub fn copy_to<T>(to: *mut T, base: *const u8, at: usize) -> bool {
    // SAFETY: the helper checks the kernel address, and fills the value or fails; a wrong address is no fault.
    unsafe { bpf_probe_read_kernel(to.cast(), size_of::<T>() as u32, base.wrapping_add(at).cast()) == 0 }
}

/// A field of the structure at `base`; zero when this kernel does not have it, or nothing is there.
#[inline(always)]
pub fn field<T: Copy + Default>(base: *const u8, field: &'static Field) -> T {
    let at = offset(field);
    if at == ABSENT {
        return T::default();
    }
    copy(base, usize::from(at)).unwrap_or_default()
}

/// A field that points to another structure.
#[inline(always)]
pub fn pointer(base: *const u8, at: &'static Field) -> *const u8 {
    field::<u64>(base, at) as *const u8
}

/// The id of a control group; 0 for none.
#[inline(always)]
pub fn cgroup_id(cgroup: *const u8) -> u64 {
    field(pointer(cgroup, &LAYOUT.cgroup_node), &LAYOUT.cgroup_node_id)
}
