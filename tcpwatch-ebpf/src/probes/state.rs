//! inet_sock_set_state: a connection's life from SYN_SENT or ESTABLISHED to CLOSE, and listeners.

use aya_ebpf::helpers::generated::bpf_sk_storage_delete;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use core::ptr;
use tcpwatch_common::close::{self, CloseCause, flag};
use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{HANDSHAKE_UNIT_US, Loss, group};
use tcpwatch_common::hist::log2_bucket;
use tcpwatch_common::owner::OwnerKind;
use tcpwatch_common::record::{Kind, ListenerRecord};
use tcpwatch_common::state::{Direction, TcpState};

use crate::add::{atomic_add, exchange};
use crate::config::watched;
use crate::count::{self, Group};
use crate::emit::{self, Haste, Moment};
use crate::limits;
use crate::maps::{CLOSING, Closing, LISTENERS, SOCKETS};
use crate::owner::{self, Owner};
use crate::sock::{TcpSock, direction_by_port, jiffies, listener_key};

const ESTABLISHED: u8 = TcpState::Established as u8;
const SYN_SENT: u8 = TcpState::SynSent as u8;
const SYN_RECV: u8 = TcpState::SynRecv as u8;
const CLOSE: u8 = TcpState::Close as u8;
const LISTEN: u8 = TcpState::Listen as u8;

/// A socket moves from one state to another.
#[inline(always)]
pub fn handle(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let old = ctx.arg::<i32>(1) as u8;
    let new = ctx.arg::<i32>(2) as u8;
    let Some(sock) = TcpSock::cast(sk) else { return };
    let netns = sock.netns();
    if !watched(netns) {
        return;
    }
    debug!(ctx, "port {} moves from state {} to {}", sock.local_port(), old, new);
    match (old, new) {
        (_, LISTEN) => listener(sock, netns, true),
        (LISTEN, CLOSE) => listener(sock, netns, false),
        // The child of a listener: it is counted when the handshake is complete.
        (_, SYN_RECV) => {}
        (_, SYN_SENT) => connecting(sock),
        (_, ESTABLISHED) => established(sock, old),
        (_, CLOSE) => closed(sock, netns, old),
        (_, _) => moved(sock, netns, old, new),
    }
}

#[inline(always)]
fn connecting(sock: TcpSock) {
    let mut generation = 0;
    if let Some(conn) = sock.state() {
        // The socket was connected before, and tcp_disconnect has cleared its totals.
        generation = conn.generation + 1;
        // SAFETY: the helpers take any full socket and our own map.
        unsafe { bpf_sk_storage_delete(ptr::addr_of!(SOCKETS).cast_mut().cast(), sock.as_ptr().cast()) };
    }
    let Some(conn) = sock.state_or_new() else {
        count::lost(Loss::StorageState);
        return;
    };
    let now = emit::now_ns();
    emit::begin(sock, conn, Direction::Outbound, now);
    conn.generation = generation;
    // connect() runs in the process that owns the socket.
    Owner::current().take(conn, OwnerKind::Connect);
    emit::remember_state(conn, SYN_SENT, SYN_SENT, now);
    count::gauge(conn, SYN_SENT);
}

#[inline(always)]
fn established(sock: TcpSock, old: u8) {
    let direction = if old == SYN_SENT { Direction::Outbound } else { Direction::Inbound };
    let Some(conn) = sock.state_or_new() else {
        count::lost(Loss::StorageState);
        count::count(count::slot_of(sock, direction), group::OPENED, 1);
        return;
    };
    let now = emit::now_ns();
    let retransmitted = sock.total_retrans() != 0;
    if conn.begun == 0 {
        // A child of a listener, or a SYN_SENT whose state could not be kept. Its SYN-ACKs were counted at the listener.
        emit::begin(sock, conn, direction, now);
        conn.retrans_seen = sock.total_retrans();
    }
    conn.srtt = sock.srtt_us();
    conn.delivered = sock.delivered();
    conn.established_ns = now;
    // The handshake limits nobody.
    limits::begin(sock, conn);
    conn.flags |= flag::COUNTED;
    conn.next_emit = emit::next_sample(jiffies());
    emit::remember_state(conn, old, ESTABLISHED, now);
    count::gauge(conn, ESTABLISHED);
    if let Some(group) = Group::of(conn.slot) {
        group.add(group::OPENED, 1);
        // With a retransmission the sample may be that of either SYN (RFC 6298, Karn).
        let us = conn.srtt >> 3;
        if us != 0 && !retransmitted {
            conn.handshake_us = us;
            group.add(group::HANDSHAKE_SUM, u64::from(us));
            group.add_at(group::HANDSHAKE + log2_bucket(us.div_ceil(HANDSHAKE_UNIT_US)) as usize, 1);
        }
    }
    let (kind, loss) = (Kind::Open, Loss::RingState);
    let moment = Moment { now_ns: now, kind, old_state: old, state: ESTABLISHED, cause: 0, loss };
    emit::connection(sock, conn, &moment);
}

