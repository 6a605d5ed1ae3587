//! Resets beyond their counts: causes of a mixed run, stacks, evidence, `tcpwatch resets`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::net::{connect_unspec, sockopt as options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{Flags, Flow};
use tcpwatch_lab::{End, Family, Pair, Path, Traffic, sockets, sockopt};

use crate::actor::Actor;
use crate::daemon::{Daemon, Metrics, PROGRAM, equal};
use crate::{gives_reasons, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("reset_causes_of_a_mixed_run_are_right_and_add_up", mixed),
        trial("reset_stacks_of_a_hammered_port_are_few_on_a_busy_cpu", hammered),
        trial("reset_evidence_has_the_values_of_the_socket", evidence),
        trial("reset_stacks_without_addresses_are_counted_and_say_so", hidden),
        trial("reset_owner_is_who_had_the_socket_or_listens", owners),
        trial("reset_stacks_beyond_the_table_are_counted", overflow),
        trial("reset_command_without_a_daemon_watches_for_itself", alone),
        trial("reset_command_shows_hostile_names_harmlessly_and_draws", command),
    ]
}

const SENT: &str = "tcpwatch_resets_sent_total";
/// Longer than anything here takes, but for a hang.
const PATIENCE: Duration = Duration::from_secs(20);
const STACKS: &str = "tcpwatch_reset_stacks_total";

/// Waits until one end has seen how the other ended the connection. Were it closed before, its FIN would find nobody,
/// and be answered with one reset more.
fn seen(pair: &Pair, by: End) -> Result<()> {
    let flow = pair.flow(by);
    pair.netns(by).wait_state(flow.src, flow.dst, None, PATIENCE)
}

fn mixed() -> Result<()> {
    // What is waited for takes its time on the way.
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let mut truth: BTreeMap<&str, i64> = BTreeMap::new();
    let mut expect = |origin_and_cause, count| *truth.entry(origin_and_cause).or_default() += count;
    for (family, ack) in [(Family::V4, 7), (Family::V6, 9)] {
        let traffic = Traffic::over(&path, family);
        traffic.connect()?.abort(End::Client)?;
        expect("active linger_zero", 1);
        traffic.connect()?.close_with_unread(End::Server, 10)?;
        expect("active unread_data", 1);
        let closed = traffic.refused(3)?;
        expect("passive no_listener", 3);
        traffic.connect()?.send_after_close(End::Server)?;
        // The socket that was closed has become one in TIME_WAIT, with FIN_WAIT2 as its state.
        expect("passive time_wait", 1);
        let server = traffic.listen()?;
        let from = if family.is_ipv6_on_the_wire() { Path::IPV6[0].into() } else { Path::IPV4[0].into() };
        let flow = |dst| Flow { src: SocketAddr::new(from, 1234), dst };
        path.inject_segment(&RawSegment::new(flow(closed), 1, ack, Flags::ACK))?;
        expect("passive closed_socket", 1);
        path.inject_segment(&RawSegment::new(flow(server.address), 1, ack, Flags::ACK))?;
        expect("passive bad_ack", 1);
        // Nobody accepts it.
        let waiting = path.a().try_run(|| TcpStream::connect(server.address))??;
        let established = Some(sockets::TcpState::Established);
        let own = waiting.local_addr()?;
        path.b().wait_state(server.address, own, established, PATIENCE)?;
        let address = server.address;
        drop(server);
        path.a().wait_state(own, address, None, PATIENCE)?;
        expect("active listener_closed", 1);
        let pair = traffic.connect()?;
        connect_unspec(&pair.client)?;
        seen(&pair, End::Server)?;
        expect("active disconnect", 1);
        let pair = traffic.connect()?;
        let sport = format!("sport = :{}", pair.client.local_addr()?.port());
        let killed = path.a().command("ss").args(["-K", "-t", "-n", &sport]).output().context("cannot run ss")?;
        ensure!(killed.status.success(), "ss -K: {}", String::from_utf8_lossy(&killed.stderr));
        seen(&pair, End::Server)?;
        expect("active destroyed", 1);
    }
    let pair = Traffic::over(&path, Family::V4).connect()?;
    let second = Duration::from_secs(1);
    options::set_tcp_keepidle(&pair.client, second)?;
    options::set_tcp_keepintvl(&pair.client, second)?;
    options::set_tcp_keepcnt(&pair.client, 1)?;
    let _silence = path.forward().blackhole();
    options::set_socket_keepalive(&pair.client, true)?;
    expect("active keepalive", 1);
    let sum: i64 = truth.values().sum();
    let counted = |metrics: &Metrics, what: &str| {
        let (origin, cause) = what.split_once(' ').unwrap_or_default();
        metrics.count(SENT, &[&format!("origin=\"{origin}\""), &format!("cause=\"{cause}\"")])
    };
    let metrics = daemon.wait("a reset of every cause", |m| truth.iter().all(|(what, n)| counted(m, what) >= *n))?;
    for (what, count) in &truth {
        equal(what, counted(&metrics, what), *count, &metrics)?;
    }
    let kernel = path.a().counters()?.get("Tcp", "OutRsts")? + path.b().counters()?.get("Tcp", "OutRsts")?;
    equal("all", metrics.count(SENT, &[]), kernel, &metrics)?;
    equal("the set-up", sum, kernel, &metrics)?;
    equal("by stack", metrics.count(STACKS, &[]), kernel, &metrics)?;
    let info = |cause: &str, function: &str| {
        metrics.count("tcpwatch_reset_stack_info", &[&format!("cause=\"{cause}\""), function])
    };
    for (cause, function) in [
        ("linger_zero", "tcp_disconnect;__tcp_close"),
        ("disconnect", "tcp_disconnect"),
        ("destroyed", "tcp_abort"),
        ("keepalive", "tcp_keepalive_timer"),
        ("listener_closed", "inet_csk_listen_stop"),
        ("no_listener", "tcp_v6_rcv"),
    ] {
        ensure!(info(cause, function) >= 1, "no stack of {cause} with {function}\n{metrics}");
    }
    for tracer in ["bpf", "trace", "softirq", "?"] {
        let told = metrics.to_string();
        let wrong = told.lines().find(|l| l.starts_with("tcpwatch_reset_stack_info") && l.contains(tracer));
        ensure!(wrong.is_none(), "{wrong:?}");
    }
    Ok(())
}

