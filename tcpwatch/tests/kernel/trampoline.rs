//! Programs of others that watch a function, as many as the kernel lets watch one: nobody else can by fentry then.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::btf::{Btf, BtfKind};

/// `BPF_MAX_TRAMP_LINKS`, include/linux/bpf.h.
const MOST: usize = 38;
/// Of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
/// `BPF_PROG_TYPE_TRACING`.
const TRACING: u32 = 26;
/// `BPF_TRACE_FENTRY`.
const FENTRY: u32 = 24;
/// `r0 = 0; exit`.
const NOTHING: [u64; 2] = [0xb7, 0x95];
const LICENSE: &[u8; 4] = b"GPL\0";

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// The part for `BPF_RAW_TRACEPOINT_OPEN`, which also attaches to functions; then there is no name.
#[repr(C)]
struct Open {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads so many bytes of a structure that is laid out as it wants it, and of what that points to.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a descriptor that is ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// They watch until this is dropped.
pub(crate) struct Crowd {
    _links: Vec<OwnedFd>,
}

impl Crowd {
    /// Puts as many programs on a function as there is room for. Fails when there is room without end.
    pub(crate) fn on(function: &str) -> Result<Self> {
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
        let id = btf.id_by_type_name_kind(function, BtfKind::Func)?;
        let load = Load {
            prog_type: TRACING,
            insn_cnt: NOTHING.len() as u32,
            insns: NOTHING.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            expected_attach_type: FENTRY,
            attach_btf_id: id,
            ..Load::default()
        };
        let mut links = Vec::new();
        while links.len() <= MOST {
            let program = bpf(PROG_LOAD, &load).context("cannot load a program that does nothing")?;
            match bpf(RAW_TRACEPOINT_OPEN, &Open { name: 0, prog_fd: program.as_raw_fd() as u32, padding: 0 }) {
                Ok(link) => links.push(link),
                Err(error) => {
                    ensure!(error.raw_os_error() == Some(libc::E2BIG), "program {}: {error}", links.len());
                    return Ok(Self { _links: links });
                }
            }
        }
        bail!("{} programs are on {function}, and the kernel takes more", links.len())
    }
}
