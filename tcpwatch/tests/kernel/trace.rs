//! `tcpwatch trace`, the stream of events behind it, and live answers against the written schema.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::Path as FilePath;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Path, Traffic, sockopt};

use crate::daemon::{Daemon, PROGRAM};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("trace_tells_of_what_the_expression_selects", selects),
        trial("trace_tells_of_retransmits_with_their_owner", retransmits),
        trial("trace_ends_when_nobody_reads_and_when_its_time_is_over", ends),
        trial("trace_without_a_daemon_loads_the_programs_itself", alone),
        trial("api_tells_a_slow_client_what_it_missed", slow),
        trial("api_answers_are_as_the_schema_says", schema),
    ]
}

const PATIENCE: Duration = Duration::from_secs(20);

/// A trace that follows already; it ends with the value.
struct Trace {
    child: Child,
    out: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
}

impl Trace {
    fn start(daemon: Option<&Daemon>, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(PROGRAM);
        command.arg("trace").args(words);
        if let Some(daemon) = daemon {
            command.arg("--socket").arg(daemon.socket());
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let mut errors = BufReader::new(child.stderr.take().context("no errors")?);
        let mut said = String::new();
        while !said.contains("tracing ") {
            ensure!(errors.read_line(&mut said)? > 0, "it ended: {said}");
        }
        Ok(Self { child, out, errors })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.out.read_line(&mut line)? > 0, "the trace ended");
        Ok(line)
    }

    fn object(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| line)
    }

    /// Interrupts it, and returns how it ended and what it said at the end on its outputs.
    fn interrupt(self) -> Result<(ExitStatus, String, String)> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        self.ended()
    }

    fn ended(mut self) -> Result<(ExitStatus, String, String)> {
        let (mut out, mut errors) = (String::new(), String::new());
        self.out.read_to_string(&mut out)?;
        self.errors.read_to_string(&mut errors)?;
        Ok((self.child.wait()?, out, errors))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn selects() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    for family in Family::ALL {
        let traffic = Traffic::over(&path, family);
        let (one, other) = (traffic.listen()?, traffic.listen()?);
        let wanted = traffic.connect_to(&one)?;
        let flow = wanted.flow(End::Client);
        let port = flow.dst.port().to_string();
        let pid = std::process::id().to_string();
        let words = ["resets", "--json", "peer", "port", &port, "and", "pid", &pid, "or", "pid", "1"];
        let mut resets = Trace::start(Some(&daemon), &words)?;
        let mut closes = Trace::start(Some(&daemon), &["connections", &format!("kind close and port {port}")])?;
        traffic.connect_to(&other)?.abort(End::Client)?;
        let cookie = sockopt::cookie(&wanted.client)?;
        wanted.abort(End::Client)?;
        let reset = resets.object()?;
        ensure!(reset["event"] == "reset_sent" && reset["cause"] == "linger_zero", "{family:?}: {reset}");
        ensure!(reset["cookie"] == cookie && reset["pid"] == std::process::id(), "{family:?}: {reset}");
        let (status, rest, _) = resets.interrupt()?;
        let end = r#"{"event":"end","left_out":{}}"#;
        ensure!(status.success() && rest.lines().last() == Some(end), "{status}: {rest}");
        ensure!(rest.lines().all(|line| line == end), "more than was asked for: {rest}");
        for _ in 0..2 {
            let line = closes.line()?;
            ensure!(line.contains(" close ") && line.contains(&format!(":{port}")), "{line}");
            ensure!(line.contains(" after ") && line.contains("retransmits 0"), "{line}");
            ensure!(!line.contains('\x1b'), "colours without a terminal: {line}");
        }
        let (status, rest, said) = closes.interrupt()?;
        ensure!(status.success() && rest.is_empty() && said.ends_with("left out 0\n"), "{status}: {rest}{said}");
    }
    let output = Command::new(PROGRAM).args(["trace", "resets", "prot", "443"]).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2) && said.contains("did you mean `port`?\n  prot 443\n  ^^^^\n"), "{said}");
    Ok(())
}

