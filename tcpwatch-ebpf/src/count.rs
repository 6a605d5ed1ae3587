//! Counters: of a group, of a namespace, of what was lost, and the gauge of states. Whatever cannot be kept is counted by
//! place.

use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{GAUGE_WORDS, Loss, group, netns, slot};
use tcpwatch_common::state::{Direction, TcpState};

use crate::add::{atomic_add, opaque};
use crate::maps::{GAUGES, GROUPS, LOSSES, NAMESPACES, SERVICES};
use crate::sock::TcpSock;

/// Only if it is not there, include/uapi/linux/bpf.h.
pub const BPF_NOEXIST: u64 = 1;

/// The counters of one group.
pub struct Group(*mut u64);

impl Group {
    /// The counters of `slot`.
    #[inline(always)]
    pub fn of(slot: u32) -> Option<Self> {
        GROUPS.get_ptr_mut(slot).map(|words| Self(words.cast()))
    }

    /// Adds to one word that is computed.
    #[inline(always)]
    pub fn add_at(&self, word: usize, n: u64) {
        self.add(opaque(word), n);
    }

    /// Adds to one word; `word` is a constant of `counters::group`.
    #[inline(always)]
    pub fn add(&self, word: usize, n: u64) {
        // What is 0 would cost as much.
        if n != 0 && word < group::WORDS {
            // SAFETY: within the array that the map's value is.
            unsafe { atomic_add(self.0.add(word), n) }
        }
    }
}

/// Adds to one word of a group.
#[inline(always)]
pub fn count(slot: u32, word: usize, n: u64) {
    if let Some(group) = Group::of(slot) {
        group.add(word, n);
    }
}

/// Adds to one word of a group that is computed.
#[inline(always)]
pub fn count_at(slot: u32, word: usize, n: u64) {
    if let Some(group) = Group::of(slot) {
        group.add_at(word, n);
    }
}

/// Counts something that could not be kept.
#[inline(always)]
pub fn lost(loss: Loss) {
    if let Some(words) = LOSSES.get_ptr_mut(0) {
        // SAFETY: the numbers of the losses are the indices of the array.
        unsafe { atomic_add(words.cast::<u64>().add(loss as usize), 1) }
    }
}

/// Counts something once more for its network namespace; `word` is one of `counters::netns`.
#[inline(always)]
pub fn count_netns(inode: u32, word: usize, n: u64) {
    let words = if let Some(words) = NAMESPACES.get_ptr_mut(inode) {
        words
    } else {
        // Whoever comes second on another CPU is refused, and finds it.
        let _there_already = NAMESPACES.insert(inode, [0; netns::WORDS], BPF_NOEXIST);
        let Some(words) = NAMESPACES.get_ptr_mut(inode) else {
            lost(Loss::MapNetns);
            return;
        };
        words
    };
    if word < netns::WORDS {
        // SAFETY: within the array that the map's value is.
        unsafe { atomic_add(words.cast::<u64>().add(word), n) }
    }
}

/// The slot of a service, or that of all others in its direction.
#[inline(always)]
pub fn service_slot(direction: Direction, port: u16) -> u32 {
    let key = tcpwatch_common::counters::service_key(direction, port);
    // SAFETY: the value is copied at once.
    match unsafe { SERVICES.get(key) } {
        Some(&found) => found,
        None => slot::other(direction),
    }
}

/// The slot of a connection: of the port that listens here when it is inbound, of the remote port otherwise.
#[inline(always)]
pub fn slot_of(sock: TcpSock, direction: Direction) -> u32 {
    let port = if matches!(direction, Direction::Inbound) { sock.local_port() } else { sock.remote_port() };
    service_slot(direction, port)
}

/// Moves a connection in the gauge of states; CLOSE and minisock states are not in it.
#[inline(always)]
pub fn gauge(conn: &mut Conn, state: u8) {
    let state = if state == TcpState::Close as u8 { 0 } else { state };
    if conn.gauged == state {
        return;
    }
    gauge_add(conn.gauged, u64::MAX);
    gauge_add(state, 1);
    conn.gauged = state;
}

#[inline(always)]
fn gauge_add(state: u8, n: u64) {
    if state == 0 {
        return;
    }
    let index = usize::from(state) & (GAUGE_WORDS - 1);
    if let Some(words) = GAUGES.get_ptr_mut(0) {
        // SAFETY: within the array.
        unsafe { atomic_add(words.cast::<u64>().add(index), n) }
    }
}
