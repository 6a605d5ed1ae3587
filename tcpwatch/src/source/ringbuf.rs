//! The live source: takes records out of the ring buffer in batches, and says how full it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use crate::sys;

/// Records taken in one go before the daemon looks at its other work.
const BATCH: usize = 1024;
/// What the kernel puts before each record, and the alignment it rounds to (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// How often the ring is looked into while records come: a record that wakes the daemon costs the CPU that carries the
/// traffic more than all that it tells.
const LOOK: Duration = Duration::from_millis(25);
/// So often in a row it was empty: from then on the next record wakes.
const QUIET: u32 = 40;

/// The ring buffer of the kernel programs.
pub(crate) struct RingSource {
    ring: AsyncFd<Ring>,
    clock: Interval,
    pace: Pace,
}

/// When to look next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// At once: there may be more.
    Busy,
    /// By the clock; the ring was empty so often in a row.
    Looking(u32),
    /// At once: a record wakes us from now on, but not one that was submitted meanwhile.
    Drowsy,
    /// When a record wakes us.
    Asleep,
}

impl Pace {
    /// What follows a batch.
    fn after(self, batch: &Batch) -> Self {
        if !batch.drained {
            return Self::Busy;
        }
        match self {
            _ if batch.records > 0 => Self::Looking(0),
            Self::Busy => Self::Looking(0),
            Self::Looking(QUIET) => Self::Drowsy,
            Self::Looking(times) => Self::Looking(times + 1),
            // An event may be of a record that was taken before it was looked at.
            Self::Drowsy | Self::Asleep => Self::Asleep,
        }
    }

    /// Whether a record is to wake us.
    fn sleeps(self) -> bool {
        matches!(self, Self::Drowsy | Self::Asleep)
    }
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What one batch was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Records.
    pub(crate) records: usize,
    /// Bytes they took in the ring.
    pub(crate) bytes: u64,
    /// False when there may be more at once.
    pub(crate) drained: bool,
}

impl RingSource {
    /// Waits on the map's descriptor; to be called within a tokio runtime.
    pub(crate) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let mut clock = tokio::time::interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { ring: sys::readable(Ring(ring))?, clock, pace: Pace::Looking(0) })
    }

    /// Waits until it is time to look, and hands up to [`BATCH`] records to `each`. `sleeps` tells the kernel programs
    /// whether a record is to wake us. Nothing is lost when the future is dropped.
    pub(crate) async fn next_batch(
        &mut self,
        each: impl FnMut(&[u8]),
        mut sleeps: impl FnMut(bool) -> io::Result<()>,
    ) -> io::Result<Batch> {
        match self.pace {
            Pace::Busy | Pace::Drowsy => {}
            Pace::Looking(_) => tokio::select! {
                _ = self.clock.tick() => {}
                // So much waits, or it is so urgent, that the kernel programs did not leave it to the clock.
                ready = self.ring.readable_mut() => ready?.clear_ready(),
            },
            Pace::Asleep => self.ring.readable_mut().await?.clear_ready(),
        }
        let batch = self.take_ready(each);
        let next = self.pace.after(&batch);
        if next.sleeps() != self.pace.sleeps() {
            sleeps(next.sleeps())?;
            self.clock.reset();
        }
        self.pace = next;
        Ok(batch)
    }

    /// Takes what is there now, without waiting.
    pub(crate) fn take_ready(&mut self, each: impl FnMut(&[u8])) -> Batch {
        take(&mut self.ring.get_mut().0, each)
    }
}

fn take(ring: &mut RingBuf<MapData>, mut each: impl FnMut(&[u8])) -> Batch {
    let mut batch = Batch::default();
    while batch.records < BATCH {
        let Some(item) = ring.next() else {
            batch.drained = true;
            break;
        };
        each(&item);
        batch.records += 1;
        batch.bytes += (item.len() as u64 + HEADER).next_multiple_of(8);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(records: usize, drained: bool) -> Batch {
        Batch { records, bytes: 0, drained }
    }

    #[test]
    fn a_quiet_ring_lets_it_sleep_after_a_last_look() {
        let mut pace = Pace::Looking(0);
        for _ in 0..QUIET {
            pace = pace.after(&batch(0, true));
            assert!(!pace.sleeps());
        }
        pace = pace.after(&batch(0, true));
        assert_eq!(pace, Pace::Drowsy);
        assert_eq!(pace.after(&batch(1, true)), Pace::Looking(0));
        pace = pace.after(&batch(0, true));
        assert_eq!(pace, Pace::Asleep);
        assert_eq!(pace.after(&batch(0, true)), Pace::Asleep);
        assert_eq!(pace.after(&batch(3, true)), Pace::Looking(0));
    }

    #[test]
    fn what_is_left_is_taken_at_once() {
        for pace in [Pace::Busy, Pace::Looking(7), Pace::Drowsy, Pace::Asleep] {
            assert_eq!(pace.after(&batch(BATCH, false)), Pace::Busy);
        }
        assert_eq!(Pace::Busy.after(&batch(0, true)), Pace::Looking(0));
        assert_eq!(Pace::Looking(7).after(&batch(1, true)), Pace::Looking(0));
    }
}
