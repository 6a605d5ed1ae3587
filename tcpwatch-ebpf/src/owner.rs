//! Who owns a socket: a process, as it is at that moment. Cold: once a connection, and once a pass over files.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use tcpwatch_common::conn::{COMM_LEN, Conn};
use tcpwatch_common::counters::setting;
use tcpwatch_common::owner::OwnerKind;

use crate::kernel::{cgroup_id, typed};
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
    [typed!(task, task_comm), typed!(task, task_comm, 8)]
}

impl Owner {
    /// The process of a task. Its name is that of the first thread: others name themselves after what they do.
    #[inline(always)]
    pub fn of(task: *const u8) -> Self {
        let leader: *const u8 = typed!(task, task_leader);
        let (cred, groups): (*const u8, *const u8) = (typed!(leader, task_cred), typed!(task, task_cgroups));
        Self {
            pid: typed!(task, task_tgid),
            uid: typed!(cred, cred_euid),
            cgroup: cgroup_id(typed!(groups, css_set_cgroup)),
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
    let task: *const u8 = unsafe { bpf_get_current_task_btf() }.cast();
    let flags: u32 = typed!(task, task_flags);
    flags & PF_KTHREAD != 0
}

/// Number of the pass over the files that is under way, or was the last.
#[inline(always)]
pub fn pass() -> u16 {
    SETTINGS.get(setting::FILES_PASS).map_or(0, |number| *number as u16)
}
