//! Who owns a socket: a process, as it is at that moment. Cold: once a connection, and once a pass over files.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use core::ptr;
use tcpwatch_common::conn::{COMM_LEN, Conn};
use tcpwatch_common::counters::setting;
use tcpwatch_common::owner::OwnerKind;

use crate::config::{LAYOUT, offset};
use crate::kernel::{cgroup_id, typed, typed_pointer};
use crate::maps::SETTINGS;

/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// A process.
pub struct Owner {
    /// Its number.
    pub pid: u32,
    uid: u32,
    cgroup: u64,
    comm: [u64; COMM_LEN / 8],
}

/// The name of a task.
#[inline(always)]
fn name(task: *const u8) -> [u64; COMM_LEN / 8] {
    let at = usize::from(offset(&LAYOUT.task_comm));
    // SAFETY: two typed loads within the array that the name is.
    unsafe {
        let words = task.add(at).cast::<u64>();
        [ptr::read_volatile(words), ptr::read_volatile(words.add(1))]
    }
}

impl Owner {
    /// The process of a task. Its name is that of the first thread: others name themselves after what they do.
    #[inline(always)]
    pub fn of(task: *const u8) -> Self {
        let leader = typed_pointer(task, &LAYOUT.task_leader);
        Self {
            pid: typed(task, &LAYOUT.task_tgid),
            uid: typed(typed_pointer(leader, &LAYOUT.task_cred), &LAYOUT.cred_euid),
            cgroup: cgroup_id(typed_pointer(typed_pointer(task, &LAYOUT.task_cgroups), &LAYOUT.css_set_cgroup)),
            comm: name(leader),
        }
    }

    /// The process that runs. Only where the kernel works for it: in softirq it is anybody.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no arguments.
        Self::of(unsafe { bpf_get_current_task_btf() }.cast())
    }

    /// Makes it the owner.
    #[inline(always)]
    pub fn take(&self, conn: &mut Conn, kind: OwnerKind) {
        conn.pid = self.pid;
        conn.owner_kind = kind as u8;
        conn.owner_pass = pass();
        let _news = self.refresh(conn);
    }

    /// Writes what may change of the owner; true when something has.
    #[inline(always)]
    pub fn refresh(&self, conn: &mut Conn) -> bool {
        // SAFETY: a field of 16 bytes of a map value, aligned as the words are.
        let known = unsafe { &mut *(&raw mut conn.comm).cast::<[u64; COMM_LEN / 8]>() };
        if known[0] == self.comm[0]
            && known[1] == self.comm[1]
            && conn.owner_uid == self.uid
            && conn.cgroup == self.cgroup
        {
            return false;
        }
        conn.owner_uid = self.uid;
        conn.cgroup = self.cgroup;
        *known = self.comm;
        true
    }
}

/// Whether a thread of the kernel runs: it reads and writes for others.
#[inline(always)]
pub fn kernel_thread() -> bool {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() }.cast();
    typed::<u32>(task, &LAYOUT.task_flags) & PF_KTHREAD != 0
}

/// Number of the pass over the files that is under way, or was the last.
#[inline(always)]
pub fn pass() -> u16 {
    SETTINGS.get(setting::FILES_PASS).map_or(0, |number| *number as u16)
}
