//! What `tcpwatch top` takes with very many connections: a recording of them for the example to replay on a terminal, and
//! what its numbers say.

use std::path::Path;

use anyhow::{Context as _, Result};
use tcpwatch_common::counters::slot;
use tcpwatch_common::record::{ConnRecord, encode};

use super::records;
use super::report::{Cell, Goal, Report, Table};
use super::sample::Median;
use crate::aggregate::Reading;
use crate::recording::{Input, NewFile, Recorder};

/// What must be reached.
const FIRST_FRAME_S: f64 = 1.0;
const MEMORY_BYTES: u64 = 150_000_000;
const CPUS: f64 = 0.05;
/// Readings a second, of all connections together: what the daemon lets through at most.
const READINGS: u64 = 5000;

/// Makes a recording of so many connections, all there at the first of `seconds` snapshots.
///
/// # Errors
/// When the file cannot be written.
pub fn make(path: &Path, connections: u64, seconds: u64) -> Result<()> {
    let mut recorder = Recorder::begin(NewFile::create(path)?, &records::beginning(connections))?;
    let mut bytes = vec![0; size_of::<ConnRecord>()];
    for second in 1..=seconds {
        let now_ns = second * 1_000_000_000;
        let read = if second == 1 { connections } else { READINGS };
        for n in 0..read {
            let cookie = (second * READINGS + n) % connections + 1;
            let record = records::connection(cookie, second, now_ns)?;
            encode(&record, &mut bytes).context("the record does not fit")?;
            recorder.add(Input::Record(&bytes));
        }
        let reading = Reading { ktime_ns: now_ns, ..Reading::default() };
        recorder.add(Input::Reading(&records::counters(slot::FIRST_FREE, 0), &reading));
        recorder.flush()?;
    }
    recorder.finish()?;
    Ok(())
}

/// What was measured of the process.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Connections.
    pub connections: u64,
    /// From its start to the first frame with all of them.
    pub first_frame_s: f64,
    /// The most memory that it had.
    pub peak_bytes: u64,
    /// Processors that it took, at a frame a second.
    pub cpus: f64,
}

/// What the numbers say.
pub fn report(measured: &Measured) -> Report {
    let Measured { connections, first_frame_s, peak_bytes, cpus } = *measured;
    let mut report = Report::new("top");
    report.set("connections", connections);
    report.set("first_frame_s", first_frame_s);
    report.set("peak_bytes", peak_bytes);
    report.set("cpus", cpus);
    let title = format!("`tcpwatch replay FILE top` with {connections} connections, once");
    let mut table = Table::new(&title, &["figure"]);
    table.row("first frame with all of them, s", vec![Cell::number(first_frame_s)]);
    table.row("most memory, MB", vec![Cell::number(peak_bytes as f64 / 1e6)]);
    table.row("redraws, % of a CPU", vec![Cell::number(cpus * 100.0)]);
    report.table(table);
    let goals = [
        ("first frame of `top`, s", first_frame_s, FIRST_FRAME_S),
        ("memory of `top`, MB", peak_bytes as f64 / 1e6, MEMORY_BYTES as f64 / 1e6),
        ("redraws of `top`, % of a CPU", cpus * 100.0, CPUS * 100.0),
    ];
    for (what, value, limit) in goals {
        report.goal(Goal::at_most(what, Median::of(&[value]), limit));
    }
    report
}
