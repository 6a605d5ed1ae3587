//! Each kind of reset that people meet, made to happen, and what tcpwatch says of it: origin, cause, owner, the kernel
//! stack, the sentence and its numbers; in the event, and the same at `/api/v1/resets`. A storm of them is in `storms.rs`.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::net::{AddressFamily, SocketType, connect, connect_unspec, sockopt as options};
use serde_json::Value;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{Flags, Flow};
use tcpwatch_lab::{End, Family, Netns, Path, Traffic, nft, sockopt};

use crate::daemon::{Daemon, PROGRAM, equal};
use crate::{gives_reasons, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("reset_row_x1_unread_data", x1),
        trial("reset_row_x2_linger_zero", x2),
        trial("reset_row_x3_data_after_close", x3),
        trial("reset_row_x4_closed_port", x4),
        trial("reset_row_x5_keepalive", x5),
        trial("reset_row_x6_accept_queue", x6),
        trial("reset_row_x7_too_many_orphans", x7),
        trial("reset_row_x8_killed", x8),
        trial("reset_row_x9_disconnect", x9),
        trial("reset_row_x10_bad_ack", x10),
        needs_nft("reset_row_x11_translated_ports", x11),
        trial("reset_row_x12_forged", x12),
        trial("reset_row_x14_peer_resets_in_a_transfer", x14),
        needs_nft("reset_row_x15_firewall", x15),
    ]
}

fn needs_nft(name: &str, test: fn() -> Result<()>) -> Trial {
    tcpwatch_lab::harness::trial_unless(name, || crate::obstacle().or_else(nft::obstacle), test)
}

/// A path, a daemon that watches both of its ends, and what it tells.
struct Watch {
    path: Path,
    daemon: Daemon,
    events: BufReader<UnixStream>,
}

impl Watch {
    fn begin() -> Result<Self> {
        Self::over(Path::builder().build()?)
    }

    fn over(path: Path) -> Result<Self> {
        let daemon = Daemon::watching(&[path.a(), path.b()])?;
        // Then the settings of both have been read as well.
        daemon.wait("both namespaces", |metrics| metrics.series_of("tcpwatch_listen_overflows_total") == 2)?;
        let events = daemon.follow("/api/v1/events")?;
        Ok(Self { path, daemon, events })
    }

    fn traffic(&self) -> Traffic {
        Traffic::over(&self.path, Family::V4)
    }

    /// The next reset of a kind.
    fn next(&mut self, event: &str) -> Result<Value> {
        next(&mut self.events, event)
    }

    /// The next reset that is sent; `/api/v1/resets` says the same of it, and these functions are in its kernel stack.
    fn next_sent(&mut self, functions: &[&str]) -> Result<Value> {
        let told = self.next("reset_sent")?;
        same_with_stack(&self.daemon, &told, functions)?;
        Ok(told)
    }

    /// The next that is received; likewise, and there is no stack.
    fn next_received(&mut self) -> Result<Value> {
        let told = self.next("reset_received")?;
        let kept = kept(&self.daemon, &told)?;
        ensure!(kept["sentence"] == told["sentence"] && kept["stack"].is_null(), "{told:#}\n{kept:#}");
        Ok(told)
    }
}

/// The reset of an event, as `/api/v1/resets` has it.
fn kept(daemon: &Daemon, told: &Value) -> Result<Value> {
    let mut page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    let newest = page["newest"].as_array_mut().context("no list")?;
    let at = newest.iter().position(|reset| reset["ktime_ns"] == told["ktime_ns"]);
    Ok(newest.swap_remove(at.with_context(|| format!("not kept: {told:#}"))?))
}

fn same_with_stack(daemon: &Daemon, told: &Value, functions: &[&str]) -> Result<()> {
    let kept = kept(daemon, told)?;
    for what in ["origin", "cause", "reason", "sentence", "remedy", "evidence"] {
        ensure!(kept[what] == told[what], "{what} is {} and {}", told[what], kept[what]);
    }
    let page = daemon.ask("/api/v1/resets")?.pop().context("no answer")?;
    let stack = page["stacks"].as_array().into_iter().flatten().find(|stack| stack["stack"] == kept["stack"]);
    let stack = stack.with_context(|| format!("no stack of {kept:#}"))?;
    for function in functions {
        let frames = stack["frames"].as_array().context("no frames")?;
        ensure!(frames.iter().any(|frame| frame == function), "no {function} in {stack:#}");
    }
    ensure!(stack["cause"] == told["cause"] && stack["count"].as_u64() >= Some(1), "{stack:#}");
    Ok(())
}

