//! tcp_receive_reset: a RST that ends a full socket, or data for an orphan, which the kernel treats alike until the
//! passive reset that follows (see `probes/reset.rs`).

use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::close::flag;
use tcpwatch_common::counters::{Loss, bucket, group};
use tcpwatch_common::record::{Kind, ResetRecord};
use tcpwatch_common::reset::{ResetCause, ResetOrigin, known};

use crate::config::watched;
use crate::count;
use crate::emit::{self, Haste};
use crate::sock::{TcpSock, direction_by_port};

/// Remembers it for the close that follows at once, and counts it by state.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let Some(sock) = TcpSock::cast(sk) else { return };
    let netns = sock.netns();
    if !watched(netns) {
        return;
    }
    let state = sock.skc_state();
    let (slot, started_ns, history, state_since_ms) = if let Some(conn) = sock.state() {
        conn.flags |= flag::RST_RECEIVED;
        (conn.slot, conn.started_ns, conn.history, conn.state_since_ms)
    } else {
        (count::slot_of(sock, direction_by_port(netns, sock.local_port())), 0, 0, 0)
    };
    count::count_at(slot, group::received(state), 1);
    if !emit::allowed(bucket::RECEIVED, Loss::ThrottledReceived) {
        return;
    }
    emit::record::<ResetRecord>(Loss::RingReceived, Haste::Whenever, |place| {
        // SAFETY: a reserved record.
        unsafe {
            place.write(ResetRecord {
                header: emit::header::<ResetRecord>(Kind::ResetReceived),
                cookie: sock.cookie(),
                started_ns,
                bytes_sent: sock.bytes_sent(),
                bytes_received: sock.payload_received(),
                linger_jiffies: sock.linger_jiffies(),
                stack: 0,
                key: sock.key(),
                slot,
                reason: u32::MAX,
                seq: 0,
                ack: 0,
                unread_bytes: sock.unread_payload(),
                unsent_bytes: sock.write_seq().wrapping_sub(sock.snd_nxt()),
                unacked_bytes: sock.snd_nxt().wrapping_sub(sock.snd_una()),
                srtt_us: sock.srtt_us() >> 3,
                snd_cwnd: sock.snd_cwnd(),
                total_retrans: sock.total_retrans(),
                history,
                state_since_ms,
                uid: sock.sk_uid(),
                origin: ResetOrigin::Passive as u8,
                cause: ResetCause::Unknown as u8,
                state,
                tcp_flags: 0,
                backoff: sock.icsk_backoff(),
                known: known::SOCKET
                    | if sock.lingers() { known::LINGER } else { 0 }
                    | if sock.is_unheld() { known::ORPHAN } else { 0 },
                probes_out: 0,
                reserved: 0,
            });
        }
    });
}
