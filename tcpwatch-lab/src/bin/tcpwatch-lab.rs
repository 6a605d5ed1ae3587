//! `tcpwatch-lab NAME`: plays a scenario, to be watched with `tcpwatch top`. Started by `cargo xtask lab`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use tcpwatch_lab::scenario::Stage;
use tcpwatch_lab::{harness, scenario};

/// Play a situation on a path between two network namespaces of its own
#[derive(Parser)]
#[command(name = "tcpwatch-lab")]
struct Args {
    /// Which one; without a name they are listed
    scenario: Option<String>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// For how long rounds of traffic begin: 30s, 2m; 0s is one round
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    duration: Option<Duration>,
    /// This tcpwatch shows it, as `top`; what is played ends with that
    #[arg(long, value_name = "PROGRAM")]
    watch: Option<PathBuf>,
    /// Congestion control of both ends
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// What chance begins from: the same seed loses the same packets
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    match play(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: Args) -> Result<()> {
    let Some(name) = args.scenario.filter(|_| !args.list) else {
        for scenario in scenario::ALL {
            println!("{:<18} {}", scenario.name, scenario.shows);
        }
        return Ok(());
    };
    let mut scenario = scenario::find(&name)?;
    let setup = &mut scenario.setup;
    setup.duration = args.duration.unwrap_or(setup.duration);
    setup.seed = args.seed.unwrap_or(setup.seed);
    if let Some(name) = args.congestion {
        // For the rest of the process, which is about this one scenario.
        setup.congestion = Some(name.leak());
    }
    if let Some(obstacle) = harness::obstacle() {
        bail!("{obstacle}");
    }
    // The first Ctrl-C ends the traffic and tells what it was; a second one ends the process, which leaves nothing either.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .with_context(|| format!("cannot catch signal {signal}"))?;
    }
    let stage = scenario.stage_until(Arc::clone(&stop))?;
    println!("{}: {}", scenario.name, scenario.shows);
    println!("path: {}", scenario.setup.path_in_words());
    let (a, b) = (stage.path.a().inode(), stage.path.b().inode());
    println!("network namespaces: {a} (clients), {b} (servers)");
    if let Some(program) = args.watch {
        return watched(&stage, &stop, &program, [a, b]);
    }
    println!("for {:?}, or until Ctrl-C; in another terminal: tcpwatch top", scenario.setup.duration);
    let truth = stage.run()?;
    let ended = if stop.load(Ordering::Acquire) { "interrupted" } else { "done" };
    println!("{ended}: {truth}");
    Ok(())
}

/// Plays it while `program` shows its connections on this terminal.
fn watched(stage: &Stage, stop: &AtomicBool, program: &Path, netns: [u32; 2]) -> Result<()> {
    let [a, b] = netns;
    let truth = thread::scope(|scope| {
        let played = scope.spawn(|| stage.run());
        // The clients' ends, and the servers': the same connections from both sides.
        let shown =
            Command::new(program).args(["top", "--sort", "retrans"]).arg(format!("netns {a} or netns {b}")).status();
        stop.store(true, Ordering::Release);
        let truth = played.join().map_err(|_| anyhow::anyhow!("the traffic panicked"));
        let status = shown.with_context(|| format!("cannot start {}", program.display()))?;
        if !status.success() {
            bail!("{} ended with {status}", program.display());
        }
        truth?
    })?;
    println!("what was played: {truth}");
    Ok(())
}

/// A whole number with `s` or `m`; without either, seconds.
fn parse_time(text: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = number.parse().with_context(|| format!("'{text}' is no time: 30s and 2m are"))?;
    Ok(Duration::from_secs(number.checked_mul(unit).with_context(|| format!("{text} is too long"))?))
}
