//! Who owns a socket: a process, as it is at that moment. Cold: once a connection, and once a pass over files.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use tcpwatch_common::conn::{COMM_LEN, Conn};
use tcpwatch_common::counters::setting;
use tcpwatch_common::owner::OwnerKind;

use crate::config::LAYOUT;
use crate::kernel::{cgroup_id, field, pointer};
use crate::maps::SETTINGS;

/// `PF_KTHREAD`, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// A process.
pub struct Owner {
    /// Its number.
    pub pid: u32,
    uid: u32,
    cgroup: u64,
    comm: [u8; COMM_LEN],
}

impl Owner {
    /// The process of a task. Its name is that of the first thread: others name themselves after what they do.
    #[inline(always)]
    pub fn of(task: *const u8) -> Self {
        let leader = pointer(task, &LAYOUT.task_leader);
        let leader = if leader.is_null() { task } else { leader };
        let cgroup = pointer(pointer(task, &LAYOUT.task_cgroups), &LAYOUT.css_set_cgroup);
        Self {
            pid: field(task, &LAYOUT.task_tgid),
            uid: field(pointer(leader, &LAYOUT.task_cred), &LAYOUT.cred_euid),
            cgroup: cgroup_id(cgroup),
            comm: field(leader, &LAYOUT.task_comm),
        }
    }

    /// The process that runs. Only where the kernel works for it: in softirq it is anybody.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no arguments.
        Self::of(unsafe { bpf_get_current_task() } as *const u8)
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
        let same_name = u128::from_ne_bytes(conn.comm) == u128::from_ne_bytes(self.comm);
        if same_name && conn.owner_uid == self.uid && conn.cgroup == self.cgroup {
            return false;
        }
        conn.owner_uid = self.uid;
        conn.cgroup = self.cgroup;
        conn.comm = self.comm;
        true
    }
}

/// Whether a thread of the kernel runs: it reads and writes for others.
#[inline(always)]
pub fn kernel_thread() -> bool {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    field::<u32>(task, &LAYOUT.task_flags) & PF_KTHREAD != 0
}

/// Number of the pass over the files that is under way, or was the last.
#[inline(always)]
pub fn pass() -> u16 {
    SETTINGS.get(setting::FILES_PASS).map_or(0, |number| *number as u16)
}
