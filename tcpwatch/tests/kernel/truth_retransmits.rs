//! Causes of retransmission in scripted losses, over both families and congestion controls, with and without SACK: each
//! equal to what the kernels count for it.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::relay::Match;
use tcpwatch_lab::{End, Family, Pair, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal, nothing_lost};
use crate::{is_long, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("causes_of_retransmits_when_single_segments_are_lost", || everywhere(Script::Single)),
        trial("causes_of_retransmits_when_a_burst_is_lost", || everywhere(Script::Burst)),
        trial("causes_of_retransmits_when_the_tail_is_lost", || everywhere(Script::Tail)),
        trial("causes_of_retransmits_when_all_is_lost_for_a_while", || everywhere(Script::All)),
        trial("causes_of_retransmits_when_syn_and_syn_ack_are_lost", || everywhere(Script::Handshake)),
        trial("causes_of_retransmits_when_segments_are_reordered", || everywhere(Script::Reordering)),
        trial("causes_of_retransmits_when_the_network_duplicates", || everywhere(Script::Duplication)),
        trial("causes_of_retransmits_when_losses_follow_a_pattern", || everywhere(Script::Pattern)),
    ]
}

/// What the path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Single,
    Burst,
    Tail,
    All,
    Handshake,
    Reordering,
    Duplication,
    Pattern,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    script: Script,
    family: Family,
    congestion: &'static str,
    sack: bool,
}

/// Every two of family, congestion control and SACK in all their combinations; in the long run all three.
fn everywhere(script: Script) -> Result<()> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for congestion in ["cubic", "bbr"] {
            for sack in [true, false] {
                if is_long() || (family == Family::V4) == ((congestion == "cubic") == sack) {
                    cases.push(Case { script, family, congestion, sack });
                }
            }
        }
    }
    thread::scope(|scope| {
        for group in cases.chunks(4) {
            let running: Vec<_> = group.iter().map(|case| (case, scope.spawn(|| run(*case)))).collect();
            for (case, thread) in running {
                thread.join().map_err(|_| anyhow!("{case:?} panicked"))?.with_context(|| format!("{case:?}"))?;
            }
        }
        Ok(())
    })
}

fn run(case: Case) -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    if !case.sack {
        path.a().sysctl("net.ipv4.tcp_sack", "0")?;
    }
    // What one connection learns of a path must not change the next.
    path.a().sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, case.family).congestion(case.congestion);
    if case.script == Script::Handshake {
        path.forward().drop_syns(1);
        path.backward().drop_syn_acks(1);
    }
    let mut pair = traffic.connect()?;
    // So that the RTT is known, and a probe comes before a timeout.
    pair.ping_pong(3, 100)?;
    play(case.script, &path, &mut pair)?;
    pair.close(End::Client)?;
    let metrics = daemon.metrics()?;
    let ours = Causes::of(&metrics);
    agrees(&ours, &path, &metrics)?;
    expected(case, &ours, &path).with_context(|| format!("{ours:?}\n{metrics}"))?;
    nothing_lost(&metrics)
}

fn play(script: Script, path: &Path, pair: &mut Pair) -> Result<()> {
    let forward = path.forward();
    match script {
        Script::Single => {
            for n in [4, 40, 80] {
                forward.drop_nth_data(n);
            }
            pair.send(End::Client, 200_000)
        }
        Script::Burst => {
            forward.drop_when(Match::data().pattern("...xxx").first(3));
            pair.send(End::Client, 200_000)
        }
        Script::Tail => {
            forward.drop_nth_data(1);
            pair.send(End::Client, 500)
        }
        Script::All => {
            // The segment, its probe, and two timeouts.
            let hole = forward.drop_nth_data_times(1, 4);
            pair.send(End::Client, 500)?;
            ensure!(hole.hits() == 4);
            Ok(())
        }
        Script::Handshake => pair.send(End::Client, 20_000),
        Script::Reordering => {
            forward.hold(Match::data().nth(10), Duration::from_millis(30));
            pair.send(End::Client, 200_000)
        }
        Script::Duplication => {
            forward.duplicate(Match::data().every_nth(5), 1, Duration::ZERO);
            pair.send(End::Client, 200_000)
        }
        Script::Pattern => {
            forward.drop_when(Match::data().pattern("..........x........x.....................x"));
            pair.send(End::Client, 600_000)
        }
    }
}

/// Segments sent again by cause, as tcpwatch counts them.
#[derive(Debug)]
pub(crate) struct Causes {
    fast: i64,
    timeout: i64,
    probe: i64,
    syn: i64,
    syn_ack: i64,
    pub(crate) other: i64,
    spurious: i64,
    all: i64,
}

