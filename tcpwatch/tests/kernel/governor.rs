//! The governor under a load that is too much for its budget: what it holds back, what it never does, and how it lets go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::sockets::TcpState;
use tcpwatch_lab::{End, Family, Netns, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal};
use crate::overflow::{all_ended, connect_while};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("governor_thins_histograms_under_load_and_no_counter_and_lets_go_after_it", cpu),
        trial("governor_spreads_records_over_an_interval_that_keeps_their_budget", records),
    ]
}

const LEVEL: &str = "tcpwatch_governor_level";
const RATIO: &str = "tcpwatch_governor_sampled_ratio";
const INTERVAL: &str = "tcpwatch_sample_interval_seconds";
const SAMPLES: &str = "tcpwatch_rtt_seconds_count";

/// RTT samples of who listens at `port`.
fn samples(metrics: &Metrics, port: u16) -> i64 {
    metrics.count(SAMPLES, &["direction=\"inbound\"", &format!("service=\"{port}\"")])
}

/// Looks once a second, which costs little.
fn wait(daemon: &Daemon, what: &str, most: Duration, done: impl Fn(&Metrics) -> bool) -> Result<Metrics> {
    daemon.wait_at_most(most, Duration::from_secs(1), what, done)
}

fn cpu() -> Result<()> {
    const PORT: u16 = 9001;
    const ROUNDS: usize = 20_000;
    let local = Netns::new()?;
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[&local, path.a(), path.b()], "cpu_budget = \"2%\"\nservice_ports = [9001]")?;
    let traffic = Traffic::loopback(&local, Family::V4).port(PORT);
    let mut pair = traffic.connect()?;
    pair.ping_pong(ROUNDS, 100)?;
    let whole = daemon.metrics()?;
    let of_all = samples(&whole, PORT);
    ensure!(of_all > ROUNDS as i64 * 9 / 10, "{of_all} samples of {ROUNDS} answers\n{whole}");

    let over = AtomicBool::new(false);
    let (before, thinned, made) = thread::scope(|scope| {
        let flood = scope.spawn(|| connect_while(&local, 8080, true, || !over.load(Ordering::Relaxed)));
        let mut measure = || {
            let most = Duration::from_secs(60);
            let thin = wait(&daemon, "thin histograms", most, |m| m.sum(RATIO, &[]) < 0.3)?;
            equal("level", thin.count(LEVEL, &[]), 2, &thin)?;
            // What is lost on the way is sent again while the histograms are thin.
            path.forward().drop_share(0.02, 11);
            Traffic::over(&path, Family::V4).congestion("cubic").connect()?.send(End::Client, 2_000_000)?;
            let before = daemon.metrics()?;
            pair.ping_pong(ROUNDS, 100)?;
            Ok::<_, anyhow::Error>((before, daemon.metrics()?))
        };
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        let made = flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        measured.map(|(before, thinned)| (before, thinned, made))
    })?;
    let of_thin = samples(&thinned, PORT) - samples(&before, PORT);
    println!("{of_all} samples of {ROUNDS} exchanges when all are counted, {of_thin} when they are thinned");
    ensure!(of_thin < of_all / 2, "{of_thin} samples, and {of_all} without thinning\n{thinned}");
    equal("interval", thinned.count(INTERVAL, &[]), 60, &thinned)?;

    pair.abort(End::Client)?;
    let ended = |state| matches!(state, TcpState::TimeWait | TcpState::Listen);
    let what = "the connections to end";
    local.wait_tcp(Duration::from_secs(120), what, |all| all.iter().all(|socket| ended(socket.state)))?;
    // Two ends each of the flood, the ping-pong and the transfer, of which the last was just dropped.
    let metrics = all_ended(&daemon, 2 * (made + 2))?;
    let kernel = path.a().counters()?.get("Tcp", "RetransSegs")? + path.b().counters()?.get("Tcp", "RetransSegs")?;
    let ours = metrics.count("tcpwatch_retransmitted_segments_total", &[]);
    let local = local.counters()?.get("Tcp", "RetransSegs")?;
    equal("retransmitted", ours, kernel + local, &metrics)?;
    ensure!(kernel > 5, "only {kernel} retransmitted");
    equal(
        "received",
        metrics.count("tcpwatch_received_bytes_total", &[]),
        2_000_000 + 4 * 100 * ROUNDS as i64,
        &metrics,
    )?;

    let free = wait(&daemon, "everything to be let go", Duration::from_secs(90), |m| m.count(LEVEL, &[]) == 0)?;
    ensure!((free.sum(RATIO, &[]) - 1.0).abs() < 1e-9, "{free}");
    equal("interval", free.count(INTERVAL, &[]), 1, &free)?;
    let thin_for = free.sum("tcpwatch_governor_thinned_seconds_total", &[]);
    ensure!(thin_for > 1.0, "thinned for {thin_for} s\n{free}");
    let before = samples(&free, PORT);
    let mut pair = traffic.connect()?;
    pair.ping_pong(ROUNDS, 100)?;
    let again = daemon.metrics()?;
    let of_all = samples(&again, PORT) - before;
    ensure!(of_all > ROUNDS as i64 * 9 / 10, "{of_all} samples of {ROUNDS} answers\n{again}");
    Ok(())
}

fn records() -> Result<()> {
    const PAIRS: usize = 150;
    const BUDGET: f64 = 50.0;
    let ns = Netns::new()?;
    let daemon = Daemon::with(&[&ns], "sample_interval = \"500ms\"\nrecords_per_second = 50\ncpu_budget = \"100%\"")?;
    let mut pairs = Traffic::loopback(&ns, Family::V4).connect_many(PAIRS)?;
    let taken = |metrics: &Metrics| metrics.sum("tcpwatch_events_total", &["kind=\"sample\""]);
    let mut busy = |time: Duration| {
        let until = Instant::now() + time;
        while Instant::now() < until {
            pairs.iter_mut().try_for_each(|pair| pair.ping_pong(1, 10))?;
            thread::sleep(Duration::from_millis(20));
        }
        daemon.metrics()
    };
    // 300 busy ends: 600 records a second unless they come every 6 s or less often.
    let steady = busy(Duration::from_secs(12))?;
    let interval = steady.sum(INTERVAL, &[]);
    ensure!((5.0..=15.0).contains(&interval), "every {interval} s\n{steady}");
    equal("level", steady.count(LEVEL, &[]), 1, &steady)?;
    let mut most = 0.0_f64;
    let mut before = taken(&steady);
    for _ in 0..8 {
        let now = taken(&busy(Duration::from_secs(1))?);
        most = most.max(now - before);
        before = now;
    }
    // Not all at once: a second has its part of them.
    ensure!(most < 3.0 * BUDGET, "{most} records in a second, every {interval} s");
    let free = wait(&daemon, "the interval that was asked for", Duration::from_secs(40), |m| m.count(LEVEL, &[]) == 0)?;
    ensure!((free.sum(INTERVAL, &[]) - 0.5).abs() < 1e-9, "{free}");
    drop(pairs);
    Ok(())
}
