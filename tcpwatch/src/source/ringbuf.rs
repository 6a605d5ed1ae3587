//! The live source: takes records out of the ring buffer in batches, and says how full it was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::sys;

/// Records taken in one go before the daemon looks at its other work.
const BATCH: usize = 1024;
/// What the kernel puts before each record, and the alignment it rounds to (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// How often the ring is looked into while many records come: a record that wakes the daemon costs the CPU that carries the
/// traffic more than all that it tells. A look costs about as much, so that few records had better wake it.
const LOOK: Duration = Duration::from_millis(25);
/// After so many looks it is decided whether to go on with them.
const SPELL: u32 = 40;
/// Records that a spell must bring, one a look.
const MANY: usize = SPELL as usize;

/// The ring buffer of the kernel programs.
pub(crate) struct RingSource {
    ring: AsyncFd<Ring>,
    clock: Interval,
    pace: Pace,
    /// When records were last found.
    found: Instant,
}

/// When to look next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// At once: there may be more.
    Busy,
    /// By the clock: so many looks of a spell are over, and brought so many records.
    Looking(u32, usize),
    /// At once: a record wakes us from now on, but not one that was submitted meanwhile.
    Drowsy,
    /// When a record wakes us.
    Asleep,
}

impl Pace {
    /// What follows a batch. `soon`: it came as soon after the one before as a look would have.
    fn after(self, batch: &Batch, soon: bool) -> Self {
        if !batch.drained {
            return Self::Busy;
        }
        match self {
            Self::Busy => Self::Looking(0, 0),
            Self::Looking(looks, records) => match (looks + 1, records + batch.records) {
                (SPELL, records) if records < MANY => Self::Drowsy,
                (SPELL, _) => Self::Looking(0, 0),
                (looks, records) => Self::Looking(looks, records),
            },
            Self::Asleep if soon && batch.records > 0 => Self::Looking(0, 0),
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
        Ok(Self { ring: sys::readable(Ring(ring))?, clock, pace: Pace::Looking(0, 0), found: Instant::now() })
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
            Pace::Looking(..) => tokio::select! {
                _ = self.clock.tick() => {}
                // So much waits, or it is so urgent, that the kernel programs did not leave it to the clock.
                ready = self.ring.readable_mut() => ready?.clear_ready(),
            },
            Pace::Asleep => self.ring.readable_mut().await?.clear_ready(),
        }
        let batch = self.take_ready(each);
        let next = self.pace.after(&batch, self.found.elapsed() < LOOK);
        if batch.records > 0 {
            self.found = Instant::now();
        }
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

    /// What follows a spell of looks that bring `records` each.
    fn spell(records: usize) -> Pace {
        let mut pace = Pace::Looking(0, 0);
        for _ in 0..SPELL {
            assert!(!pace.sleeps());
            pace = pace.after(&batch(records, true), false);
        }
        pace
    }

    #[test]
    fn few_records_wake_it_and_many_are_looked_for() {
        assert_eq!(spell(1), Pace::Looking(0, 0));
        assert_eq!(spell(0), Pace::Drowsy);
        let few = Pace::Looking(0, 0).after(&batch(MANY - 1, true), false);
        let last = (1..SPELL).fold(few, |pace, _| pace.after(&batch(0, true), false));
        assert_eq!(last, Pace::Drowsy);
    }

    #[test]
    fn it_sleeps_after_a_last_look_until_records_come_in_a_row() {
        for records in [0, 1] {
            assert_eq!(Pace::Drowsy.after(&batch(records, true), true), Pace::Asleep);
        }
        assert_eq!(Pace::Asleep.after(&batch(0, true), true), Pace::Asleep);
        assert_eq!(Pace::Asleep.after(&batch(3, true), false), Pace::Asleep);
        assert_eq!(Pace::Asleep.after(&batch(1, true), true), Pace::Looking(0, 0));
    }

    #[test]
    fn what_is_left_is_taken_at_once() {
        for pace in [Pace::Busy, Pace::Looking(7, 7), Pace::Drowsy, Pace::Asleep] {
            assert_eq!(pace.after(&batch(BATCH, false), false), Pace::Busy);
        }
        assert_eq!(Pace::Busy.after(&batch(0, true), false), Pace::Looking(0, 0));
    }
}