impl Causes {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        const ALL: &str = "tcpwatch_retransmitted_segments_total";
        let cause = |name: &str| metrics.count(ALL, &[&format!("cause=\"{name}\"")]);
        Self {
            fast: cause("fast"),
            timeout: cause("timeout"),
            probe: cause("tail_loss_probe"),
            syn: cause("syn"),
            syn_ack: cause("syn_ack"),
            other: cause("other"),
            spurious: metrics.count("tcpwatch_spurious_retransmits_total", &[]),
            all: metrics.count(ALL, &[]),
        }
    }
}

/// A counter of both kernels together.
fn of_both(path: &Path, group: &str, name: &str) -> Result<i64> {
    Ok(path.a().counters()?.get(group, name)? + path.b().counters()?.get(group, name)?)
}

/// Holds the causes against the kernels' counters.
pub(crate) fn agrees(ours: &Causes, path: &Path, metrics: &Metrics) -> Result<()> {
    let ext = |name: &str| of_both(path, "TcpExt", name);
    equal("all", ours.all, of_both(path, "Tcp", "RetransSegs")?, metrics)?;
    equal("fast", ours.fast, ext("TCPFastRetrans")?, metrics)?;
    equal("SYN and SYN-ACK", ours.syn + ours.syn_ack, ext("TCPSynRetrans")?, metrics)?;
    equal("other", ours.other, 0, metrics)?;
    // A probe may be new data, which is no retransmission.
    let probes = ext("TCPLossProbes")?;
    ensure!(ours.probe <= probes, "{} probes, the kernels say {probes}\n{metrics}", ours.probe);
    // Each timeout sends one segment, and the ACKs after it others; timeouts of SYN and SYN-ACK are counted with them.
    // The one after which the kernel gives up sends nothing.
    let (timeouts, more) = (ext("TCPTimeouts")? - ext("TCPAbortOnTimeout")?, ext("TCPSlowStartRetrans")?);
    ensure!(ours.timeout >= more, "{} by timeout, the kernels say {more} after ones\n{metrics}", ours.timeout);
    ensure!(
        ours.timeout <= timeouts + more,
        "{} by timeout, the kernels say {timeouts} and {more} after them\n{metrics}",
        ours.timeout
    );
    if ours.syn + ours.syn_ack == 0 {
        equal("timeouts and what follows", ours.timeout, timeouts + more, metrics)?;
    }
    let duplicates = ext("TCPDSACKRecv")? + ext("TCPDSACKOfoRecv")?;
    // Without SACK nobody reports duplicates: that segments were sent in vain shows when the kernel takes its reduction back.
    let taken_back = ext("TCPFullUndo")? + ext("TCPLossUndo")? + ext("TCPPartialUndo")?;
    if path.a().sysctl_get("net.ipv4.tcp_sack")? == "0" && taken_back > 0 {
        ensure!(ours.spurious <= ours.all, "{} spurious of {}\n{metrics}", ours.spurious, ours.all);
        return Ok(());
    }
    ensure!(ours.spurious <= duplicates, "{} spurious, {duplicates} DSACKs\n{metrics}", ours.spurious);
    if duplicates <= ours.all {
        equal("spurious", ours.spurious, duplicates, metrics)?;
    }
    Ok(())
}

/// What the script alone says. Without SACK a burst may need a timeout, and nothing is ever proven needless.
fn expected(case: Case, ours: &Causes, path: &Path) -> Result<()> {
    let dropped = path.totals()[0].dropped() as i64;
    match case.script {
        Script::Single | Script::Burst if case.sack => {
            ensure!(ours.fast == dropped && ours.all == dropped, "{dropped} segments were dropped");
        }
        // What is sent again takes its place in the pattern: with other timing it is the last segment that is lost, or one
        // that was sent again. The kernel then probes or waits, and says so.
        Script::Pattern if case.sack => {
            let waited = of_both(path, "TcpExt", "TCPLossProbes")? + of_both(path, "TcpExt", "TCPTimeouts")? > 0;
            ensure!(ours.fast > 0 && ours.all >= dropped, "{dropped} segments were dropped");
            ensure!(waited || (ours.fast == dropped && ours.all == dropped), "{dropped} segments were dropped");
        }
        Script::Single | Script::Burst | Script::Pattern => {
            ensure!(ours.fast > 0 && ours.all >= dropped, "{dropped} segments were dropped");
        }
        // Without SACK the kernel does not probe.
        Script::Tail => ensure!(ours.all == 1 && ours.probe == i64::from(case.sack)),
        Script::All => ensure!(ours.all == 4 && ours.probe <= i64::from(case.sack) && ours.fast == 0),
        Script::Handshake => ensure!(ours.syn > 0 && ours.syn_ack > 0 && ours.fast == 0),
        Script::Reordering if case.sack => {
            ensure!(dropped == 0 && ours.spurious == ours.all && ours.spurious > 0);
        }
        Script::Reordering => ensure!(dropped == 0 && ours.spurious == 0),
        // Duplicates that the network made are reported by DSACK as well, but nothing was sent again.
        Script::Duplication => ensure!(path.totals()[0].copies > 10 && ours.all == 0 && ours.spurious == 0),
    }
    Ok(())
}
