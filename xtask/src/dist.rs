//! `cargo xtask dist`: the Debian package and the tarball. The same source gives the same bytes: no time but that of
//! SOURCE_DATE_EPOCH, no path and no owner of the machine that builds goes into them.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    dist_build::{Arch, CLibrary, Linkage, Place, Program, build, inspect},
    dist_test,
    process::{as_root, say, stdout_of, succeed, target_dir},
    setup,
};

/// Make the Debian package and the static tarball, in target/dist
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build for this machine [default: the one it runs on]
    #[arg(long)]
    arch: Option<Arch>,
    /// Pack this program in place of those that are built: a static one as the tarball, another as the Debian package
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Build everything again in another folder, hold the files against each other, and test them
    #[arg(long, conflicts_with_all = ["arch", "binary"])]
    twice: bool,
    /// Install, start, upgrade, remove and purge the package in a clean root of the distribution (root, debootstrap),
    /// and run what is in the tarball in a root with nothing else in it
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

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.twice {
        return twice();
    }
    let target = target_dir()?;
    let out = target.join("dist");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let place = Place::here(target)?;
    let here = Arch::here()?;
    let arch = args.arch.unwrap_or(here);
    ensure!(!args.test || arch == here, "what is made for {} cannot be run here", arch.debian());
    // One after the other, each used before the next is built: it may take the place of the former.
    let pack = |binary: &Path, speaker: &Path| -> Result<()> {
        let made = pack(&place, binary, speaker, &out)?;
        say!("{}", made.display());
        if args.test { dist_test::run(&made) } else { Ok(()) }
    };
    if let Some(binary) = &args.binary {
        return pack(binary, binary);
    }
    setup::ensure_toolchain()?;
    // It writes the manual and the completions, so that it has to run here.
    let speaker = if arch == here { None } else { Some(build(&place, here, Linkage::Dynamic)?) };
    for linkage in [Linkage::Dynamic, Linkage::Static] {
        let binary = build(&place, arch, linkage)?;
        pack(&binary, speaker.as_deref().unwrap_or(&binary))?;
    }
    Ok(())
}

/// Makes both twice, from two folders, compares, and tests what was made; for `cargo xtask test full`.
pub(crate) fn twice() -> Result<()> {
    setup::ensure_toolchain()?;
    let here = Arch::here()?;
    let elsewhere = tempfile::tempdir()?;
    let first = Place::here(target_dir()?)?;
    let second = first.copied(elsewhere.path())?;
    let mut programs = Vec::new();
    for linkage in [Linkage::Dynamic, Linkage::Static] {
        let made = |place: &Place| -> Result<_> {
            let program = build(place, here, linkage)?;
            let out = place.target.join("dist");
            let path = pack(place, &program, &program, &out)?;
            Ok((program, path.clone(), fs::read(path)?))
        };
        let ((program, path, one), (_, other_path, other)) = (made(&first)?, made(&second)?);
        ensure!(path.file_name() == other_path.file_name(), "{} and {}", path.display(), other_path.display());
        ensure!(one == other, "{} is another file when it is built in another folder", path.display());
        say!("{}: {} bytes, the same when it is built in another folder", path.display(), one.len());
        programs.push(program);
    }
    drop(elsewhere);
    let xtask = env::current_exe().context("where is this xtask?")?;
    let xtask = xtask.to_str().context("a path is not UTF-8")?;
    let epoch = format!("SOURCE_DATE_EPOCH={}", first.epoch);
    for program in programs {
        let program = program.to_str().context("a path is not UTF-8")?;
        succeed(&mut as_root(&["env", &epoch, xtask, "dist", "--binary", program, "--test"])?)?;
    }
    Ok(())
}

/// The Debian package or the tarball, as the program is linked; `speaker` is one like it that runs here.
fn pack(place: &Place, binary: &Path, speaker: &Path, out: &Path) -> Result<PathBuf> {
    match inspect(binary)? {
        Program { arch, c_library: CLibrary::Dynamic(newest) } => package(place, binary, speaker, arch, newest, out),
        Program { arch, c_library: CLibrary::Musl } => tarball(place, binary, speaker, arch, "", out),
        Program { arch, c_library: CLibrary::Glibc } => tarball(place, binary, speaker, arch, "-glibc", out),
    }
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
fn files(place: &Place, binary: &Path, speaker: &Path) -> Result<Vec<Entry>> {
    let root = &place.root;
    let read = |path: &str| fs::read(root.join(path)).with_context(|| format!("cannot read {path}"));
    let ask = |words: &[&str]| stdout_of(Command::new(speaker).args(words).stdin(Stdio::null()));
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
        let name = page.strip_prefix(root)?.display().to_string();
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

fn package(place: &Place, binary: &Path, speaker: &Path, arch: Arch, glibc: u32, out: &Path) -> Result<PathBuf> {
    let version = version(speaker)?;
    let files = files(place, binary, speaker)?;
    let folder = tempfile::tempdir()?;
    // What umask the builder has is nobody's business.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    lay_out(folder.path(), &files)?;
    let script = |name: &str| {
        fs::read(place.root.join("deploy/debian").join(name)).with_context(|| format!("cannot read {name}"))
    };
    let size: usize = files.iter().map(|file| file.bytes.len().div_ceil(1024)).sum();
    let control = format!(
        "Package: tcpwatch\nVersion: {version}\nArchitecture: {}\nMaintainer: the authors of tcpwatch <tcpwatch@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {size}\nDepends: libc6 (>= 2.{glibc}), libgcc-s1, init-system-helpers, passwd\n\
         Homepage: https://github.com/tcpwatch/tcpwatch\nDescription: tells why a TCP connection is slow, and who reset it\n \
         A daemon that watches every TCP connection of the host from inside the\n kernel, and serves what it sees as \
         Prometheus metrics and live views.\n The kernel programs are in it: no compiler is needed.\n",
        arch.debian()
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
    let path = out.join(format!("tcpwatch_{version}_{}.deb", arch.debian()));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(folder.path()).arg(&path);
    succeed(command.env("SOURCE_DATE_EPOCH", &place.epoch).stdout(Stdio::null()).stdin(Stdio::null()))?;
    Ok(path)
}

fn tarball(place: &Place, binary: &Path, speaker: &Path, arch: Arch, libc: &str, out: &Path) -> Result<PathBuf> {
    let name = format!("tcpwatch-{}-{}-linux{libc}", version(speaker)?, arch.machine());
    let folder = tempfile::tempdir()?;
    lay_out(&folder.path().join(&name), &files(place, binary, speaker)?)?;
    level(folder.path())?;
    let path = out.join(format!("{name}.tar.gz"));
    let tar = out.join(format!("{name}.tar"));
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    command
        .arg(format!("--mtime=@{}", place.epoch))
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
