//! Iterators: what no tracepoint tells. Two adopt what was there before the daemon, at its start; one reads, once an
//! interval, the connections on which tcp_probe is silent, and the listeners.
//!
//! aya-ebpf has no macro for iterators: the entry points are plain functions in a section of their own (`entry.rs`), with
//! the contexts of kernel/bpf/task_iter.c, net/ipv4/tcp_ipv4.c and net/core/bpf_sk_storage.c.

use aya_ebpf::helpers::generated::{bpf_seq_write, bpf_sock_from_file};
use core::ptr;
use tcpwatch_common::close::flag;
use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{Loss, pass, setting};
use tcpwatch_common::layout::ABSENT;
use tcpwatch_common::owner::{OwnerKind, Step, on_file};
use tcpwatch_common::record::{ConnRecord, Kind, ListenerRecord};
use tcpwatch_common::state::TcpState;

use super::state::note_listener;
use crate::config::{LAYOUT, offset, watched};
use crate::count;
use crate::emit::{self, Moment};
use crate::kernel::typed;
use crate::maps::{ITERATOR_SCRATCH, SETTINGS};
use crate::owner::{self, Owner};
use crate::sock::{TcpSock, direction_by_port, jiffies};

const LISTEN: u8 = TcpState::Listen as u8;
const CLOSE: u8 = TcpState::Close as u8;
const SYN_SENT: u8 = TcpState::SynSent as u8;
const SYN_RECV: u8 = TcpState::SynRecv as u8;

/// `struct bpf_iter_meta`.
#[repr(C)]
pub struct Meta {
    seq: *mut u8,
    session_id: u64,
    seq_num: u64,
}

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub struct TcpContext {
    meta: *const Meta,
    sk_common: *const u8,
    uid: u32,
}

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub struct TaskFileContext {
    meta: *const Meta,
    task: *const u8,
    fd: u32,
    padding: u32,
    file: *const u8,
}

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct StorageContext {
    meta: *const Meta,
    map: *const u8,
    sk: *const u8,
    value: *const u8,
}

/// One TCP socket of the namespace that opened the iterator.
///
/// # Safety
/// `ctx` is the context that the kernel gives to a program on iter/tcp.
#[inline(always)]
pub unsafe fn tcp(ctx: *const TcpContext) {
    // SAFETY: the verifier knows the type of the context.
    let (meta, sk) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
    if sk.is_null() {
        return;
    }
    let Some(sock) = TcpSock::cast(sk) else { return };
    adopt(meta, sock, ptr::null());
}

