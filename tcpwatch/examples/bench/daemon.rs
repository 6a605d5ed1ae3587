//! A daemon of the benchmark's own: this program again, with a configuration of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tcpwatch_lab::Netns;

/// It ends with the value.
pub(crate) struct Daemon {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
    /// From the start of the process to ready.
    pub(crate) start_up: Duration,
}

impl Daemon {
    /// Starts one that watches these namespaces, or all where there are none, and waits until it is ready.
    pub(crate) fn start(namespaces: &[&Netns], settings: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (config, socket) = (folder.path().join("t.toml"), folder.path().join("t.sock"));
        let of = |ns: &&Netns| format!("\"/proc/{}/fd/{}\"", std::process::id(), ns.fd().as_raw_fd());
        let netns = namespaces.iter().map(of).collect::<Vec<_>>().join(", ");
        let text =
            format!("listen = \"127.0.0.1:0\"\nsocket = \"{}\"\nnetns = [{netns}]\n{settings}\n", socket.display());
        std::fs::write(&config, text)?;
        let began = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--config").arg(&config).arg("run").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start this program as the daemon")?;
        let stderr = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut lines = stderr.lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line?;
            if let Some((_, rest)) = line.split_once("metrics at http://") {
                let address = rest.split('/').next().unwrap_or_default().parse();
                let start_up = began.elapsed();
                // What else it says must not fill the pipe.
                thread::spawn(move || lines.for_each(drop));
                return Ok(Self { child, address: address?, _folder: folder, start_up });
            }
            said += &line;
        }
        let _reaped = child.wait();
        bail!("the daemon ended: {said}")
    }

    /// User and system time of all its threads.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id())
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        memory(self.child.id(), "VmRSS:")
    }

    /// Scrapes it.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.lines().next().is_some_and(|line| line.ends_with("200 OK")), "{head}");
        Ok(Metrics(body.to_owned()))
    }
}

/// User and system time of all threads of a process.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// A line of a process' status that tells bytes.
pub(crate) fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The text of a scrape.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of the series of a metric whose line has all these words.
    pub(crate) fn sum(&self, name: &str, words: &[&str]) -> f64 {
        let lines = self.0.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && words.iter().all(|word| line.contains(word))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