fn next(events: &mut impl BufRead, event: &str) -> Result<Value> {
    let mut line = String::new();
    // The stream has signs of life of its own, which end no wait for a reset.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        ensure!(Instant::now() < deadline, "no {event} came");
        line.clear();
        ensure!(events.read_line(&mut line).with_context(|| format!("no {event}"))? > 0, "the stream ended");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let told: Value = serde_json::from_str(data)?;
        if told["event"] == event {
            return Ok(told);
        }
    }
}

/// Origin, cause, what is in the sentence, and values of the evidence.
fn check(told: &Value, who: [&str; 2], words: &[&str], evidence: &[(&str, Value)]) -> Result<()> {
    let [origin, cause] = who;
    if origin != "received" {
        ensure!(told["origin"] == origin && told["cause"] == cause, "not {origin} {cause}: {told:#}");
    }
    let sentence = told["sentence"].as_str().context("no sentence")?;
    let remedy = told["remedy"].as_str().context("no remedy")?;
    for word in words {
        ensure!(sentence.contains(word) || remedy.contains(word), "no {word:?} in {sentence:?} {remedy:?}");
    }
    for (name, value) in evidence {
        ensure!(told["evidence"][name] == *value, "{name} is not {value}: {told:#}");
    }
    Ok(())
}

fn own() -> String {
    format!("pid {}", std::process::id())
}

fn x1() -> Result<()> {
    let mut watch = Watch::begin()?;
    watch.traffic().connect()?.close_with_unread(End::Server, 777)?;
    let told = watch.next_sent(&["__tcp_close"])?;
    let evidence = [("unread_bytes", 777.into()), ("received_bytes", 777.into())];
    check(&told, ["active", "unread_data"], &["777 bytes unread", &own()], &evidence)?;
    ensure!(told["owner"]["pid"] == std::process::id(), "{told:#}");
    // And people read the same.
    let page = Command::new(PROGRAM).arg("--socket").arg(watch.daemon.socket()).arg("resets").output()?;
    let page = String::from_utf8(page.stdout)?.split_whitespace().collect::<Vec<_>>().join(" ");
    for what in ["sentence", "remedy"] {
        let text = told[what].as_str().context("no text")?;
        ensure!(page.contains(text), "no {text:?} in {page}");
    }
    Ok(())
}

fn x2() -> Result<()> {
    let mut watch = Watch::begin()?;
    let mut pair = watch.traffic().connect()?;
    let silence = watch.path.forward().blackhole();
    pair.client.write_all(&[0; 900])?;
    sockopt::abort_on_close(&pair.client)?;
    drop(pair.client);
    let told = watch.next_sent(&["tcp_disconnect", "__tcp_close"])?;
    drop(silence);
    let words = ["SO_LINGER", "has the option set", "900 bytes sent and not acknowledged", &own()];
    check(&told, ["active", "linger_zero"], &words, &[("linger_ms", 0.into()), ("unacked_bytes", 900.into())])
}

fn x3() -> Result<()> {
    let mut watch = Watch::begin()?;
    watch.traffic().connect()?.send_after_close(End::Server)?;
    let told = watch.next_sent(&["tcp_v4_rcv"])?;
    check(&told, ["passive", "time_wait"], &["still sent", "after this end had closed"], &[("flags", "psh,ack".into())])
}

fn x4() -> Result<()> {
    let mut watch = Watch::begin()?;
    let closed = watch.traffic().refused(1)?;
    let told = watch.next_sent(&["tcp_v4_send_reset", "tcp_v4_rcv"])?;
    let port = format!("port {}", closed.port());
    let peer = format!("{}:", Path::IPV4[0]);
    check(&told, ["passive", "no_listener"], &[&port, &peer, "nothing listens"], &[("port", closed.port().into())])
}