fn fingerprints(metrics: &Metrics, cause: &str) -> i64 {
    metrics.count("tcpwatch_reset_stack_info", &[&format!("cause=\"{cause}\"")])
}

fn hammered() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // What softirqs interrupt: user code, system calls, page faults.
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let page = vec![1_u8; 1 << 20];
                    let _read = fs::read("/proc/self/stat").map(|text| text.len() + page.len());
                }
            });
        }
        let refused = Traffic::over(&path, Family::V4).refused(2000);
        let looped = Traffic::loopback(path.a(), Family::V4).refused(2000);
        done.store(true, Ordering::Relaxed);
        refused.and(looped)
    })?;
    let metrics = daemon.metrics()?;
    equal("counted", metrics.count(STACKS, &[]), 4000, &metrics)?;
    let found = fingerprints(&metrics, "no_listener");
    ensure!((1..=3).contains(&found), "{found} fingerprints\n{metrics}");
    Ok(())
}

/// The reset of a socket with its evidence.
fn reset_of(daemon: &Daemon, cookie: u64, direction: &str) -> Result<Value> {
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    let newest = page["newest"].as_array().context("no list")?;
    let found = newest.iter().find(|r| r["cookie"] == cookie && r["direction"] == direction);
    found.cloned().with_context(|| format!("no reset of {cookie}: {page}"))
}

fn expect(reset: &Value, values: &[(&str, Value)]) -> Result<()> {
    for (place, truth) in values {
        let found = place.split('.').fold(reset, |value, key| &value[key]);
        ensure!(found == truth, "{place} is {found}, the truth is {truth}: {reset:#}");
    }
    Ok(())
}

fn cookies(pair: &Pair) -> Result<(u64, u64)> {
    Ok((sockopt::cookie(&pair.client)?, sockopt::cookie(&pair.server)?))
}

