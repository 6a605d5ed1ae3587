//! A recording: everything that an [`Aggregator`] was made from and given, in order. The aggregator is pure, so that
//! feeding it the same again gives the same snapshots. It is fed through [`Intake`], live and from a file.
//!
//! `write` and `read` are the two ends; `codec` turns inputs into bytes, `frames` puts bytes into a file that can be
//! checked. docs/RECORDINGS.md describes the format. The commands are in `record.rs` and `replay.rs`.

mod codec;
mod error;
mod frames;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
#[cfg(test)]
mod props;
mod read;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::aggregate::owners::{Named, Wanted};
use crate::aggregate::services::{Grant, Services};
use crate::aggregate::snapshot::{Facts, Governed, Snapshot};
use crate::aggregate::table::ConnTable;
use crate::aggregate::{Aggregator, Reading};
use crate::kernel::maps::Counters;
use crate::meaning::Limits;
use crate::storm::Rules;

pub(crate) use error::RecordingError;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use fuzz::wrapped;
pub(crate) use read::Recording;
pub(crate) use write::{NewFile, Recorder, Written};

/// What an aggregator is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// Facts of the kernel and of the programs in it.
    pub(crate) facts: Facts,
    /// Services that can have a label.
    pub(crate) services: usize,
    /// Ports that are services from the start.
    pub(crate) service_ports: Vec<u16>,
    /// Connections that the table holds.
    pub(crate) table_capacity: usize,
    /// ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// What makes a storm.
    #[serde(default)]
    pub(crate) storms: Rules,
}

/// A kernel stack of resets, with the names of its functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResetStack {
    /// Its key in the table of the programs.
    pub(crate) key: u64,
    /// Number of the origin.
    pub(crate) origin: u8,
    /// Number of the cause.
    pub(crate) cause: u8,
    /// The functions, the innermost first; empty where the kernel does not tell.
    pub(crate) frames: Vec<String>,
}

/// One thing that an aggregator is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Input<'a> {
    /// Bytes from the ring buffer.
    Record(&'a [u8]),
    /// A port that something listened on before the daemon.
    Listening(u16),
    /// The name of a user or control group, or that a process has ended.
    Name(Named, u64, &'a [u8]),
    /// The cookie of a connection that has ended and whose end was not heard of.
    Gone(u64),
    /// A kernel stack of a reset that was not seen before.
    Stack(&'a ResetStack),
    /// The settings of a network namespace, or that it has ended.
    Settings(u32, Option<&'a Arc<Limits>>),
    /// What the governor holds back from now on.
    Governed(Governed),
    /// Counters, and what is known beyond them; it asks for a snapshot.
    Reading(&'a Counters, &'a Reading),
}

/// The one way into an aggregator, live and replayed; what passes is recorded when that is wanted.
pub(crate) struct Intake {
    /// What it leads to; to be asked, and not to be given anything past this.
    aggregator: Aggregator,
    recorder: Option<Recorder>,
}

impl Intake {
    /// A new aggregator, and what is to be told to the kernel programs at once.
    pub(crate) fn new(beginning: &Beginning, recorder: Option<Recorder>) -> (Self, Vec<Grant>) {
        let services = Services::new(beginning.services, &beginning.service_ports);
        let grants = services.grants();
        let table = ConnTable::new(beginning.table_capacity);
        let (facts, storms) = (Arc::new(beginning.facts.clone()), beginning.storms.clone());
        let aggregator = Aggregator::new(facts, services, table, storms, beginning.ktime_ns);
        (Self { aggregator, recorder }, grants)
    }

    /// The aggregator, to be asked.
    pub(crate) fn aggregator(&self) -> &Aggregator {
        &self.aggregator
    }

    /// The recorder, to be asked to write.
    pub(crate) fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// Ends it, and leaves the recorder.
    pub(crate) fn into_recorder(self) -> Option<Recorder> {
        self.recorder
    }

    /// Gives it bytes from the ring buffer; a grant is to be told to the kernel programs.
    pub(crate) fn take(&mut self, record: &[u8]) -> Option<Grant> {
        self.record(Input::Record(record));
        self.aggregator.take(record)
    }

    /// Gives it a port that something listened on before the daemon; likewise.
    pub(crate) fn listening(&mut self, port: u16) -> Option<Grant> {
        self.record(Input::Listening(port));
        self.aggregator.listening(port)
    }

    /// Gives it a name.
    pub(crate) fn named(&mut self, what: Named, number: u64, name: &[u8]) {
        let name = name.get(..name.len().min(codec::MOST_TEXT)).unwrap_or_default();
        self.record(Input::Name(what, number, name));
        self.aggregator.named(what, number, name);
    }

    /// The names that it misses; each is told once.
    pub(crate) fn wanted(&mut self) -> Vec<Wanted> {
        self.aggregator.wanted()
    }

    /// Tells it that a connection has ended whose end it has not heard of.
    pub(crate) fn gone(&mut self, cookie: u64) {
        self.record(Input::Gone(cookie));
        self.aggregator.gone(cookie);
    }

    /// Gives it a kernel stack that was not seen before.
    pub(crate) fn stack(&mut self, stack: &ResetStack) {
        self.record(Input::Stack(stack));
        self.aggregator.stack(stack);
    }

    /// Gives it the settings of all namespaces: what is others than before goes in.
    pub(crate) fn settings(&mut self, all: &BTreeMap<u32, Arc<Limits>>) {
        let known = self.aggregator.all_settings();
        let ended: Vec<_> = known.keys().filter(|netns| !all.contains_key(netns)).copied().collect();
        let new = all.iter().filter(|(netns, limits)| known.get(netns) != Some(limits));
        let new: Vec<_> = new.map(|(netns, limits)| (*netns, Some(limits))).collect();
        for (netns, limits) in ended.into_iter().map(|netns| (netns, None)).chain(new) {
            self.setting(netns, limits);
        }
    }

    fn setting(&mut self, netns: u32, limits: Option<&Arc<Limits>>) {
        self.record(Input::Settings(netns, limits));
        self.aggregator.settings(netns, limits);
    }

    /// Tells it what the governor holds back: that goes in when it is something else than before.
    pub(crate) fn governed(&mut self, governed: Governed) {
        if self.aggregator.is_governed() != Some(governed) {
            self.record(Input::Governed(governed));
            self.aggregator.governed(governed);
        }
    }

    /// Gives it counters, and asks for a snapshot.
    pub(crate) fn read(&mut self, counters: &Counters, reading: &Reading) -> Arc<Snapshot> {
        self.record(Input::Reading(counters, reading));
        Arc::new(self.aggregator.snapshot(counters, reading.clone()))
    }

    /// Gives it what was recorded. Grants were told to the kernel then: their effect is in the counters.
    pub(crate) fn replay(&mut self, input: Input<'_>) -> Option<Arc<Snapshot>> {
        match input {
            Input::Record(bytes) => self.take(bytes),
            Input::Listening(port) => self.listening(port),
            Input::Name(what, number, name) => {
                self.named(what, number, name);
                None
            }
            Input::Gone(cookie) => {
                self.gone(cookie);
                None
            }
            Input::Stack(stack) => {
                self.stack(stack);
                None
            }
            Input::Settings(netns, limits) => {
                self.setting(netns, limits);
                None
            }
            Input::Governed(governed) => {
                self.governed(governed);
                None
            }
            Input::Reading(counters, reading) => return Some(self.read(counters, reading)),
        };
        None
    }

    fn record(&mut self, input: Input<'_>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.add(input);
        }
    }
}
