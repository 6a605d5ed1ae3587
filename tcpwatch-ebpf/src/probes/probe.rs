//! tcp_probe: every segment that an established socket receives. The one hot path of the product.

use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{Loss, slot};
use tcpwatch_common::record::Kind;
use tcpwatch_common::state::Direction;

use crate::config::{TICK_MODE, frozen, watched};
use crate::count;
use crate::emit::{self, Moment};
use crate::kernel::typed;
use crate::limits;
use crate::maps::{ADMITTED, ADMITTED_ENTRIES};
use crate::sock::{TcpSock, direction_by_port, jiffies};

/// Takes what the previous segment left behind: the tracepoint fires before this one is processed.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let now = jiffies();
    if frozen(&TICK_MODE) != 0 && !admit(sk, now) {
        return;
    }
    let Some(sock) = TcpSock::known(sk) else { return };
    let conn = match sock.state() {
        Some(conn) if conn.begun != 0 => conn,
        _ => {
            first_sight(sock, now);
            return;
        }
    };
    let cwnd = sock.snd_cwnd();
    limits::watch::<true>(sock, conn, cwnd);
    emit::observe::<true>(sock, conn, cwnd);
    if now >= conn.next_emit {
        sample(sock, conn, now);
    }
}

/// False when this socket was already looked at in this jiffy. The identity is a scalar, as the verifier forbids
/// arithmetic on the pointer; two sockets that share an entry only cost each other the shortcut.
#[inline(always)]
fn admit(sk: *const u8, now: u64) -> bool {
    let (hash, port): (u32, u16) = (typed!(sk, skc_hash), typed!(sk, skc_dport));
    let identity = u64::from(hash) << 32 | u64::from(port);
    let Some(entry) = ADMITTED.get_ptr_mut(hash & (ADMITTED_ENTRIES - 1)) else { return true };
    // SAFETY: a value of the map that only this program writes.
    let entry = unsafe { &mut *entry };
    if entry.identity == identity && entry.jiffy == now {
        return false;
    }
    entry.identity = identity;
    entry.jiffy = now;
    true
}

#[inline(always)]
fn sample(sock: TcpSock, conn: &mut Conn, now: u64) {
    conn.next_emit = emit::next_sample(now);
    let direction = Direction::from_u8(conn.direction);
    if conn.slot == slot::other(direction) {
        // A service may have got its slot since; what was counted stays where it is.
        conn.slot = count::slot_of(sock, direction);
    }
    emit::flush(sock, conn);
    let state = sock.skc_state();
    let (now_ns, kind, loss) = (emit::now_ns(), Kind::Sample, Loss::RingSample);
    let moment = Moment { now_ns, kind, old_state: state, state, cause: 0, loss };
    emit::connection(sock, conn, &moment);
    // The segment is counted by now and not processed: what it acknowledges is news for the iterator, even if no other comes.
    conn.told_segments = conn.told_segments.wrapping_sub(1);
}

/// A connection that was established before the daemon, or whose state could not be kept when it was opened.
#[inline(always)]
fn first_sight(sock: TcpSock, now: u64) {
    let netns = sock.netns();
    if !watched(netns) {
        return;
    }
    let Some(conn) = sock.state_or_new() else {
        count::lost(Loss::StorageProbe);
        return;
    };
    if !emit::adopt(sock, conn, direction_by_port(netns, sock.local_port())) {
        return;
    }
    count::gauge(conn, sock.skc_state());
    sample(sock, conn, now);
}
