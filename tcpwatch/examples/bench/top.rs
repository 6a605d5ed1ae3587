//! What `tcpwatch top` takes with very many connections of a recording, on a terminal.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use tcpwatch::bench::report::{Output, Report};
use tcpwatch::bench::top::{Measured, make, report};
use tcpwatch_lab::Pty;

use crate::daemon::{cpu_seconds, memory};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(output: &Output, connections: Option<u64>) -> Result<Report> {
    let connections = connections.unwrap_or(output.count(100_000, 1_000));
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
    std::thread::sleep(output.count(Duration::from_secs(2), Duration::ZERO));
    let (before, since) = (cpu_seconds(pty.pid())?, Instant::now());
    std::thread::sleep(output.count(Duration::from_secs(20), Duration::from_secs(1)));
    let cpus = (cpu_seconds(pty.pid())? - before) / since.elapsed().as_secs_f64();
    let peak_bytes = memory(pty.pid(), "VmHWM:")?;
    pty.send("q")?;
    pty.end(PATIENCE)?;
    Ok(report(&Measured { connections, first_frame_s, peak_bytes, cpus }))
}
