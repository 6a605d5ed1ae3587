//! Recordings of real traffic: what `record` saw last is what `replay` says, byte for byte, and both are right.
//!
//! With TCPWATCH_BLESS=1 the recordings in tests/replay are made anew: when the ABI or the counters have changed. The
//! metrics beside them are blessed by the unit tests, which need no root.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic};

use crate::daemon::{Daemon, Metrics, PROGRAM, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_replay_says_what_was_said_live_and_agrees_with_the_kernel", live_and_replayed),
        trial("the_recordings_of_the_repository_can_be_made_anew", samples),
        trial("a_recorder_that_is_killed_leaves_what_it_had_seen", killed),
        trial("an_idle_host_takes_few_bytes", idle),
        trial("a_file_that_exists_is_not_overwritten", exists),
        trial("a_recorder_that_cannot_load_leaves_no_file", no_file),
        trial("a_recorder_runs_beside_a_daemon", beside),
    ]
}

/// A running `tcpwatch record`; it ends with the value.
pub(crate) struct Recorder {
    child: Child,
    stderr: BufReader<ChildStderr>,
    pub(crate) file: PathBuf,
    folder: tempfile::TempDir,
}

impl Recorder {
    /// Records these namespaces and no others; returns when it does.
    fn start(namespaces: &[&Netns], more: &[&str]) -> Result<Self> {
        Self::with(namespaces, "", more)
    }

    /// The same with more lines of configuration.
    pub(crate) fn with(namespaces: &[&Netns], settings: &str, more: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let paths: Vec<_> = namespaces
            .iter()
            .map(|ns| format!("\"/proc/{}/fd/{}\"", std::process::id(), ns.fd().as_raw_fd()))
            .collect();
        let config = folder.path().join("tcpwatch.toml");
        fs::write(&config, format!("netns = [{}]\n{settings}\n", paths.join(", ")))?;
        let file = folder.path().join("a.twr");
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(&config).arg("record").arg(&file).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut said = String::new();
        while !said.contains("recording to ") {
            if stderr.read_line(&mut said)? == 0 {
                let status = child.wait()?;
                bail!("the recorder ended with {status}: {said}");
            }
        }
        Ok(Self { child, stderr, file, folder })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_raw(self.child.id() as i32).context("no process")?, signal)?)
    }

    /// Waits until it has ended; returns what it printed, and the folder with the file.
    pub(crate) fn end(mut self) -> Result<(ExitStatus, String, PathBuf, tempfile::TempDir)> {
        let (mut printed, mut said) = (String::new(), String::new());
        self.child.stdout.take().context("no standard output")?.read_to_string(&mut printed)?;
        self.stderr.read_to_string(&mut said)?;
        Ok((self.child.wait()?, printed + &said, self.file, self.folder))
    }
}

/// What `tcpwatch replay` prints.
fn replay(file: &FilePath, more: &[&str]) -> Result<Output> {
    Ok(Command::new(PROGRAM).arg("replay").arg(file).args(more).output()?)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    Ok(String::from_utf8(bytes)?)
}

/// Retransmissions, resets of every kind and plain ends, of both IP versions.
/// Ends with one connection open, which is returned.
fn traffic(path: &Path, family: Family) -> Result<Pair> {
    let mut pair = Traffic::over(path, family).congestion("cubic").connect()?;
    path.forward().drop_share(0.03, 11);
    pair.send(End::Client, 200_000)?;
    pair.ping_pong(5, 300)?;
    pair.close(End::Client)?;
    let one = || Traffic::over(path, family).connect();
    one()?.abort(End::Client)?;
    one()?.close_with_unread(End::Server, 100)?;
    one()?.send_after_close(End::Server)?;
    Traffic::over(path, family).refused(3)?;
    let mut open = one()?;
    open.ping_pong(20, 500)?;
    Ok(open)
}

fn path() -> Result<Path> {
    Path::builder().delay(Duration::from_millis(5)).build()
}

/// Sums of counters of both namespaces.
fn kernel(path: &Path, group: &str, name: &str) -> Result<i64> {
    Ok(path.a().counters()?.get(group, name)? + path.b().counters()?.get(group, name)?)
}

fn live_and_replayed() -> Result<()> {
    for family in [Family::V4, Family::V6, Family::MappedBoth] {
        let path = path()?;
        let recorder = Recorder::start(&[path.a(), path.b()], &["--metrics"])?;
        let _open = traffic(&path, family)?;
        recorder.signal(Signal::INT)?;
        let (status, live, file, _folder) = recorder.end()?;
        ensure!(status.success(), "{status}: {live}");
        let replayed = replay(&file, &[])?;
        ensure!(replayed.status.success(), "{}", text(replayed.stderr)?);
        let replayed = text(replayed.stdout)?;
        // Standard error is empty after the start but for what goes wrong.
        ensure!(replayed == live, "{family:?}: the replay differs\n{}", difference(&live, &replayed));
        let metrics = Metrics::parse(&replayed);
        let retransmitted = metrics.count("tcpwatch_retransmitted_segments_total", &[]);
        equal("retransmitted segments", retransmitted, kernel(&path, "Tcp", "RetransSegs")?, &metrics)?;
        equal(
            "resets sent",
            metrics.count("tcpwatch_resets_sent_total", &[]),
            kernel(&path, "Tcp", "OutRsts")?,
            &metrics,
        )?;
        let opened = kernel(&path, "Tcp", "ActiveOpens")? + kernel(&path, "Tcp", "PassiveOpens")?
            - kernel(&path, "Tcp", "AttemptFails")?;
        equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), opened, &metrics)?;
        ensure!(retransmitted > 3, "{metrics}");
        nothing_lost(&metrics)?;
    }
    Ok(())
}