fn x5() -> Result<()> {
    let path = Path::builder().build()?;
    path.a().sysctl("net.ipv4.tcp_keepalive_probes", "7")?;
    let mut watch = Watch::over(path)?;
    let pair = watch.traffic().connect()?;
    let second = Duration::from_secs(1);
    options::set_tcp_keepidle(&pair.client, second)?;
    options::set_tcp_keepintvl(&pair.client, second)?;
    options::set_tcp_keepcnt(&pair.client, 2)?;
    let silence = watch.path.forward().blackhole();
    options::set_socket_keepalive(&pair.client, true)?;
    let told = watch.next_sent(&["tcp_keepalive_timer"])?;
    drop(silence);
    let words = [
        "did not answer 2 keepalive probes",
        "net.ipv4.tcp_keepalive_probes = 7",
        "TCP_KEEPCNT",
        "`sysctl -w net.ipv4.tcp_keepalive_probes=14`, undone by `sysctl -w net.ipv4.tcp_keepalive_probes=7`",
    ];
    let evidence = [("net.ipv4.tcp_keepalive_probes", 7.into()), ("unanswered_probes", 2.into())];
    check(&told, ["active", "keepalive"], &words, &evidence)?;
    ensure!(told["owner"]["pid"] == std::process::id(), "{told:#}");
    Ok(())
}

/// The backlog of a listener: its queue holds one more.
const BACKLOG: i32 = 4;

/// A listener with room for one more connection, and the connections that wait there.
fn nearly_full(watch: &Watch) -> Result<(TcpListener, SocketAddr, Vec<TcpStream>)> {
    let to = SocketAddr::from((Path::IPV4[1], 8088));
    let listener = watch.path.b().run(|| -> Result<_> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &to)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(TcpListener::from(socket))
    })?;
    let waiting = watch.path.a().run(|| (0..BACKLOG).map(|_| TcpStream::connect(to)).collect::<Result<Vec<_>, _>>())?;
    Ok((listener, to, waiting))
}

/// Sends a SYN and does not wait for the answer.
fn begin_to_connect(to: SocketAddr) -> Result<OwnedFd> {
    let flags = rustix::net::SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

fn x6() -> Result<()> {
    // With the setting on, a reset; with it off, drops that make the peer wait.
    for (abort, resets) in [("1", true), ("0", false)] {
        let path = Path::builder().delay(Duration::from_millis(50)).build()?;
        path.b().sysctl("net.ipv4.tcp_abort_on_overflow", abort)?;
        let mut watch = Watch::over(path)?;
        let (_listener, to, _waiting) = nearly_full(&watch)?;
        // Over a path with a delay every SYN is answered before the first ACK takes the last place.
        let _more = watch.path.a().run(|| (0..3).map(|_| begin_to_connect(to)).collect::<Result<Vec<_>>>())?;
        if resets {
            let told = watch.next_sent(&["tcp_v4_send_reset", "tcp_check_req"])?;
            let words = [
                "port 8088 was full",
                "its limit is 4",
                "net.ipv4.tcp_abort_on_overflow = 1",
                "`sysctl -w net.ipv4.tcp_abort_on_overflow=0`, undone by `sysctl -w net.ipv4.tcp_abort_on_overflow=1`",
                "net.core.somaxconn = 4096",
            ];
            let evidence = [("queue_limit", BACKLOG.into()), ("net.ipv4.tcp_abort_on_overflow", 1.into())];
            check(&told, ["passive", "accept_queue"], &words, &evidence)?;
            ensure!(told["owner"]["pid"] == std::process::id(), "{told:#}");
        } else {
            let overflowed = |m: &crate::daemon::Metrics| m.count("tcpwatch_listen_overflows_total", &[]) >= 2;
            let metrics = watch.daemon.wait("overflows", overflowed)?;
            equal("resets", metrics.count("tcpwatch_resets_sent_total", &[]), 0, &metrics)?;
            watch.daemon.wait("SYN-ACKs again", |m| {
                m.count("tcpwatch_retransmitted_segments_total", &["cause=\"syn_ack\""]) >= 2
            })?;
        }
    }
    Ok(())
}

/// The limit of orphans, which is the whole host's: put back at the end.
struct MaxOrphans(String);

impl MaxOrphans {
    const PLACE: &str = "/proc/sys/net/ipv4/tcp_max_orphans";

    fn set(limit: u64) -> Result<Self> {
        let before = Self(fs::read_to_string(Self::PLACE)?);
        fs::write(Self::PLACE, limit.to_string())?;
        Ok(before)
    }
}

impl Drop for MaxOrphans {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::PLACE, self.0.trim()) {
            eprintln!("{} stays changed, it was {}: {error}", Self::PLACE, self.0.trim());
        }
    }
}

