//! `tcpwatch replay`: the outputs of a recording, as they were when it was made. Needs no kernel and no privileges.
//!
//! A reader of recordings is a variant of `cli::Reader` and a function here that takes snapshots from a [`Playback`].

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use crate::aggregate::Aggregator;
use crate::aggregate::snapshot::Snapshot;
use crate::api::connection::Connection;
use crate::api::resets::Resets;
use crate::api::{self, Selection};
use crate::cli::{self, ExplainReader, Reader, Replay};
use crate::explain::{self, Sight};
use crate::filter::{Filter, FilterError};
use crate::metrics::{MetricsError, Recorded};
use crate::recording::{Intake, Recording, RecordingError};
use crate::top::columns::Row as _;
use crate::top::{self, TopError, columns};

/// Why a replay does not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    /// The recording is not whole, or none.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A mistake in the catalogue.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The view fails.
    #[error(transparent)]
    Top(#[from] TopError),
    /// No such column.
    #[error(transparent)]
    Column(#[from] columns::NoColumn),
    /// The filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Nobody takes the output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl ReplayError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Column(_) | Self::Filter(_) => cli::USAGE,
            Self::Top(error) => error.status(),
            Self::Recording(_) | Self::Metrics(_) | Self::Output(_) => cli::FAILED,
        }
    }
}

/// Shows a recording to the reader that was asked for. What is before a break in the file is shown all the same.
pub(crate) fn run(args: &Replay, out: &mut impl Write) -> Result<(), ReplayError> {
    if let Some(Reader::Top(reader)) = &args.reader {
        return Ok(top::replay(&args.file, reader, out)?);
    }
    let playback = Playback::of(Recording::open(&args.file)?);
    match &args.reader {
        None | Some(Reader::Top(_)) => metrics(playback, None, out),
        Some(Reader::Metrics(reader)) => metrics(playback, reader.at, out),
        Some(Reader::Resets(reader)) => resets(playback, reader.json, out),
        Some(Reader::Explain(reader)) => explain(playback, reader, out),
        Some(Reader::Connections) => connections(playback, out),
    }
}

/// The snapshots of a recording.
pub(crate) struct Playback<R: io::Read = io::BufReader<std::fs::File>> {
    recording: Recording<R>,
    intake: Intake,
}

impl<R: io::Read> Playback<R> {
    /// At the beginning.
    pub(crate) fn of(recording: Recording<R>) -> Self {
        let (intake, _) = Intake::new(recording.beginning(), None);
        Self { recording, intake }
    }

    /// What was added up so far.
    pub(crate) fn aggregator(&self) -> &Aggregator {
        self.intake.aggregator()
    }

    /// The next snapshot; `None` at the end of a whole recording. After an error there are no more.
    pub(crate) fn next(&mut self) -> Result<Option<Arc<Snapshot>>, RecordingError> {
        while let Some(input) = self.recording.next()? {
            if let Some(snapshot) = self.intake.replay(input) {
                return Ok(Some(snapshot));
            }
        }
        Ok(None)
    }
}

