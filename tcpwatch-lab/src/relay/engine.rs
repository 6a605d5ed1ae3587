//! The relay's thread: reads packets from both devices, schedules them, and writes each at its time.
//!
//! One thread serves both directions, so that the order of events in the record is the order in which they
//! happened. Between packets it sleeps in `ppoll` until shortly before the next departure and spins the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Direction;
use super::impair::{QueueFull, Shaper};
use super::packet::{Segment, Tracker};
use super::record::{DropReason, Fate, Origin, Packet, Record, Sent};
use super::rules::Rules;
use super::tun::Tun;
use crate::clock::{as_ns, now_ns};

/// The largest packet that a tun device hands over.
const MAX_PACKET: usize = 65_536;

/// What a direction holds of packets that are on their way; more are dropped as [`DropReason::Backlog`].
const MAX_BACKLOG_PACKETS: usize = 65_536;
const MAX_BACKLOG_BYTES: usize = 64 << 20;

/// A direction's settings, shared with the handles that change them.
#[derive(Debug)]
pub(crate) struct LaneState {
    pub(crate) shaper: Shaper,
    pub(crate) rules: Rules,
}

/// What the relay's thread shares with its owner.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) lanes: [Mutex<LaneState>; 2],
    pub(crate) record: Mutex<Record>,
    /// Told when the record has changed and someone waits for it.
    pub(crate) changed: Condvar,
    pub(crate) waiters: AtomicU64,
    pub(crate) record_cap: usize,
    /// Packets made by hand, to be delivered at once.
    pub(crate) injected: Mutex<Vec<(Direction, Vec<u8>)>>,
    /// Whether there are any, for a look without the lock.
    pub(crate) has_injected: AtomicBool,
    /// Wakes the thread for `stop` and `injected`.
    pub(crate) wake: OwnedFd,
    pub(crate) stop: AtomicBool,
    /// Why the thread ended, if not because it was told to.
    pub(crate) failure: Mutex<Option<String>>,
    /// Packets of both directions that wait for their departure.
    pub(crate) in_flight: AtomicU64,
}

impl Shared {
    /// Tells whoever waits for the record that nothing more will come. Taking the lock in between makes sure that no one
    /// is between looking and waiting.
    pub(crate) fn announce_end(&self) {
        drop(lock(&self.record));
        self.changed.notify_all();
    }

    /// Wakes the relay's thread.
    pub(crate) fn wake(&self) {
        // An eventfd accepts a write unless its count overflows, and then the thread is awake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Locks; a panic of another holder (a rule's closure) has left whole values behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A packet on its way. Ordered by departure, then by arrival.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scheduled {
    due_ns: u64,
    number: u64,
    sent: Sent,
    bytes: Vec<u8>,
}

/// What the thread owns.
pub(crate) struct Engine<'a> {
    shared: &'a Shared,
    tuns: [Tun; 2],
    spin_ns: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    /// Packets and bytes of each direction in `heap`.
    backlog: [(usize, usize); 2],
    tracker: Tracker,
    next_number: u64,
    buffer: Vec<u8>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(shared: &'a Shared, tuns: [Tun; 2], spin: Duration) -> Self {
        Self {
            shared,
            tuns,
            spin_ns: as_ns(spin),
            heap: BinaryHeap::new(),
            backlog: [(0, 0); 2],
            tracker: Tracker::default(),
            next_number: 0,
            buffer: vec![0; MAX_PACKET],
        }
    }

    /// Relays until told to stop.
    pub(crate) fn run(&mut self) -> Result<()> {
        while !self.shared.stop.load(Ordering::Acquire) {
            // One packet out, then one in from each side, so that a long burst out does not date the
            // acknowledgements that it causes too late.
            let mut busy = self.deliver_one();
            if self.shared.has_injected.swap(false, Ordering::AcqRel) {
                self.inject();
            }
            for direction in Direction::BOTH {
                busy |= self.receive_one(direction)?;
            }
            if !busy {
                self.rest()?;
            }
        }
        Ok(())
    }

