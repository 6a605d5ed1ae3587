//! The usual tool beside ours: bpftrace with one line.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::programs::ProgramInfo;

/// It reads tracefs, which need not be mounted: a mount namespace of its own leaves nothing behind.
const MOUNT_AND_TRACE: &str = "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; \
     mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec bpftrace -e \"$1\"";
/// The RTT distribution of each connection.
pub(super) const HISTOGRAM: &str = "tracepoint:tcp:tcp_probe { @[args->sock_cookie] = hist(args->srtt); }";
/// That, and retransmissions, states and resets counted: a part of what tcpwatch does.
const COUNTS: &str = "tracepoint:tcp:tcp_probe { @rtt[args->sock_cookie] = hist(args->srtt); } \
     tracepoint:tcp:tcp_retransmit_skb { @retransmits[args->dport] = count(); } \
     tracepoint:sock:inet_sock_set_state { @states[args->oldstate, args->newstate] = count(); } \
     tracepoint:tcp:tcp_send_reset { @resets = count(); }";
/// It is attached within.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// The name that it gives its program on tcp_probe.
const PROGRAM: &str = "tcp_probe";

/// A running bpftrace; it ends with the value.
#[derive(Debug)]
pub struct Bpftrace {
    child: Child,
    info: Option<ProgramInfo>,
}

impl Bpftrace {
    /// Starts the lines that do a part of our job, and waits until they are attached. `Err` says why there is none.
    ///
    /// # Errors
    /// When it is not installed or does not attach.
    pub fn counting() -> Result<Self, String> {
        Self::start(COUNTS)
    }

    /// Starts `script`, which must have a program on tcp_probe, and waits until it is attached.
    pub(super) fn start(script: &str) -> Result<Self, String> {
        let before: Vec<u32> = programs().map(|info| info.id()).collect();
        let installed = Command::new("bpftrace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            return Err("bpftrace is not installed".to_owned());
        }
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", MOUNT_AND_TRACE, "sh", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut running = Self { child, info: None };
        let stdout = running.child.stdout.take().ok_or("bpftrace has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let said = lines.next().and_then(Result::ok).unwrap_or_default();
        if !said.starts_with("Attaching") {
            return Err(format!("bpftrace does not attach: {said:?}"));
        }
        // The message comes before the attaching.
        let deadline = Instant::now() + PATIENCE;
        loop {
            running.info = programs().find(|info| !before.contains(&info.id()));
            if running.info.is_some() {
                return Ok(running);
            }
            if Instant::now() > deadline {
                return Err("bpftrace says that it attaches, and does not".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its program on tcp_probe.
    pub(super) fn program(&self) -> Option<&ProgramInfo> {
        self.info.as_ref()
    }
}

fn programs() -> impl Iterator<Item = ProgramInfo> {
    aya::programs::loaded_programs().filter_map(Result::ok).filter(|info| info.name_as_str() == Some(PROGRAM))
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
