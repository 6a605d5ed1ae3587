//! What is needed from Debian or Ubuntu, in one table, and apt to get it.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::process::{as_root, say, succeed};

/// Rust compilers of the distribution with the package that adds `core` for BPF, the better one first: rustc-web is the
/// one that stable releases keep up to date.
pub(crate) const COMPILERS: [[&str; 2]; 2] =
    [["rustc-web", "libstd-rust-web-dev-bpf"], ["rustc", "libstd-rust-dev-bpf"]];
/// Major versions of LLVM that the bpf-linker of `toolchain::LINKER_VERSION` can be built for.
pub(crate) const LINKER_LLVMS: [u32; 3] = [21, 22, 23];
/// Programs that the tests on the real kernel start, and their packages.
pub(crate) const TEST_TOOLS: [(&str, &str); 10] = [
    ("tshark", "tshark"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("strace", "strace"),
    ("systemd-analyze", "systemd"),
    ("setpriv", "util-linux"),
    ("debootstrap", "debootstrap"),
    ("musl-gcc", "musl-tools"),
    ("faketime", "faketime"),
    ("tmux", "tmux"),
];
/// Programs that the benchmarks compare with, and their packages.
pub(crate) const BENCH_TOOLS: [(&str, &str); 1] = [("bpftrace", "bpftrace")];

/// What building bpf-linker for this LLVM needs.
pub(crate) fn for_linker(llvm: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    packages.extend(["libzstd-dev", "zlib1g-dev", "g++"].map(str::to_owned));
    packages
}

/// Where Debian's LLVM packages put their version.
pub(crate) fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}

/// apt, which fetches its lists at most once.
pub(crate) struct Apt {
    fresh: bool,
}

impl Apt {
    /// Where there is apt.
    pub(crate) fn find() -> Option<Self> {
        crate::toolchain::in_path("apt-get").map(|_| Self { fresh: false })
    }

    /// Fetches the lists, without which a new machine knows no package.
    pub(crate) fn update(&mut self) -> Result<()> {
        if !self.fresh {
            apt_get(&["update", "--quiet"])?;
            self.fresh = true;
        }
        Ok(())
    }

    /// Installs these packages, which removes none: what conflicts is for the user to decide.
    pub(crate) fn install(&mut self, packages: &[String]) -> Result<()> {
        self.update()?;
        let mut words = vec!["install", "--quiet", "--yes", "--no-install-recommends", "--no-remove"];
        words.extend(packages.iter().map(String::as_str));
        apt_get(&words)
    }

    /// Fetches a package into a folder and leaves it there; for that nobody need be root.
    pub(crate) fn download(&mut self, package: &str, folder: &Path) -> Result<()> {
        self.update()?;
        let mut command = Command::new("apt-get");
        // For root it would fetch as another user, who may not write there.
        command.args(["download", "--quiet", "--option", "APT::Sandbox::User=root", package]).current_dir(folder);
        succeed(command.stdin(Stdio::null()).stdout(io::stderr()))
    }
}

/// Fetches a package of another machine into a folder. Its lists are kept apart, so that the system's apt goes on knowing
/// its own machine only.
pub(crate) fn download_for(arch: &str, package: &str, folder: &Path) -> Result<()> {
    let state = tempfile::tempdir()?;
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.path().join(part))?;
    }
    fs::write(state.path().join("status"), "")?;
    let state = state.path().display();
    let options = [
        format!("Dir::State::Lists={state}/lists"),
        format!("Dir::State::status={state}/status"),
        format!("Dir::Cache={state}/cache"),
        format!("APT::Architecture={arch}"),
        format!("APT::Architectures={arch}"),
        "APT::Sandbox::User=root".to_owned(),
    ];
    for words in [&["update", "--quiet"][..], &["download", "--quiet", package]] {
        let mut command = Command::new("apt-get");
        command.args(options.iter().flat_map(|option| ["--option", option])).args(words).current_dir(folder);
        say!("apt-get {}, for {arch}", words.join(" "));
        succeed(command.stdin(Stdio::null()).stdout(io::stderr()))?;
    }
    Ok(())
}

/// The version that would be installed, if the archive has any.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let mut policy = Command::new("apt-cache");
    policy.args(["policy", package]).env("LC_ALL", "C").stdin(Stdio::null());
    parse_candidate(&String::from_utf8_lossy(&policy.output().ok()?.stdout))
}

/// Those of the packages that are not installed.
pub(crate) fn missing(packages: Vec<String>) -> Result<Vec<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Abbrev}\n"]).args(&packages);
    // It fails if it does not know one of them, and lists the others.
    let out = query.stdin(Stdio::null()).output().context("cannot start dpkg-query")?;
    let listed = String::from_utf8_lossy(&out.stdout);
    Ok(packages.into_iter().filter(|package| !is_installed(&listed, package)).collect())
}

fn apt_get(words: &[&str]) -> Result<()> {
    // By env, since sudo clears the environment. Another apt at work is waited for.
    let mut all = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--option", "DPkg::Lock::Timeout=600"];
    all.extend(words);
    say!("apt-get {}", words.join(" "));
    succeed(as_root(&all)?.stdin(Stdio::null()).stdout(io::stderr()))
}

/// `apt-cache policy`: a line `Candidate: VERSION` or `Candidate: (none)`.
fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// `dpkg-query` in the format above: `ii` is installed, `un` and `rc` are not.
fn is_installed(listed: &str, package: &str) -> bool {
    listed.lines().any(|line| line.split_once(' ').is_some_and(|(name, state)| name == package && state.trim() == "ii"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_needs_the_libraries_of_its_llvm() {
        let packages = for_linker(22);
        assert_eq!(packages, ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "g++"]);
    }

    #[test]
    fn every_package_stands_once_in_the_table() {
        let mut all: Vec<String> = COMPILERS.concat().into_iter().map(str::to_owned).collect();
        all.extend(TEST_TOOLS.iter().chain(&BENCH_TOOLS).map(|(_, package)| (*package).to_owned()));
        all.extend(LINKER_LLVMS.into_iter().flat_map(|llvm| for_linker(llvm).into_iter().take(2)));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn candidates_of_known_and_unknown_packages() {
        let known = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(known).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn only_ii_is_installed() {
        let listed = "llvm-22-dev ii \nrustc un \nnftables rc \n";
        assert!(is_installed(listed, "llvm-22-dev"));
        assert!(!is_installed(listed, "rustc"));
        assert!(!is_installed(listed, "nftables"));
        assert!(!is_installed(listed, "llvm-22"));
    }
}
