//! As a service: the rights that deploy/tcpwatch.service gives are enough, none of them is there in vain, and what can
//! be given up is given up. systemd itself is not needed: setpriv gives the rights, strace sees the system calls.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, PROGRAM};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_rights_of_the_unit_are_enough_and_are_given_up", rights),
        trial("system_calls_are_those_that_the_unit_allows", system_calls),
        trial("every_capability_of_the_unit_is_needed_and_its_absence_told", each_is_needed),
        trial("a_wrong_configuration_on_reload_leaves_the_old_one", reload),
        trial("a_storm_of_signals_does_not_stop_it", storm),
        trial("after_kill_9_the_next_one_starts_and_nothing_is_left", killed),
    ]
}

const UNIT: &str = include_str!("../../../deploy/tcpwatch.service");
/// Nobody's, as far as this host is concerned.
const USER: u32 = 64_123;

/// The words of a setting of the unit, of all its lines.
pub(crate) fn unit(key: &str) -> Vec<&'static str> {
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

fn capabilities(without: Option<&str>) -> String {
    let all = unit("AmbientCapabilities").into_iter().filter(|name| Some(*name) != without);
    let words = all.map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()));
    words.collect::<Vec<_>>().join(",")
}

/// A copy of the program that everybody may start, and what starts it with the rights of the unit.
pub(crate) fn as_the_unit_does(folder: &std::path::Path, without: Option<&str>) -> Result<Vec<String>> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let copy = folder.join("tcpwatch");
    fs::copy(PROGRAM, &copy)?;
    chown(folder, Some(USER), Some(USER))?;
    let list = capabilities(without);
    let all = format!("-all,{list}");
    let words =
        ["setpriv", "--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--no-new-privs"]
            .map(str::to_owned);
    let sets = ["--bounding-set", &all, "--inh-caps", &all, "--ambient-caps", &all].map(str::to_owned);
    Ok(words.into_iter().chain(sets).chain([copy.to_string_lossy().into_owned()]).collect())
}

/// A line of /proc/PID/status.
fn status(pid: u32, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {key} in {text}"))?.trim().to_owned())
}

/// A setting of the kernel for the time of a test.
pub(crate) struct Sysctl(&'static str, String);

impl Sysctl {
    pub(crate) fn set(path: &'static str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(path)?;
        fs::write(path, value)?;
        Ok(Self(path, before))
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _left_as_it_is = fs::write(self.0, &self.1);
    }
}

fn rights() -> Result<()> {
    for hidden in ["1", "2"] {
        let _hidden = Sysctl::set("/proc/sys/kernel/kptr_restrict", hidden)?;
        let path = Path::builder().build()?;
        let folder = tempfile::tempdir()?;
        let notify = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&notify)?;
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o777))?;
        systemd.set_read_timeout(Some(Duration::from_secs(20)))?;
        let words = as_the_unit_does(folder.path(), None)?;
        // All namespaces: the descriptors by which tests name theirs are not for other users to open.
        let daemon = Daemon::through(&words, folder, &[], "", |command| {
            command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "600000");
        })?;
        let mut told = Vec::new();
        while !told.contains(&"WATCHDOG=1".to_owned()) {
            let mut message = [0; 512];
            let length = systemd.recv(&mut message)?;
            told.extend(String::from_utf8_lossy(&message[..length]).lines().map(str::to_owned));
        }
        ensure!(told.contains(&"READY=1".to_owned()), "{told:?}");
        let pid = daemon.pid();
        // CAP_SYS_PTRACE is 19, CAP_SYS_ADMIN 21, CAP_SYSLOG 34, CAP_PERFMON 38, CAP_BPF 39.
        let left = format!("{:016x}", 1_u64 << 19 | 1 << 21 | 1 << 34 | 1 << 39);
        for (set, expected) in
            [("CapEff", &*left), ("CapPrm", &*left), ("CapInh", "0000000000000000"), ("CapAmb", "0000000000000000")]
        {
            ensure!(status(pid, set)? == expected, "{set} is {}, not {expected}", status(pid, set)?);
        }
        ensure!(
            status(pid, "NoNewPrivs")? == "1"
                && status(pid, "Uid")?.split_whitespace().all(|id| id == USER.to_string())
        );
        // Maps are read and written, iterators made, and namespaces entered with what is left.
        let pair = Traffic::over(&path, Family::ALL[0]).connect()?;
        let found = daemon.connection(&pair, End::Client)?.context("the connection is not listed")?;
        ensure!(found["state"] == "ESTABLISHED", "{found}");
        daemon.wait("both opens", |metrics| metrics.count("tcpwatch_connections_opened_total", &[]) >= 2)?;
        pair.abort(End::Client)?;
        let linger = ["cause=\"linger_zero\""];
        daemon.wait("the reset", |metrics| metrics.count("tcpwatch_resets_sent_total", &linger) >= 1)?;
        let (status, said) = daemon.stop()?;
        ensure!(status.success() && !said.contains("WARN"), "{status}: {said}");
    }
    Ok(())
}