fn evidence() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let mut pair = traffic.connect()?;
    pair.send(End::Server, 1000)?;
    pair.send(End::Client, 500)?;
    options::set_socket_linger(&pair.client, Some(Duration::from_secs(3)))?;
    let flow = pair.flow(End::Client);
    let (client, server) = cookies(&pair)?;
    let before = std::time::Instant::now();
    std::thread::sleep(Duration::from_millis(50));
    pair.close_with_unread(End::Client, 777)?;
    let reset = reset_of(&daemon, client, "sent")?;
    expect(
        &reset,
        &[
            ("cause", "unread_data".into()),
            ("reason", if gives_reasons() { "tcp_abort_on_close".into() } else { "none".into() }),
            ("origin", "active".into()),
            ("state", "ESTABLISHED".into()),
            ("states", Value::from(vec!["ESTABLISHED", "SYN_SENT"])),
            ("local_port", flow.src.port().into()),
            ("remote_address", flow.dst.ip().to_string().into()),
            ("netns", path.a().inode().into()),
            ("socket.unread_bytes", 777.into()),
            ("socket.received_bytes", 1777.into()),
            ("socket.sent_bytes", 500.into()),
            ("socket.unacked_bytes", 0.into()),
            ("socket.linger_ms", 3000.into()),
            ("socket.retransmits_total", 0.into()),
            ("socket.orphan", false.into()),
            ("owner.pid", std::process::id().into()),
            ("owner.uid", 0.into()),
            ("segment", Value::Null),
            ("closed_first", Value::Null),
        ],
    )?;
    let most = before.elapsed().as_millis() as u64 + 20_000;
    ensure!(reset["age_ms"].as_u64().is_some_and(|ms| (50..most).contains(&ms)), "{reset:#}");
    ensure!(reset["in_state_ms"].as_u64() <= reset["age_ms"].as_u64() && !reset["stack"].is_null(), "{reset:#}");
    expect(
        &reset_of(&daemon, server, "received")?,
        &[
            ("state", "ESTABLISHED".into()),
            ("socket.sent_bytes", 1777.into()),
            ("stack", Value::Null),
            ("cause", Value::Null),
        ],
    )?;
    // The client closed first, and the server answers with a reset.
    let mut pair = traffic.connect()?;
    let (client, server) = cookies(&pair)?;
    pair.half_close(End::Client)?;
    pair.abort(End::Server)?;
    expect(
        &reset_of(&daemon, server, "sent")?,
        &[
            ("cause", "linger_zero".into()),
            ("state", "CLOSE_WAIT".into()),
            ("closed_first", "remote".into()),
            ("socket.linger_ms", 0.into()),
            ("socket.unread_bytes", 0.into()),
        ],
    )?;
    let reset = reset_of(&daemon, client, "received")?;
    expect(&reset, &[("closed_first", "local".into())])?;
    ensure!(reset["state"].as_str().is_some_and(|state| state.starts_with("FIN_WAIT")), "{reset:#}");
    // Nothing is acknowledged any more.
    let mut pair = traffic.connect()?;
    let (client, _) = cookies(&pair)?;
    let _silence = path.forward().blackhole();
    pair.client.write_all(&[1; 5000])?;
    sockopt::abort_on_close(&pair.client)?;
    drop(pair);
    let reset = reset_of(&daemon, client, "sent")?;
    let waiting = reset["socket"]["unacked_bytes"].as_u64().zip(reset["socket"]["unsent_bytes"].as_u64());
    ensure!(waiting.is_some_and(|(unacked, unsent)| unacked > 0 && unacked + unsent == 5000), "{reset:#}");
    // A closed port has no socket: nothing is said of it.
    let daemon = Daemon::watching(&[path.b()])?;
    Traffic::loopback(path.b(), Family::V6).refused(1)?;
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    let reset = page["newest"].as_array().into_iter().flatten().find(|r| r["direction"] == "sent").context("none")?;
    expect(reset, &[("cause", "no_listener".into()), ("segment.flags", Value::from(vec!["syn"]))])?;
    for absent in ["socket", "cookie", "age_ms", "owner", "states", "state"] {
        ensure!(reset.get(absent).is_none(), "{absent}: {reset:#}");
    }
    Ok(())
}

