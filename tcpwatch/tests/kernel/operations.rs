//! The daemon as a process: starting, refusing to start, stopping, and staying within its bounds.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{Family, Netns, Traffic};

use crate::daemon::{Daemon, PROGRAM, equal};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_clean_stop_leaves_nothing_in_the_kernel", clean_stop),
        trial("a_second_daemon_on_the_same_socket_path_is_refused", second),
        trial("a_port_in_use_is_an_error_that_names_it", port_in_use),
        trial("without_privileges_status_3_and_one_sentence", unprivileged),
        trial("a_wrong_configuration_is_refused_with_status_2", wrong_configuration),
        trial("doctor_lists_every_probe", doctor),
        trial("a_client_that_goes_away_amid_a_scrape_disturbs_nobody", disconnect),
        trial("ten_thousand_connections_fit_into_40_mb", ten_thousand),
        trial("the_kernel_programs_log_when_they_are_told_to", kernel_log),
        trial("tick_mode_samples_less_and_counts_the_same", tick_mode),
    ]
}

/// Ends like this: status and what was said on standard error.
fn refused(mut command: Command) -> Result<(i32, String)> {
    let Output { status, stderr, .. } = command.output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(!said.contains("panicked"), "{said}");
    Ok((status.code().context("killed")?, said))
}

fn program() -> Command {
    Command::new(PROGRAM)
}

/// Programs of ours in the kernel, of any process.
fn loaded() -> Vec<u32> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str().is_some_and(|name| name.starts_with("inet_sock_set")))
        .map(|info| info.id())
        .collect()
}

fn clean_stop() -> Result<()> {
    let ns = Netns::new()?;
    let before = loaded();
    let daemon = Daemon::watching(&[&ns])?;
    let during: Vec<_> = loaded().into_iter().filter(|id| !before.contains(id)).collect();
    ensure!(during.len() == 1, "the daemon loaded {during:?}");
    let (status, said) = daemon.stop()?;
    ensure!(status.success() && said.contains("stopping"), "{status}: {said}");
    // Programs are freed after a grace period of RCU.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while loaded().iter().any(|id| during.contains(id)) {
        ensure!(std::time::Instant::now() < deadline, "program {during:?} is still loaded");
        thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

fn second() -> Result<()> {
    let ns = Netns::new()?;
    let first = Daemon::watching(&[&ns])?;
    let socket = first.folder.path().join("tcpwatch.sock");
    let mut command = program();
    command.args(["run", "--listen", "127.0.0.1:0", "--socket"]).arg(&socket);
    let (status, said) = refused(command)?;
    ensure!(status == 1 && said.contains("another tcpwatch already runs"), "{status}: {said}");
    ensure!(said.contains(&*socket.to_string_lossy()), "{said}");
    first.metrics()?;
    Ok(())
}

fn port_in_use() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let folder = tempfile::tempdir()?;
    let mut command = program();
    command.args(["run", "--listen", &address, "--socket"]).arg(folder.path().join("s"));
    let (status, said) = refused(command)?;
    ensure!(status == 1 && said.contains(&address) && said.contains("--listen"), "{status}: {said}");
    Ok(())
}

fn unprivileged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::chown(folder.path(), Some(65_534), Some(65_534))?;
    // The program may lie where nobody else can look.
    let copy = folder.path().join("tcpwatch");
    fs::copy(PROGRAM, &copy)?;
    let mut command = Command::new(&copy);
    command.args(["run", "--listen", "127.0.0.1:0", "--socket"]).arg(folder.path().join("s")).uid(65_534).gid(65_534);
    let (status, said) = refused(command)?;
    ensure!(status == 3 && said.contains("CAP_BPF") && said.trim().lines().count() == 1, "{status}: {said}");
    Ok(())
}

