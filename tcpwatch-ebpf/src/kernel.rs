//! Kernel memory other than sockets: by typed loads where the verifier knows the type, else copied, in cold paths only.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::mem::MaybeUninit;
use core::ptr;
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

/// A field of a structure of which the verifier knows the type: one load, where a copy is a call. A pointer that leads
/// nowhere reads as zero.
#[inline(always)]
pub fn typed<T: Copy + Default>(base: *const u8, field: &'static Field) -> T {
    let at = offset(field);
    if at == ABSENT {
        return T::default();
    }
    // SAFETY: the verifier checks the load against the kernel's own types, and has a fault read as zero.
    unsafe { ptr::read_volatile(base.wrapping_add(usize::from(at)).cast::<T>()) }
}

/// A field that points to another such structure.
#[inline(always)]
pub fn typed_pointer(base: *const u8, field: &'static Field) -> *const u8 {
    let at = offset(field);
    if at == ABSENT {
        return ptr::null();
    }
    // SAFETY: as in `typed`.
    unsafe { ptr::read_volatile(base.wrapping_add(usize::from(at)).cast::<*const u8>()) }
}

/// The id of a control group; 0 on a kernel without.
#[inline(always)]
pub fn cgroup_id(cgroup: *const u8) -> u64 {
    if offset(&LAYOUT.cgroup_node) == ABSENT {
        return 0;
    }
    typed(typed_pointer(cgroup, &LAYOUT.cgroup_node), &LAYOUT.cgroup_node_id)
}
