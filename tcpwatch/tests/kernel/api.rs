//! The API at the Unix socket, and `tcpwatch top` through it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Pair, Path, Traffic, sockopt};

use crate::daemon::{Daemon, PROGRAM};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("api_connections_have_the_values_of_tcp_info", values),
        trial("api_status_tells_of_probes_and_totals", status),
        trial("api_events_tell_of_each_step", events),
        trial("api_socket_is_for_owner_and_group_and_goes_with_the_daemon", socket),
        trial("api_top_once_lists_the_connection", top_once),
        trial("api_top_without_a_daemon_loads_the_programs_itself", top_alone),
    ]
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("tcpwatch.sock")
    }

    /// A request at the Unix socket whose answer ends the connection.
    pub(crate) fn request(&self, path: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        Ok(stream)
    }

    /// What `path` answers: head and body.
    pub(crate) fn answer(&self, path: &str) -> Result<(String, String)> {
        let mut answer = String::new();
        self.request(path)?.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok((head.to_owned(), body.to_owned()))
    }

    /// The lines that `path` answers, each an object.
    pub(crate) fn ask(&self, path: &str) -> Result<Vec<Value>> {
        let (head, body) = self.answer(path)?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}: {body}");
        body.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// A stream of events, which has begun.
    pub(crate) fn follow(&self, path: &str) -> Result<BufReader<UnixStream>> {
        let mut stream = BufReader::new(self.request(path)?);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            ensure!(stream.read_line(&mut line)? > 0, "no head");
        }
        Ok(stream)
    }

    /// The connection whose socket this is, when the daemon knows it.
    pub(crate) fn connection(&self, pair: &Pair, end: End) -> Result<Option<Value>> {
        let cookie = sockopt::cookie(pair.stream(end))?;
        Ok(self.ask("/api/v1/connections")?.into_iter().find(|c| c["cookie"] == cookie))
    }
}

fn values() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "sample_interval = \"100ms\"")?;
    for family in Family::ALL {
        let mut pair = Traffic::over(&path, family).connect()?;
        pair.ping_pong(20, 300)?;
        let deadline = Instant::now() + PATIENCE;
        // The client is read when a segment arrives, before that is processed: as it was at rest before it. A segment
        // that comes too early for a reading is followed by another.
        let (truth, found) = loop {
            let truth = pair.info(End::Client)?;
            pair.send(End::Server, 1)?;
            let found = daemon.connection(&pair, End::Client)?.context("the connection is not listed")?;
            if found["received_bytes"] == truth.bytes_received {
                break (truth, found);
            }
            ensure!(Instant::now() < deadline, "never read: {found}");
        };
        let flow = pair.flow(End::Client);
        let end = |name: &str| -> Result<SocketAddr> {
            let address = found[format!("{name}_address")].as_str().context("no address")?.parse()?;
            Ok(SocketAddr::new(address, found[format!("{name}_port")].as_u64().context("no port")? as u16))
        };
        ensure!((end("local")?, end("remote")?) == (flow.src, flow.dst), "{family:?}: {found}");
        for (name, truth) in [
            ("netns", u64::from(path.a().inode())),
            ("srtt_us", truth.rtt.into()),
            ("min_rtt_us", truth.min_rtt.into()),
            ("cwnd_segments", truth.snd_cwnd.into()),
            ("mss_bytes", truth.snd_mss.into()),
            ("sent_bytes", truth.bytes_sent),
            ("acked_bytes", truth.bytes_acked),
            ("sent_segments", truth.data_segs_out.into()),
            ("retransmits_total", truth.total_retrans.into()),
            ("pid", std::process::id().into()),
            ("in_flight_segments", 0),
            ("unread_bytes", 0),
        ] {
            ensure!(found[name] == truth, "{family:?}: {name} is {}, the truth is {truth}: {found}", found[name]);
        }
        ensure!(found["state"] == "ESTABLISHED" && found["direction"] == "outbound", "{found}");
        ensure!(found["partial"] == false && found["ssthresh_segments"].is_null(), "{found}");
        let quantiles = &found["rtt_quantiles"];
        ensure!(quantiles["samples"].as_u64() > Some(10) && quantiles["p99_us"].as_u64() > Some(0), "{found}");
        let server = daemon.connection(&pair, End::Server)?.context("the server's end is not listed")?;
        ensure!(server["direction"] == "inbound", "{server}");
        pair.close(End::Client)?;
    }
    ensure!(daemon.ask("/api/v1/connections?limit=1&sort=rtt")?.len() <= 1);
    Ok(())
}

