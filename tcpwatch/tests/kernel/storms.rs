//! Storms of resets: told in time and everywhere, with exact totals; and what looks like one and is none.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{Netns, sockopt};

use crate::daemon::{Daemon, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("storms_are_told_in_time_and_everywhere", told),
        trial("storms_are_none_in_a_restart_health_checks_a_browser_and_a_ramp", none),
        trial("storms_of_muted_resets_are_counted_and_none", muted),
    ]
}

const ACTIVE: &str = "tcpwatch_reset_storm_active";
const STORMS: &str = "tcpwatch_reset_storms_total";

/// Connects to a port where nothing listens, `rate(second)` times a second at equal intervals; returns how often.
fn refuse(ns: &Netns, to: SocketAddr, seconds: u64, rate: impl Fn(u64) -> u64 + Sync) -> u64 {
    ns.run(|| {
        let began = Instant::now();
        let mut count = 0;
        for second in 0..seconds {
            for i in 0..rate(second) {
                let due = began + Duration::from_micros(second * 1_000_000 + i * 1_000_000 / rate(second));
                thread::sleep(due.saturating_duration_since(Instant::now()));
                assert!(TcpStream::connect(to).is_err(), "something listens at {to}");
                count += 1;
            }
        }
        thread::sleep((began + Duration::from_secs(seconds)).saturating_duration_since(Instant::now()));
        count
    })
}

/// A daemon that has seen a second of nothing, which is what it takes as usual.
fn settled(ns: &Netns, more: &str) -> Result<Daemon> {
    let daemon = Daemon::with(&[ns], more)?;
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        daemon.metrics()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(daemon)
}

fn told() -> Result<()> {
    /// A busy machine gives the daemon its second late.
    const SLACK: Duration = Duration::from_secs(2);
    let ns = Netns::new()?;
    let folder = tempfile::tempdir()?;
    let told = folder.path().join("told");
    std::fs::write(&told, "")?;
    for (path, mode) in [(folder.path(), 0o777), (told.as_path(), 0o666)] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    let script = folder.path().join("hook");
    std::fs::write(&script, format!("#!/bin/sh\n(id -u; env) >>{}\n", told.display()))?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let daemon = settled(&ns, &format!("storm_command = [\"{}\"]", script.display()))?;
    let mut events = daemon.follow("/api/v1/events")?;
    let metrics = daemon.metrics()?;
    let labels = ["service=\"none\"", "cause=\"no_listener\""];
    ensure!(metrics.has(ACTIVE) && metrics.count(STORMS, &labels) == 0, "{metrics}");
    let began = Instant::now();
    let (made, ended) = thread::scope(|scope| -> Result<_> {
        let flood = scope.spawn(|| {
            let made = refuse(&ns, SocketAddr::from(([127, 0, 0, 1], 9)), 9, |_| 200);
            (made, Instant::now())
        });
        daemon.wait("a storm", |metrics| metrics.count(ACTIVE, &labels) == 1)?;
        let after = began.elapsed();
        println!("told {after:?} after the first reset");
        ensure!(after < Duration::from_secs(5) + SLACK, "told after {after:?}");
        let status = &daemon.ask("/api/v1/status")?[0];
        ensure!(status["storms"][0]["cause"] == "no_listener", "{status}");
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))
    })?;
    let storm = loop {
        let storms = daemon.ask("/api/v1/storms")?.remove(0);
        let ended_ones = storms["ended"].as_array().into_iter().flatten();
        if let Some(storm) = ended_ones.into_iter().find(|storm| storm["cause"] == "no_listener") {
            break storm.clone();
        }
        ensure!(ended.elapsed() < Duration::from_secs(30), "no end: {storms}");
        thread::sleep(Duration::from_millis(100));
    };
    println!("its end was told {:?} after the last reset", ended.elapsed());
    // The first may be in a second that has too few to be high.
    let resets = storm["resets"].as_u64().context("no resets")?;
    ensure!((made - 19..=made).contains(&resets), "{made} made: {storm}");
    ensure!(storm["resets_by_cause"]["no_listener"] == resets && storm["details"] == resets, "{storm}");
    ensure!(storm["peers"][0]["address"] == "127.0.0.1" && storm["ports"][0]["port"] == 9, "{storm}");
    let stack = &storm["stacks"][0];
    let frames = stack["frames"].as_array().context("no frames")?;
    ensure!(frames.iter().any(|frame| frame == "tcp_v4_send_reset") && stack["resets"] == storm["details"], "{storm}");
    let sentence = storm["sentence"].as_str().context("no sentence")?;
    let from = format!("from kernel stack {} in ", stack["stack"].as_str().context("no stack")?);
    for words in [&*format!("{resets} resets sent, cause no_listener"), "most with 127.0.0.1 (100 %)", &from] {
        ensure!(sentence.contains(words), "no {words:?} in {sentence:?}");
    }
    let example = storm["example"]["sentence"].as_str().context("no example")?;
    ensure!(example.contains("tried to connect to port 9 of 127.0.0.1, where nothing listens"), "{example}");
    ensure!(storm["remedy"] == storm["example"]["remedy"], "{storm}");
    let peak = storm["peak_rate_per_second"].as_f64().context("no peak")?;
    // A machine that is busy makes up for a pause.
    ensure!((100.0..made as f64).contains(&peak), "{storm}");
    let metrics = daemon.metrics()?;
    equal("still shown", metrics.count(ACTIVE, &labels), 1, &metrics)?;
    equal("storms of it", metrics.count(STORMS, &labels), 1, &metrics)?;
    // The other ends see as many resets as this one sends.
    equal("storms of all", metrics.count(STORMS, &[]), 2, &metrics)?;
    nothing_lost(&metrics)?;
    let phases = storm_events(&mut events, 2)?;
    ensure!(phases == ["start", "end"], "{phases:?}");
    let (_, said) = daemon.stop()?;
    for phase in ["start", "end"] {
        let line = format!("reset storm: phase={phase} id=unknown-none-no_listener-");
        let line = said.lines().find(|said| said.contains(&line)).with_context(|| format!("no `{line}` in {said}"))?;
        for fact in ["by_cause=no_listener=", "peers=127.0.0.1=", "by_stack=", "sentence=\"", "remedy=\"Is it"] {
            ensure!(line.contains(fact), "no `{fact}` in {line}");
        }
    }
    // The daemon does not wait for its hooks, and these were told before it answered what was waited for above.
    let told = std::fs::read_to_string(&told)?;
    for fact in [
        "65534\n",
        "TCPWATCH_STORM_PHASE=start\n",
        "TCPWATCH_STORM_CAUSE=no_listener\n",
        "TCPWATCH_STORM_PORTS=9=",
        "_BY_STACK=",
    ] {
        ensure!(told.contains(fact), "no {fact:?} in what the hook was told:\n{told}");
    }
    Ok(())
}