fn retransmits() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut pair = Traffic::over(&path, Family::ALL[0]).connect()?;
    let pid = std::process::id();
    let expr = format!("pid {pid} and direction outbound and cwnd > 0");
    let mut trace = Trace::start(Some(&daemon), &["retransmits", "--json", &expr])?;
    path.forward().drop_nth_data(1);
    pair.send(End::Client, 3000)?;
    let event = trace.object()?;
    ensure!(event["event"] == "retransmit" && event["pid"] == pid && event["cause"].is_string(), "{event}");
    ensure!(event["cookie"] == sockopt::cookie(&pair.client)?, "{event}");
    let (status, rest, _) = trace.interrupt()?;
    ensure!(status.success() && !rest.contains("\"open\""), "{status}: {rest}");
    Ok(())
}

fn ends() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    // Nothing happens: it must notice by itself that its reader went.
    let mut trace = Trace::start(Some(&daemon), &["resets"])?;
    let closed = BufReader::new(std::mem::replace(&mut trace.out, BufReader::new(unused()?)).into_inner());
    drop(closed);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = trace.child.try_wait()? {
            break status;
        }
        ensure!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "{status}");
    let began = Instant::now();
    let trace = Trace::start(Some(&daemon), &["all", "--json", "--duration", "300ms"])?;
    let (status, out, said) = trace.ended()?;
    ensure!(status.success() && out == "{\"event\":\"end\",\"left_out\":{}}\n", "{status}: {out}{said}");
    ensure!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    // A daemon that ends is a failure of the trace.
    let trace = Trace::start(Some(&daemon), &["resets"])?;
    daemon.signal_stop()?;
    let (status, _, said) = trace.ended()?;
    ensure!(status.code() == Some(1) && said.contains("the daemon"), "{status}: {said}");
    Ok(())
}

/// The output of a process that has ended.
fn unused() -> Result<ChildStdout> {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn()?;
    child.wait()?;
    child.stdout.take().context("no output")
}

fn alone() -> Result<()> {
    ensure!(!FilePath::new("/run/tcpwatch/tcpwatch.sock").exists(), "a daemon runs on this host");
    let path = Path::builder().build()?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    let server = traffic.listen()?;
    let pair = traffic.connect_to(&server)?;
    let port = pair.flow(End::Client).src.port().to_string();
    let mut trace = Trace::start(None, &["all", "--json", "--duration", "20s", "sport", &port])?;
    pair.abort(End::Client)?;
    let event = trace.object()?;
    ensure!(event["event"] == "close" || event["event"] == "reset_sent", "{event}");
    let (status, out, said) = trace.interrupt()?;
    ensure!(status.success() && out.ends_with("}\n"), "{status}: {out}{said}");
    Ok(())
}

fn slow() -> Result<()> {
    const CONNECTIONS: i64 = 2500;
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut stream = daemon.follow("/api/v1/events?kind=open,close")?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    let server = traffic.listen()?;
    for _ in 0..CONNECTIONS {
        traffic.connect_to(&server)?.abort(End::Client)?;
    }
    daemon.wait("all closes", |m| m.count("tcpwatch_connections_closed_total", &[]) >= 2 * CONNECTIONS)?;
    let mut line = String::new();
    let (mut told, mut missed, mut lost) = (0, 0, 0);
    while told + missed + lost < 4 * CONNECTIONS {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the stream ended: told {told}, missed {missed}, lost {lost}");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data)?;
        match event["event"].as_str() {
            Some("open" | "close") => told += 1,
            Some("missed") => missed += event["missed"].as_i64().context("no number")?,
            Some("lost") => {
                lost += event["lost"].as_object().context("no places")?.values().filter_map(Value::as_i64).sum::<i64>();
            }
            _ => bail!("{event}"),
        }
    }
    ensure!(missed > 0 && told > 0, "told {told}, missed {missed}, lost {lost}");
    ensure!(told + missed <= 4 * CONNECTIONS, "told {told}, missed {missed}, lost {lost}");
    Ok(())
}

