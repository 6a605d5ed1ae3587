//! Resets as fast as two processors make them: totals stay exact, and the daemon stays small and answers.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{Netns, sockopt};

use crate::daemon::{Daemon, Metrics, PROGRAM, equal};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("fire_at_a_closed_port_v4", || under(&[Kind::Refused(V4), Kind::Refused(V4)])),
        trial("fire_at_a_closed_port_v6", || under(&[Kind::Refused(V6), Kind::Refused(V6)])),
        trial("fire_of_linger_closes", || under(&[Kind::Linger(V4), Kind::Linger(V4)])),
        trial("fire_of_both_kinds_and_families", || under(&[Kind::Refused(V6), Kind::Linger(V4)])),
    ]
}

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
const SENT: &str = "tcpwatch_resets_sent_total";
const LOST: &str = "tcpwatch_events_lost_total";
/// Longest wait for an answer: two processors, both taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What makes the resets.
#[derive(Clone, Copy)]
enum Kind {
    /// Connections to a port where nothing listens.
    Refused(IpAddr),
    /// Connections that the server closes with linger 0.
    Linger(IpAddr),
}

impl Kind {
    /// Makes them until it is told to stop; returns how many.
    fn run(self, stop: &AtomicBool) -> Result<u64> {
        let mut made = 0;
        match self {
            Self::Refused(address) => {
                let to = SocketAddr::new(address, 9);
                while !stop.load(Ordering::Relaxed) {
                    ensure!(TcpStream::connect(to).is_err(), "something listens at {to}");
                    made += 1;
                }
            }
            Self::Linger(address) => {
                let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
                let to = listener.local_addr()?;
                while !stop.load(Ordering::Relaxed) {
                    let client = TcpStream::connect(to)?;
                    let (server, _) = listener.accept()?;
                    sockopt::abort_on_close(&server)?;
                    drop((server, client));
                    made += 1;
                }
            }
        }
        Ok(made)
    }
}

/// A few seconds, or the minute that `cargo xtask test full` takes.
fn duration() -> Duration {
    Duration::from_secs(if crate::is_long() { 60 } else { 4 })
}

fn under(kinds: &[Kind]) -> Result<()> {
    let ns = Netns::new()?;
    // Ports of connections that were refused or reset are free at once; those that connect need enough of them.
    ns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    let daemon = Daemon::watching(&[&ns])?;
    daemon.wait("the first snapshot", |m| m.has(SENT))?;
    let before = ns.counters()?;
    let (memory, cpu) = (daemon.resident_bytes()?, daemon.cpu_seconds()?);
    let (stop, slowest_us, halfway) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let made: u64 = thread::scope(|scope| {
        let floods: Vec<_> = kinds.iter().map(|kind| scope.spawn(|| ns.run(|| kind.run(&stop)))).collect();
        let watched = (|| {
            while began.elapsed() < duration() {
                let asked = Instant::now();
                daemon.metrics()?;
                slowest_us.fetch_max(asked.elapsed().as_micros() as u64, Ordering::Relaxed);
                top(&daemon)?;
                if began.elapsed() > duration() / 2 && halfway.load(Ordering::Relaxed) == 0 {
                    halfway.store(daemon.resident_bytes()?, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let made: Result<Vec<_>> =
            floods.into_iter().map(|flood| flood.join().map_err(|_| anyhow::anyhow!("a flood panicked"))?).collect();
        watched.and(made)
    })?
    .into_iter()
    .sum();
    let (took, cpu) = (began.elapsed().as_secs_f64(), daemon.cpu_seconds()? - cpu);
    let metrics = exact(&daemon, &ns, made as i64, &before)?;
    let now = daemon.resident_bytes()?;
    let (grown, late) = (now.saturating_sub(memory), now.saturating_sub(halfway.load(Ordering::Relaxed)));
    let slowest = Duration::from_micros(slowest_us.load(Ordering::Relaxed));
    println!(
        "{:.0} resets a second for {took:.0} s; daemon: {:.1} % of a processor, {} KB more, {} KB of it in the second half; \
         slowest scrape {slowest:?}; {} details throttled",
        made as f64 / took,
        cpu / took * 100.0,
        grown >> 10,
        late >> 10,
        metrics.count(LOST, &["where=\"throttled\""]),
    );
    ensure!(slowest < PATIENCE, "a scrape took {slowest:?}");
    ensure!(grown < 64 << 20, "{grown} bytes more");
    // What it keeps of resets is full long before.
    if crate::is_long() {
        ensure!(late < 4 << 20, "{late} bytes more in the second half of {took} s");
    }
    // It may take what its records cost, and no processor for itself. A build for debugging is several times slower.
    let most = if cfg!(debug_assertions) { 0.9 } else { 0.5 };
    ensure!(cpu / took < most, "the daemon took {:.1} % of a processor", cpu / took * 100.0);
    Ok(())
}

/// Every reset is counted, and its details were taken, throttled or lost where it is shown.
fn exact(daemon: &Daemon, ns: &Netns, made: i64, before: &tcpwatch_lab::snmp::Counters) -> Result<Metrics> {
    let truth = ns.counters()?.delta(before).get("Tcp", "OutRsts")?;
    ensure!(truth >= made, "{made} were made, and the kernel counts {truth}");
    let metrics = daemon.metrics()?;
    // The kernel never nests a program in itself: what it withheld for that reason is shown, and can be no more.
    let withheld = metrics.count(LOST, &["where=\"recursion\"", "program=\"tcp_send_reset\""]);
    let counted = metrics.count(SENT, &[]);
    ensure!(
        (truth - withheld..=truth).contains(&counted),
        "{counted} of {truth} counted, {withheld} withheld\n{metrics}"
    );
    let taken = metrics.count("tcpwatch_events_total", &["kind=\"reset_sent\""]);
    let lost = ["throttled", "ring"]
        .map(|place| metrics.count(LOST, &[&format!("where=\"{place}\""), "program=\"tcp_send_reset\""]));
    equal("taken, throttled and lost", taken + lost.iter().sum::<i64>(), counted, &metrics)?;
    Ok(metrics)
}

fn top(daemon: &Daemon) -> Result<()> {
    let began = Instant::now();
    let done = Command::new(PROGRAM).arg("--socket").arg(daemon.socket()).args(["top", "--once"]).output()?;
    ensure!(done.status.success(), "top: {}", String::from_utf8_lossy(&done.stderr));
    ensure!(began.elapsed() < PATIENCE, "top took {:?}", began.elapsed());
    Ok(())
}

impl Daemon {
    /// User and system time of its process.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }
}