fn status() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    traffic.connect()?.close(End::Client)?;
    traffic.connect()?.abort(End::Client)?;
    let status = daemon.ask("/api/v1/status")?.pop().context("no status")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(status["kernel"] == kernel.trim() && status["losses"] == Value::Array(Vec::new()), "{status}");
    let totals = &status["totals"];
    ensure!(totals["opened"] == 4 && totals["resets_sent"]["linger_zero"] == 1, "{totals}");
    ensure!(totals["resets_received"] == 1 && totals["closed"]["fin_local"] == 1, "{totals}");
    let probes = status["probes"].as_array().context("no probes")?;
    ensure!(probes.iter().any(|p| p["probe"] == "tcp_probe" && p["state"] == "attached"), "{status}");
    ensure!(status["own"]["resident_bytes"].as_u64() > Some(0), "{status}");
    // Other local users reach the TCP address.
    for path in ["/api/v1/status", "/api/v1/connections", "/api/v1/events"] {
        let (head, _) = daemon.get(path)?;
        ensure!(head.contains(" 404 "), "{path} at the TCP address: {head}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        let mut answer = String::new();
        daemon.request(path)?.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let mut answer = String::new();
    daemon.request("/api/v1/connections?sort=colour")?.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 400") && answer.contains("there are local, remote"), "{answer}");
    Ok(())
}

fn events() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut stream = daemon.follow("/api/v1/events")?;
    let mut line = String::new();
    let traffic = Traffic::over(&path, Family::ALL[0]);
    let server = traffic.listen()?;
    let pair = traffic.connect_to(&server)?;
    let client = sockopt::cookie(&pair.client)?;
    pair.abort(End::Client)?;
    drop(server);
    let mut seen: Vec<Value> = Vec::new();
    let listener_ended = |e: &Value| e["event"] == "listener" && e["listening"] == false;
    while !seen.iter().any(listener_ended) {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the stream ended after {seen:?}");
        if let Some(data) = line.strip_prefix("data: ") {
            seen.push(serde_json::from_str(data)?);
        }
    }
    let count = |what: &str| seen.iter().filter(|e| e["event"] == what).count();
    for (what, truth) in [("listener", 2), ("open", 2), ("close", 2), ("reset_sent", 1), ("reset_received", 1)] {
        ensure!(count(what) == truth, "{} of {what}, and {truth} is true: {seen:?}", count(what));
    }
    let reset = seen.iter().find(|e| e["event"] == "reset_sent").context("no reset")?;
    ensure!(reset["cause"] == "linger_zero" && reset["cookie"] == client, "{reset}");
    let close = seen.iter().find(|e| e["event"] == "close" && e["connection"]["cookie"] == client);
    ensure!(close.is_some_and(|e| e["cause"] == "reset_sent"), "{close:?}");
    #[expect(clippy::disallowed_methods, reason = "what the daemon shows is held against it")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
    ensure!(reset["unix_ms"].as_u64().is_some_and(|at| now.abs_diff(at) < 60_000), "{reset}");
    Ok(())
}

fn socket() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let socket = daemon.socket();
    let found = fs::metadata(&socket)?;
    ensure!(found.file_type().is_socket() && found.permissions().mode() & 0o777 == 0o660, "{found:?}");
    // A listener of events does not keep the daemon from ending.
    let mut listener = daemon.follow("/api/v1/events")?;
    let began = Instant::now();
    daemon.signal_stop()?;
    listener.read_to_string(&mut String::new())?;
    let (status, said, folder) = daemon.ended()?;
    ensure!(status.success() && began.elapsed() < Duration::from_secs(4), "{:?}, {status}: {said}", began.elapsed());
    ensure!(!folder.path().join("tcpwatch.sock").exists(), "the socket is still there");
    Ok(())
}

fn top(daemon: &Daemon) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["top", "--once", "--sort", "remote", "--socket"]).arg(daemon.socket());
    command
}

fn top_once() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let pair = Traffic::over(&path, Family::ALL[0]).connect()?;
    let flow = pair.flow(End::Client);
    let Output { status, stdout, stderr } = top(&daemon).output()?;
    let (said, errors) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.success(), "{status}: {errors}");
    ensure!(said.lines().count() == 3 && said.starts_with("LOCAL "), "{said}");
    let row = said.lines().find(|line| line.starts_with(&flow.src.to_string())).with_context(|| said.clone())?;
    let owner = format!("/{}", std::process::id());
    ensure!(row.contains(&flow.dst.to_string()) && row.contains("ESTABLISHED") && row.contains(&owner), "{row}");
    // A socket that was named is never replaced by anything.
    let Output { status, stderr, .. } =
        Command::new(PROGRAM).args(["top", "--once", "--socket", "/nonexistent/s"]).output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(status.code() == Some(1) && said.contains("/nonexistent/s") && said.contains("tcpwatch run"), "{said}");
    fs::set_permissions(daemon.folder.path(), fs::Permissions::from_mode(0o755))?;
    let copy = daemon.folder.path().join("tcpwatch");
    fs::copy(PROGRAM, &copy)?;
    let mut command = Command::new(copy);
    command.args(["top", "--once", "--socket"]).arg(daemon.socket()).uid(65_534).gid(65_534);
    let Output { status, stderr, .. } = command.output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(status.code() == Some(1) && said.contains("group that owns the socket"), "{status}: {said}");
    Ok(())
}

fn top_alone() -> Result<()> {
    ensure!(!std::path::Path::new("/run/tcpwatch/tcpwatch.sock").exists(), "a daemon runs on this host");
    let Output { status, stdout, stderr } = Command::new(PROGRAM).args(["top", "--once"]).output()?;
    let (said, errors) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.success() && said.starts_with("LOCAL "), "{status}: {errors}");
    Ok(())
}
