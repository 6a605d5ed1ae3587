//! A Prometheus of the test's own, and an Alertmanager, on 127.0.0.1, with their data in folders that go with them.

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

/// Debian's name for it, and upstream's.
const ALERTMANAGERS: [&str; 2] = ["prometheus-alertmanager", "alertmanager"];

/// Of Debian's Alertmanager, below /usr/share.
const TEMPLATES: &str = "prometheus/alertmanager/default.tmpl";

/// Why there is no Prometheus here; `None` when there is.
pub(crate) fn obstacle() -> Option<String> {
    let missing = ["prometheus", "promtool"].into_iter().find(|program| find(program).is_none());
    let missing =
        missing.or_else(|| ALERTMANAGERS.iter().all(|name| find(name).is_none()).then_some(ALERTMANAGERS[0]))?;
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

/// What a Prometheus is to do.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// What it scrapes, as the job `tcpwatch`.
    pub(crate) targets: Vec<SocketAddr>,
    /// Files of rules.
    pub(crate) rules: Vec<String>,
    /// Seconds between scrapes, and between evaluations.
    pub(crate) interval: u32,
    /// Where it sends alerts.
    pub(crate) alertmanager: Option<SocketAddr>,
    /// What it can do when asked to.
    pub(crate) features: &'static str,
}

impl Setup {
    /// Scrapes these every second, and does nothing else.
    pub(crate) fn of(targets: &[SocketAddr]) -> Self {
        Self { targets: targets.to_vec(), rules: Vec::new(), interval: 1, alertmanager: None, features: "" }
    }

    fn configuration(&self, folder: &Path) -> Result<String> {
        let Self { targets, rules, interval, alertmanager, .. } = self;
        let quoted = |all: &[SocketAddr]| -> Vec<_> { all.iter().map(|address| format!("\"{address}\"")).collect() };
        let mut text = format!(
            "global: {{ scrape_interval: {interval}s, scrape_timeout: 1s, evaluation_interval: {interval}s }}\n\
             scrape_configs: [{{ job_name: tcpwatch, static_configs: [{{ targets: [{}] }}] }}]\nrule_files:\n",
            quoted(targets).join(", ")
        );
        for (i, rules) in rules.iter().enumerate() {
            fs::write(folder.join(format!("rules{i}.yml")), rules)?;
            writeln!(text, "  - rules{i}.yml")?;
        }
        if let Some(address) = alertmanager {
            let targets = format!("alertmanagers: [{{ static_configs: [{{ targets: [\"{address}\"] }}] }}]");
            writeln!(text, "alerting:\n  {targets}")?;
        }
        Ok(text)
    }
}

/// A program that serves HTTP here; it ends with the value.
struct Served {
    child: Child,
    address: SocketAddr,
    log: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Served {
    /// Starts it, and waits until it says where it listens and, after that, these words.
    fn start(program: PathBuf, words: &[&str], folder: tempfile::TempDir, ready: &str) -> Result<Self> {
        let name = program.display().to_string();
        let mut child = Command::new(program)
            .args(words)
            .arg("--web.listen-address=127.0.0.1:0")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut started = Self { child, address: ([127, 0, 0, 1], 0).into(), log: None, _folder: folder };
        started.read_log(BufReader::new(stderr), ready)?;
        Ok(started)
    }

    /// Reads what it logs until it serves requests, and has the rest read by a thread, lest it blocks.
    fn read_log(&mut self, mut stderr: BufReader<ChildStderr>, ready: &str) -> Result<()> {
        let mut said = String::new();
        while self.address.port() == 0 || !said.contains(ready) {
            let from = said.len();
            if stderr.read_line(&mut said)? == 0 {
                bail!("it ended: {said}");
            }
            if let Some((_, address)) = said[from..].split_once("\"Listening on\" address=") {
                self.address = address.trim().parse().with_context(|| format!("no address: {address}"))?;
            }
        }
        self.log = Some(thread::spawn(move || {
            let _until_it_ends = stderr.read_to_string(&mut said);
            if env::var_os("TCPWATCH_TEST_LOGS").is_some() {
                println!("{said}");
            }
        }));
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ended = log.join();
        }
    }
}

/// A running Alertmanager; it ends with the value.
pub(crate) struct Alertmanager(Served);

impl Alertmanager {
    /// Starts one with this configuration.
    pub(crate) fn start(configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("alertmanager.yml"), configuration)?;
        let program = ALERTMANAGERS.iter().find_map(|name| find(name)).context("no alertmanager")?;
        let words = ["--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address="];
        // Debian's reads its templates from where the package would be installed. Unpacked it has them beside itself:
        // they are laid over that place, for this process only.
        let share = program.ancestors().nth(2).map(|root| root.join("share")).unwrap_or_default();
        if !share.join(TEMPLATES).exists() || Path::new("/usr/share").join(TEMPLATES).exists() {
            return Ok(Self(Served::start(program, &words, folder, "Listening on")?));
        }
        let layers = format!("lowerdir={}:/usr/share", share.display());
        let lay = "mount -t overlay overlay -o \"$0\" /usr/share && exec \"$@\"";
        let program = program.to_str().context("a path is not UTF-8")?;
        let words: Vec<_> = ["--mount", "sh", "-c", lay, &layers, program].into_iter().chain(words).collect();
        Ok(Self(Served::start("unshare".into(), &words, folder, "Listening on")?))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }
}

/// A running Prometheus; it ends with the value.
pub(crate) struct Prometheus(Served);

impl Prometheus {
    /// Starts one.
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("prometheus.yml"), setup.configuration(folder.path())?)?;
        let program = find("prometheus").context("no prometheus")?;
        let features = format!("--enable-feature={}", setup.features);
        let mut words = vec!["--config.file=prometheus.yml", "--storage.tsdb.path=data"];
        if !setup.features.is_empty() {
            words.push(&features);
        }
        Ok(Self(Served::start(program, &words, folder, "Server is ready to receive web requests")?))
    }

    /// What a path of the API answers: its `data`, or the error it tells.
    pub(crate) fn api(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(self.0.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // 1.0, so that the answer comes in one piece and ends with the connection.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.0.address)?;
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

/// Percent-encoding of all that may not stand in a query as it is.
pub(crate) fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _infallible = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
