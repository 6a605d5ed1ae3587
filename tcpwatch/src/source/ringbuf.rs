//! The live source: takes records out of the ring buffer in batches, and says how full it was.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Records taken in one go before the daemon looks at its other work.
const BATCH: usize = 1024;
/// What the kernel puts before each record, and the alignment it rounds to (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// The ring buffer of the kernel programs.
pub(crate) struct RingSource {
    ring: AsyncFd<Ring>,
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
    pub(crate) fn new(ring: RingBuf<MapData>) -> std::io::Result<Self> {
        Ok(Self { ring: sys::readable(Ring(ring))? })
    }

    /// Waits for records and hands up to [`BATCH`] of them to `each`.
    pub(crate) async fn next_batch(&mut self, each: impl FnMut(&[u8])) -> std::io::Result<Batch> {
        let mut guard = self.ring.readable_mut().await?;
        let batch = take(&mut guard.get_inner_mut().0, each);
        if batch.drained {
            guard.clear_ready();
        }
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