/// The metrics of the last snapshot, or of number `at`, counted from 1.
fn metrics<R: io::Read>(mut playback: Playback<R>, at: Option<u64>, out: &mut impl Write) -> Result<(), ReplayError> {
    let mut shown = Recorded::default();
    let mut found = 0;
    let broken = loop {
        if at == Some(found) {
            break None;
        }
        match playback.next() {
            Ok(Some(snapshot)) => shown.take(&snapshot),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
        found += 1;
    };
    if broken.is_none()
        && let Some(wanted) = at.filter(|at| *at > found)
    {
        return Err(playback.recording.no_snapshot(wanted, found).into());
    }
    write(out, &shown.text()?)?;
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// The connections that were there at the last snapshot, those that sent most first.
fn connections<R: io::Read>(mut playback: Playback<R>, out: &mut impl Write) -> Result<(), ReplayError> {
    let mut moment = (playback.recording.beginning().ktime_ns, playback.recording.beginning().facts.ticks_per_second);
    let broken = loop {
        match playback.next() {
            Ok(Some(snapshot)) => moment = (snapshot.ktime_ns, snapshot.facts.ticks_per_second),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let listing = playback.aggregator().listing(moment.0);
    let selection = Selection { sort: Some(columns::find(Connection::DEFAULT)?), ..Selection::default() };
    let (page, _) = listing.page(moment.1, &selection);
    for record in page {
        write(out, &api::line(&listing.connection(&record.record(), moment.1)))?;
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// The resets up to the last snapshot.
fn resets<R: io::Read>(mut playback: Playback<R>, json: bool, out: &mut impl Write) -> Result<(), ReplayError> {
    let mut last = None;
    let broken = loop {
        match playback.next() {
            Ok(Some(snapshot)) => last = Some((snapshot, playback.intake.aggregator().resets())),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    if let Some((snapshot, report)) = last {
        write(out, &crate::resets::shown(&Resets::new(&snapshot, &report), json))?;
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}

/// What limits what was there at the last snapshot, over all that is known or the last part of it.
fn explain<R: io::Read>(
    mut playback: Playback<R>,
    reader: &ExplainReader,
    out: &mut impl Write,
) -> Result<(), ReplayError> {
    let filter = Filter::of_words(&reader.expr)?;
    let time_ns = reader.time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let ticks_per_second = playback.recording.beginning().facts.ticks_per_second;
    // Of those before the last one only as many as may be where the window begins.
    let mut pictures = VecDeque::new();
    let broken = loop {
        match playback.next() {
            Ok(Some(snapshot)) => {
                let picture = playback.intake.aggregator().picture(snapshot.ktime_ns, snapshot.namespaces.clone());
                pictures.push_back((snapshot.ktime_ns, picture));
                let begins_ns = time_ns.map_or(u64::MAX, |time_ns| snapshot.ktime_ns.saturating_sub(time_ns));
                while pictures.get(1).is_some_and(|(next_ns, _)| *next_ns <= begins_ns) {
                    pictures.pop_front();
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    if let Some((_, now)) = pictures.pop_back() {
        let before = time_ns.and_then(|_| pictures.pop_front()).map(|(_, before)| before);
        let explained = Sight { now, before, ticks_per_second }.explained(filter.as_ref(), reader.all);
        write(out, &explain::command::shown(&explained, reader.json))?;
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}

fn write(out: &mut impl Write, text: &str) -> Result<(), ReplayError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReplayError::Output(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::cli::{MetricsReader, ResetsReader};

    fn check(file: &Path, extension: &str, text: &str) {
        let name = file.with_extension(extension);
        crate::golden::check(&format!("tests/replay/{}", name.file_name().unwrap().to_str().unwrap()), text);
    }

    fn replayed(file: &Path, at: Option<u64>) -> (String, Result<(), ReplayError>) {
        let mut out = Vec::new();
        let reader = at.map(|at| Reader::Metrics(MetricsReader { at: Some(at) }));
        let outcome = run(&Replay { file: file.to_owned(), reader }, &mut out);
        (String::from_utf8(out).unwrap(), outcome)
    }

    /// The recordings of the repository; `recording::make` of the real-kernel tests makes them anew.
    fn samples() -> Vec<std::path::PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "twr"));
        files.sort();
        files
    }

    #[test]
    fn recordings_of_real_traffic_give_the_metrics_beside_them() {
        let files = samples();
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            let (text, outcome) = replayed(&file, None);
            outcome.unwrap();
            assert!(fs::metadata(&file).unwrap().len() < 100_000, "{}", file.display());
            check(&file, "metrics", &text);
            for (extension, reader) in [
                ("top", Reader::Top(top::Args::once_by("sent"))),
                ("jsonl", Reader::Connections),
                ("resets", Reader::Resets(ResetsReader { json: false })),
            ] {
                let mut out = Vec::new();
                run(&Replay { file: file.clone(), reader: Some(reader) }, &mut out).unwrap();
                check(&file, extension, &String::from_utf8(out).unwrap());
            }
        }
    }

    #[test]
    fn a_snapshot_is_found_by_its_number_and_the_last_is_the_default() {
        let file = &samples()[0];
        let (last, _) = replayed(file, None);
        let mut count = 0;
        let mut playback = Playback::of(Recording::open(file).unwrap());
        while playback.next().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(replayed(file, Some(count)).0, last);
        assert_ne!(replayed(file, Some(1)).0, last);
        let (text, outcome) = replayed(file, Some(count + 1));
        assert!(text.is_empty() && outcome.unwrap_err().to_string().contains(&format!("has {count} snapshots")));
    }

    #[test]
    fn a_recording_that_breaks_off_is_shown_up_to_there_and_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let cut = folder.path().join("cut.twr");
        let whole = fs::read(&samples()[0]).unwrap();
        fs::write(&cut, &whole[..whole.len() - 3]).unwrap();
        let (text, outcome) = replayed(&cut, None);
        assert_eq!(text, replayed(&samples()[0], None).0, "only the end is missing");
        let error = outcome.unwrap_err();
        assert!(error.status() == 1 && error.to_string().contains("cut.twr: it breaks off in frame "), "{error}");
        let mut other = whole;
        let middle = other.len() / 2;
        other[middle] ^= 4;
        fs::write(&cut, &other).unwrap();
        let (text, outcome) = replayed(&cut, None);
        let error = outcome.unwrap_err().to_string();
        assert!(!text.is_empty() && error.contains(" is damaged ("), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn what_belongs_to_the_running_process_is_not_in_it() {
        let (text, _) = replayed(&samples()[0], None);
        for name in ["process_", "tcpwatch_scrape_", "tcpwatch_snapshot_age", "tcpwatch_http_", "tcpwatch_build_info"] {
            assert!(!text.contains(name), "{name}");
        }
        assert!(text.contains("tcpwatch_kernel_info{") && text.contains("tcpwatch_rtt_seconds_bucket{"));
    }
}