fn x7() -> Result<()> {
    const MOST: u64 = 5;
    let mut watch = Watch::begin()?;
    let pairs = watch.traffic().connect_many(100)?;
    let _silence = watch.path.forward().blackhole();
    let limit = MaxOrphans::set(MOST)?;
    let _servers: Vec<_> = pairs
        .into_iter()
        .map(|mut pair| {
            // What is not acknowledged keeps a socket that nobody has any more. The kernel counts those ten times a second,
            // and tcpwatch looks once a second: at any moment there are more than the limit, each until its first timeout.
            pair.client.write_all(&[0; 100])?;
            std::thread::sleep(Duration::from_millis(25));
            Ok(pair.server)
        })
        .collect::<Result<_>>()?;
    let told = watch.next_sent(&["tcp_send_active_reset"])?;
    drop(limit);
    let words = [
        "orphans, and net.ipv4.tcp_max_orphans = 5 is the most",
        "`sysctl -w net.ipv4.tcp_max_orphans=10`, undone by `sysctl -w net.ipv4.tcp_max_orphans=5`",
    ];
    // The first may be over before their number was read.
    let mut told = told;
    while !told["sentence"].as_str().context("no sentence")?.contains(words[0]) {
        told = watch.next("reset_sent")?;
    }
    check(&told, ["active", "memory"], &words, &[("net.ipv4.tcp_max_orphans", MOST.into())])?;
    ensure!(!gives_reasons() || told["reason"] == "tcp_abort_on_memory", "{told:#}");
    ensure!(told["evidence"]["orphans"].as_u64() >= Some(MOST), "{told:#}");
    Ok(())
}

fn x8() -> Result<()> {
    let mut watch = Watch::begin()?;
    let pair = watch.traffic().connect()?;
    let port = format!("sport = :{}", pair.client.local_addr()?.port());
    let done = watch.path.a().command("ss").args(["-K", "-t", "-n", &port]).output().context("cannot run ss")?;
    ensure!(done.status.success(), "ss -K: {}", String::from_utf8_lossy(&done.stderr));
    let told = watch.next_sent(&["tcp_abort"])?;
    let words = ["destroyed from outside while it was ESTABLISHED", "ss --kill", "CAP_NET_ADMIN", &own()];
    check(&told, ["active", "destroyed"], &words, &[("state", "ESTABLISHED".into())])
}

fn x9() -> Result<()> {
    let mut watch = Watch::begin()?;
    let mut pair = watch.traffic().connect()?;
    let silence = watch.path.forward().blackhole();
    pair.client.write_all(&[0; 1000])?;
    connect_unspec(&pair.client)?;
    let told = watch.next_sent(&["tcp_disconnect", "__inet_stream_connect"])?;
    drop(silence);
    let words = ["connect(AF_UNSPEC)", "1000 bytes not acknowledged", &own()];
    check(&told, ["active", "disconnect"], &words, &[("unacked_bytes", 1000.into())])
}

fn x10() -> Result<()> {
    let mut watch = Watch::begin()?;
    let server = watch.traffic().listen()?;
    let flow = Flow { src: SocketAddr::from((Path::IPV4[0], 1234)), dst: server.address };
    watch.path.inject_segment(&RawSegment::new(flow, 1, 7, Flags::ACK))?;
    let told = watch.next_sent(&["tcp_v4_send_reset"])?;
    let port = format!("port {}", server.address.port());
    check(&told, ["passive", "bad_ack"], &["acknowledges nothing", "a listener", &port], &[("flags", "ack".into())])
}

fn x11() -> Result<()> {
    let mut watch = Watch::begin()?;
    let server = watch.traffic().listen()?;
    let (there, port) = (server.address.ip(), server.address.port());
    // What goes to one port arrives at another, and the answer comes from there: two flows with the same ends.
    watch.path.b().nft(&format!(
        "table ip t {{
            chain c {{
                type filter hook prerouting priority raw;
                tcp dport 7000 tcp dport set {port}
            }}
        }}"
    ))?;
    let refused =
        watch.path.a().run(|| TcpStream::connect_timeout(&SocketAddr::new(there, 7000), Duration::from_secs(1)));
    ensure!(refused.is_err(), "the translation does nothing");
    let told = watch.next_sent(&["tcp_v4_send_reset"])?;
    let words = ["no socket here has these two ends", "translated", "cannot be told"];
    check(&told, ["passive", "closed_socket"], &words, &[("flags", "syn,ack".into())])
}

