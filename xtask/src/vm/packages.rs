//! What starting guests needs on this machine.

use std::{
    io,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use super::archive::Archive;
use crate::{
    packages::{Apt, candidate, missing},
    process::{as_root, say, succeed, works},
    toolchain,
};

/// Programs, and their packages.
pub(crate) const TOOLS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
    ("strip", "binutils"),
];

/// The emulator, its parts, and the firmware that it asks for a version of.
const QEMU: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
/// Before it, one boot in six of 6.12 failed.
const RELIABLE: u32 = 9;

/// Installs what is missing.
pub(crate) fn ensure(archive: &Archive) -> Result<()> {
    let lacking: Vec<_> = TOOLS.into_iter().filter(|(program, _)| toolchain::in_path(program).is_none()).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let packages = missing(lacking.iter().map(|(_, package)| (*package).to_owned()).collect())?;
    let names = packages.join(", ");
    let Some(mut apt) = Apt::find() else { bail!("missing: {names}; install them, there is no apt here") };
    say!("for the emulated machines: {names}");
    let (qemu, others): (Vec<_>, Vec<_>) = packages.into_iter().partition(|name| name == QEMU[0]);
    if !others.is_empty() {
        apt.install(&others)?;
    }
    if !qemu.is_empty() {
        apt.update()?;
        let offered = candidate(QEMU[0]).as_deref().and_then(major);
        let newer = offered.is_none_or(|major| major < RELIABLE) && from_backports(archive).is_ok();
        if !newer {
            apt.install(&qemu)?;
        }
    }
    if !works(Command::new("qemu-system-x86_64").arg("--version")) {
        bail!("qemu-system-x86_64 does not start");
    }
    Ok(())
}

/// These packages alone, with nothing of this host's taken out or made newer for them.
fn from_backports(archive: &Archive) -> Result<()> {
    let (sources, suite) = archive.backports()?;
    let option = format!("Dir::Etc::sourcelist={}", sources.display());
    let lists = format!("Dir::State::Lists={}", archive.lists().display());
    let apt = ["apt-get", "--option", &option, "--option", "Dir::Etc::sourceparts=/dev/null", "--option", &lists];
    succeed(as_root(&[&apt[..], &["update", "--quiet"]].concat())?.stdin(Stdio::null()).stdout(io::stderr()))?;
    let packages = QEMU.map(|name| format!("{name}/{suite}"));
    let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive"];
    words.extend(apt);
    words.extend(["install", "--quiet", "--yes", "--no-install-recommends", "--no-remove", "--no-upgrade"]);
    words.extend(packages.iter().map(String::as_str));
    succeed(as_root(&words)?.stdin(Stdio::null()).stdout(io::stderr()))
}

/// `1:7.2+dfsg-7` is a 7.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(['.', '+', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_a_major_number() {
        assert_eq!(major("1:7.2+dfsg-7+deb12u18"), Some(7));
        assert_eq!(major("10.0.2"), Some(10));
        assert_eq!(major("none"), None);
    }
}
