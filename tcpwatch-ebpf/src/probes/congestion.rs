//! tcp_cong_state_set: time spent in each congestion state, and reductions that the kernel took back.

use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::conn::Conn;
use tcpwatch_common::layout::ABSENT;
use tcpwatch_common::state::ca_state;

use crate::config::{LAYOUT, offset};
use crate::emit::{self, now_ns};
use crate::limits;
use crate::sock::TcpSock;

/// Closes the account of the old state and opens that of the new one.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let new: u8 = ctx.arg::<u64>(1) as u8;
    let Some(sock) = TcpSock::known(sk) else { return };
    let Some(conn) = sock.state() else { return };
    if conn.ca_state == new {
        return;
    }
    let now_us = (now_ns() / 1000) as u32;
    conn.ca_us = emit::congestion_times(conn, now_us);
    needless(sock, conn, new);
    match new {
        ca_state::RECOVERY => conn.recoveries[0] += 1,
        ca_state::LOSS => conn.recoveries[1] += 1,
        _ => {}
    }
    conn.ca_state = new;
    conn.ca_since_us = now_us;
    conn.rtt_guard = 1;
    // The window that a recovery leaves behind was not made by a pause.
    limits::see_window(conn, sock.snd_cwnd());
}

/// What was sent again without need, where the receiver cannot say so by DSACK: the kernel found out from a timestamp, or
/// because the ACKs of the original segments came (RFC 3522, RFC 5682), and has taken its reduction back.
#[inline(always)]
fn needless(sock: TcpSock, conn: &mut Conn, new: u8) {
    let recovered = conn.ca_state >= ca_state::RECOVERY && new < ca_state::CWR;
    if !recovered || sock.sack_ok() || sock.undo_marker() != 0 || offset(&LAYOUT.undo_marker) == ABSENT {
        return;
    }
    let segments = sock.undo_retrans().max(0) as u32;
    emit::prove_needless(conn, segments);
}
