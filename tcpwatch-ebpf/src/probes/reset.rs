//! Every RST that this host's TCP sends, active or passive.
//!
//! The program is cold and its arguments may be NULL, a minisock or a request: some verifiers refuse to touch them
//! before a check, others take them for never NULL and drop the check. So nothing here is a typed load: everything is
//! copied with bpf_probe_read_kernel, from a raw tracepoint, fentry or kprobe alike. The record is built in a scratch
//! value of the program's own, as it and the headers would not both fit the stack.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpwatch_common::close::CloseCause;
use tcpwatch_common::counters::{Loss, bucket, group, netns, reason as reason_word, slot};
use tcpwatch_common::layout::ABSENT;
use tcpwatch_common::record::{Kind, ResetRecord};
use tcpwatch_common::reset::{REASONS, ReasonHint, ResetFacts, ResetOrigin, cause, known};
use tcpwatch_common::state::{Direction, TcpState};

use super::stack::Stack;
use crate::add::{atomic_add, opaque};
use crate::config::{LAYOUT, REASON_HINTS, offset, watched};
use crate::count::{self, Group};
use crate::emit::{self, Haste};
use crate::kernel::{copy, copy_to, field};
use crate::maps::{self, CLOSING, Closing, EVENTS, RESET_SCRATCH};
use crate::sock::{AF_INET6, direction_by_port, is_mapped, jiffies, mapped};

/// `SOCK_LINGER` of `enum sock_flags`, include/net/sock.h.
const SOCK_LINGER: u64 = 1 << 4;
/// `SOCK_DONE` of the same: a FIN was received, and is counted as a byte.
const SOCK_DONE: u64 = 1 << 1;
/// RST of the 14th byte of a TCP header.
const TCP_RST: u8 = 0x04;
/// Jiffies within which a reset belongs to the close of the same socket.
const SAME_CLOSE: u64 = 2;
/// `RTN_LOCAL`, include/uapi/linux/rtnetlink.h.
const RTN_LOCAL: u16 = 2;
/// `RTF_LOCAL`, include/uapi/linux/ipv6_route.h.
const RTF_LOCAL: u32 = 0x8000_0000;
/// `SKB_DST_PTRMASK`, include/linux/skbuff.h: the lowest bit says that no reference is held.
const DST_MASK: u64 = !1;

/// The program that calls: each has a scratch value of its own, as one may interrupt another.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Program {
    /// The tracepoint, or `tcp_send_active_reset`.
    Active = 0,
    /// `tcp_v4_send_reset`.
    PassiveV4 = 1,
    /// `tcp_v6_send_reset`.
    PassiveV6 = 2,
}

/// The reason of kernels that give none.
pub const NO_REASON: u32 = u32::MAX;

/// Where the call came from.
pub struct Call {
    /// The program.
    pub program: Program,
    /// Socket, or null.
    pub sk: *const u8,
    /// The segment that caused it, or null for an active reset.
    pub skb: *const u8,
    /// The kernel's reason, [`NO_REASON`] on kernels that give none. Not an `Option`: its payload would be spilled to
    /// the stack before it is written, which the verifier refuses.
    pub reason: u32,
    /// Active or passive.
    pub origin: ResetOrigin,
}

