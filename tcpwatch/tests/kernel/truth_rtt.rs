//! RTT quantiles against what the sender's kernel saw at its device: the time from a segment's leaving to its ACK's coming.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::capture::Capture;
use tcpwatch_lab::harness;
use tcpwatch_lab::relay::{Flow, Rate, RttSample};
use tcpwatch_lab::{End, Family, Impairment, Pair, Path, Traffic};

use crate::daemon::{Daemon, Metrics, nothing_lost};
use crate::{obstacle, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("rtt_quantiles_are_those_of_a_capture_on_a_path_of_200_us", || on_path(200)),
        trial("rtt_quantiles_are_those_of_a_capture_on_a_path_of_7_ms", || on_path(7_000)),
        trial("rtt_quantiles_are_those_of_a_capture_on_a_path_of_40_ms", || on_path(40_000)),
        trial("rtt_quantiles_are_those_of_a_capture_on_a_path_of_200_ms", || on_path(200_000)),
        harness::trial_unless(
            "rtt_quantiles_are_those_that_tshark_shows",
            || obstacle().or_else(no_tshark),
            against_tshark,
        ),
    ]
}

/// A machine that is busy with other things takes the CPU away between TCP's clock and the device's: so many tries may be
/// spoilt by that. A wrong number is wrong in all of them.
const TRIES: usize = 3;

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Small questions and answers, which find the path empty.
    Questions(usize),
    /// An upload over a slow link, which fills its queue.
    Queueing,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    round_trip_us: u64,
    family: Family,
    congestion: &'static str,
    sack: bool,
    load: Load,
}

