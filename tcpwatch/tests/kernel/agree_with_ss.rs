//! The values of a connection against `ss -tinmeo` of the same quiet socket, field by field.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic, sockopt};

use crate::daemon::Daemon;
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("values_agree_with_ss_after_an_echo", || agree(echo)),
        trial("values_agree_with_ss_while_nobody_reads", || agree(unread)),
        trial("values_agree_with_ss_after_a_full_send_buffer", || agree(small_buffer)),
        trial("values_agree_with_ss_after_a_loss", || agree(loss)),
    ]
}

fn echo(_: &Path, pair: &mut Pair) -> Result<()> {
    pair.ping_pong(5, 700)?;
    pair.echo(120_000)
}

fn unread(_: &Path, pair: &mut Pair) -> Result<()> {
    pair.echo(40_000)?;
    pair.send_unread(End::Client, 50_000)
}

fn small_buffer(_: &Path, pair: &mut Pair) -> Result<()> {
    sockopt::set_send_buffer(&pair.client, 20_000)?;
    pair.send(End::Client, 400_000)
}

fn loss(path: &Path, pair: &mut Pair) -> Result<()> {
    pair.send(End::Client, 60_000)?;
    path.forward().drop_nth_data(9);
    path.forward().drop_nth_data(14);
    pair.send(End::Client, 200_000)
}

fn agree(course: fn(&Path, &mut Pair) -> Result<()>) -> Result<()> {
    let path = || Path::builder().delay(Duration::from_millis(4)).build();
    let paths = [path()?, path()?, path()?, path()?];
    let ends: Vec<&Netns> = paths.iter().flat_map(|path| [path.a(), path.b()]).collect();
    let daemon = Daemon::watching(&ends)?;
    let kinds = [(Family::V4, "cubic"), (Family::V6, "bbr"), (Family::V4, "bbr"), (Family::V6, "cubic")];
    for (path, (family, congestion)) in paths.iter().zip(kinds) {
        let mut pair = Traffic::over(path, family).congestion(congestion).connect()?;
        course(path, &mut pair)?;
        for end in [End::Client, End::Server] {
            compare_until_read(&daemon, &pair, end).with_context(|| format!("{family:?}, {congestion}, {end:?}"))?;
        }
        pair.close(End::Client).or_else(|_| Ok::<_, anyhow::Error>(()))?;
    }
    Ok(())
}