/// A RST is being sent.
#[inline(always)]
pub fn handle<C: EbpfContext>(ctx: &C, call: &Call) {
    let Some(r) = RESET_SCRATCH.get_ptr_mut(call.program as u32) else { return };
    // SAFETY: a value of the map that only the calling program uses, and no program nests in itself.
    let r = unsafe { &mut *r };
    r.key.reserved = 0;
    r.key.netns =
        if call.sk.is_null() { netns_of_segment(call.skb) } else { netns_of(field(call.sk, &LAYOUT.skc_net)) };
    if !watched(r.key.netns) {
        return;
    }
    // Before the many branches: its loops are the longest part, and the verifier walks them anew for each way to them.
    let stack = Stack::read(ctx, call.program, call.origin);
    let state: u8 = if call.sk.is_null() { 0 } else { field(call.sk, &LAYOUT.skc_state) };
    let full = state != 0 && state != TcpState::TimeWait as u8 && state != TcpState::NewSynRecv as u8;
    let parsed = !call.skb.is_null() && parse(call.skb, r);
    r.known = if parsed { known::SEGMENT } else { 0 };
    if !parsed {
        (r.seq, r.ack, r.tcp_flags) = (0, 0, 0);
        socket_key(call.sk, full, r);
    }
    if full {
        socket(call.sk, r);
    } else {
        no_socket(r);
    }
    let why = cause(&ResetFacts {
        origin: call.origin,
        hint: hint(call.reason),
        state,
        shutdown: if full { field(call.sk, &LAYOUT.sk_shutdown) } else { 0 },
        linger_zero: r.known & known::LINGER != 0 && r.linger_jiffies == 0,
        orphan: r.known & known::ORPHAN != 0,
        unread: r.unread_bytes,
        queue_full: full && state == TcpState::Listen as u8 && queue_is_full(call.sk),
        tcp_flags: r.tcp_flags,
        path: match &stack {
            Some(stack) => stack.path,
            None => 0,
        },
    });
    r.stack = if let Some(stack) = stack {
        stack.add(call.origin, why)
    } else {
        count::lost(Loss::MapStack);
        0
    };
    r.state = state;
    r.slot = slot_of(r, full);
    // That of a connection in TIME_WAIT is the one it had before.
    r.cookie = if state == 0 || state == TcpState::NewSynRecv as u8 { 0 } else { field(call.sk, &LAYOUT.skc_cookie) };
    if full {
        ended_just_now(call, r);
    }
    if let Some(group) = Group::of(r.slot) {
        group.add_at(group::resets(call.origin, why), 1);
    }
    count::count_netns(r.key.netns, netns::RESETS, 1);
    let reason = if call.reason == NO_REASON { 0 } else { call.reason };
    let word = opaque(reason_word::index(call.origin, reason, r.key.ip_version));
    if let Some(words) = maps::REASONS.get_ptr_mut(0)
        && word < reason_word::WORDS
    {
        // SAFETY: within the array.
        unsafe { atomic_add(words.cast::<u64>().add(word), 1) }
    }
    if emit::allowed(bucket::RESET, Loss::ThrottledReset) {
        debug!(ctx, "reset sent: origin {} reason {} cause {} state {}", call.origin as u8, r.reason, why as u8, state);
        r.header = emit::header::<ResetRecord>(Kind::Reset);
        r.reason = call.reason;
        (r.origin, r.cause) = (call.origin as u8, why as u8);
        if EVENTS.output::<ResetRecord>(&*r, emit::wake(Haste::Whenever)).is_err() {
            count::lost(Loss::RingReset);
        }
    }
}

/// For the kernels whose functions, unlike the tracepoint, are also entered when no RST will be sent: the answer to a
/// RST, and to a segment without socket that is not addressed to this host.
#[inline(always)]
pub fn will_be_sent(call: &Call) -> bool {
    let head = field::<u64>(call.skb, &LAYOUT.skb_head) as *const u8;
    let transport = usize::from(field::<u16>(call.skb, &LAYOUT.skb_transport_header));
    let flags: u8 = copy(head, transport + 13).unwrap_or(0);
    if flags & TCP_RST != 0 {
        return false;
    }
    let route = (field::<u64>(call.skb, &LAYOUT.skb_refdst) & DST_MASK) as *const u8;
    if !call.sk.is_null() || route.is_null() {
        return true;
    }
    match call.program {
        Program::PassiveV6 if offset(&LAYOUT.rt6i_flags) != ABSENT => {
            field::<u32>(route, &LAYOUT.rt6i_flags) & RTF_LOCAL != 0
        }
        Program::PassiveV4 if offset(&LAYOUT.rt_type) != ABSENT => field::<u16>(route, &LAYOUT.rt_type) == RTN_LOCAL,
        _ => true,
    }
}

