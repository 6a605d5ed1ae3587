//! Recordings of the situations, whose explanations the unit tests and docs/EXPLAIN.md hold.
//!
//! With TCPWATCH_BLESS=1 those in tests/replay/explain are made anew: when the ABI or the counters have changed. The texts
//! beside them are blessed by the unit tests, which need no root.

use std::fs;
use std::path::Path as FilePath;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tcpwatch_lab::Netns;

use super::case::{Case, is_silent, verdicts};
use super::{Row, healthy, life, ms, opening, retransmission, slow};
use crate::daemon::PROGRAM;
use crate::is_long;
use crate::recording::Recorder;

/// Those of the short run: an end of each kind.
const SHORT: [&str; 3] = ["S10", "R2", "R6"];

/// Of each row its first choice, and what is no row.
pub(super) fn all() -> Result<()> {
    let every = is_long() || is_blessed();
    let rows: Vec<&Row> = [slow::ROWS, retransmission::ROWS, opening::ROWS, life::ROWS].into_iter().flatten().collect();
    for (n, row) in rows.iter().enumerate() {
        // R1 is in two tables, at work and after its end.
        let known = rows.iter().take(n).any(|earlier| earlier.id == row.id);
        if known || !(every || SHORT.contains(&row.id)) {
            continue;
        }
        let bytes = of_row(row).with_context(|| format!("{}: {:?}", row.id, row.choices[0]))?;
        keep(&row.id.to_lowercase(), &bytes)?;
    }
    if every {
        keep("queues", &life::recorded()?)?;
        keep("healthy", &of_healthy()?)?;
    }
    Ok(())
}

fn is_blessed() -> bool {
    std::env::var_os("TCPWATCH_BLESS").is_some()
}

fn keep(name: &str, bytes: &[u8]) -> Result<()> {
    println!("{name}: {} bytes", bytes.len());
    ensure!(bytes.len() < 100_000, "{name} has {} bytes", bytes.len());
    if is_blessed() {
        let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/explain");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name).with_extension("twr"), bytes)?;
    }
    Ok(())
}

/// Starts a recorder.
pub(super) fn recorder(namespaces: &[&Netns]) -> Result<Recorder> {
    Recorder::with(namespaces, "sample_interval = \"200ms\"", &[])
}

/// Ends it; what it has written.
pub(super) fn ended(recorder: Recorder) -> Result<Vec<u8>> {
    recorder.signal(Signal::TERM)?;
    let (status, printed, file, _folder) = recorder.end()?;
    ensure!(status.success() && printed.contains(" 0 events lost"), "{printed}");
    Ok(fs::read(file)?)
}

/// What a replay explains.
pub(super) fn explained(file: &FilePath) -> Result<Vec<Value>> {
    let done = Command::new(PROGRAM).arg("replay").arg(file).args(["explain", "--json", "--all"]).output()?;
    let text = String::from_utf8(done.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// A recording may end in the moment between two connections: then it is made again, and ends a little later. What is played
/// takes the same time each time.
fn of_row(row: &Row) -> Result<Vec<u8>> {
    const TRIES: u32 = 8;
    const LATER: Duration = ms(110);
    let mut tried = 0;
    loop {
        match of_case(&(row.case)(row.choices[0])?, LATER * tried) {
            Err(_) if tried + 1 < TRIES => tried += 1,
            outcome => return outcome,
        }
    }
}

/// Records until what is recorded is explained rightly, which is after so long at the earliest, and then for a while.
fn of_case(case: &Case, more: Duration) -> Result<Vec<u8>> {
    const LONG_ENOUGH: Duration = ms(1500);
    // What was seen is in the file a second later.
    const WRITTEN: Duration = ms(3000);
    let recorder = recorder(&[case.path().a(), case.path().b()])?;
    let began = Instant::now();
    thread::scope(|scope| {
        let traffic = scope.spawn(|| case.run());
        let mut over = None;
        loop {
            thread::sleep(ms(100));
            if traffic.is_finished() && over.is_none() {
                over = Some(Instant::now());
            }
            if began.elapsed() < LONG_ENOUGH {
                continue;
            }
            let held = explained(&recorder.file).and_then(|lines| case.hold_replayed(&lines));
            match held {
                Ok(()) => break,
                Err(error) if over.is_some_and(|over| over.elapsed() > WRITTEN) => return Err(error),
                Err(_) => {}
            }
        }
        thread::sleep(more);
        let bytes = ended(recorder)?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), &bytes)?;
        case.hold_replayed(&explained(file.path())?).context("when the recorder had ended")?;
        traffic.join().map_err(|_| anyhow!("the traffic panicked"))??;
        Ok(bytes)
    })
}

/// Ten healthy connections.
fn of_healthy() -> Result<Vec<u8>> {
    let path = healthy::healthy_path(15)?;
    let recorder = recorder(&[path.a(), path.b()])?;
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let is_over = || over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let flows = scope.spawn(|| healthy::ten(&path, &is_over));
        while began.elapsed() < ms(5000) && !flows.is_finished() {
            thread::sleep(ms(50));
        }
        let bytes = ended(recorder);
        over.store(true, Ordering::Relaxed);
        flows.join().map_err(|_| anyhow!("flows panicked"))??;
        let bytes = bytes?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), &bytes)?;
        let lines = explained(file.path())?;
        if let Some(wrong) = lines.iter().find(|line| !verdicts(line).keys().all(|id| is_silent(id))) {
            bail!("a complaint: {wrong}");
        }
        ensure!(lines.len() >= 20, "only {} ends", lines.len());
        Ok(bytes)
    })
}