    /// Sleeps until a packet comes, one is nearly due, or the owner calls.
    fn rest(&mut self) -> Result<()> {
        let timeout = match self.heap.peek() {
            None => None,
            Some(Reverse(next)) => {
                let left_ns = next.due_ns.saturating_sub(now_ns());
                if left_ns <= self.spin_ns {
                    return Ok(());
                }
                let sleep_ns = left_ns - self.spin_ns;
                Some(Timespec { tv_sec: (sleep_ns / 1_000_000_000) as i64, tv_nsec: (sleep_ns % 1_000_000_000) as i64 })
            }
        };
        let wake = self.shared.wake.as_fd();
        let mut fds = [
            PollFd::new(&self.tuns[0], PollFlags::IN),
            PollFd::new(&self.tuns[1], PollFlags::IN),
            PollFd::new(&wake, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("the relay cannot wait for packets"),
        }
        if !fds[2].revents().is_empty() {
            // Only its arrival matters, not its count; it does not block.
            let _ = rustix::io::read(wake, &mut [0; 8]);
        }
        Ok(())
    }

    /// Takes in one packet of a direction, if one waits.
    fn receive_one(&mut self, direction: Direction) -> Result<bool> {
        let Some(length) = self.tuns[direction as usize].read(&mut self.buffer)? else { return Ok(false) };
        let arrived_ns = now_ns();
        let bytes = &self.buffer[..length];
        if is_multicast(bytes) {
            return Ok(true);
        }
        let mut segment = Segment::parse(bytes);
        if let Some(segment) = &mut segment {
            self.tracker.mark(segment);
        }
        let bytes = bytes.to_vec();
        let packet = self.number(Packet {
            number: 0,
            direction,
            arrived_ns,
            length: length as u32,
            origin: Origin::Sender,
            held_ns: 0,
            fate: Fate::Pending { due_ns: arrived_ns },
            segment,
        });
        self.decide(packet, bytes);
        Ok(true)
    }

    /// Gives a packet the next number.
    fn number(&mut self, packet: Packet) -> Packet {
        let number = self.next_number;
        self.next_number += 1;
        Packet { number, ..packet }
    }

    /// Drops or schedules a packet that has just arrived, and its copies.
    fn decide(&mut self, mut packet: Packet, bytes: Vec<u8>) {
        let (verdict, scheduled) = {
            let mut lane = lock(&self.shared.lanes[packet.direction as usize]);
            let verdict = lane.rules.judge(&packet);
            let scheduled = if verdict.drop {
                Err(DropReason::Rule)
            } else {
                lane.shaper.schedule(packet.arrived_ns, bytes.len()).map_err(|QueueFull| DropReason::Queue)
            };
            (verdict, scheduled)
        };
        packet.held_ns = verdict.hold.map_or(0, as_ns);
        let due_ns = match scheduled {
            Ok(due_ns) => due_ns.saturating_add(packet.held_ns),
            Err(reason) => {
                packet.held_ns = 0;
                packet.fate = Fate::Dropped(reason);
                self.note(packet);
                return;
            }
        };
        if let Some((copies, gap)) = verdict.copies {
            let original = packet.clone();
            self.schedule(packet, due_ns, bytes.clone());
            for nth in 1..=u64::from(copies) {
                let copy = self.number(Packet { origin: Origin::CopyOf(original.number), ..original.clone() });
                self.schedule(copy, due_ns.saturating_add(as_ns(gap).saturating_mul(nth)), bytes.clone());
            }
        } else {
            self.schedule(packet, due_ns, bytes);
        }
    }

    fn schedule(&mut self, mut packet: Packet, due_ns: u64, bytes: Vec<u8>) {
        let (packets, held) = &mut self.backlog[packet.direction as usize];
        if *packets >= MAX_BACKLOG_PACKETS || *held + bytes.len() > MAX_BACKLOG_BYTES {
            packet.fate = Fate::Dropped(DropReason::Backlog);
        } else {
            *packets += 1;
            *held += bytes.len();
            packet.fate = Fate::Pending { due_ns };
            let sent = Sent { direction: packet.direction, arrived_ns: packet.arrived_ns, length: packet.length };
            self.heap.push(Reverse(Scheduled { due_ns, number: packet.number, sent, bytes }));
        }
        self.note(packet);
    }

    /// Enters a packet into the record.
    fn note(&self, packet: Packet) {
        self.shared.in_flight.store(self.heap.len() as u64, Ordering::Release);
        lock(&self.shared.record).push(packet, self.shared.record_cap);
        self.announce();
    }

    /// Enters what became of a packet.
    fn resolve(&self, number: u64, sent: Sent, fate: Fate) {
        self.shared.in_flight.store(self.heap.len() as u64, Ordering::Release);
        lock(&self.shared.record).resolve(number, sent, fate);
        self.announce();
    }

    fn announce(&self) {
        if self.shared.waiters.load(Ordering::Acquire) > 0 {
            self.shared.changed.notify_all();
        }
    }

    /// Hands over the next packet if its time has come.
    fn deliver_one(&mut self) -> bool {
        let Some(Reverse(next)) = self.heap.peek() else { return false };
        if next.due_ns > now_ns() {
            return false;
        }
        let Some(Reverse(packet)) = self.heap.pop() else { return false };
        let (packets, held) = &mut self.backlog[packet.sent.direction as usize];
        *packets -= 1;
        *held -= packet.bytes.len();
        let fate = self.hand_over(packet.sent.direction, &packet.bytes);
        self.resolve(packet.number, packet.sent, fate);
        true
    }

    fn hand_over(&self, direction: Direction, bytes: &[u8]) -> Fate {
        // The receiving TCP acts within the write, so the time before it is the time of the receipt.
        let departed_ns = now_ns();
        match self.tuns[direction.reversed() as usize].write(bytes) {
            Ok(()) => Fate::Delivered { departed_ns, processed_ns: now_ns() },
            Err(_) => Fate::Dropped(DropReason::Refused),
        }
    }

    /// Delivers the packets made by hand, past all rules and delays.
    fn inject(&mut self) {
        let waiting = std::mem::take(&mut *lock(&self.shared.injected));
        for (direction, bytes) in waiting {
            let arrived_ns = now_ns();
            let fate = self.hand_over(direction, &bytes);
            let packet = self.number(Packet {
                number: 0,
                direction,
                arrived_ns,
                length: bytes.len() as u32,
                origin: Origin::Injected,
                held_ns: 0,
                fate,
                segment: Segment::parse(&bytes),
            });
            self.note(packet);
        }
    }
}

/// Whether a packet is addressed to a group: the kernel's own talk on a link (MLD, router solicitations), which
/// has no one to reach here and would only disturb counts.
fn is_multicast(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(16).is_some_and(|byte| (224..240).contains(byte)),
        Some(6) => packet.get(24) == Some(&0xff),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_from_hosts() {
        let mut v4 = [0x45; 20];
        v4[16] = 224;
        assert!(is_multicast(&v4));
        v4[16] = 10;
        assert!(!is_multicast(&v4));
        let mut v6 = [0x60; 40];
        v6[24] = 0xff;
        assert!(is_multicast(&v6));
        v6[24] = 0xfd;
        assert!(!is_multicast(&v6));
        assert!(!is_multicast(&[]) && !is_multicast(&[0x60]));
    }
}