/// Both congestion controls with and without SACK, on an empty and on a queueing path, at the same time as they do not
/// disturb each other; the shortest path, where microseconds count, one after the other.
fn on_path(round_trip_us: u64) -> Result<()> {
    let questions = match round_trip_us {
        0..1_000 => 300,
        1_000..10_000 => 150,
        10_000..100_000 => 60,
        _ => 20,
    };
    let mut cases = Vec::new();
    for (congestion, sack, family) in [
        ("cubic", true, Family::V4),
        ("cubic", false, Family::V6),
        ("bbr", true, Family::V6),
        ("bbr", false, Family::V4),
    ] {
        for load in [Load::Questions(questions), Load::Queueing] {
            cases.push(Case { round_trip_us, family, congestion, sack, load });
        }
    }
    let at_once = if round_trip_us < 10_000 { 1 } else { 4 };
    for group in cases.chunks(at_once) {
        thread::scope(|scope| {
            let running: Vec<_> = group.iter().map(|case| scope.spawn(|| patiently(*case))).collect();
            for case in running {
                case.join().map_err(|_| anyhow!("a case panicked"))??;
            }
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}

fn patiently(case: Case) -> Result<()> {
    let mut spoilt = Vec::new();
    while let Err(error) = attempt(case) {
        spoilt.push(format!("{error:#}"));
        ensure!(spoilt.len() < TRIES, "{case:?}: {}", spoilt.join("\nthen: "));
    }
    Ok(())
}

/// Makes the path of a case.
fn path(case: Case) -> Result<Path> {
    let both = Impairment::delay(Duration::from_micros(case.round_trip_us / 2));
    let rate = match case.load {
        Load::Questions(_) => None,
        Load::Queueing => Some(Rate::bits_per_second(40_000_000).queue_packets(500)),
    };
    let path = Path::builder().forward(Impairment { rate, ..both }).backward(both).build()?;
    if !case.sack {
        path.a().sysctl("net.ipv4.tcp_sack", "0")?;
    }
    Ok(path)
}

fn exchange(case: Case, pair: &mut Pair) -> Result<()> {
    match case.load {
        Load::Questions(count) => pair.ping_pong(count, 200),
        Load::Queueing => pair.send(End::Client, 2_000_000),
    }
}

fn attempt(case: Case) -> Result<()> {
    let path = path(case)?;
    let daemon = Daemon::watching(&[path.a()])?;
    let mut pair = Traffic::over(&path, case.family).congestion(case.congestion).connect()?;
    let flow = pair.flow(End::Client);
    let capture = Capture::begin(path.a())?;
    exchange(case, &mut pair)?;
    // Before the close, which adds the sample of a FIN that nobody asks about.
    let truth = truth(case, &capture.end()?.rtt_samples_of(flow));
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    compare(&metrics, &truth)?;
    nothing_lost(&metrics)
}

/// The samples in µs. With SACK the kernel keeps the time of the newest segment that an ACK newly acknowledges; without,
/// only that of the oldest, in what it smooths.
fn truth(case: Case, samples: &[RttSample]) -> Vec<f64> {
    let ns = samples.iter().map(|sample| if case.sack { sample.newest_ns } else { sample.oldest_ns });
    let mut us: Vec<f64> = ns.map(|ns| ns as f64 / 1e3).collect();
    us.sort_by(f64::total_cmp);
    us
}

/// Median, 99th percentile, and how many: one sample for each ACK that brings one.
fn compare(metrics: &Metrics, truth_us: &[f64]) -> Result<()> {
    ensure!(truth_us.len() >= 20, "only {} samples in the capture", truth_us.len());
    let samples = metrics.count("tcpwatch_rtt_seconds_count", &[]);
    let allowed = 3 + truth_us.len() as i64 / 50;
    let difference = samples - truth_us.len() as i64;
    ensure!(difference.abs() <= allowed, "{samples} samples, the capture has {}\n{metrics}", truth_us.len());
    for (label, share) in [("p50", 0.5), ("p99", 0.99)] {
        let label = format!("percentile=\"{label}\"");
        let ours = metrics.sum("tcpwatch_rtt_recent_seconds", &["direction=\"outbound\"", &label]) * 1e6;
        // Between two samples far apart either is right, and the few that only one of both has move the place.
        let place = share * truth_us.len() as f64;
        let slack = 1.0 + allowed as f64 * share;
        let at = |place: f64| truth_us[(place.max(0.0) as usize).min(truth_us.len() - 1)];
        let (low, high) = (at(place - slack), at(place + slack));
        let near = |truth: f64| (truth * 0.05).max(50.0);
        ensure!(
            low - near(low) <= ours && ours <= high + near(high),
            "{label} is {ours:.0} µs, the capture says {low:.0} to {high:.0}\n{metrics}"
        );
    }
    Ok(())
}

fn no_tshark() -> Option<String> {
    let tried = Command::new("tshark").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.err().map(|error| format!("the command tshark cannot be run ({error}): install the package tshark"))
}

/// tshark in a namespace; it ends with the value.
struct Tshark {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Tshark {
    /// Begins to show the RTT of each ACK that a flow's sender receives, one on a line.
    fn watching(path: &Path, flow: Flow) -> Result<Self> {
        let port = flow.src.port();
        let filter = format!("tcp.analysis.ack_rtt && tcp.dstport == {port} && tcp.flags.syn == 0");
        let mut child = path
            .a()
            .command("tshark")
            .args(["-l", "-n", "-i", "lab0", "-Y", &filter, "-T", "fields", "-e", "tcp.analysis.ack_rtt"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start tshark")?;
        let (send, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        thread::spawn(move || output.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
        let mut errors = BufReader::new(child.stderr.take().context("no errors")?);
        let mut said = String::new();
        while !said.contains("Capture started") {
            ensure!(errors.read_line(&mut said)? > 0, "tshark ended: {said}");
        }
        // What it says later is of no interest, and must not fill the pipe.
        thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Ok(Self { child, lines })
    }

    /// So many samples in µs.
    fn samples(&self, count: usize) -> Result<Vec<f64>> {
        let mut samples = Vec::new();
        while samples.len() < count {
            let line = self.lines.recv_timeout(Duration::from_secs(20));
            let line = line.with_context(|| format!("tshark shows {} samples of {count}", samples.len()))?;
            samples.push(line.trim().parse::<f64>().with_context(|| format!("tshark shows '{line}'"))? * 1e6);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples)
    }
}

impl Drop for Tshark {
    fn drop(&mut self) {
        // Its own child, which captures, ends when nobody reads it any more.
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The same against another program's eyes: on a queueing path too, ours and tshark's agree, and our capture with tshark's.
fn against_tshark() -> Result<()> {
    for load in [Load::Questions(80), Load::Queueing] {
        let case = Case { round_trip_us: 40_000, family: Family::V4, congestion: "cubic", sack: true, load };
        let path = path(case)?;
        let daemon = Daemon::watching(&[path.a()])?;
        let mut pair = Traffic::over(&path, case.family).congestion(case.congestion).connect()?;
        let flow = pair.flow(End::Client);
        let tshark = Tshark::watching(&path, flow)?;
        let capture = Capture::begin(path.a())?;
        exchange(case, &mut pair)?;
        let ours = truth(case, &capture.end()?.rtt_samples_of(flow));
        let theirs = tshark.samples(ours.len())?;
        let median = |samples: &[f64]| samples[samples.len() / 2];
        let apart = (median(&ours) - median(&theirs)).abs();
        ensure!(apart < 50.0, "the lab's capture and tshark's are {apart} µs apart");
        pair.close(End::Client)?;
        let metrics = daemon.metrics()?;
        compare(&metrics, &theirs)?;
        nothing_lost(&metrics)?;
    }
    Ok(())
}
