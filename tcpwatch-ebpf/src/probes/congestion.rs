//! tcp_cong_state_set: time spent in Recovery and in Loss.

use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::state::ca_state;

use crate::emit::now_ns;
use crate::sock::TcpSock;

/// Closes the account of the old state and opens that of the new one.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let new: u8 = ctx.arg::<u64>(1) as u8;
    let Some(sock) = TcpSock::cast(sk) else { return };
    let Some(conn) = sock.state() else { return };
    if conn.ca_state == new {
        return;
    }
    let now_us = (now_ns() / 1000) as u32;
    // Wraps after 71 minutes, longer than any recovery lasts.
    let spent = now_us.wrapping_sub(conn.ca_since_us);
    match conn.ca_state {
        ca_state::RECOVERY => conn.ca_us[0] += spent,
        ca_state::LOSS => conn.ca_us[1] += spent,
        _ => {}
    }
    match new {
        ca_state::RECOVERY => conn.recoveries[0] += 1,
        ca_state::LOSS => conn.recoveries[1] += 1,
        _ => {}
    }
    conn.ca_state = new;
    conn.ca_since_us = now_us;
    conn.rtt_guard = 1;
}
