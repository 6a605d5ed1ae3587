//! What holds a sender back: closed windows, pauses, and the kernel's chronographs.

use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::group;
use tcpwatch_common::hist::log2_bucket;
use tcpwatch_common::layout::ABSENT;
use tcpwatch_common::limits::{Fall, grown, is_idle_restart, pack, zero};
use tcpwatch_common::state::TcpState;

use crate::add::put;
use crate::config::{LAYOUT, offset};
use crate::count::{self, Group};
use crate::sock::{TcpSock, jiffies};

/// The kernel's `tcp_jiffies32`.
#[inline(always)]
pub fn jiffies32() -> u32 {
    jiffies() as u32
}

/// Takes what every later difference is counted from, in a state that is new.
#[inline(always)]
pub fn begin(sock: TcpSock, conn: &mut Conn) {
    let now = jiffies32();
    see_window(conn, sock.snd_cwnd());
    conn.sent_at = sock.lsndtime();
    // A window that is closed already was closed before we watched.
    conn.zero = closed_windows::<false>(sock);
    for side in 0..2 {
        conn.zero_jiffies[side] = if is_closed(conn.zero, side) { 0_u32.wrapping_sub(now) } else { 0 };
    }
    let [congestion, receive, buffer] = chronographs(sock, now);
    conn.flushed_windows = pack(congestion, receive);
    conn.flushed_buffer = pack(buffer, now);
}

/// Called for every segment, before it is processed: what the one before it did, and what was sent since.
///
/// `ESTABLISHED`: the caller is tcp_probe, which sees no other state. `cwnd`: the window now. It comes before
/// [`crate::emit::observe`], which wants its bucket.
#[inline(always)]
pub fn watch<const ESTABLISHED: bool>(sock: TcpSock, conn: &mut Conn, cwnd: u32) {
    let closed = closed_windows::<ESTABLISHED>(sock);
    if closed != conn.zero {
        settle_windows(sock, conn, closed);
    }
    let sent_at = sock.lsndtime();
    if cwnd < conn.cwnd_seen {
        let fall = Fall {
            cwnd,
            ca_state: sock.ca_state(),
            pause: sent_at.wrapping_sub(conn.sent_at),
            rto: sock.icsk_rto(),
            own_control: sock.has_own_control(),
        };
        if is_idle_restart(&fall) {
            conn.idle_restarts += 1;
            count::count(conn.slot, group::IDLE_RESTARTS, 1);
        }
    }
    see_window(conn, cwnd);
    conn.sent_at = sent_at;
}

/// Remembers the congestion window, and its bucket: it changes less often than samples come.
#[inline(always)]
pub fn see_window(conn: &mut Conn, cwnd: u32) {
    if cwnd != conn.cwnd_seen {
        conn.cwnd_seen = cwnd;
        conn.cwnd_bucket = log2_bucket(cwnd) as u8;
    }
}

/// Bits of [`zero`]; none during the handshake, when no window was announced yet.
#[inline(always)]
fn closed_windows<const ESTABLISHED: bool>(sock: TcpSock) -> u8 {
    if !ESTABLISHED && in_handshake(sock.skc_state()) {
        return 0;
    }
    let peer = if sock.snd_wnd() == 0 { zero::PEER } else { 0 };
    let local = if offset(&LAYOUT.rcv_wnd) != ABSENT && sock.rcv_wnd() == 0 { zero::LOCAL } else { 0 };
    peer | local
}

/// The tracepoint of states fires before the new one is stored: at the first SYN it is still CLOSE.
#[inline(always)]
fn in_handshake(state: u8) -> bool {
    state == TcpState::Close as u8 || state == TcpState::SynSent as u8 || state == TcpState::SynRecv as u8
}

#[inline(always)]
fn is_closed(bits: u8, side: usize) -> bool {
    bits >> side & 1 != 0
}

/// When a window closed, or opened again, that was seen now: the peer's with the last ACK that came in; ours closed with the
/// last data that came in, and was opened by the application some time since.
#[inline(always)]
fn moment(sock: TcpSock, side: usize, closes: bool, now: u32) -> u32 {
    let at = match (side, closes) {
        (0, _) => sock.rcv_tstamp(),
        (_, true) => sock.icsk_lrcvtime(),
        (_, false) => now,
    };
    // 0 where the kernel does not tell.
    if at == 0 { now } else { at }
}