#[inline(always)]
fn hint(reason: u32) -> ReasonHint {
    let index = reason as usize;
    if index >= REASONS {
        return ReasonHint::None;
    }
    // SAFETY: within the table; read volatile because the daemon fills it in.
    ReasonHint::from_u8(unsafe { core::ptr::read_volatile(REASON_HINTS.as_ptr().add(index)) })
}

/// What a full socket says of itself. tcp_disconnect clears it only after it has sent the reset.
#[inline(always)]
fn socket(sk: *const u8, r: &mut ResetRecord) {
    let flags: u64 = field(sk, &LAYOUT.skc_flags);
    let fin = u32::from(flags & SOCK_DONE != 0);
    r.known |= known::SOCKET;
    if flags & SOCK_LINGER != 0 {
        r.known |= known::LINGER;
    }
    r.linger_jiffies = field(sk, &LAYOUT.sk_lingertime);
    if offset(&LAYOUT.sk_socket) != ABSENT && field::<u64>(sk, &LAYOUT.sk_socket) == 0 {
        r.known |= known::ORPHAN;
    }
    let (snd_una, snd_nxt): (u32, u32) = (field(sk, &LAYOUT.snd_una), field(sk, &LAYOUT.snd_nxt));
    // The kernel counts a FIN as a byte: it is none that anybody could read.
    let unread = field::<u32>(sk, &LAYOUT.rcv_nxt).wrapping_sub(field(sk, &LAYOUT.copied_seq));
    r.unread_bytes = unread.saturating_sub(fin);
    r.unsent_bytes = field::<u32>(sk, &LAYOUT.write_seq).wrapping_sub(snd_nxt);
    r.unacked_bytes = snd_nxt.wrapping_sub(snd_una);
    r.bytes_sent = field(sk, &LAYOUT.bytes_sent);
    r.bytes_received = field::<u64>(sk, &LAYOUT.bytes_received).saturating_sub(u64::from(fin));
    r.srtt_us = field::<u32>(sk, &LAYOUT.srtt_us) >> 3;
    r.snd_cwnd = field(sk, &LAYOUT.snd_cwnd);
    r.total_retrans = field(sk, &LAYOUT.total_retrans);
    r.backoff = field(sk, &LAYOUT.icsk_backoff);
    r.probes_out = field(sk, &LAYOUT.icsk_probes_out);
    r.uid = field(sk, &LAYOUT.sk_uid);
    (r.started_ns, r.history, r.state_since_ms, r.reserved) = (0, 0, 0, 0);
}

/// The same for none: nothing of it is a fact.
#[inline(always)]
fn no_socket(r: &mut ResetRecord) {
    (r.linger_jiffies, r.bytes_sent, r.bytes_received, r.started_ns) = (0, 0, 0, 0);
    (r.unread_bytes, r.unsent_bytes, r.unacked_bytes, r.srtt_us) = (0, 0, 0, 0);
    (r.snd_cwnd, r.total_retrans, r.history, r.state_since_ms) = (0, 0, 0, 0);
    (r.uid, r.backoff, r.probes_out, r.reserved) = (0, 0, 0, 0);
}

/// `sk_acceptq_is_full`, include/net/sock.h.
#[inline(always)]
fn queue_is_full(sk: *const u8) -> bool {
    field::<u32>(sk, &LAYOUT.sk_ack_backlog) > field(sk, &LAYOUT.sk_max_ack_backlog)
}

#[inline(always)]
fn netns_of(net: u64) -> u32 {
    if net == 0 { 0 } else { field(net as *const u8, &LAYOUT.netns_inum) }
}

#[inline(always)]
fn netns_of_segment(skb: *const u8) -> u32 {
    if skb.is_null() {
        return 0;
    }
    let device: u64 = field(skb, &LAYOUT.skb_dev);
    if device == 0 { 0 } else { netns_of(field(device as *const u8, &LAYOUT.dev_net)) }
}