/// The system calls that the unit allows, groups spelled out by systemd.
fn allowed() -> Result<BTreeSet<String>> {
    let mut allowed = BTreeSet::new();
    for line in UNIT.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (names, deny) = line.strip_prefix('~').map_or((line, false), |names| (names, true));
        for name in names.split_whitespace() {
            for call in spelled_out(name)? {
                if deny {
                    allowed.remove(&call)
                } else {
                    allowed.insert(call)
                };
            }
        }
    }
    Ok(allowed)
}

fn spelled_out(name: &str) -> Result<Vec<String>> {
    if !name.starts_with('@') {
        return Ok(vec![name.to_owned()]);
    }
    let done = Command::new("systemd-analyze")
        .args(["syscall-filter", name])
        .output()
        .context("cannot start systemd-analyze")?;
    ensure!(done.status.success(), "systemd-analyze syscall-filter {name}: {}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout)?;
    let mut calls = Vec::new();
    for line in text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        calls.extend(spelled_out(line)?);
    }
    Ok(calls)
}

fn system_calls() -> Result<()> {
    let path = Path::builder().build()?;
    let folder = tempfile::tempdir()?;
    let log = tempfile::NamedTempFile::new()?;
    // A namespace that there is a way into.
    let mut elsewhere = Command::new("unshare").args(["--net", "sleep", "120"]).spawn()?;
    let mut words = as_the_unit_does(folder.path(), None)?;
    // strace starts setpriv and follows: it needs rights of its own, and what setpriv does is cut off below.
    let strace = ["strace", "-f", "-qq", "-o", &log.path().to_string_lossy()].map(str::to_owned);
    words.splice(0..0, strace);
    let mut daemon = Daemon::through(&words, folder, &[], "", |_| {})?;
    let pair = Traffic::over(&path, Family::ALL[0]).connect()?;
    daemon.connection(&pair, End::Client)?.context("the connection is not listed")?;
    daemon.metrics()?;
    pair.close(End::Client)?;
    let child = daemon.child_pid()?;
    signal(child, rustix::process::Signal::HUP)?;
    daemon.said_until("settings reloaded")?;
    signal(child, rustix::process::Signal::TERM)?;
    let (status, said, _) = daemon.ended()?;
    elsewhere.kill()?;
    elsewhere.wait()?;
    ensure!(status.success(), "{status}: {said}");
    let text = fs::read_to_string(log.path())?;
    let begin = text.find("/tcpwatch\", [").context("the program was not started")?;
    let allowed = allowed()?;
    let names = text[begin..].lines().skip(1).filter_map(|line| {
        let call = line.split_once(' ')?.1.trim_start();
        let (name, _) = call.split_once('(')?;
        name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_').then(|| name.to_owned())
    });
    let names: BTreeSet<_> = names.filter(|name| name != "resumed").collect();
    ensure!(names.contains("bpf") && names.contains("setns") && names.len() > 20, "{names:?}");
    let refused: Vec<_> = names.difference(&allowed).collect();
    ensure!(refused.is_empty(), "the unit does not allow {refused:?}");
    Ok(())
}

fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid as i32).context("no process")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

fn each_is_needed() -> Result<()> {
    for missing in unit("AmbientCapabilities") {
        let folder = tempfile::tempdir()?;
        let words = as_the_unit_does(folder.path(), Some(missing))?;
        if missing == "CAP_BPF" || missing == "CAP_PERFMON" {
            // CAP_SYS_ADMIN stands for both, so that it has to go too.
            let list = words.iter().map(|word| word.replace(",+sys_admin", "")).collect::<Vec<_>>();
            let done = Command::new(&list[0]).args(&list[1..]).arg("doctor").output()?;
            let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            ensure!(
                done.status.code() == Some(3) && said.contains(missing),
                "without {missing}: {}: {said}",
                done.status
            );
            ensure!(out.lines().any(|line| line.starts_with("missing") && line.contains(missing)), "{out}");
            continue;
        }
        let daemon = Daemon::through(&words, folder, &[], "", |_| {})?;
        daemon.metrics()?;
        let (status, said) = daemon.stop()?;
        ensure!(status.success(), "without {missing}: {status}: {said}");
    }
    Ok(())
}

fn reload() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::through(&[PROGRAM.to_owned()], folder, &[], "", |_| {})?;
    let file = daemon.folder.path().join("tcpwatch.toml");
    let before = fs::read_to_string(&file)?;
    for wrong in ["listen = 7\n", "colour = 1\n", "\0\0", "web_config = \"/nonexistent/web.yml\"\n"] {
        fs::write(&file, wrong)?;
        signal(daemon.pid(), rustix::process::Signal::HUP)?;
        let said = daemon.said_until("the old ones hold")?;
        ensure!(said.contains("settings not reloaded"), "{said}");
        daemon.metrics()?;
    }
    fs::write(&file, format!("{before}\nconnection_data = false\nservices = 3\n"))?;
    signal(daemon.pid(), rustix::process::Signal::HUP)?;
    let said = daemon.said_until("settings reloaded")?;
    ensure!(said.contains("services will hold after a restart"), "{said}");
    let mut answer = String::new();
    daemon.request("/api/v1/connections")?.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 403") && answer.contains("`connection_data`"), "{answer}");
    Ok(())
}

fn storm() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    for _ in 0..20 {
        for _ in 0..200 {
            signal(daemon.pid(), rustix::process::Signal::HUP)?;
        }
        traffic.connect()?.close(End::Client)?;
    }
    daemon.wait("all of it", |metrics| metrics.count("tcpwatch_connections_opened_total", &[]) == 40)?;
    let (status, said) = daemon.stop()?;
    ensure!(status.success() && said.matches("settings reloaded").count() < 20, "{status}: {said}");
    Ok(())
}

fn killed() -> Result<()> {
    let path = Path::builder().build()?;
    let mut daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    let mut pair = traffic.connect()?;
    for round in 0..3 {
        signal(daemon.pid(), rustix::process::Signal::KILL)?;
        let (status, _, folder) = daemon.ended()?;
        ensure!(!status.success() && folder.path().join("tcpwatch.sock").exists(), "{status}");
        // The socket and the lock of the killed one are there, and no hindrance; the connection goes on and is adopted.
        daemon = Daemon::through(&[PROGRAM.to_owned()], folder, &[path.a(), path.b()], "", |_| {})?;
        pair.ping_pong(3, 100)?;
        let found = daemon.connection(&pair, End::Client)?.with_context(|| format!("round {round}: not listed"))?;
        ensure!(found["state"] == "ESTABLISHED", "{found}");
    }
    let (status, _, folder) = {
        daemon.signal_stop()?;
        daemon.ended()?
    };
    ensure!(status.success() && !folder.path().join("tcpwatch.sock").exists(), "{status}");
    Ok(())
}
