//! tcp_rcv_space_adjust: a process takes what a connection received. It is the first place where the one that accepted a
//! connection is seen at work on it, and the last word when several hold it.

use aya_ebpf::EbpfContext;
use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::owner::OwnerKind;

use crate::config::{HZ, frozen};
use crate::emit;
use crate::kernel::typed;
use crate::maps::{READERS, READERS_ENTRIES};
use crate::owner::{self, Owner};
use crate::sock::{TcpSock, jiffies};

/// The kernel counts what a reader took. It does so for every segment that is consumed: what was seen a moment ago on this
/// CPU is not looked at again.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let pid = ctx.tgid();
    let (hash, port): (u32, u16) = (typed!(sk, skc_hash), typed!(sk, skc_dport));
    let now = jiffies();
    let Some(entry) = READERS.get_ptr_mut(hash & (READERS_ENTRIES - 1)) else { return };
    // SAFETY: a value of the map that only this program writes, and that it does not interrupt itself.
    let entry = unsafe { &mut *entry };
    let socket = u64::from(hash) << 16 | u64::from(port);
    if entry.socket == socket && entry.pid == pid && now.wrapping_sub(entry.jiffy) < u64::from(frozen(&HZ)) {
        return;
    }
    entry.socket = socket;
    entry.pid = pid;
    entry.jiffy = now;
    look(sk, pid);
}

#[inline(always)]
fn look(sk: *const u8, pid: u32) {
    let Some(sock) = TcpSock::cast(sk) else { return };
    let Some(conn) = sock.state() else { return };
    if conn.begun == 0 || (conn.pid == pid && conn.owner_kind == OwnerKind::Read as u8) {
        return;
    }
    // In softirq a reader within the kernel runs with the socket not owned, in whatever process was interrupted; a
    // thread of the kernel reads for somebody else.
    if sock.sk_lock_owned() == 0 || owner::kernel_thread() {
        return;
    }
    Owner::current().take(conn, OwnerKind::Read);
    // News for the iterator, even if no segment comes any more.
    conn.told_segments = emit::activity(sock).wrapping_sub(1);
}
