//! `tcpwatch explain` without a daemon: at once from what the kernel has kept, then of the time that was asked for.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path as FilePath;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tcpwatch_lab::{End, Family, Traffic};

use super::case::verdicts;
use super::{ms, path};
use crate::daemon::PROGRAM;

/// A window that was closed before anybody watched is known from the kernel's chronographs.
pub(super) fn alone() -> Result<()> {
    ensure!(!FilePath::new("/run/tcpwatch/tcpwatch.sock").exists(), "a daemon runs on this host");
    let path = path(2)?;
    for (netns, name) in [(path.a(), "net.ipv4.tcp_wmem"), (path.b(), "net.ipv4.tcp_rmem")] {
        netns.sysctl(name, "4096 16384 65536")?;
    }
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.fill(End::Client, ms(300))?;
    thread::sleep(ms(1000));
    let port = pair.flow(End::Client).src.port();

    let folder = tempfile::tempdir()?;
    let config = folder.path().join("tcpwatch.toml");
    let netns = format!("/proc/{}/fd/{}", std::process::id(), path.a().fd().as_raw_fd());
    fs::write(&config, format!("netns = [\"{netns}\"]\n"))?;
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(&config).args(["explain", "--json", "--for", "1s", "sport"]).arg(port.to_string());
    let done = command.env_remove("TCPWATCH_SOCKET").output()?;
    let (out, said) = (String::from_utf8(done.stdout)?, String::from_utf8(done.stderr)?);
    ensure!(done.status.success(), "{}: {out}{said}", done.status);
    let lines: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [at_once, refined] = lines.as_slice() else { anyhow::bail!("{} answers: {out}{said}", lines.len()) };
    for (line, window, at_least, below) in [(at_once, "since_open", 1.0, 600.0), (refined, "interval", 1.0, 3.0)] {
        let seconds = line["window_s"].as_f64().context("no window")?;
        ensure!(line["window"] == window && (at_least..below).contains(&seconds), "{window}: {line:#}");
        let said = verdicts(line);
        ensure!(said.len() == 1 && said.contains_key("receiver_window"), "{window}: {line:#}");
    }
    drop(pair);
    Ok(())
}
