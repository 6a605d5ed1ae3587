//! tcp_retransmit_skb and tcp_retransmit_synack: segments sent again, by cause.

use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_common::counters::{Loss, bucket, group, netns as netns_word};
use tcpwatch_common::record::{Kind, RetransmitRecord};
use tcpwatch_common::retransmit::{RetransmitCause, RetransmitFacts, cause};
use tcpwatch_common::state::Direction;

use crate::config::{LAYOUT, RETRANSMIT_HAS_ERR, frozen, offset, watched};
use crate::count::{self, Group};
use crate::emit::{self, Haste};
use crate::sock::{TcpSock, direction_by_port};

/// `EBUSY`: the segment still waits in a queue of this host, which the kernel does not count as a failure.
const EBUSY: i32 = 16;

/// Loads a field of the control block of a segment.
macro_rules! control_block {
    ($skb:expr, $field:ident, $t:ty) => {{
        let at = usize::from(offset(&LAYOUT.skb_cb)) + usize::from(offset(&LAYOUT.$field));
        // SAFETY: a typed load within `cb`, which the verifier checks.
        unsafe { core::ptr::read_volatile($skb.add(at).cast::<$t>()) }
    }};
}

/// One call of `__tcp_retransmit_skb`. The segments are those by which `total_retrans` grew: the kernel counts before
/// it sends, failed transmits included.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let skb: *const u8 = ctx.arg(1);
    let err = if frozen(&RETRANSMIT_HAS_ERR) != 0 { ctx.arg::<i32>(2) } else { 0 };
    let Some(sock) = TcpSock::cast(sk) else { return };
    let known = match sock.state() {
        Some(conn) if conn.begun != 0 => Some(conn),
        _ => None,
    };
    let conn = if let Some(conn) = known {
        conn
    } else {
        let netns = sock.netns();
        if !watched(netns) {
            return;
        }
        let Some(conn) = sock.state_or_new() else {
            count::lost(Loss::StorageRetransmit);
            without_state(sock, skb, netns, err);
            return;
        };
        let adopted = emit::adopt(sock, conn, direction_by_port(netns, sock.local_port()));
        count::gauge(conn, sock.skc_state());
        if adopted && err == 0 {
            conn.retrans_seen = conn.retrans_seen.wrapping_sub(segments_of(skb));
        }
        conn
    };
    conn.rtt_guard = 1;
    let segments = emit::unattributed(sock, conn);
    let why = cause(&facts(sock, skb));
    if let Some(group) = Group::of(conn.slot) {
        emit::attribute(sock.netns(), conn, &group, why, segments);
        if err != 0 && err != -EBUSY {
            conn.retrans_failed += segments;
            group.add(group::RETRANSMIT_FAILURES, u64::from(segments));
        }
    }
    if emit::allowed(bucket::RETRANSMIT, Loss::ThrottledRetransmit) {
        detail(sock, skb, why, segments, err);
    }
}

/// No memory for state: the total still counts, by what the segment itself says.
#[inline(always)]
fn without_state(sock: TcpSock, skb: *const u8, netns: u32, err: i32) {
    let slot = count::slot_of(sock, direction_by_port(netns, sock.local_port()));
    if err == 0 {
        let segments = u64::from(segments_of(skb));
        count::count_at(slot, group::retransmits(cause(&facts(sock, skb))), segments);
        count::count_netns(netns, netns_word::RETRANSMITS, segments);
    }
}

#[inline(always)]
fn facts(sock: TcpSock, skb: *const u8) -> RetransmitFacts {
    RetransmitFacts {
        tcp_flags: control_block!(skb, cb_tcp_flags, u8),
        pending: sock.icsk_pending(),
        ca_state: sock.ca_state(),
        retransmits: sock.icsk_retransmits(),
        snd_wnd: sock.snd_wnd(),
        undo_marker: sock.undo_marker(),
    }
}

#[inline(always)]
fn segments_of(skb: *const u8) -> u32 {
    u32::from(control_block!(skb, cb_gso_segs, u16)).max(1)
}

#[inline(always)]
fn detail(sock: TcpSock, skb: *const u8, why: RetransmitCause, segments: u32, err: i32) {
    emit::record::<RetransmitRecord>(Loss::RingRetransmit, Haste::Whenever, |place| {
        let seq = control_block!(skb, cb_seq, u32);
        let bytes = control_block!(skb, cb_end_seq, u32).wrapping_sub(seq);
        // SAFETY: a reserved record.
        unsafe {
            place.write(RetransmitRecord {
                header: emit::header::<RetransmitRecord>(Kind::Retransmit),
                cookie: sock.cookie(),
                key: sock.key(),
                seq,
                bytes,
                segments,
                srtt_us: sock.srtt_us() >> 3,
                snd_cwnd: sock.snd_cwnd(),
                packets_out: sock.packets_out(),
                snd_wnd: sock.snd_wnd(),
                err,
                cause: why as u8,
                state: sock.skc_state(),
                ca_state: sock.ca_state(),
                backoff: sock.icsk_backoff(),
            });
        }
    });
}

/// A listener sent a SYN-ACK again. The child that may come of it starts with this in its `total_retrans`, which is
/// why the baseline of a child is taken when it reaches ESTABLISHED.
#[inline(always)]
pub fn handle_synack(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let Some(sock) = TcpSock::cast(sk) else { return };
    let netns = sock.netns();
    if !watched(netns) {
        return;
    }
    let slot = count::slot_of(sock, Direction::Inbound);
    count::count(slot, group::retransmits(RetransmitCause::SynAck), 1);
    count::count_netns(netns, netns_word::RETRANSMITS, 1);
    if !emit::allowed(bucket::SYN_ACK, Loss::ThrottledSynAck) {
        return;
    }
    emit::record::<RetransmitRecord>(Loss::RingSynAck, Haste::Whenever, |place| {
        // SAFETY: a reserved record.
        unsafe {
            place.write(RetransmitRecord {
                header: emit::header::<RetransmitRecord>(Kind::Retransmit),
                cookie: sock.cookie(),
                key: sock.key(),
                seq: 0,
                bytes: 0,
                segments: 1,
                srtt_us: 0,
                snd_cwnd: 0,
                packets_out: 0,
                snd_wnd: 0,
                err: 0,
                cause: RetransmitCause::SynAck as u8,
                state: sock.skc_state(),
                ca_state: 0,
                backoff: 0,
            });
        }
    });
}
