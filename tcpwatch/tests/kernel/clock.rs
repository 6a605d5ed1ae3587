//! Steps of the wall clock: what is counted and how long it took does not depend on it, and times of day follow it.

use std::fs;
use std::io::BufRead as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Netns, Traffic};

use crate::daemon::{Daemon, PROGRAM, equal, nothing_lost};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("clock_steps_change_times_of_day_and_nothing_else", steps)]
}

const DAY: i64 = 24 * 3600;

/// libfaketime stands between the daemon and the clock; no other process sees a step.
fn steps() -> Result<()> {
    let ns = Netns::new()?;
    let folder = tempfile::tempdir()?;
    let offset = folder.path().join("offset");
    fs::write(&offset, "+0\n")?;
    let library = fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.is_file())
        .context("no libfaketime; `cargo xtask setup` installs it")?;
    let words = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        PROGRAM.to_owned(),
    ];
    let daemon = Daemon::through(&words, tempfile::tempdir()?, &[&ns], "", |_| {})?;
    let mut events = daemon.follow("/api/v1/events?kind=reset_sent")?;
    let traffic = Traffic::loopback(&ns, Family::V4);
    let mut kept = traffic.connect()?;
    let days = [0, 3, -3, 40, -4000, 0];
    for (n, days) in (1..).zip(days) {
        fs::write(&offset, format!("{:+}\n", days * DAY))?;
        kept.ping_pong(5, 100)?;
        traffic.connect()?.close(End::Client)?;
        traffic.refused(1)?;
        let told = loop {
            let mut line = String::new();
            ensure!(events.read_line(&mut line)? > 0, "the events ended");
            if let Some(data) = line.strip_prefix("data: ") {
                break serde_json::from_str::<Value>(data)?;
            }
        };
        #[expect(clippy::disallowed_methods, reason = "it is the clock that this is about")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64 + days * DAY;
        let told = told["unix_ms"].as_i64().context("no time")? / 1000;
        ensure!((now - told).abs() <= 60, "{days} days: told {told}, and it is {now}");
        let metrics =
            daemon.wait("the close", |metrics| metrics.count("tcpwatch_connections_closed_total", &[]) >= 3 * n)?;
        equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 2 + 2 * n, &metrics)?;
        equal("resets", metrics.count("tcpwatch_resets_sent_total", &[]), n, &metrics)?;
        equal("storms", metrics.count("tcpwatch_reset_storms_total", &[]), 0, &metrics)?;
        ensure!(metrics.sum("tcpwatch_connection_duration_seconds_sum", &[]) < 600.0, "durations stepped\n{metrics}");
        ensure!(metrics.sum("tcpwatch_snapshot_age_seconds", &[]) < 60.0, "no snapshot since\n{metrics}");
        let (status, _) = daemon.get("/readyz")?;
        ensure!(status.ends_with("200 OK"), "{status}");
    }
    let listed = daemon.connection(&kept, End::Client)?.context("the connection is not listed")?;
    let age = Duration::from_millis(listed["age_ms"].as_u64().context("no age")?);
    ensure!(age < Duration::from_secs(600), "it is {age:?} old: {listed}");
    nothing_lost(&daemon.metrics()?)?;
    let (status, said) = daemon.stop()?;
    ensure!(status.success() && !said.contains("panicked"), "{status}: {said}");
    Ok(())
}
