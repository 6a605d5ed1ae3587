//! What tcpwatch does on a machine that lacks something, or forbids it. These change the whole machine, so that they are
//! part of the suite in the guests of `cargo xtask test vm` alone.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::daemon::PROGRAM;
use crate::service::Sysctl;
use crate::trampoline::Crowd;
use crate::{connections, resets, trial};

/// Set in guests.
const GUEST: &str = "TCPWATCH_GUEST";

pub(crate) fn trials() -> Vec<Trial> {
    if std::env::var_os(GUEST).is_none() {
        return Vec::new();
    }
    vec![
        trial("fallback_when_addresses_are_hidden", no_addresses),
        trial("fallback_when_fentry_is_refused", no_fentry),
        trial("fallback_without_tracefs", no_tracefs),
        trial("fallback_without_control_groups_of_version_2", no_cgroup2),
        trial("fallback_without_btf_is_none_and_said", no_btf),
        // In this order: a lock can only be made tighter.
        trial("fallback_when_locked_down_for_integrity", integrity),
        trial("fallback_when_locked_down_for_confidentiality_is_all_but_resets_sent", confidentiality),
    ]
}

fn doctor() -> Result<Output> {
    Command::new(PROGRAM).args(["doctor", "--json"]).output().context("cannot start the doctor")
}

fn findings() -> Result<Value> {
    let done = doctor()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// It ends with status 3 and a sentence with these words.
fn refused(words: &str) -> Result<()> {
    let done = doctor()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(3), "{}: {said}", done.status);
    ensure!(said.contains(words), "{said}");
    Ok(())
}

fn all_attached(findings: &Value) -> Result<()> {
    let probes = findings["probes"].as_array().context("no probes")?;
    let other: Vec<_> = probes.iter().filter(|probe| probe["state"] != "attached").collect();
    ensure!(!probes.is_empty() && other.is_empty(), "{other:?}");
    Ok(())
}

/// Runs a command of the machine's own.
fn machine(words: &[&str]) -> Result<()> {
    let [program, args @ ..] = words else { return Ok(()) };
    let done = Command::new(program).args(args).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Something is taken away for the time of a test.
struct Without<'a> {
    back: &'a [&'a [&'a str]],
}

impl<'a> Without<'a> {
    fn new(away: &[&[&str]], back: &'a [&'a [&'a str]]) -> Result<Self> {
        let without = Self { back };
        for words in away {
            machine(words)?;
        }
        Ok(without)
    }
}

impl Drop for Without<'_> {
    fn drop(&mut self) {
        for words in self.back {
            if let Err(error) = machine(words) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn no_addresses() -> Result<()> {
    let _hidden = Sysctl::set("/proc/sys/kernel/kptr_restrict", "2")?;
    let found = findings()?;
    all_attached(&found)?;
    ensure!(found["no_symbols"].is_string(), "{}", found["no_symbols"]);
    resets::closed_port()
}

fn no_fentry() -> Result<()> {
    let hooks = || -> Result<Vec<Value>> {
        let found = findings()?;
        all_attached(&found)?;
        let probes = found["probes"].as_array().context("no probes")?;
        let resets = probes.iter().filter(|probe| probe["probe"].as_str().is_some_and(|name| name.contains("send")));
        Ok(resets.map(|probe| probe["hook"].clone()).collect())
    };
    let usual = hooks()?;
    ensure!(usual.contains(&"fentry".into()), "{usual:?}");
    // One function is enough: of two ways at once, one would count twice.
    let _crowd = Crowd::on("tcp_v4_send_reset")?;
    let instead = hooks()?;
    ensure!(instead.len() == usual.len() && instead.iter().all(|hook| hook == "kprobe"), "{instead:?}");
    resets::closed_port()
}

fn no_tracefs() -> Result<()> {
    let _without = Without::new(
        &[&["umount", "/sys/kernel/tracing"]],
        &[&["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"]],
    )?;
    all_attached(&findings()?)?;
    resets::closed_port()
}

fn no_cgroup2() -> Result<()> {
    let _without = Without::new(
        &[
            &["umount", "/sys/fs/cgroup"],
            &["mount", "-t", "cgroup", "-o", "none,name=systemd", "cgroup", "/sys/fs/cgroup"],
        ],
        &[&["umount", "/sys/fs/cgroup"], &["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"]],
    )?;
    let found = findings()?;
    all_attached(&found)?;
    ensure!(found["cgroup2_mount"].is_null(), "{}", found["cgroup2_mount"]);
    resets::closed_port()
}

fn no_btf() -> Result<()> {
    let _without =
        Without::new(&[&["mount", "-t", "tmpfs", "tmpfs", "/sys/kernel/btf"]], &[&["umount", "/sys/kernel/btf"]])?;
    refused("offers no BTF")
}

fn lock_down(level: &str) -> Result<()> {
    fs::write("/sys/kernel/security/lockdown", level).context("cannot lock the kernel down")
}

fn integrity() -> Result<()> {
    lock_down("integrity")?;
    all_attached(&findings()?)?;
    resets::closed_port()
}

fn confidentiality() -> Result<()> {
    lock_down("confidentiality")?;
    let found = findings()?;
    let probes = found["probes"].as_array().context("no probes")?;
    let (attached, other): (Vec<_>, Vec<_>) = probes.iter().partition(|probe| probe["state"] == "attached");
    ensure!(attached.len() >= 11, "{attached:?}");
    // Their stacks and the headers of what they answer are read by copies, which are forbidden now.
    let said = |probe: &Value, key: &str, words: &str| probe[key].as_str().is_some_and(|said| said.contains(words));
    let right =
        |probe: &&Value| said(probe, "why", "locked down for confidentiality") && said(probe, "loses", "resets");
    ensure!(!other.is_empty() && other.iter().all(right), "{other:?}");
    connections::bytes()
}