/// The newest reading may be older than the last segment: the next one is not.
fn compare_until_read(daemon: &Daemon, pair: &Pair, end: End) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = Ss::of(pair, end)?;
        let ours = daemon.connection(pair, end)?.context("the connection is not listed")?;
        let ss = Ss::of(pair, end)?;
        let differences = compare(&ours, &ss);
        if differences.is_empty() {
            return Ok(());
        }
        let moved = before.fields.get("segs_in") != ss.fields.get("segs_in");
        if Instant::now() >= deadline {
            bail!("{}\nss: {}\nours: {ours}\nmoving: {moved}", differences.join("\n"), ss.line);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A line of ss, as `name:value` and `name value`.
struct Ss {
    line: String,
    fields: BTreeMap<String, String>,
    words: Vec<String>,
}

impl Ss {
    fn of(pair: &Pair, end: End) -> Result<Self> {
        let cookie = format!(" sk:{:x} ", sockopt::cookie(pair.stream(end))?);
        let output = pair.netns(end).command("ss").arg("-tinmeoHO").output().context("cannot run ss")?;
        let text = String::from_utf8(output.stdout)?;
        let line =
            text.lines().find(|line| line.contains(&cookie)).with_context(|| format!("no {cookie} in {text}"))?;
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let mut fields = BTreeMap::new();
        for (i, word) in words.iter().enumerate() {
            if let Some((name, value)) = word.split_once(':') {
                fields.insert(name.to_owned(), value.to_owned());
            } else if word.ends_with("_rate")
                && let Some(value) = words.get(i + 1)
            {
                fields.insert(word.clone(), value.trim_end_matches("bps").to_owned());
            }
        }
        ensure!(fields.contains_key("rto") && fields.contains_key("cwnd"), "unknown format of ss: {line}");
        Ok(Self { line: line.to_owned(), fields, words })
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }

    /// The first number of a field; `default` where ss leaves the field out.
    fn number(&self, name: &str, default: f64) -> f64 {
        let Some(value) = self.fields.get(name) else { return default };
        let end = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
        value[..end].parse().unwrap_or(f64::NAN)
    }

    /// The number after a slash.
    fn second(&self, name: &str) -> f64 {
        self.fields.get(name).and_then(|v| v.split_once('/')).and_then(|(_, v)| v.parse().ok()).unwrap_or(0.0)
    }

    /// A number of `skmem:(r0,rb131072,…)` by its letters.
    fn memory(&self, name: &str) -> f64 {
        let all = self.fields.get("skmem").map(|v| v.trim_matches(['(', ')'])).unwrap_or_default();
        let is = |part: &&str| part.trim_end_matches(|c: char| c.is_ascii_digit()) == name;
        all.split(',').find(is).and_then(|part| part[name.len()..].parse().ok()).unwrap_or(f64::NAN)
    }
}

/// What differs, in words.
fn compare(ours: &Value, ss: &Ss) -> Vec<String> {
    let n = |name: &str| ss.number(name, 0.0);
    let ms = 1000.0;
    let exact = [
        ("srtt_us", n("rtt") * ms),
        ("rtt_deviation_us", ss.second("rtt") * ms),
        ("min_rtt_us", n("minrtt") * ms),
        ("receiver_rtt_us", n("rcv_rtt") * ms),
        ("rto_us", n("rto") * ms),
        ("rto_backoff", n("backoff")),
        ("mss_bytes", n("mss")),
        ("advertised_mss_bytes", n("advmss")),
        ("cwnd_segments", n("cwnd")),
        ("ssthresh_segments", n("ssthresh")),
        ("send_window_bytes", n("snd_wnd")),
        ("sent_bytes", n("bytes_sent")),
        ("retransmitted_bytes", n("bytes_retrans")),
        ("acked_bytes", n("bytes_acked")),
        ("received_bytes", n("bytes_received")),
        ("sent_segments", n("data_segs_out")),
        ("received_segments", n("data_segs_in")),
        ("retransmits_total", ss.second("retrans")),
        ("retransmitted_in_flight_segments", n("retrans")),
        ("lost_segments", n("lost")),
        ("sacked_segments", n("sacked")),
        ("reordering_segments", ss.number("reordering", 3.0)),
        ("reorderings_seen", n("reord_seen")),
        ("receive_space_bytes", n("rcv_space")),
        ("unsent_bytes", n("notsent")),
        ("pacing_rate_bytes_per_second", n("pacing_rate") / 8.0),
        ("delivery_rate_bytes_per_second", n("delivery_rate") / 8.0),
        ("ce_delivered_segments", n("delivered_ce")),
        ("busy_us", n("busy") * ms),
        ("receive_window_limited_us", n("rwnd_limited") * ms),
        ("send_buffer_limited_us", n("sndbuf_limited") * ms),
        ("send_queue_memory_bytes", ss.memory("w")),
        ("send_buffer_bytes", ss.memory("tb")),
        ("in_flight_segments", n("unacked") - n("sacked") - n("lost") + n("retrans")),
    ];
    let mut differences = Vec::new();
    for (name, truth) in exact {
        // ss writes six digits of a time.
        let slack = if name.ends_with("_us") { 0.5 + truth * 1e-5 } else { 0.5 };
        let shown = if ours[name].is_null() { Some(0.0) } else { ours[name].as_f64() };
        if shown.is_none_or(|shown| (shown - truth).abs() > slack) {
            differences.push(format!("{name} is {}, ss says {truth}", ours[name]));
        }
    }
    let flags = [
        ("delivery_rate_application_limited", ss.has("app_limited")),
        ("ecn", ss.has("ecn")),
        ("ecn_seen", ss.has("ecnseen")),
    ];
    for (name, truth) in flags {
        if ours[name] != truth {
            differences.push(format!("{name} is {}, ss says {truth}", ours[name]));
        }
    }
    if !ours["congestion_control"].as_str().is_some_and(|name| ss.has(name)) {
        differences.push(format!("the congestion control is {}", ours["congestion_control"]));
    }
    // These grow with time: as of the reading, give or take a jiffy of each clock, and the moments between the questions.
    let age = ours["reading_age_ms"].as_f64().unwrap_or(f64::NAN);
    for (name, field) in [("since_ack_ms", "lastack"), ("since_sent_ms", "lastsnd")] {
        let (shown, truth) = (ours[name].as_f64().unwrap_or(f64::NAN) + age, n(field));
        if (shown - truth).abs() > 250.0 {
            differences.push(format!("{name} is {shown} now, ss says {truth}"));
        }
    }
    differences
}