fn hidden() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::without_syslog(&[path.a(), path.b()])?;
    Traffic::over(&path, Family::V4).refused(50)?;
    Traffic::over(&path, Family::V4).connect()?.abort(End::Client)?;
    let metrics = daemon.metrics()?;
    equal("counted", metrics.count(STACKS, &[]), 51, &metrics)?;
    equal("fingerprints", fingerprints(&metrics, "no_listener"), 1, &metrics)?;
    equal("linger", metrics.count(SENT, &["cause=\"linger_zero\""]), 1, &metrics)?;
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    ensure!(page["no_symbols"].as_str().is_some_and(|why| why.contains("CAP_SYSLOG")), "{page}");
    let said = resets(&daemon, &[])?;
    ensure!(said.contains("no names of functions: ") && said.contains("CAP_SYSLOG"), "{said}");
    Ok(())
}

/// What `tcpwatch resets` prints.
fn resets(daemon: &Daemon, more: &[&str]) -> Result<String> {
    let output = Command::new(PROGRAM).args(["resets", "--socket"]).arg(daemon.socket()).args(more).output()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn command() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V4);
    let server = traffic.listen()?;
    let hostile = Actor::start(path.a(), None)?;
    hostile.tell("name \x1b[2J<script>\u{202e}")?;
    hostile.tell(&format!("connect {}", server.address))?;
    hostile.tell("abort")?;
    traffic.refused(4)?;
    let text = resets(&daemon, &[])?;
    ensure!(!text.chars().any(|c| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
    ensure!(
        text.contains("\\x1b[2J<script>") && text.contains("linger_zero") && text.contains("__tcp_close"),
        "{text}"
    );
    ensure!(text.contains(&format!("{} (4)", Path::IPV4[0])), "{text}");
    for line in resets(&daemon, &["--json"])?.lines() {
        let line: Value = serde_json::from_str(line)?;
        ensure!(["summary", "cause", "reason", "stack", "reset"].iter().any(|kind| line["kind"] == *kind), "{line}");
    }
    let svg = daemon.folder.path().join("resets.svg");
    resets(&daemon, &["--flamegraph", svg.to_str().context("no text")?])?;
    let drawn = fs::read_to_string(&svg)?;
    ensure!(drawn.contains("passive no_listener (4 resets,") && drawn.contains("__tcp_close (1 resets,"), "{drawn}");
    ensure!(drawn.trim_end().ends_with("</svg>") && !drawn.contains("<script>alert"), "{drawn}");
    let refused = Command::new(PROGRAM)
        .args(["resets", "--flamegraph", "/nonexistent/x.svg", "--socket"])
        .arg(daemon.socket())
        .output()?;
    let said = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(1) && said.contains("/nonexistent/x.svg"), "{said}");
    Ok(())
}

fn owners() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let (client, server) = (Actor::start(path.a(), None)?, Actor::start(path.b(), None)?);
    let (at_client, at_server) = (client.pid(), server.pid());
    let address: SocketAddr = server.tell(&format!("listen {}:0", Path::IPV4[1]))?.parse()?;
    // The process is killed with unread data, and is not there any more when somebody asks.
    let own = Traffic::over(&path, Family::V4).listen()?;
    let cookie: u64 = client.tell(&format!("connect {}", own.address))?.parse()?;
    let (mut accepted, peer) = own.listener.accept()?;
    accepted.write_all(b"not read")?;
    let received = || Ok((sockopt::unacknowledged(&accepted)? == 0).then_some(()));
    tcpwatch_lab::clock::wait_for(PATIENCE, "the data to arrive", received)?;
    client.end()?;
    path.b().wait_state(own.address, peer, None, PATIENCE)?;
    let reset = reset_of(&daemon, cookie, "sent")?;
    expect(
        &reset,
        &[
            ("cause", "unread_data".into()),
            ("owner.pid", at_client.into()),
            ("owner.known_by", "connect".into()),
            ("socket.unread_bytes", 8.into()),
        ],
    )?;
    // A segment that is for no connection goes to the socket that listens, and its owner is who answers.
    let from = SocketAddr::new(Path::IPV4[0].into(), 1234);
    path.inject_segment(&RawSegment::new(Flow { src: from, dst: address }, 1, 7, Flags::ACK))?;
    // A child that nobody has accepted is the listener's; the client's reset ends it.
    let waiting = path.a().try_run(|| TcpStream::connect(address))??;
    let ends = (address, waiting.local_addr()?);
    path.b().wait_state(ends.0, ends.1, Some(sockets::TcpState::Established), PATIENCE)?;
    sockopt::abort_on_close(&waiting)?;
    drop(waiting);
    daemon.wait("what came to the listener", |m| {
        m.count(SENT, &["cause=\"bad_ack\""]) == 1 && m.count("tcpwatch_resets_received_total", &[]) == 2
    })?;
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    let find = |direction: &str, peer: u16| {
        let newest = page["newest"].as_array().into_iter().flatten();
        let mut at = newest.filter(|r| r["local_port"] == address.port() && r["remote_port"] == peer);
        at.find(|r| r["direction"] == direction).with_context(|| format!("no reset {direction} of {peer}: {page}"))
    };
    expect(find("sent", 1234)?, &[("cause", "bad_ack".into()), ("owner.pid", at_server.into())])?;
    expect(
        find("received", ends.1.port())?,
        &[("owner.pid", at_server.into()), ("owner.known_by", "listener".into()), ("socket.orphan", true.into())],
    )?;
    let causes = page["causes"].as_array().context("no list")?;
    let bad = causes.iter().find(|cause| cause["cause"] == "bad_ack").context("no cause")?;
    ensure!(bad["owners"][0]["pid"] == at_server && bad["owners"][0]["count"] == 1, "{bad}");
    let text = resets(&daemon, &[])?;
    ensure!(text.contains(&format!("[{at_client}] (1)")) && text.contains(&format!("[{at_server}], uid 0")), "{text}");
    Ok(())
}