/// One open file of one process.
///
/// # Safety
/// `ctx` is the context that the kernel gives to a program on iter/task_file.
#[inline(always)]
pub unsafe fn task_file(ctx: *const TaskFileContext) {
    // SAFETY: the verifier knows the type of the context.
    let (meta, task, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() || offset(&LAYOUT.socket_sk) == ABSENT {
        return;
    }
    // SAFETY: the helper checks that the file is a socket.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast::<u8>();
    if socket.is_null() {
        return;
    }
    let sk: *const u8 = typed!(socket.cast_const(), socket_sk);
    if sk.is_null() {
        return;
    }
    let Some(sock) = TcpSock::cast(sk) else { return };
    adopt(meta, sock, task);
}

#[inline(always)]
fn adopt(meta: *const Meta, sock: TcpSock, holder: *const u8) {
    let netns = sock.netns();
    if !watched(netns) {
        return;
    }
    let state = sock.skc_state();
    let connections = SETTINGS.get(setting::ADOPT).is_some_and(|mode| *mode != 0);
    if state == LISTEN {
        if !connections {
            note_listener(sock, netns);
        }
        if let Some(conn) = sock.state() {
            held(conn, holder);
        }
        if !connections {
            adopt_listener(meta, sock);
        }
        return;
    }
    // A handshake that is under way will be seen when it ends.
    if !connections || state == CLOSE || state == SYN_SENT || state == SYN_RECV {
        return;
    }
    let Some(conn) = sock.state_or_new() else {
        count::lost(Loss::StorageIterator);
        return;
    };
    if conn.begun == 0 && emit::adopt(sock, conn, direction_by_port(netns, sock.local_port())) {
        count::gauge(conn, state);
    }
    if held(conn, holder) {
        // Told below, or when the reader's buffer is full and the kernel comes again with the same socket: it must then
        // be found as untold.
        conn.next_emit = 0;
    }
    if conn.next_emit == 0 && write_connection(meta, sock, conn, state) {
        conn.next_emit = emit::next_sample(jiffies());
    }
}

/// A process holds the socket; true when that is news. `task` is null when nobody is known to.
#[inline(always)]
fn held(conn: &mut Conn, task: *const u8) -> bool {
    if task.is_null() {
        return false;
    }
    let holder = Owner::of(task);
    let pass = owner::pass();
    match on_file(conn.pid, conn.owner_pass, holder.pid, pass) {
        Step::Keep => false,
        Step::Seen => {
            conn.owner_pass = pass;
            // It may have moved, changed its user, or run another program.
            holder.refresh(conn)
        }
        Step::Take => {
            holder.take(conn, OwnerKind::Descriptor);
            true
        }
    }
}

/// `next_emit` remembers that a listener was told; it has no other use there.
#[inline(always)]
fn adopt_listener(meta: *const Meta, sock: TcpSock) {
    let Some(conn) = sock.state() else {
        write_listener(meta, sock);
        return;
    };
    if conn.next_emit == 0 && write_listener(meta, sock) {
        conn.next_emit = 1;
    }
}

/// One socket that has state of ours.
///
/// # Safety
/// `ctx` is the context that the kernel gives to a program on iter/bpf_sk_storage_map.
#[inline(always)]
pub unsafe fn storage(ctx: *const StorageContext) {
    // SAFETY: the verifier knows the type of the context.
    let (meta, sk) = unsafe { ((*ctx).meta, (*ctx).sk) };
    if sk.is_null() {
        return;
    }
    let Some(sock) = TcpSock::cast(sk) else { return };
    let Some(conn) = sock.state() else { return };
    let state = sock.skc_state();
    if state == LISTEN {
        write_listener(meta, sock);
        return;
    }
    if conn.begun == 0 || state == CLOSE || conn.flags & flag::CLOSED != 0 {
        return;
    }
    let now = jiffies();
    match SETTINGS.get(setting::PASS).copied().unwrap_or(pass::READ) {
        pass::READ => {}
        pass::ROLL_CALL => {
            write_cookie(meta, sock.cookie());
            return;
        }
        _ => {
            // 0 says that the connection was not told yet.
            if conn.next_emit != 0 {
                conn.next_emit = emit::some_sample(now);
            }
            return;
        }
    }
    if now < conn.next_emit {
        return;
    }
    // An idle connection has nothing to tell, but its time passes.
    emit::flush_traffic(sock, conn);
    let activity = emit::activity(sock);
    if activity == conn.told_segments {
        return;
    }
    if write_connection(meta, sock, conn, state) {
        conn.told_segments = activity;
        conn.next_emit = emit::next_sample(now);
    }
}

/// False when the reader's buffer is full.
#[inline(always)]
fn write_connection(meta: *const Meta, sock: TcpSock, conn: &Conn, state: u8) -> bool {
    let Some(scratch) = ITERATOR_SCRATCH.get_ptr_mut(0) else { return true };
    let (now_ns, kind, loss) = (emit::now_ns(), Kind::Sample, Loss::RingSample);
    let moment = Moment { now_ns, kind, old_state: state, state, cause: 0, loss };
    // SAFETY: a value of the map; the daemon runs one iterator at a time.
    unsafe {
        emit::write_connection(scratch, sock, conn, &moment);
        bpf_seq_write((*meta).seq.cast(), scratch.cast(), size_of::<ConnRecord>() as u32) == 0
    }
}

/// When the reader's buffer is full, the kernel comes again with the same socket.
#[inline(always)]
fn write_cookie(meta: *const Meta, cookie: u64) {
    // SAFETY: `cookie` lives until the helper has copied it.
    unsafe { bpf_seq_write((*meta).seq.cast(), ptr::from_ref(&cookie).cast_mut().cast(), size_of::<u64>() as u32) };
}

#[inline(always)]
fn write_listener(meta: *const Meta, sock: TcpSock) -> bool {
    let Some(scratch) = ITERATOR_SCRATCH.get_ptr_mut(0) else { return true };
    let scratch = scratch.cast::<ListenerRecord>();
    // SAFETY: a value of the map, which is larger; the daemon runs one iterator at a time.
    unsafe {
        emit::write_listener(scratch, sock, true, true);
        bpf_seq_write((*meta).seq.cast(), scratch.cast(), size_of::<ListenerRecord>() as u32) == 0
    }
}

const _: () = assert!(size_of::<ListenerRecord>() <= size_of::<ConnRecord>());
