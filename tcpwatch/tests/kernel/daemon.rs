//! A daemon of the test's own: its process, its configuration, and what it serves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tcpwatch_lab::Netns;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tcpwatch");
/// Longer than anything here takes, but for a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon; it ends with the value.
pub(crate) struct Daemon {
    child: Child,
    stderr: BufReader<ChildStderr>,
    pub(crate) address: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    /// From the start of the process to the line that says where the metrics are.
    pub(crate) start_up: Duration,
}

impl Daemon {
    /// Starts one that watches these namespaces and no others, and waits until it is ready.
    pub(crate) fn watching(namespaces: &[&Netns]) -> Result<Self> {
        Self::with(namespaces, "")
    }

    /// The same without the privilege to see addresses of the kernel.
    pub(crate) fn without_syslog(namespaces: &[&Netns]) -> Result<Self> {
        let words = ["setpriv", "--bounding-set", "-syslog", "--inh-caps", "-syslog", PROGRAM].map(str::to_owned);
        Self::through(&words, tempfile::tempdir()?, namespaces, "", |_| {})
    }

    /// The same with more lines of configuration.
    pub(crate) fn with(namespaces: &[&Netns], more: &str) -> Result<Self> {
        Self::through(&[PROGRAM.to_owned()], tempfile::tempdir()?, namespaces, more, |_| {})
    }

    /// The same, started by other words than the program's name, with its files in `folder`.
    pub(crate) fn through(
        words: &[String],
        folder: tempfile::TempDir,
        namespaces: &[&Netns],
        more: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let paths: Vec<_> = namespaces
            .iter()
            .map(|ns| format!("\"/proc/{}/fd/{}\"", std::process::id(), ns.fd().as_raw_fd()))
            .collect();
        let mut text = format!("listen = \"127.0.0.1:0\"\nnetns = [{}]\n{more}\n", paths.join(", "));
        if !more.contains("cpu_budget") {
            // A daemon that is not optimised, and is scraped without a pause, shall hold nothing back for that.
            text.push_str("cpu_budget = \"10000%\"\n");
        }
        writeln!(text, "socket = \"{}\"", folder.path().join("tcpwatch.sock").display())?;
        fs::write(folder.path().join("tcpwatch.toml"), text)?;
        let (first, rest) = words.split_first().context("no words")?;
        let mut command = Command::new(first);
        command.args(rest).arg("--config").arg(folder.path().join("tcpwatch.toml")).arg("run");
        prepare(&mut command);
        Self::start(folder, command)
    }

    fn start(folder: tempfile::TempDir, mut command: Command) -> Result<Self> {
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut stderr = BufReader::new(stderr);
        let mut said = String::new();
        loop {
            let from = said.len();
            if stderr.read_line(&mut said)? == 0 {
                let status = child.wait()?;
                bail!("the daemon ended with {status}: {said}");
            }
            if let Some((_, rest)) = said[from..].split_once("metrics at http://") {
                let address = rest.split('/').next().unwrap_or_default().parse()?;
                return Ok(Self { child, stderr, address, folder, start_up: began.elapsed() });
            }
        }
    }

