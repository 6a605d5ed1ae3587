//! `cargo xtask dist`: the Debian package and the tarball. The same source gives the same bytes: no time but that of
//! SOURCE_DATE_EPOCH, no path and no owner of the machine that builds goes into them.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    dist_test,
    process::{cargo, root, say, stdout_of, succeed, target_dir},
    setup,
};

/// Make the Debian package and the static tarball, in target/dist
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pack this program in place of one that is built for it; the tarball is then left out
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Install, start, upgrade, remove and purge the package in a clean root of the distribution (root, debootstrap)
    #[arg(long)]
    test: bool,
}

/// What Prometheus and Grafana are given.
const FOR_DASHBOARDS: [&str; 6] = [
    "deploy/prometheus/tcpwatch.rules.yml",
    "deploy/prometheus/tcpwatch.fleet.rules.yml",
    "deploy/grafana/tcpwatch-overview.json",
    "deploy/grafana/tcpwatch-resets.json",
    "deploy/grafana/tcpwatch-services.json",
    "deploy/grafana/tcpwatch-itself.json",
];
/// The Debian package links with the C library of the distribution, the tarball with none.
const DEBIAN: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "x86_64-unknown-linux-musl";

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = target_dir()?.join("dist");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let binary = if let Some(binary) = &args.binary {
        binary.clone()
    } else {
        setup::ensure_toolchain()?;
        build(DEBIAN)?
    };
    let package = package(&binary, &out)?;
    say!("{}", package.display());
    if args.test {
        dist_test::run(&package)?;
    }
    if args.binary.is_none() {
        // Its standard library is the one thing that only rustup has.
        succeed(Command::new("rustup").args(["target", "add", STATIC]).stdin(Stdio::null()))?;
        say!("{}", tarball(&build(STATIC)?, &out)?.display());
    }
    Ok(())
}

/// Makes both twice, compares, and tests what was made; for `cargo xtask test full`.
pub(crate) fn twice() -> Result<()> {
    let out = target_dir()?.join("dist");
    let made = |which: &str| -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let out = out.join(which);
        fs::create_dir_all(&out)?;
        let files = [package(&build(DEBIAN)?, &out)?, tarball(&build(STATIC)?, &out)?];
        files.into_iter().map(|path| Ok((path.clone(), fs::read(&path)?))).collect()
    };
    setup::ensure_toolchain()?;
    succeed(Command::new("rustup").args(["target", "add", STATIC]).stdin(Stdio::null()))?;
    let first = made("first")?;
    // Nothing of the first build is left for the second.
    for target in [DEBIAN, STATIC] {
        succeed(cargo()?.args(["clean", "--quiet", "--release", "--package", "tcpwatch", "--target", target]))?;
    }
    for ((path, one), (_, other)) in first.iter().zip(made("second")?) {
        ensure!(*one == other, "{} is another file when it is built again", path.display());
    }
    let (package, _) = first.first().context("no package")?;
    dist_test::run(package)
}

/// A program without a path of this machine in it.
fn build(target: &str) -> Result<PathBuf> {
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    let flags = format!("--remap-path-prefix={home}=/cargo --remap-path-prefix={}=/tcpwatch", root()?.display());
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    let mut command = cargo()?;
    command.args(["build", "--release", "--locked", "--package", "tcpwatch", "--target", target]).env(variable, flags);
    // The profile of the kernel objects is the same; their paths are not in the program.
    command.env("CARGO_PROFILE_RELEASE_STRIP", "symbols").env("SOURCE_DATE_EPOCH", epoch()?);
    if target == STATIC {
        command.env("CC_x86_64_unknown_linux_musl", "musl-gcc");
    }
    succeed(&mut command)?;
    Ok(target_dir()?.join(target).join("release/tcpwatch"))
}

/// The time that everything gets: the variable, else that of the newest commit.
fn epoch() -> Result<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(root()?).stdin(Stdio::null());
    let time = stdout_of(&mut git).context("set SOURCE_DATE_EPOCH, or build in a clone of the repository")?;
    Ok(time.trim().to_owned())
}

