//! A Prometheus of the test's own, on 127.0.0.1, with its data in a folder that goes with it.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

/// Names the folder that has the programs; `cargo xtask test` sets it.
const FOLDER: &str = "TCPWATCH_PROMETHEUS";
/// Longer than any condition takes to come true, but for a mistake.
const PATIENCE: Duration = Duration::from_secs(25);

/// `prometheus` or `promtool`: in the folder that is named, else in PATH, else where `cargo xtask setup` unpacks it.
fn find(program: &str) -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = set(FOLDER).into_iter().chain(env::split_paths(&path));
    let mut folders = folders.chain(cache.map(|cache| cache.join("tcpwatch/prometheus/usr/bin")));
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| path.is_file()))
}

/// Why there is no Prometheus here; `None` when there is.
pub(crate) fn obstacle() -> Option<String> {
    let missing = ["prometheus", "promtool"].into_iter().find(|program| find(program).is_none())?;
    Some(format!("no {missing}, neither by {FOLDER} nor in PATH: `cargo xtask setup` fetches it"))
}

/// Runs promtool with this on its standard input; an error is what it complains about.
pub(crate) fn promtool(words: &[&str], folder: &Path, input: &str) -> Result<String> {
    let program = find("promtool").context("no promtool")?;
    let mut command = Command::new(program);
    command.args(words).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start promtool")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let done = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "promtool {}: {}\n{said}", words.join(" "), done.status);
    Ok(said)
}

/// A running Prometheus; it ends with the value.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` and evaluates `rules` every second.
    pub(crate) fn scraping(target: SocketAddr, rules: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("rules.yml"), rules)?;
        let configuration = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [rules.yml]\n\
             scrape_configs: [{{ job_name: tcpwatch, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n"
        );
        fs::write(folder.path().join("prometheus.yml"), configuration)?;
        let mut child = Command::new(find("prometheus").context("no prometheus")?)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start prometheus")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut started = Self { child, address: ([127, 0, 0, 1], 0).into(), log: None, _folder: folder };
        started.read_log(BufReader::new(stderr))?;
        Ok(started)
    }

    /// Reads what it logs until it serves requests, and has the rest read by a thread, lest it blocks.
    fn read_log(&mut self, mut stderr: BufReader<ChildStderr>) -> Result<()> {
        let mut said = String::new();
        while !said.contains("Server is ready to receive web requests") {
            let from = said.len();
            if stderr.read_line(&mut said)? == 0 {
                bail!("prometheus ended: {said}");
            }
            if let Some((_, address)) = said[from..].split_once("\"Listening on\" address=") {
                self.address = address.trim().parse().with_context(|| format!("no address: {address}"))?;
            }
        }
        ensure!(self.address.port() != 0, "prometheus does not say where it listens: {said}");
        self.log = Some(thread::spawn(move || {
            let _until_it_ends = stderr.read_to_string(&mut said);
        }));
        Ok(())
    }

    /// What a path of the API answers: its `data`, or the error it tells.
    pub(crate) fn api(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // 1.0, so that the answer comes in one piece and ends with the connection.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer}"))?;
        let mut answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
        ensure!(answer["status"] == "success", "{}: {}", answer["errorType"], answer["error"]);
        Ok(answer["data"].take())
    }

    /// The rows of an expression now, without those that are no number.
    pub(crate) fn rows(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.api(&format!("query?query={}", percent(expression))).with_context(|| expression.to_owned())?;
        let rows = data["result"].as_array().with_context(|| format!("{expression}: no vector but {data}"))?;
        Ok(rows.iter().filter(|row| row["value"][1] != "NaN").cloned().collect())
    }

    /// Asks until there is an answer; the last reason why not is the error.
    pub(crate) fn wait<T>(&self, mut ask: impl FnMut(&Self) -> Result<Option<T>>, what: &str) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask(self) {
                Ok(Some(answer)) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => return Err(error.context(format!("waiting for {what}"))),
                Ok(None) if Instant::now() >= deadline => return Err(anyhow!("waited in vain for {what}")),
                _ => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The rules of a type, `alert` or `record`.
    pub(crate) fn rules(&self, kind: &str) -> Result<Vec<Value>> {
        let data = self.api(&format!("rules?type={kind}"))?;
        let groups = data["groups"].as_array().context("no groups")?;
        Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
    }

    /// `inactive`, `pending` or `firing`.
    pub(crate) fn state(&self, alert: &str) -> Result<String> {
        let rules = self.rules("alert")?;
        let rule = rules.iter().find(|rule| rule["name"] == alert).with_context(|| format!("no rule {alert}"))?;
        Ok(rule["state"].as_str().unwrap_or_default().to_owned())
    }

    /// The alerts of this name that fire, once there are any.
    pub(crate) fn wait_firing(&self, alert: &str) -> Result<Vec<Value>> {
        self.wait(
            |prometheus| {
                let data = prometheus.api("alerts")?;
                let all = data["alerts"].as_array().context("no alerts")?;
                let ours = all.iter().filter(|a| a["labels"]["alertname"] == alert && a["state"] == "firing");
                let ours: Vec<_> = ours.cloned().collect();
                Ok((!ours.is_empty()).then_some(ours))
            },
            &format!("{alert} to fire"),
        )
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ended = log.join();
        }
    }
}

/// Percent-encoding of all that may not stand in a query as it is.
fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