/// Who closes or shuts down a connection holds it: the last chance to learn whose it is when it was accepted, read and closed
/// before anybody looked. To these two states it comes by `tcp_close_state` alone (net/ipv4/tcp.c), in who asked for that; to
/// others it may also come when a stranger who looked at the socket unlocks it, and to CLOSE by `ss -K`.
#[inline(always)]
fn note_holder(sock: TcpSock, conn: &mut Conn, new: u8) {
    let asked = new == TcpState::FinWait1 as u8 || new == TcpState::LastAck as u8;
    let nobody = conn.owner_kind == OwnerKind::Unknown as u8;
    if asked && nobody && sock.sk_lock_owned() != 0 && !owner::kernel_thread() {
        Owner::current().take(conn, OwnerKind::Descriptor);
    }
}

/// Between ESTABLISHED and CLOSE, where tcp_probe is silent: read here what it would have read.
#[inline(always)]
fn moved(sock: TcpSock, netns: u32, old: u8, new: u8) {
    let Some(conn) = known_or_adopted(sock, netns) else { return };
    note_holder(sock, conn, new);
    conn.flags |= close::fin_flag(conn.flags, new);
    last_sample(sock, conn, old);
    emit::flush(sock, conn);
    emit::remember_state(conn, old, new, emit::now_ns());
    count::gauge(conn, new);
}

/// tcp_probe sees what a segment did only when the next one comes: the last one in ESTABLISHED is taken here. After
/// that many samples may lie between two readings, of which none can be told.
#[inline(always)]
fn last_sample(sock: TcpSock, conn: &mut Conn, old: u8) {
    let cwnd = sock.snd_cwnd();
    limits::watch::<false>(sock, conn, cwnd);
    if old == ESTABLISHED {
        emit::observe::<false>(sock, conn, cwnd);
    } else {
        conn.srtt = sock.srtt_us();
        conn.delivered = sock.delivered();
    }
}

#[inline(always)]
fn closed(sock: TcpSock, netns: u32, old: u8) {
    let err = sock.sk_err();
    if old == SYN_RECV && sock.state().is_none() {
        count::count(count::slot_of(sock, Direction::Inbound), group::closed(CloseCause::FailedOpen), 1);
        return;
    }
    let Some(conn) = known_or_adopted(sock, netns) else {
        without_state(sock, count::slot_of(sock, direction_by_port(netns, sock.local_port())), old, err);
        return;
    };
    if conn.flags & flag::CLOSED != 0 {
        return;
    }
    let cause = close::cause(conn.flags, old, err);
    last_sample(sock, conn, old);
    emit::flush(sock, conn);
    conn.flags |= flag::CLOSED;
    count::gauge(conn, CLOSE);
    let now = emit::now_ns();
    if let Some(group) = Group::of(conn.slot) {
        group.add_at(group::closed(cause), 1);
        if conn.established_ns != 0 {
            let us = (now - conn.established_ns) / 1000;
            group.add(group::DURATION_SUM, us);
            let ms = us.div_ceil(1000).min(u64::from(u32::MAX)) as u32;
            group.add_at(group::DURATION + log2_bucket(ms) as usize, 1);
        }
    }
    if matches!(cause, CloseCause::ResetSent | CloseCause::ResetReceived) {
        tie_to_reset(sock, conn, old, cause);
    }
    let (kind, loss) = (Kind::Close, Loss::RingState);
    let moment = Moment { now_ns: now, kind, old_state: old, state: CLOSE, cause: cause as u8, loss };
    emit::connection(sock, conn, &moment);
}