/// A file of the package: where it goes, its mode, what is in it.
struct Entry {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

fn entry(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Entry {
    Entry { path: path.to_owned(), mode, bytes: bytes.into() }
}

/// What is installed, beneath `/usr` and `/etc`.
fn files(binary: &Path) -> Result<Vec<Entry>> {
    let root = root()?;
    let read = |path: &str| fs::read(root.join(path)).with_context(|| format!("cannot read {path}"));
    let ask = |words: &[&str]| stdout_of(Command::new(binary).args(words).stdin(Stdio::null()));
    let mut files = vec![
        entry(
            "usr/bin/tcpwatch",
            0o755,
            fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?,
        ),
        entry("etc/tcpwatch/tcpwatch.toml", 0o644, read("deploy/tcpwatch.toml")?),
        entry("usr/lib/systemd/system/tcpwatch.service", 0o644, read("deploy/tcpwatch.service")?),
        entry("usr/lib/sysusers.d/tcpwatch.conf", 0o644, read("deploy/debian/sysusers.conf")?),
        entry("usr/share/bash-completion/completions/tcpwatch", 0o644, ask(&["completions", "bash"])?),
        entry("usr/share/zsh/vendor-completions/_tcpwatch", 0o644, ask(&["completions", "zsh"])?),
        entry("usr/share/fish/vendor_completions.d/tcpwatch.fish", 0o644, ask(&["completions", "fish"])?),
        entry("usr/share/doc/tcpwatch/copyright", 0o644, read("deploy/debian/copyright")?),
        entry("usr/share/doc/tcpwatch/README.md", 0o644, read("README.md")?),
        entry("usr/share/doc/tcpwatch/CHANGELOG.md", 0o644, read("CHANGELOG.md")?),
        entry("usr/share/doc/tcpwatch/LICENSE-MIT", 0o644, read("LICENSE-MIT")?),
    ];
    for path in FOR_DASHBOARDS {
        let name = path.rsplit('/').next().unwrap_or(path);
        files.push(entry(&format!("usr/share/tcpwatch/{name}"), 0o644, read(path)?));
    }
    for page in beneath(&root.join("docs"))? {
        let name = page.strip_prefix(&root)?.display().to_string();
        files.push(entry(&format!("usr/share/doc/tcpwatch/{name}"), 0o644, fs::read(&page)?));
    }
    for page in ask(&["docs", "man-list"])?.lines() {
        let text = ask(&["docs", "man", page])?;
        files.push(entry(&format!("usr/share/man/man1/{page}.1.gz"), 0o644, gzip(text.as_bytes())?));
    }
    Ok(files)
}

/// The files of a folder and of those in it, always in the same order.
fn beneath(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(beneath(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Compressed without name or time.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut source = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut source, bytes)?;
    let out = Command::new("gzip").args(["-9", "--no-name", "--stdout"]).arg(source.path()).output()?;
    ensure!(out.status.success(), "gzip: {}", String::from_utf8_lossy(&out.stderr));
    Ok(out.stdout)
}

/// Writes entries beneath a folder.
fn lay_out(folder: &Path, files: &[Entry]) -> Result<()> {
    for file in files {
        let path = folder.join(&file.path);
        let parent = path.parent().context("a file of the package has no folder")?;
        fs::create_dir_all(parent)?;
        fs::write(&path, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

fn package(binary: &Path, out: &Path) -> Result<PathBuf> {
    let version = version(binary)?;
    let files = files(binary)?;
    let folder = tempfile::tempdir()?;
    // What umask the builder has is nobody's business.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    lay_out(folder.path(), &files)?;
    let root = root()?;
    let script =
        |name: &str| fs::read(root.join("deploy/debian").join(name)).with_context(|| format!("cannot read {name}"));
    let size: usize = files.iter().map(|file| file.bytes.len().div_ceil(1024)).sum();
    let control = format!(
        "Package: tcpwatch\nVersion: {version}\nArchitecture: amd64\nMaintainer: the authors of tcpwatch <tcpwatch@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {size}\nDepends: {}, init-system-helpers, passwd\n\
         Homepage: https://github.com/tcpwatch/tcpwatch\nDescription: tells why a TCP connection is slow, and who reset it\n \
         A daemon that watches every TCP connection of the host from inside the\n kernel, and serves what it sees as \
         Prometheus metrics and live views.\n The kernel programs are in it: no compiler is needed.\n",
        c_library(binary)?
    );
    let mut debian = vec![
        entry("DEBIAN/control", 0o644, control),
        entry("DEBIAN/conffiles", 0o644, "/etc/tcpwatch/tcpwatch.toml\n"),
    ];
    for name in ["postinst", "prerm", "postrm"] {
        debian.push(entry(&format!("DEBIAN/{name}"), 0o755, script(name)?));
    }
    lay_out(folder.path(), &debian)?;
    level(folder.path())?;
    let path = out.join(format!("tcpwatch_{version}_amd64.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(folder.path()).arg(&path);
    succeed(command.env("SOURCE_DATE_EPOCH", epoch()?).stdout(Stdio::null()).stdin(Stdio::null()))?;
    Ok(path)
}

fn tarball(binary: &Path, out: &Path) -> Result<PathBuf> {
    let name = format!("tcpwatch-{}-x86_64-linux", version(binary)?);
    let folder = tempfile::tempdir()?;
    lay_out(&folder.path().join(&name), &files(binary)?)?;
    level(folder.path())?;
    let path = out.join(format!("{name}.tar.gz"));
    let tar = out.join(format!("{name}.tar"));
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    command
        .arg(format!("--mtime=@{}", epoch()?))
        .arg("--file")
        .arg(&tar)
        .arg("--directory")
        .arg(folder.path())
        .arg(&name);
    succeed(command.stdin(Stdio::null()))?;
    fs::write(&path, gzip(&fs::read(&tar)?)?)?;
    fs::remove_file(&tar)?;
    Ok(path)
}

/// Folders get the mode that they have on every system.
fn level(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            level(&path)?;
        }
    }
    Ok(())
}

fn version(binary: &Path) -> Result<String> {
    let text = stdout_of(Command::new(binary).arg("--version").stdin(Stdio::null()))?;
    let version = text.split_whitespace().nth(1).context("the program does not tell its version")?;
    Ok(version.to_owned())
}

/// The newest version of a symbol that the program asks of the C library.
fn c_library(binary: &Path) -> Result<String> {
    let bytes = fs::read(binary)?;
    let mut newest = None;
    for at in 0..bytes.len().saturating_sub(8) {
        if let Some(rest) = bytes[at..].strip_prefix(b"GLIBC_2.") {
            let digits: String = rest.iter().take_while(|b| b.is_ascii_digit()).map(|b| char::from(*b)).collect();
            newest = newest.max(digits.parse::<u32>().ok());
        }
    }
    let Some(newest) = newest else { bail!("{} does not link with the C library", binary.display()) };
    Ok(format!("libc6 (>= 2.{newest}), libgcc-s1"))
}