    /// What `path` answers: status line and body.
    pub(crate) fn get(&self, path: &str) -> Result<(String, String)> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    }

    /// What is counted at this moment.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status.ends_with("200 OK"), "{status}: {body}");
        Ok(Metrics::parse(&body))
    }

    /// Scrapes until `done`, for what happens without a step of the test's own: a timer of the kernel, say.
    pub(crate) fn wait(&self, what: &str, done: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
        self.wait_at_most(PATIENCE, Duration::from_millis(20), what, done)
    }

    /// The same for `most`, with a pause after each scrape, for who must not load the daemon.
    pub(crate) fn wait_at_most(
        &self,
        most: Duration,
        pause: Duration,
        what: &str,
        done: impl Fn(&Metrics) -> bool,
    ) -> Result<Metrics> {
        let deadline = Instant::now() + most;
        loop {
            let metrics = self.metrics()?;
            if done(&metrics) {
                return Ok(metrics);
            }
            ensure!(Instant::now() < deadline, "waited in vain for {what}; the metrics were:\n{metrics}");
            std::thread::sleep(pause);
        }
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Open descriptors.
    pub(crate) fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Its process, or what was started in its place.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that the one above has started.
    pub(crate) fn child_pid(&self) -> Result<u32> {
        let pid = self.child.id();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(text.split_whitespace().next().context("it has started nothing")?.parse()?)
    }

    /// What it says up to the line with these words.
    pub(crate) fn said_until(&mut self, words: &str) -> Result<String> {
        let mut said = String::new();
        loop {
            let from = said.len();
            ensure!(self.stderr.read_line(&mut said)? > 0, "it ended without a word of {words:?}: {said}");
            if said[from..].contains(words) {
                return Ok(said);
            }
        }
    }

    /// Asks it to stop, and waits until it has; returns what it said meanwhile.
    pub(crate) fn stop(self) -> Result<(ExitStatus, String)> {
        self.signal_stop()?;
        let (status, said, _) = self.ended()?;
        Ok((status, said))
    }

    /// Asks it to stop.
    pub(crate) fn signal_stop(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).context("no process")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    /// Keeps it from running until the answer is dropped.
    pub(crate) fn paused(&self) -> Result<Paused> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).context("no process")?;
        let paused = Paused(pid);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
        let until = Instant::now() + PATIENCE;
        // The signal is sent when the call returns; its threads stop one after the other.
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = task?.path().join("stat");
            // A thread that has ended has no such file.
            while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") T ")) {
                ensure!(Instant::now() < until, "it does not stop");
                std::thread::yield_now();
            }
        }
        Ok(paused)
    }

    /// Waits until it has stopped; returns what it said meanwhile, and the folder as it left it.
    pub(crate) fn ended(mut self) -> Result<(ExitStatus, String, tempfile::TempDir)> {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let status = self.child.wait()?;
        Ok((status, said, std::mem::replace(&mut self.folder, tempfile::tempdir()?)))
    }
}

/// A process that does not run; it goes on when this is dropped.
pub(crate) struct Paused(rustix::process::Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        // It may have been ended meanwhile; there is nobody left to go on then.
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A scrape, by series.
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Of the text of a scrape or a replay.
    pub(crate) fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| {
                    let (series, value) = line.rsplit_once(' ')?;
                    Some((series.to_owned(), value.parse().ok()?))
                })
                .collect(),
        )
    }

    /// The sum of all series of a metric whose labels contain all of `labels`, each written `name="value"`.
    pub(crate) fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| {
                let (name, rest) = series.split_once('{').unwrap_or((series, ""));
                name == metric && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| value)
            .sum()
    }

    /// How many series there are.
    pub(crate) fn series(&self) -> usize {
        self.0.len()
    }

    /// How many series a metric has.
    pub(crate) fn series_of(&self, metric: &str) -> usize {
        self.0.keys().filter(|series| series.split('{').next() == Some(metric)).count()
    }

    /// The same as a whole number.
    pub(crate) fn count(&self, metric: &str, labels: &[&str]) -> i64 {
        self.sum(metric, labels).round() as i64
    }

    /// Whether there is any series of a metric.
    pub(crate) fn has(&self, metric: &str) -> bool {
        self.0.keys().any(|series| series.split('{').next() == Some(metric))
    }
}

impl std::fmt::Display for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (series, value) in self.0.iter().filter(|(_, value)| **value != 0.0) {
            writeln!(f, "{series} {value}")?;
        }
        Ok(())
    }
}

/// Fails with the difference and all that was counted.
pub(crate) fn equal(what: &str, ours: i64, truth: i64, metrics: &Metrics) -> Result<()> {
    ensure!(ours == truth, "{what}: tcpwatch says {ours}, the truth is {truth}\n{metrics}");
    Ok(())
}

/// Nothing was lost on the way that would excuse a difference.
pub(crate) fn nothing_lost(metrics: &Metrics) -> Result<()> {
    equal("events lost", metrics.count("tcpwatch_events_lost_total", &[]), 0, metrics)
}
