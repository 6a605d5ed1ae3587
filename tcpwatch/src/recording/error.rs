//! What can be wrong with a recording: each a sentence with the file, the place and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A recording that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub(crate) struct RecordingError {
    path: PathBuf,
    problem: Problem,
}

impl RecordingError {
    pub(super) fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem }
    }

    /// What is wrong.
    #[cfg(test)]
    pub(super) fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Frames before it.
    pub(super) frame: u64,
    /// Where its frame begins, bytes.
    pub(super) offset: u64,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("it exists, and a recording is never overwritten; remove it or name another file")]
    Exists,
    #[error("cannot make it: {0}; name a file in a folder that you may write to")]
    Create(io::Error),
    #[error("cannot write to it: {0}; what was written before can be replayed: make room, or name a file elsewhere")]
    Write(io::Error),
    #[error("cannot open it: {0}; name a file that `tcpwatch record` made")]
    Open(io::Error),
    #[error("cannot read it at byte {offset}: {source}; copy it to another disk and replay that")]
    Read { offset: u64, source: io::Error },
    #[error("its first bytes are not those of a recording; name a file that `tcpwatch record` made")]
    NotARecording,
    #[error("it has format {found}, and this tcpwatch reads format {ours}; replay it with a newer tcpwatch")]
    Newer { found: u16, ours: u16 },
    #[error(
        "it holds records of ABI {found}, and this tcpwatch has ABI {ours}; replay it with the tcpwatch that \
         recorded it, version {by}"
    )]
    OtherAbi { found: u16, ours: u16, by: String },
    #[error("it comes from a machine with the other byte order; replay it on such a machine")]
    ByteOrder,
    #[error(
        "it breaks off in frame {} at byte {}: the recorder was killed or the copy is not whole; only what is before \
         can be replayed, unless the original is longer: then copy it again",
        .0.frame, .0.offset
    )]
    Truncated(Place),
    #[error(
        "frame {} at byte {} is damaged ({what}); only what is before can be replayed: copy the file again from where \
         it was recorded",
        place.frame, place.offset
    )]
    Damaged { place: Place, what: &'static str },
    #[error("it has {found} snapshots and no number {wanted}; name one from 1 to {found} with --at")]
    NoSnapshot { wanted: u64, found: u64 },
}