/// No memory for state: the close and all that the connection moved still count.
#[inline(always)]
fn without_state(sock: TcpSock, slot: u32, old: u8, err: i32) {
    let flags = if old == SYN_SENT { 0 } else { flag::COUNTED };
    if let Some(group) = Group::of(slot) {
        group.add_at(group::closed(close::cause(flags, old, err)), 1);
        group.add(group::SENT_BYTES, sock.bytes_sent());
        group.add(group::RECEIVED_BYTES, sock.payload_received());
        group.add(group::SENT_SEGMENTS, u64::from(sock.data_segs_out()));
    }
}

/// The reset that this close belongs to is sent after this transition; its program cannot read socket storage.
#[inline(always)]
fn tie_to_reset(sock: TcpSock, conn: &Conn, old: u8, cause: CloseCause) {
    let key = sock.as_ptr() as u64;
    let value = Closing {
        jiffy: jiffies(),
        cookie: sock.cookie(),
        started_ns: conn.started_ns,
        history: conn.history,
        state_since_ms: conn.state_since_ms,
        slot: conn.slot,
        old_state: old,
        counted_received: u8::from(matches!(cause, CloseCause::ResetReceived)),
        reserved: [0; 2],
    };
    if CLOSING.insert(key, value, 0).is_err() {
        count::lost(Loss::MapClosing);
    }
}

#[inline(always)]
fn known_or_adopted(sock: TcpSock, netns: u32) -> Option<&'static mut Conn> {
    let Some(conn) = sock.state_or_new() else {
        count::lost(Loss::StorageState);
        return None;
    };
    if conn.begun == 0 {
        emit::adopt(sock, conn, direction_by_port(netns, sock.local_port()));
    }
    Some(conn)
}

/// Counts a listener on its port, once: its state remembers that.
#[inline(always)]
pub fn note_listener(sock: TcpSock, netns: u32) -> bool {
    if let Some(conn) = sock.state_or_new() {
        // SAFETY: a field of a map value.
        if unsafe { exchange(&raw mut conn.claimed, 1) } != 0 {
            return false;
        }
    } else {
        count::lost(Loss::StorageState);
    }
    let key = listener_key(netns, sock.local_port());
    match LISTENERS.get_ptr_mut(key) {
        // SAFETY: a value of the map.
        Some(count) => unsafe { atomic_add(count, 1) },
        None if LISTENERS.insert(key, 1, 0).is_err() => count::lost(Loss::MapListener),
        None => {}
    }
    true
}

#[inline(always)]
fn listener(sock: TcpSock, netns: u32, up: bool) {
    if up {
        note_listener(sock, netns);
        if let Some(conn) = sock.state() {
            // listen() runs in the process that holds the socket.
            Owner::current().take(conn, OwnerKind::Listen);
        }
    } else {
        if let Some(conn) = sock.state() {
            // The socket may listen again.
            conn.claimed = 0;
            conn.next_emit = 0;
        }
        let key = listener_key(netns, sock.local_port());
        if let Some(count) = LISTENERS.get_ptr_mut(key) {
            // SAFETY: a value of the map; listeners that share a port may change on two CPUs at once.
            unsafe {
                atomic_add(count, u64::MAX);
                if *count == 0 {
                    let _gone_already = LISTENERS.remove(key);
                }
            }
        }
    }
    emit::record::<ListenerRecord>(Loss::RingState, Haste::AtOnce, |place| {
        // SAFETY: a reserved record.
        unsafe { emit::write_listener(place, sock, up, false) }
    });
}

/// The socket ends: whatever state it still had in the gauge goes with it.
#[inline(always)]
pub fn destroyed(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let Some(sock) = TcpSock::cast(sk) else { return };
    let Some(conn) = sock.state() else { return };
    count::gauge(conn, CLOSE);
}