fn difference(a: &str, b: &str) -> String {
    let differ = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
    differ.take(5).map(|(a, b)| format!("live:     {a}\nreplayed: {b}\n")).collect::<Vec<_>>().concat()
}

fn samples() -> Result<()> {
    let bless = std::env::var_os("TCPWATCH_BLESS").is_some();
    for (name, family) in [("lossy_v4", Family::V4), ("lossy_v6", Family::V6)] {
        let path = path()?;
        let recorder = Recorder::start(&[path.a(), path.b()], &[])?;
        let _open = traffic(&path, family)?;
        recorder.signal(Signal::TERM)?;
        let (status, printed, file, _folder) = recorder.end()?;
        ensure!(
            status.success() && printed.contains(" snapshots of ") && printed.contains(" 0 events lost"),
            "{printed}"
        );
        let bytes = fs::metadata(&file)?.len();
        println!("{name}: {}", printed.trim());
        ensure!(bytes < 100_000, "{name} has {bytes} bytes");
        if bless {
            let place = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay").join(name).with_extension("twr");
            fs::write(place, fs::read(&file)?)?;
        }
    }
    Ok(())
}

fn killed() -> Result<()> {
    let ns = Netns::new()?;
    let recorder = Recorder::start(&[&ns], &[])?;
    let mut pair = Traffic::loopback(&ns, Family::V4).connect()?;
    pair.ping_pong(50, 100)?;
    pair.close(End::Client)?;
    // What was seen is in the file a second later.
    let shown = || Ok::<_, anyhow::Error>(Metrics::parse(&text(replay(&recorder.file, &[])?.stdout)?));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while shown()?.count("tcpwatch_connections_closed_total", &[]) < 2 {
        ensure!(std::time::Instant::now() < deadline, "nothing is written before the end");
        thread::sleep(Duration::from_millis(50));
    }
    recorder.signal(Signal::KILL)?;
    let (_, _, file, _folder) = recorder.end()?;
    // As a crash amid a write would leave it.
    let mut half = fs::OpenOptions::new().append(true).open(&file)?;
    half.write_all(&[2, 0, 0, 0, 200])?;
    let replayed = replay(&file, &[])?;
    let said = text(replayed.stderr)?;
    ensure!(replayed.status.code() == Some(1) && said.contains("a.twr: it breaks off in frame "), "{said}");
    ensure!(said.trim().lines().count() == 1, "{said}");
    let metrics = Metrics::parse(&text(replayed.stdout)?);
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 2, &metrics)?;
    equal("sent bytes", metrics.count("tcpwatch_sent_bytes_total", &[]), 2 * 50 * 100, &metrics)
}

fn idle() -> Result<()> {
    let ns = Netns::new()?;
    let recorder = Recorder::start(&[&ns], &["--duration", "10s"])?;
    let (status, printed, file, _folder) = recorder.end()?;
    ensure!(status.success(), "{printed}");
    let bytes = fs::metadata(&file)?.len();
    println!("{}", printed.trim());
    // The beginning takes about 2 KB.
    ensure!(bytes < 4000, "{bytes} bytes for 10 idle seconds");
    let replayed = replay(&file, &["metrics", "--at", "3"])?;
    ensure!(replayed.status.success(), "{}", text(replayed.stderr)?);
    Ok(())
}

fn exists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("mine");
    fs::write(&file, "mine")?;
    let done = Command::new(PROGRAM).arg("record").arg(&file).output()?;
    let said = text(done.stderr)?;
    ensure!(done.status.code() == Some(1) && said.contains("mine: it exists") && said.contains("remove it"), "{said}");
    ensure!(fs::read_to_string(&file)? == "mine");
    Ok(())
}

fn no_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (config, file) = (folder.path().join("t.toml"), folder.path().join("a.twr"));
    fs::write(&config, "netns = [\"/proc/1/nothing\"]\n")?;
    let done = Command::new(PROGRAM).arg("--config").arg(&config).arg("record").arg(&file).output()?;
    let said = text(done.stderr)?;
    ensure!(done.status.code() == Some(2) && said.contains("/proc/1/nothing"), "{:?}: {said}", done.status);
    ensure!(!file.exists());
    Ok(())
}

fn beside() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    let recorder = Recorder::start(&[&ns], &["--metrics"])?;
    let mut pair = Traffic::loopback(&ns, Family::V6).connect()?;
    pair.ping_pong(20, 100)?;
    pair.close(End::Server)?;
    let metrics = daemon.metrics()?;
    recorder.signal(Signal::TERM)?;
    let (status, live, _, _folder) = recorder.end()?;
    ensure!(status.success(), "{live}");
    let recorded = Metrics::parse(&live);
    for name in ["tcpwatch_sent_bytes_total", "tcpwatch_connections_closed_total", "tcpwatch_rtt_seconds_count"] {
        equal(name, recorded.count(name, &[]), metrics.count(name, &[]), &recorded)?;
    }
    Ok(())
}