fn wrong_configuration() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("t.toml");
    fs::write(&file, "listn = \"127.0.0.1:1\"\nring_bytes = 5000\n")?;
    for action in ["run", "check-config"] {
        let mut command = program();
        command.arg("--config").arg(&file).arg(action);
        let (status, said) = refused(command)?;
        ensure!(status == 2 && said.contains("`listn`") && said.contains("`listen`"), "{status}: {said}");
        ensure!(said.contains("ring_bytes") && said.contains("t.toml:2"), "{said}");
    }
    let mut command = program();
    command.arg("--config").arg(folder.path().join("absent.toml")).arg("run");
    let (status, said) = refused(command)?;
    ensure!(status == 2 && said.contains("absent.toml"), "{status}: {said}");
    Ok(())
}

fn doctor() -> Result<()> {
    let done = program().args(["doctor", "--json"]).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    let probes = report["probes"].as_array().context("no probes")?;
    for wanted in ["tcp_probe", "tcp_retransmit_skb", "inet_sock_set_state", "tcp_receive_reset", "tcp_destroy_sock"] {
        let found = probes.iter().find(|p| p["probe"] == wanted).with_context(|| wanted.to_owned())?;
        ensure!(found["state"] == "attached", "{found}");
    }
    ensure!(
        probes.iter().any(|p| p["probe"].as_str().is_some_and(|n| n.contains("send_")) && p["state"] == "attached")
    );
    ensure!(report["kernel"].as_str() == Some(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()));
    Ok(())
}

fn disconnect() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(daemon.address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", daemon.address)?;
    }
    let mut half = TcpStream::connect(daemon.address)?;
    half.write_all(b"GET /metr")?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.has("tcpwatch_build_info"), "{metrics}");
    let (status, body) = daemon.get("/nothing")?;
    ensure!(status.contains("404") && body.contains("/metrics"), "{status}: {body}");
    ensure!(daemon.get("/healthz")?.0.ends_with("200 OK") && daemon.get("/readyz")?.0.ends_with("200 OK"));
    Ok(())
}

fn ten_thousand() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    let idle = daemon.resident_bytes()?;
    // Both ends are connections of this host.
    let mut pairs = Traffic::loopback(&ns, Family::V4).connect_many(5_000)?;
    for pair in pairs.iter_mut().take(200) {
        pair.ping_pong(2, 100)?;
    }
    let began = std::time::Instant::now();
    let metrics = daemon.metrics()?;
    let scrape = began.elapsed();
    equal("connections", metrics.count("tcpwatch_connections", &["state=\"ESTABLISHED\""]), 10_000, &metrics)?;
    let resident = daemon.resident_bytes()?;
    println!(
        "start to ready {:.3} s, scrape {:.3} s, resident {:.1} MB idle and {:.1} MB with 10,000 connections, maps {:.1} MB",
        daemon.start_up.as_secs_f64(),
        scrape.as_secs_f64(),
        idle as f64 / 1e6,
        resident as f64 / 1e6,
        metrics.sum("tcpwatch_map_memory_bytes", &[]) / 1e6,
    );
    ensure!(resident < 40_000_000, "{resident} bytes resident");
    Ok(())
}

fn kernel_log() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::with(&[&ns], "kernel_log = true\nlog_level = \"debug\"")?;
    Traffic::loopback(&ns, Family::V4).refused(1)?;
    daemon.metrics()?;
    let (_, said) = daemon.stop()?;
    ensure!(said.contains("reset sent: origin 1"), "{said}");
    Ok(())
}

fn tick_mode() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::with(&[&ns], "sampling = \"tick\"")?;
    let mut pair = Traffic::loopback(&ns, Family::V4).connect()?;
    pair.ping_pong(2000, 100)?;
    pair.close(tcpwatch_lab::End::Client)?;
    let metrics = daemon.metrics()?;
    let samples = metrics.count("tcpwatch_rtt_seconds_count", &[]);
    ensure!((1..3000).contains(&samples), "{samples} samples of 4000 segments\n{metrics}");
    equal("sent bytes", metrics.count("tcpwatch_sent_bytes_total", &[]), 2 * 2000 * 100, &metrics)
}