/// The phases of the next so many storms of `no_listener` in a stream of events.
fn storm_events(events: &mut impl std::io::BufRead, count: usize) -> Result<Vec<String>> {
    let mut phases = Vec::new();
    let mut line = String::new();
    while phases.len() < count {
        line.clear();
        ensure!(events.read_line(&mut line)? > 0, "the stream ended");
        let Some(data) = line.strip_prefix("data: ").filter(|data| data.starts_with("{\"event\":\"storm\"")) else {
            continue;
        };
        let event: serde_json::Value = serde_json::from_str(data)?;
        if event["storm"]["cause"] == "no_listener" {
            phases.push(event["phase"].as_str().context("no phase")?.to_owned());
        }
    }
    Ok(phases)
}

/// Opens 30 connections and aborts them all, so often.
fn browse(pages: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:8081")?;
    for _ in 0..pages {
        let pair = |_| -> Result<_> { Ok((TcpStream::connect(listener.local_addr()?)?, listener.accept()?.0)) };
        for (client, _server) in (0..30).map(pair).collect::<Result<Vec<_>>>()? {
            sockopt::abort_on_close(&client)?;
        }
        thread::sleep(Duration::from_secs(2));
    }
    Ok(())
}

fn none() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = settled(&ns, "")?;
    // A proxy that restarts: hundreds of connections, all reset at once.
    let listener = ns.run(|| TcpListener::bind("127.0.0.1:8080"))?;
    let to = listener.local_addr()?;
    let pairs = ns.run(|| {
        let pair = |_| -> Result<_> { Ok((TcpStream::connect(to)?, listener.accept()?.0)) };
        (0..2000).map(pair).collect::<Result<Vec<_>>>()
    })?;
    thread::scope(|scope| {
        // Health checks: ten balancers, each once a second. And a ramp that stays low.
        scope.spawn(|| refuse(&ns, SocketAddr::from(([127, 0, 0, 1], 9)), 10, |_| 6));
        scope.spawn(|| refuse(&ns, SocketAddr::from(([127, 0, 0, 1], 10)), 10, |second| second));
        // A browser that opens a handful of connections and drops them when the page is left, every other second.
        let browser = scope.spawn(|| ns.run(|| browse(5)));
        thread::sleep(Duration::from_secs(2));
        for (_, server) in &pairs {
            sockopt::abort_on_close(server)?;
        }
        drop(pairs);
        browser.join().map_err(|_| anyhow::anyhow!("the browser panicked"))?
    })?;
    let aborted = 2000 + 5 * 30;
    let metrics = daemon.wait("the resets", |m| m.count("tcpwatch_resets_sent_total", &["linger_zero"]) == aborted)?;
    equal("refused", metrics.count("tcpwatch_resets_sent_total", &["no_listener"]), 60 + 45, &metrics)?;
    equal("storms", metrics.count(STORMS, &[]), 0, &metrics)?;
    equal("active", metrics.count(ACTIVE, &[]), 0, &metrics)
}

fn muted() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = settled(&ns, "storm_mute_causes = [\"no_listener\"]\nstorm_mute_peers = [\"127.0.0.0/8\"]")?;
    let made = refuse(&ns, SocketAddr::from(([127, 0, 0, 1], 9)), 7, |_| 100);
    let metrics = daemon.metrics()?;
    equal("counted", metrics.count("tcpwatch_resets_sent_total", &[]), made as i64, &metrics)?;
    equal("storms", metrics.count(STORMS, &[]), 0, &metrics)?;
    let storms = daemon.ask("/api/v1/storms")?.remove(0);
    let of = |by: &str| storms["muted"].as_array().into_iter().flatten().find(|m| m["by"] == by).map(|m| &m["resets"]);
    ensure!(of("cause").is_some_and(|resets| *resets == made), "{storms}");
    // What the other ends received is known by peer only.
    ensure!(of("detail").is_some_and(|resets| *resets == made), "{storms}");
    Ok(())
}