/// Takes both ends, sequence numbers and flags from the headers of the causing segment, as seen from this host.
#[inline(always)]
fn parse(skb: *const u8, r: &mut ResetRecord) -> bool {
    let head = field::<u64>(skb, &LAYOUT.skb_head) as *const u8;
    let network = usize::from(field::<u16>(skb, &LAYOUT.skb_network_header));
    let transport = usize::from(field::<u16>(skb, &LAYOUT.skb_transport_header));
    let Some(tcp) = copy::<[u8; 16]>(head, transport) else { return false };
    r.key.remote_port = u16::from_be_bytes([tcp[0], tcp[1]]);
    r.key.local_port = u16::from_be_bytes([tcp[2], tcp[3]]);
    r.seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    r.ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
    r.tcp_flags = tcp[13];
    let Some(first) = copy::<u8>(head, network) else { return false };
    if first >> 4 == 6 {
        r.key.ip_version = 6;
        copy_to(&raw mut r.key.remote, head, network + 8) && copy_to(&raw mut r.key.local, head, network + 24)
    } else {
        r.key.ip_version = 4;
        r.key.remote = mapped(copy(head, network + 12).unwrap_or(0));
        r.key.local = mapped(copy(head, network + 16).unwrap_or(0));
        true
    }
}

/// Takes both ends from a full socket, or nothing.
#[inline(always)]
fn socket_key(sk: *const u8, full: bool, r: &mut ResetRecord) {
    r.key.ip_version = 4;
    if !full {
        (r.key.local, r.key.remote) = ([0; 16], [0; 16]);
        (r.key.local_port, r.key.remote_port) = (0, 0);
        return;
    }
    r.key.local_port = u16::from_be(field(sk, &LAYOUT.inet_sport));
    r.key.remote_port = u16::from_be(field(sk, &LAYOUT.skc_dport));
    let v6 = offset(&LAYOUT.skc_v6_daddr) != ABSENT && field::<u16>(sk, &LAYOUT.skc_family) == AF_INET6;
    if v6
        && copy_to(&raw mut r.key.remote, sk, usize::from(offset(&LAYOUT.skc_v6_daddr)))
        && copy_to(&raw mut r.key.local, sk, usize::from(offset(&LAYOUT.skc_v6_rcv_saddr)))
    {
        r.key.ip_version = if is_mapped(&r.key.remote) { 4 } else { 6 };
    } else {
        r.key.local = mapped(field(sk, &LAYOUT.skc_rcv_saddr));
        r.key.remote = mapped(field(sk, &LAYOUT.skc_daddr));
    }
}

#[inline(always)]
fn slot_of(r: &ResetRecord, full: bool) -> u32 {
    match direction_by_port(r.key.netns, r.key.local_port) {
        Direction::Inbound => count::service_slot(Direction::Inbound, r.key.local_port),
        _ if full => count::service_slot(Direction::Outbound, r.key.remote_port),
        _ => slot::NONE,
    }
}

/// When this socket was closed a moment ago: takes what the close knew, and if that was counted as a received reset,
/// moves the count. Data that arrives for an orphan looks like a received reset until the passive one is sent.
#[inline(always)]
fn ended_just_now(call: &Call, r: &mut ResetRecord) {
    let Some(closing) = CLOSING.get_ptr_mut(call.sk as u64) else { return };
    // SAFETY: a value of the map; one socket is not reset on two CPUs at once.
    let closing: &mut Closing = unsafe { &mut *closing };
    if jiffies().wrapping_sub(closing.jiffy) > SAME_CLOSE {
        return;
    }
    r.slot = closing.slot;
    r.state = closing.old_state;
    r.cookie = closing.cookie;
    (r.started_ns, r.history, r.state_since_ms) = (closing.started_ns, closing.history, closing.state_since_ms);
    if closing.counted_received == 0 || matches!(call.origin, ResetOrigin::Active) {
        return;
    }
    closing.counted_received = 0;
    if let Some(group) = Group::of(closing.slot) {
        group.add(group::closed(CloseCause::ResetReceived), u64::MAX);
        group.add(group::closed(CloseCause::ResetSent), 1);
        group.add_at(group::received(closing.old_state), u64::MAX);
    }
}