/// The schema in docs/api.
fn validator(name: &str) -> Result<jsonschema::Validator> {
    let file = FilePath::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/api/{name}.schema.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    Ok(jsonschema::validator_for(&schema)?)
}

fn valid(name: &str, answers: &[Value]) -> Result<()> {
    let validator = validator(name)?;
    ensure!(!answers.is_empty(), "no {name}");
    for answer in answers {
        if let Err(error) = validator.validate(answer) {
            bail!("{name}: {error} at {}: {answer}", error.instance_path());
        }
    }
    Ok(())
}

fn schema() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "connection_metrics = true")?;
    let mut stream = daemon.follow("/api/v1/events?for=2s")?;
    let _listening = path.b().run(|| TcpListener::bind("0.0.0.0:0"))?;
    let mut pairs = Vec::new();
    for family in Family::ALL {
        let traffic = Traffic::over(&path, family);
        let mut pair = traffic.connect()?;
        pair.ping_pong(5, 300)?;
        traffic.connect()?.abort(End::Client)?;
        traffic.connect()?.close(End::Server)?;
        pairs.push(pair);
    }
    path.forward().drop_nth_data(1);
    pairs[0].send(End::Client, 3000)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for kind in ["open", "close", "retransmit", "reset_sent", "reset_received", "listener", "end"] {
        ensure!(events.iter().any(|event| event["event"] == kind), "no {kind}: {text}");
    }
    valid("event", &events)?;
    let pid = std::process::id();
    for event in &events {
        let subject = event.get("connection").unwrap_or(event);
        // A notice, or a reset without a socket, has none.
        if subject["cookie"].as_u64().is_none_or(|cookie| cookie == 0) {
            continue;
        }
        ensure!(subject["owner"]["pid"] == pid && subject["pid"] == pid, "{event}");
    }
    let all = daemon.ask("/api/v1/connections")?;
    valid("connection", &all)?;
    valid("listener", &daemon.ask("/api/v1/listeners")?)?;
    valid("service", &daemon.ask("/api/v1/services")?)?;
    valid("status", &daemon.ask("/api/v1/status")?)?;
    let (head, body) = daemon.answer("/api/v1/listeners?limit=1")?;
    ensure!(head.starts_with("HTTP/1.1 400") && body.contains("this page has none"), "{head}: {body}");
    for query in ["colour=1", "limit=x", "filter=prot%201", "sort=colour", "limit=1&limit=1"] {
        let (head, body) = daemon.answer(&format!("/api/v1/connections?{query}"))?;
        ensure!(head.starts_with("HTTP/1.1 400"), "{query}: {head}");
        valid("error", &[serde_json::from_str(&body)?])?;
    }
    // Filter, order and pages.
    let outbound = daemon.ask("/api/v1/connections?filter=direction+outbound+and+not+state+TIME_WAIT")?;
    ensure!(!outbound.is_empty() && outbound.iter().all(|c| c["direction"] == "outbound"), "{outbound:?}");
    let (head, body) = daemon.answer("/api/v1/connections?sort=sent&limit=1&offset=1")?;
    ensure!(head.contains(&format!("x-total-count: {}", all.len())) && body.lines().count() == 1, "{head}");
    let (head, body) = daemon.answer("/metrics/connections?top=2&sort=bytes")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}: {body}");
    let series = body.lines().filter(|line| line.starts_with("tcpwatch_connection_sent_bytes_total{")).count();
    ensure!(series == 2, "{body}");
    let (head, body) = daemon.answer("/metrics/connections?top=201")?;
    ensure!(head.starts_with("HTTP/1.1 400") && body.contains("up to 200"), "{head}: {body}");
    Ok(())
}