fn x12() -> Result<()> {
    let mut watch = Watch::begin()?;
    let mut pair = watch.traffic().connect()?;
    pair.send(End::Server, 500)?;
    let flow = pair.flow(End::Server);
    let next_seq = watch.path.record().next_seq(flow).context("nothing was sent")?;
    // In the window and not the next: challenged. Outside: ignored. Neither ends anything.
    for seq in [next_seq.wrapping_add(10), next_seq.wrapping_sub(100_000)] {
        watch.path.inject_segment(&RawSegment::reset(flow, seq))?;
    }
    pair.ping_pong(3, 10)?;
    let metrics = watch.daemon.metrics()?;
    equal("received", metrics.count("tcpwatch_resets_received_total", &[]), 0, &metrics)?;
    let next_seq = watch.path.record().next_seq(flow).context("nothing was sent")?;
    watch.path.inject_segment(&RawSegment::reset(flow, next_seq))?;
    let told = watch.next_received()?;
    let words = ["reset the connection", "in ESTABLISHED", "a device on the path in its name", &own()];
    check(&told, ["received", ""], &words, &[("state", "ESTABLISHED".into()), ("unacked_bytes", 0.into())])?;
    let metrics = watch.daemon.metrics()?;
    equal("received now", metrics.count("tcpwatch_resets_received_total", &[]), 1, &metrics)?;
    Ok(())
}

fn x14() -> Result<()> {
    let mut watch = Watch::begin()?;
    let mut pair = watch.traffic().connect()?;
    pair.ping_pong(3, 100)?;
    std::thread::sleep(Duration::from_millis(300));
    // On its way when the reset comes, from the other direction.
    let silence = watch.path.forward().blackhole();
    pair.client.write_all(&[0; 1200])?;
    pair.abort(End::Server)?;
    let told = watch.next_received()?;
    drop(silence);
    check(
        &told,
        ["received", ""],
        &["in ESTABLISHED after", "1200 bytes sent and not acknowledged are lost", &own()],
        &[("unacked_bytes", 1200.into())],
    )?;
    let age_ms = told["evidence"]["age_ms"].as_u64().context("no age")?;
    ensure!((300..20_000).contains(&age_ms), "{told:#}");
    Ok(())
}

fn x15() -> Result<()> {
    let ns = Netns::new()?;
    let rule = "table inet t {
        chain c {
            type filter hook input priority filter;
            tcp dport 9 reject with tcp reset
        }
    }";
    ns.nft(rule)?;
    let daemon = Daemon::watching(&[&ns])?;
    let mut events = daemon.follow("/api/v1/events")?;
    let (_listener, refused) = ns.run(|| -> Result<_> {
        let listener = TcpListener::bind("127.0.0.1:9")?;
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        Ok((listener, connect(&socket, &SocketAddr::from(([127, 0, 0, 1], 9)))))
    })?;
    match refused.map_err(rustix::io::Errno::kind) {
        Err(ErrorKind::ConnectionRefused) => {}
        other => bail!("the firewall did not refuse: {other:?}"),
    }
    let told = next(&mut events, "reset_received")?;
    let words = ["TCP of this host sent no reset", "a firewall rule that rejects is suspected"];
    check(&told, ["received", ""], &words, &[("sent_by_tcp_of_this_host", false.into())])?;
    // Over loopback the answer is there within connect(): who called it is told by the close, a moment later.
    let kept = kept(&daemon, &told)?;
    check(&kept, ["received", ""], &[words[0], words[1], &own()], &[("sent_by_tcp_of_this_host", false.into())])?;
    let metrics = daemon.metrics()?;
    equal("sent by TCP", metrics.count("tcpwatch_resets_sent_total", &[]), 0, &metrics)?;
    equal("by the kernel's count", ns.counters()?.get("Tcp", "OutRsts")?, 0, &metrics)
}
