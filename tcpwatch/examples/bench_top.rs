//! `cargo xtask bench top [--json]`: what `tcpwatch top` takes with 100,000 connections of a recording, on a terminal.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tcpwatch::bench::top::{Measured, make, report};
use tcpwatch_lab::Pty;

/// How long redraws are measured.
const SPAN: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<ExitCode> {
    // The program that is measured.
    if std::env::args().nth(1).as_deref() == Some("replay") {
        return Ok(tcpwatch::main());
    }
    let (mut json, mut connections) = (false, 100_000);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => json = true,
            "--connections" => {
                let number = words.next().and_then(|n| n.parse().ok());
                connections = number.context("--connections takes a number")?;
            }
            other => bail!("unknown argument {other:?}; known are --json and --connections N"),
        }
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("many.twr");
    make(&file, connections, 60)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("replay").arg(&file).arg("top");
    let began = Instant::now();
    let mut pty = Pty::spawn(&command, 120, 40)?;
    pty.wait_for(&format!("{connections} connections"), PATIENCE)?;
    let first_frame_s = began.elapsed().as_secs_f64();
    // What came at first is not what redraws take.
    std::thread::sleep(Duration::from_secs(2));
    let (before, since) = (cpu_seconds(pty.pid())?, Instant::now());
    std::thread::sleep(SPAN);
    let cpus = (cpu_seconds(pty.pid())? - before) / since.elapsed().as_secs_f64();
    let status = fs::read_to_string(format!("/proc/{}/status", pty.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let peak_bytes = peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
    pty.send("q")?;
    pty.end(PATIENCE)?;
    let reached = report(&Measured { connections, first_frame_s, peak_bytes, cpus }, json)?;
    Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// User and system time of all threads of a process.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}