/// The account of windows that opened or closed. While one is closed, its sum is kept less the moment of its closing.
#[inline(always)]
fn settle_windows(sock: TcpSock, conn: &mut Conn, closed: u8) {
    let now = jiffies32();
    for side in 0..2 {
        if is_closed(closed, side) == is_closed(conn.zero, side) {
            continue;
        }
        let closes = is_closed(closed, side);
        let at = moment(sock, side, closes, now);
        let sum = conn.zero_jiffies[side];
        if closes {
            conn.zero_jiffies[side] = sum.wrapping_sub(at);
            conn.zero_windows[side] = conn.zero_windows[side].saturating_add(1);
            count::count(conn.slot, group::ZERO_WINDOWS + side, 1);
        } else {
            conn.zero_jiffies[side] = sum.wrapping_add(at);
        }
    }
    conn.zero = closed;
}

/// How often the windows of the peer and of ours were zero, and for how many jiffies, up to this moment: what the next
/// segment will settle is in it.
#[inline(always)]
pub fn zero_windows(sock: TcpSock, conn: &Conn, now: u32) -> ([u32; 2], [u32; 2]) {
    let closed = closed_windows::<false>(sock);
    let mut times = [0; 2];
    let mut sums = [0; 2];
    for side in 0..2 {
        let (was, is) = (is_closed(conn.zero, side), is_closed(closed, side));
        times[side] = u32::from(conn.zero_windows[side]) + u32::from(is && !was);
        let sum = conn.zero_jiffies[side];
        let sum = if is && !was { sum.wrapping_sub(moment(sock, side, true, now)) } else { sum };
        let until = if is { now } else { moment(sock, side, false, now) };
        sums[side] = if is || was { sum.wrapping_add(until) } else { sum };
    }
    (times, sums)
}

/// The kernel's chronographs, jiffies, the running interval included: data was there to send, and the congestion window,
/// the peer's receive window, the send buffer was the limit (`tcp_get_info_chrono_stats`, net/ipv4/tcp.c).
#[inline(always)]
pub fn chronographs(sock: TcpSock, now: u32) -> [u32; 3] {
    let running = usize::from(sock.chrono_type());
    let since = now.wrapping_sub(sock.chrono_start());
    let mut times = sock.chrono_stat();
    for (i, time) in times.iter_mut().enumerate() {
        *time = time.wrapping_add(if running == i + 1 { since } else { 0 });
    }
    times
}

/// Adds to the group what has passed since it was last added. Iterators and tcp_probe may do so at once.
#[inline(always)]
pub fn flush(sock: TcpSock, conn: &mut Conn, group: &Group) {
    let state = sock.skc_state();
    if in_handshake(state) {
        return;
    }
    let now = jiffies32();
    let [congestion, receive, buffer] = chronographs(sock, now);
    let (windows, buffer) = (pack(congestion, receive), pack(buffer, now));
    let (old_windows, old_buffer) = (put(&mut conn.flushed_windows, windows), put(&mut conn.flushed_buffer, buffer));
    let [congestion, receive] = grown(old_windows, windows);
    let [buffer, passed] = grown(old_buffer, buffer);
    group.add(group::LIMITED, congestion);
    group.add(group::LIMITED + 1, receive);
    group.add(group::LIMITED + 2, buffer);
    // After our FIN the application has nothing more to say.
    if state == TcpState::Established as u8 || state == TcpState::CloseWait as u8 {
        let busy = congestion.wrapping_add(receive).wrapping_add(buffer);
        group.add(group::LIMITED + 3, passed.wrapping_sub(busy));
    }
    let (_, [peer, local]) = zero_windows(sock, conn, now);
    let sums = pack(peer, local);
    let [peer, local] = grown(put(&mut conn.flushed_zero, sums), sums);
    group.add(group::ZERO_JIFFIES, peer);
    group.add(group::ZERO_JIFFIES + 1, local);
}