fn overflow() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "reset_stacks = 2")?;
    let traffic = Traffic::over(&path, Family::V4);
    // One after the other takes a place: the first two have one, and the others none.
    traffic.connect()?.abort(End::Client)?;
    traffic.refused(3)?;
    traffic.connect()?.close_with_unread(End::Server, 10)?;
    Traffic::over(&path, Family::V6).refused(4)?;
    traffic.refused(2)?;
    let metrics = daemon.metrics()?;
    equal("sent", metrics.count(SENT, &[]), 11, &metrics)?;
    equal("with a stack", metrics.count(STACKS, &[]), 6, &metrics)?;
    equal("fingerprints", metrics.count("tcpwatch_reset_stack_info", &[]), 2, &metrics)?;
    equal("without", metrics.count("tcpwatch_events_lost_total", &["where=\"stack\""]), 5, &metrics)?;
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    ensure!(page["without_stack"] == 5, "{page}");
    let text = resets(&daemon, &[])?;
    ensure!(text.contains("5 resets whose stack could not be kept"), "{text}");
    Ok(())
}

fn alone() -> Result<()> {
    ensure!(!std::path::Path::new("/run/tcpwatch/tcpwatch.sock").exists(), "a daemon runs on this host");
    let path = Path::builder().build()?;
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("tcpwatch.toml");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&path.b().fd());
    fs::write(&config, format!("netns = [\"/proc/{}/fd/{fd}\"]\n", std::process::id()))?;
    let begin = |more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(&config).arg("resets").args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let mut child = begin(&["--duration", "10m"])?;
    let mut stderr = BufReader::new(child.stderr.take().context("no standard error")?);
    let mut said = String::new();
    stderr.read_line(&mut said)?;
    ensure!(said.contains("no daemon runs; watching for 600s or until Ctrl-C"), "{said}");
    Traffic::over(&path, Family::V4).refused(3)?;
    let pid = Pid::from_raw(child.id() as i32).context("no process")?;
    kill_process(pid, Signal::INT)?;
    let mut text = String::new();
    child.stdout.take().context("no standard output")?.read_to_string(&mut text)?;
    ensure!(child.wait()?.success(), "{text}");
    let line = text.lines().find(|line| line.contains("no_listener")).context("no such cause")?;
    ensure!(line.trim_start().starts_with("3 ") && text.contains("tcp_v4_rcv"), "{text}");
    let quiet = begin(&["--duration", "100ms", "--json"])?.wait_with_output()?;
    let text = String::from_utf8(quiet.stdout)?;
    let summary: Value = serde_json::from_str(text.trim_end())?;
    ensure!(quiet.status.success() && summary["kind"] == "summary" && summary["without_stack"] == 0, "{text}");
    Ok(())
}
