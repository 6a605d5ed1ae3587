//! Kernel memory other than sockets: by typed loads where the verifier knows the type, else copied, in cold paths only.

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

/// What one load can give.
pub trait Placed: Copy {
    /// Loads it from the field that `AT` stands for; zero when this kernel does not have that, or `base` leads nowhere. The
    /// verifier refuses a pointer of which it does not know the type.
    fn load<const AT: i32>(base: *const u8) -> Self;
}

/// A load is one instruction with a place in it that the loader puts the offset into. Written by the compiler it would take
/// the offset from a global each time, and for a field that may be absent compare it, in ten instructions.
macro_rules! placed {
    ($($t:ty, $through:ty, $class:ident, $load:literal;)+) => {$(
        impl Placed for $t {
            #[inline(always)]
            #[cfg(target_arch = "bpf")]
            fn load<const AT: i32>(base: *const u8) -> Self {
                let value: $through;
                // SAFETY: the verifier checks the load against the kernel's own types, and has a fault read as zero.
                unsafe {
                    core::arch::asm!($load, out($class) value, in(reg) base, const AT,
                        options(readonly, nostack, preserves_flags));
                }
                value as Self
            }

            #[cfg(not(target_arch = "bpf"))]
            fn load<const AT: i32>(base: *const u8) -> Self {
                // SAFETY: the host never runs these programs.
                unsafe { base.wrapping_add(AT as usize).cast::<Self>().read() }
            }
        }
    )+};
}

placed! {
    u8, u32, wreg, "{0} = *(u8 *)({1} + {2})";
    u16, u32, wreg, "{0} = *(u16 *)({1} + {2})";
    u32, u32, wreg, "{0} = *(u32 *)({1} + {2})";
    i32, u32, wreg, "{0} = *(u32 *)({1} + {2})";
    u64, u64, reg, "{0} = *(u64 *)({1} + {2})";
    *const u8, u64, reg, "{0} = *(u64 *)({1} + {2})";
}

/// A field of a structure of which the verifier knows the type, by one load where a copy is a call. A pointer that leads
/// nowhere reads as zero.
macro_rules! typed {
    ($base:expr, $field:ident) => {
        $crate::kernel::typed!($base, $field, 0)
    };
    // Some bytes into it.
    ($base:expr, $field:ident, $within:literal) => {{
        const AT: i32 =
            tcpwatch_common::layout::place(core::mem::offset_of!(tcpwatch_common::layout::Layout, $field), $within);
        $crate::kernel::Placed::load::<AT>($base)
    }};
}
pub(crate) use typed;

/// A socket as a `struct tcp_sock`. Two instructions that the loader knows: where the kernel has `bpf_rdonly_cast` (6.2), which
/// its verifier takes for a move, they are made into that, and `sk` must be one; else the helper is called, and checks it.
#[inline(always)]
#[cfg(target_arch = "bpf")]
pub fn cast_known(sk: *const u8) -> *mut u8 {
    use tcpwatch_common::layout;
    let tcp: u64;
    // SAFETY: the call of a helper, and all that it may change.
    unsafe {
        core::arch::asm!("r2 = {}", "call {}", const layout::CAST, const layout::SKC_TO_TCP_SOCK,
            inlateout("r1") sk => _, lateout("r0") tcp, lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _);
    }
    tcp as *mut u8
}

/// A socket as a `struct tcp_sock`.
#[cfg(not(target_arch = "bpf"))]
pub fn cast_known(sk: *const u8) -> *mut u8 {
    sk.cast_mut()
}

/// The id of a control group; 0 on a kernel without.
#[inline(always)]
pub fn cgroup_id(cgroup: *const u8) -> u64 {
    if offset(&LAYOUT.cgroup_node) == ABSENT {
        return 0;
    }
    let node: *const u8 = typed!(cgroup, cgroup_node);
    typed!(node, cgroup_node_id)
}
