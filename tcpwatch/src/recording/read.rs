//! The reading end: the inputs of a recording, one after the other, each checked before it is believed.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use tcpwatch_common::counters::slot;

use super::codec::{Codec, LAYOUT, get};
use super::error::{Problem, RecordingError};
use super::frames::{FrameReader, Kind};
use super::{Beginning, Input, Written};

/// The configuration allows no more connections.
const MOST_CONNECTIONS: usize = 4_000_000;

/// A recording that is being read.
pub(crate) struct Recording<R: Read = BufReader<File>> {
    frames: FrameReader<R>,
    path: PathBuf,
    beginning: Beginning,
    codec: Codec,
    content: Vec<u8>,
    /// How much of `content` has been read.
    used: usize,
    seen: Written,
    done: bool,
}

impl Recording {
    /// Opens a file and checks its beginning.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordingError> {
        let file = File::open(path).map_err(|error| RecordingError::new(path, Problem::Open(error)))?;
        Self::of(BufReader::new(file), path)
    }
}

impl<R: Read> Recording<R> {
    /// The same from any place; `path` is what errors name.
    pub(crate) fn of(input: R, path: &Path) -> Result<Self, RecordingError> {
        let failed = |problem| RecordingError::new(path, problem);
        let mut frames = FrameReader::new(input).map_err(failed)?;
        let mut content = Vec::new();
        let kind = frames.read(&mut content).map_err(failed)?;
        let beginning = beginning(kind, &content).map_err(|what| failed(frames.damaged(what)))?;
        content.clear();
        Ok(Self {
            frames,
            path: path.to_owned(),
            beginning,
            codec: Codec::default(),
            content,
            used: 0,
            seen: Written::default(),
            done: false,
        })
    }

    /// What the aggregator was made of.
    pub(crate) fn beginning(&self) -> &Beginning {
        &self.beginning
    }

    /// The next input; `None` at the end of a whole recording. After an error there is nothing more to read.
    pub(crate) fn next(&mut self) -> Result<Option<Input<'_>>, RecordingError> {
        while self.used == self.content.len() {
            if self.done || !self.next_frame().map_err(|problem| RecordingError::new(&self.path, problem))? {
                self.done = true;
                return Ok(None);
            }
        }
        let mut rest = self.content.get(self.used..).unwrap_or_default();
        let input = match self.codec.decode(&mut rest) {
            Ok(input) => input,
            Err(what) => return Err(RecordingError::new(&self.path, self.frames.damaged(what))),
        };
        self.used = self.content.len() - rest.len();
        match input {
            Input::Record(_) => self.seen.records += 1,
            Input::Listening(_) => self.seen.listeners += 1,
            Input::Name(..) => self.seen.names += 1,
            Input::Gone(_) | Input::Settings(..) | Input::Governed(_) => {}
            Input::Stack(_) => self.seen.stacks += 1,
            Input::Reading(..) => self.seen.readings += 1,
        }
        Ok(Some(input))
    }

    /// That there is no such snapshot in it.
    pub(crate) fn no_snapshot(&self, wanted: u64, found: u64) -> RecordingError {
        RecordingError::new(&self.path, Problem::NoSnapshot { wanted, found })
    }

    /// Reads a frame of inputs; false at the end.
    fn next_frame(&mut self) -> Result<bool, Problem> {
        self.used = 0;
        match self.frames.read(&mut self.content)? {
            Kind::Inputs => Ok(true),
            Kind::Beginning => Err(self.frames.damaged("a second beginning")),
            Kind::End => {
                let mut rest = self.content.as_slice();
                for seen in
                    [self.seen.records, self.seen.listeners, self.seen.stacks, self.seen.readings, self.seen.names]
                {
                    if get(&mut rest) != Ok(seen) {
                        return Err(self.frames.damaged("it counts other inputs than there were"));
                    }
                }
                if !rest.is_empty() {
                    return Err(self.frames.damaged("its length"));
                }
                self.content.clear();
                self.frames.end()?;
                Ok(false)
            }
        }
    }
}

fn beginning(kind: Kind, content: &[u8]) -> Result<Beginning, &'static str> {
    if kind != Kind::Beginning {
        return Err("no beginning");
    }
    let (layout, beginning): ([usize; LAYOUT.len()], Beginning) =
        serde_json::from_slice(content).map_err(|_| "the beginning")?;
    if layout != LAYOUT {
        return Err("its counters lie elsewhere than this tcpwatch has them");
    }
    let facts = &beginning.facts;
    let texts = facts.reasons.iter().chain([&facts.kernel_release]).map(String::as_str);
    let texts = texts.chain(facts.probes.iter().flat_map(|p| [p.probe.as_str(), &p.hook, &p.loses]));
    // They go to terminals.
    if texts
        .chain(facts.no_symbols.as_deref())
        .chain([&*facts.sampling_mode])
        .any(|text| text.contains(char::is_control))
    {
        return Err("a text of the beginning");
    }
    if beginning.services > slot::COUNT || beginning.table_capacity > MOST_CONNECTIONS {
        return Err("a size of the beginning");
    }
    Ok(beginning)
}
