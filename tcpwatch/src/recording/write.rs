//! The writing end: takes inputs as the daemon feeds them to its aggregator, and writes a frame a second or earlier.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::codec::{Codec, LAYOUT, MOST_INPUT, MOST_RECORD, put};
use super::error::{Problem, RecordingError};
use super::frames::{FrameWriter, Kind, MOST_BYTES};
use super::{Beginning, Input};

/// A frame is written when so much has gathered.
const FRAME_BYTES: usize = 256 << 10;

const _: () = assert!(FRAME_BYTES + MOST_INPUT <= MOST_BYTES && FRAME_BYTES + MOST_RECORD + 16 <= MOST_BYTES);

/// A file that did not exist before.
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    /// Makes the file, for its owner alone: a recording tells who talks to whom.
    pub(crate) fn create(path: &Path) -> Result<Self, RecordingError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => Problem::Exists,
            _ => Problem::Create(error),
        };
        let file = file.map_err(|error| RecordingError::new(path, failed(error)))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Takes it away again, since there will be no recording.
    pub(crate) fn discard(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Records of the ring buffer.
    pub(crate) records: u64,
    /// Listeners older than the daemon.
    pub(crate) listeners: u64,
    /// Kernel stacks.
    pub(crate) stacks: u64,
    /// Readings of the counters.
    pub(crate) readings: u64,
    /// Names of users and control groups.
    pub(crate) names: u64,
    /// Bytes of the file.
    pub(crate) bytes: u64,
}

/// Writes a recording.
pub(crate) struct Recorder<W: Write = File> {
    frames: FrameWriter<W>,
    path: PathBuf,
    codec: Codec,
    pending: Vec<u8>,
    written: Written,
    /// Why a frame could not be written; nothing is written after it.
    broken: Option<io::Error>,
}

impl Recorder {
    /// Begins a recording of what an aggregator is given.
    pub(crate) fn begin(file: NewFile, beginning: &Beginning) -> Result<Self, RecordingError> {
        let NewFile { file, path } = file;
        Self::to(file, &path, beginning)
    }

    /// Writes what is pending and the end, and waits until the disk has it.
    pub(crate) fn finish(mut self) -> Result<Written, RecordingError> {
        self.end()?;
        let synced = self.frames.get_ref().sync_all();
        synced.map_err(|error| RecordingError::new(&self.path, Problem::Write(error)))?;
        Ok(self.written)
    }
}

impl<W: Write> Recorder<W> {
    /// The same to any place; `path` is what errors name.
    pub(super) fn to(out: W, path: &Path, beginning: &Beginning) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::new(path, Problem::Write(error));
        let mut frames = FrameWriter::new(out).map_err(failed)?;
        let text = serde_json::to_vec(&(LAYOUT, beginning)).map_err(|error| failed(error.into()))?;
        frames.write(Kind::Beginning, &text).map_err(failed)?;
        Ok(Self {
            frames,
            path: path.to_owned(),
            codec: Codec::default(),
            pending: Vec::new(),
            written: Written::default(),
            broken: None,
        })
    }

    /// Takes an input. What goes wrong is told by the next [`Recorder::flush`].
    pub(crate) fn add(&mut self, input: Input<'_>) {
        let uncounted = &mut 0;
        let count = match input {
            // The kernel's ring has no such record.
            Input::Record(bytes) if bytes.len() > MOST_RECORD => return,
            Input::Record(_) => &mut self.written.records,
            Input::Listening(_) => &mut self.written.listeners,
            Input::Name(..) => &mut self.written.names,
            // The sum of the checks tells whether one is missing.
            Input::Gone(_) | Input::Settings(..) | Input::Governed(_) => uncounted,
            Input::Stack(_) => &mut self.written.stacks,
            Input::Reading(..) => &mut self.written.readings,
        };
        *count += 1;
        self.codec.encode(input, &mut self.pending);
        if self.pending.len() >= FRAME_BYTES {
            self.write();
        }
    }

    /// Writes what has gathered.
    pub(crate) fn flush(&mut self) -> Result<(), RecordingError> {
        self.write();
        let broken = self.broken.take();
        broken.map_or(Ok(()), |error| Err(RecordingError::new(&self.path, Problem::Write(error))))
    }

    /// Writes what is pending and the end.
    pub(super) fn end(&mut self) -> Result<(), RecordingError> {
        self.flush()?;
        let mut counts = Vec::new();
        for count in [
            self.written.records,
            self.written.listeners,
            self.written.stacks,
            self.written.readings,
            self.written.names,
        ] {
            put(&mut counts, count);
        }
        let ended = self.frames.write(Kind::End, &counts);
        ended.map_err(|error| RecordingError::new(&self.path, Problem::Write(error)))?;
        self.written.bytes = self.frames.bytes;
        Ok(())
    }

    fn write(&mut self) {
        if self.broken.is_none() && !self.pending.is_empty() {
            self.broken = self.frames.write(Kind::Inputs, &self.pending).err();
        }
        self.pending.clear();
    }

    /// Where it was written to.
    #[cfg(test)]
    pub(super) fn get_ref(&self) -> &W {
        self.frames.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_that_exists_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.twr");
        fs::write(&path, "mine").unwrap();
        let error = NewFile::create(&path).err().unwrap().to_string();
        assert!(error.contains("a.twr: it exists") && error.contains("name another file"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let error = NewFile::create(&folder.path().join("no/such")).err().unwrap().to_string();
        assert!(error.contains("no/such: cannot make it"), "{error}");
    }

    #[test]
    fn nobody_else_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.twr");
        let recorder = Recorder::begin(NewFile::create(&path).unwrap(), &Beginning::default()).unwrap();
        let written = recorder.finish().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, written.bytes));
    }

    #[test]
    fn a_full_disk_is_told_with_the_next_flush() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let path = Path::new("/dev/full");
        assert!(Recorder::to(full, path, &Beginning::default()).is_err());
        let room = [0_u8; 4096];
        let mut place = io::Cursor::new(room.to_vec().into_boxed_slice());
        let mut recorder = Recorder::to(&mut place, path, &Beginning::default()).unwrap();
        // Bytes that cannot be packed.
        let noise: Vec<u8> = (0..60_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        (0..10).for_each(|_| recorder.add(Input::Record(&noise)));
        let error = recorder.flush().unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: cannot write to it"), "{error}");
    }
}
