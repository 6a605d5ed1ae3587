//! Asks the kernel whether a namespace still exists, without holding it: by its file handle (Linux 6.18).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tcpwatch_lab::Netns;

/// `FD_NSFS_ROOT` of `include/uapi/linux/fcntl.h`.
const NSFS_ROOT: libc::c_int = -10_003;

/// Room for a handle; one of a namespace takes 16 bytes.
const ROOM: usize = 64;

#[repr(C)]
#[derive(Clone, Debug)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; ROOM],
}

/// A name of a namespace that outlives it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    handle: Option<Handle>,
}

impl Ticket {
    pub(crate) fn of(netns: &Netns) -> Self {
        Self::of_fd(netns.fd())
    }

    pub(crate) fn of_fd(fd: BorrowedFd<'_>) -> Self {
        let mut handle = Handle { bytes: ROOM as u32, kind: 0, data: [0; ROOM] };
        let mut mount = 0;
        // SAFETY: the kernel reads the empty path and writes at most `bytes` bytes behind the handle's head, and
        // the mount's number; all live until the call returns.
        let status = unsafe {
            libc::name_to_handle_at(
                fd.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        Self { handle: (status == 0).then_some(handle) }
    }

    /// Whether the namespace still exists; `None` when this kernel cannot tell.
    pub(crate) fn exists(&self) -> Option<bool> {
        let mut handle = self.handle.clone()?;
        // SAFETY: the kernel reads the handle, which lives until the call returns.
        let fd = unsafe { libc::open_by_handle_at(NSFS_ROOT, (&raw mut handle).cast(), libc::O_RDONLY) };
        if fd >= 0 {
            // SAFETY: the call has just returned this descriptor, and no one else has it.
            drop(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            return Some(true);
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT) => Some(false),
            _ => None,
        }
    }
}
