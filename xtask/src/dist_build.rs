//! How `cargo xtask dist` builds a program that is shipped: for which machine, with which C library, and by which
//! compiler, so that nothing of the machine that builds is in it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    packages::{self, Apt, COMPILERS},
    process::{cargo, root, say, stdout_of, succeed, works},
    toolchain::{self, Core},
};

/// A machine that packages are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// As Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and uname call it.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The one this runs on.
    pub(crate) fn here() -> Result<Self> {
        let found = [Self::Amd64, Self::Arm64].into_iter().find(|arch| arch.machine() == env::consts::ARCH);
        found.with_context(|| format!("packages are made for amd64 and arm64, not for {}", env::consts::ARCH))
    }

    fn triple(self, c_library: &str) -> String {
        format!("{}-unknown-linux-{c_library}", self.machine())
    }
}

/// How a program comes by its C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linkage {
    /// That of the distribution, for the Debian package.
    Dynamic,
    /// It is in the program, for the tarball.
    Static,
}

/// Folders that a program is built from and in, and what is told to it.
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    /// The time that everything gets.
    pub(crate) epoch: String,
    /// What `tcpwatch --version` names.
    commit: String,
}

impl Place {
    /// This workspace.
    pub(crate) fn here(target: PathBuf) -> Result<Self> {
        let root = root()?;
        let epoch = epoch(&root)?;
        let mut git = Command::new("git");
        git.args(["-c", "safe.directory=*", "rev-parse", "--short=12", "HEAD"]).current_dir(&root);
        let commit = match env::var("TCPWATCH_COMMIT") {
            Ok(commit) => commit,
            // An archive of the sources has none.
            Err(_) => {
                git.output().map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
            }
        };
        Ok(Self { root, target, epoch, commit })
    }

    /// A copy of it in another folder, of which nothing is built yet.
    pub(crate) fn copied(&self, folder: &Path) -> Result<Self> {
        let root = folder.join("sources of tcpwatch");
        copy_sources(&self.root, &root)?;
        let target = folder.join("target");
        Ok(Self { root, target, epoch: self.epoch.clone(), commit: self.commit.clone() })
    }
}

/// The variable, else the time of the newest commit.
fn epoch(root: &Path) -> Result<String> {
    if let Ok(time) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "log", "-1", "--format=%ct"]).current_dir(root).stdin(Stdio::null());
    let time = stdout_of(&mut git).context("set SOURCE_DATE_EPOCH, or build in a clone of the repository")?;
    Ok(time.trim().to_owned())
}

/// Everything but the history and the folders that cargo marks as its own.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == ".git" || path.join("CACHEDIR.TAG").exists() {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_sources(&path, &to)?;
        } else {
            fs::copy(&path, &to).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// What compiles for a machine and a linkage.
struct Compiler {
    target: String,
    flags: Vec<String>,
    variables: Vec<(String, OsString)>,
}

/// Builds a program without a path of this machine in it.
pub(crate) fn build(place: &Place, arch: Arch, linkage: Linkage) -> Result<PathBuf> {
    let compiler = compiler(arch, linkage)?;
    let home = cargo_home()?;
    let mut flags = compiler.flags;
    // Of several that match, rustc takes the last.
    for (folder, name) in [(&home, "/cargo"), (&place.root, "/tcpwatch"), (&place.target, "/target")] {
        flags.push(format!("--remap-path-prefix={}={name}", folder.display()));
    }
    let mut command = cargo()?;
    command.args(["build", "--release", "--locked", "--package", "tcpwatch", "--target", &compiler.target]);
    command.current_dir(&place.root).env("CARGO_TARGET_DIR", &place.target);
    // Not by RUSTFLAGS, which has no way to write a blank.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).envs(compiler.variables);
    // The profile of the kernel objects is the same; their paths are not in the program.
    command.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    command.env("SOURCE_DATE_EPOCH", &place.epoch).env("TCPWATCH_COMMIT", &place.commit);
    say!("building for {}{}", compiler.target, if linkage == Linkage::Static { ", static" } else { "" });
    succeed(&mut command)?;
    let built = place.target.join(&compiler.target).join("release/tcpwatch");
    // The next one for the same target, linked otherwise, overwrites it.
    let kept = place.target.join("dist").join(format!(
        "tcpwatch-{}-{}",
        arch.debian(),
        if linkage == Linkage::Static { "static" } else { "dynamic" }
    ));
    fs::create_dir_all(place.target.join("dist"))?;
    fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    let bytes = fs::read(&kept)?;
    for folder in [&home, &place.root, &place.target] {
        let name = folder.to_str().context("a path is not UTF-8")?;
        ensure!(!contains(&bytes, name.as_bytes()), "{} names {name}, a folder of this machine", kept.display());
    }
    Ok(kept)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn cargo_home() -> Result<PathBuf> {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

fn compiler(arch: Arch, linkage: Linkage) -> Result<Compiler> {
    let mut compiler = Compiler { target: arch.triple("gnu"), flags: Vec::new(), variables: Vec::new() };
    if linkage == Linkage::Static {
        let musl = arch.triple("musl");
        // Debian has a C compiler with musl for the machine it runs on only.
        if arch == Arch::here()? && (has_std(&musl) || rustup_has(&musl)) {
            compiler.variables.push((format!("CC_{}", musl.replace('-', "_")), "musl-gcc".into()));
            compiler.target = musl;
            return Ok(compiler);
        }
        say!("{}: linked with glibc, for want of a Rust standard library or a C compiler with musl", arch.debian());
        compiler.flags.push("-Ctarget-feature=+crt-static".to_owned());
    }
    if arch != Arch::here()? {
        cross(arch, &mut compiler)?;
    }
    Ok(compiler)
}

/// A linker and a standard library for another machine.
fn cross(arch: Arch, compiler: &mut Compiler) -> Result<()> {
    let gcc = format!("{}-linux-gnu-gcc", arch.machine());
    if toolchain::in_path(&gcc).is_none() {
        let packages = [
            format!("gcc-{}-linux-gnu", arch.machine().replace('_', "-")),
            format!("libc6-dev-{}-cross", arch.debian()),
        ];
        match Apt::find() {
            Some(mut apt) => apt.install(&packages)?,
            None => bail!("no {gcc}; install a cross compiler for {}", arch.machine()),
        }
    }
    let name = compiler.target.replace('-', "_");
    compiler.variables.push((format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), gcc.clone().into()));
    compiler.variables.push((format!("CC_{name}"), gcc.into()));
    if has_std(&compiler.target) || rustup_has(&compiler.target) {
        return Ok(());
    }
    let (rustc, sysroot) = of_distribution(arch, &compiler.target)?;
    compiler.variables.push(("RUSTC".to_owned(), rustc.into()));
    compiler.flags.push(format!("--sysroot={}", sysroot.display()));
    Ok(())
}

/// Whether the compiler that cargo takes has a standard library for a target.
fn has_std(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).stdin(Stdio::null()).output();
    out.is_ok_and(|out| is_std(Path::new(String::from_utf8_lossy(&out.stdout).trim())))
}

fn is_std(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

/// Whether rustup has one, now that it was asked for.
fn rustup_has(target: &str) -> bool {
    toolchain::in_path("rustup").is_some_and(|rustup| works(Command::new(rustup).args(["target", "add", target])))
        && has_std(target)
}

/// The distribution's compiler, and the standard library of the same version that the distribution has for another
/// machine; it is not installed, but unpacked into the cache.
fn of_distribution(arch: Arch, target: &str) -> Result<(PathBuf, PathBuf)> {
    let rustc = match toolchain::find_compiler() {
        Ok(compiler) if compiler.core == Core::Ready => compiler.rustc,
        _ => bail!("neither rustup nor the distribution has a Rust standard library for {target}"),
    };
    let mut query = Command::new("dpkg-query");
    query.args(["--search"]).arg(&rustc).env("LC_ALL", "C").stdin(Stdio::null());
    let owner = stdout_of(&mut query).with_context(|| format!("no package has {}", rustc.display()))?;
    let owner = owner.split(':').next().unwrap_or_default().to_owned();
    let [_, core] = COMPILERS.into_iter().find(|[package, _]| *package == owner).context("an unknown compiler")?;
    let library = core.trim_end_matches("-bpf");
    let version = stdout_of(Command::new("dpkg-query").args(["--show", "--showformat", "${Version}", &owner]))?;
    let cache = toolchain::cache().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let name = format!("{library}-{version}-{}", arch.debian()).replace(['+', '~', ':'], "-");
    let sysroot = cache.join(name);
    let there = |sysroot: &Path| is_std(&sysroot.join("usr/lib/rustlib").join(target).join("lib"));
    if !there(&sysroot) {
        let folder = tempfile::tempdir()?;
        packages::download_for(arch.debian(), &format!("{library}:{}={version}", arch.debian()), folder.path())?;
        let package = fs::read_dir(folder.path())?.flatten().map(|entry| entry.path());
        let package = package.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
        fs::create_dir_all(&sysroot)?;
        let package = package.with_context(|| format!("apt has left no {library}"))?;
        succeed(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&sysroot))?;
        ensure!(there(&sysroot), "{library} of {} has no standard library for {target}", arch.debian());
    }
    Ok((rustc, sysroot.join("usr")))
}

/// A setting that glibc reads at the start of every program; musl has nothing of the kind.
const GLIBC_TUNABLE: &[u8] = b"glibc.malloc.";

/// What a program says of itself, as far as packing it needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) arch: Arch,
    pub(crate) c_library: CLibrary,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CLibrary {
    /// glibc of the system, at least 2 point this.
    Dynamic(u32),
    Glibc,
    Musl,
}

/// Reads the header of an ELF file: 64 bits, little-endian.
pub(crate) fn inspect(path: &Path) -> Result<Program> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is no program for a machine that packages are made for", path.display()))
}

fn parse(bytes: &[u8]) -> Option<Program> {
    const INTERPRETER: u64 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let arch = match number(18, 2)? {
        62 => Arch::Amd64,
        183 => Arch::Arm64,
        _ => return None,
    };
    let (table, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let kinds = (0..count).map(|index| number(table.checked_add(index.checked_mul(size)?)?, 4));
    let is_dynamic = kinds.collect::<Option<Vec<_>>>()?.contains(&INTERPRETER);
    let c_library = if is_dynamic {
        CLibrary::Dynamic(newest_glibc(bytes)?)
    } else if contains(bytes, GLIBC_TUNABLE) {
        CLibrary::Glibc
    } else {
        CLibrary::Musl
    };
    Some(Program { arch, c_library })
}

/// The newest version of a symbol that the program asks of glibc.
fn newest_glibc(bytes: &[u8]) -> Option<u32> {
    let mut newest = None;
    for at in 0..bytes.len().saturating_sub(8) {
        if let Some(rest) = bytes[at..].strip_prefix(b"GLIBC_2.") {
            let digits: String = rest.iter().take_while(|b| b.is_ascii_digit()).map(|b| char::from(*b)).collect();
            newest = newest.max(digits.parse::<u32>().ok());
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, and one entry in the table of programs.
    fn elf(machine: u8, kind: u8, more: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[18], bytes[32], bytes[54], bytes[56], bytes[64]) = (machine, 64, 56, 1, kind);
        bytes.extend(more);
        bytes
    }

    #[test]
    fn programs_say_what_they_are() {
        let dynamic = parse(&elf(62, 3, b"\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.4\0"));
        assert_eq!(dynamic, Some(Program { arch: Arch::Amd64, c_library: CLibrary::Dynamic(34) }));
        let musl = parse(&elf(183, 1, b"nothing of that kind"));
        assert_eq!(musl, Some(Program { arch: Arch::Arm64, c_library: CLibrary::Musl }));
        let glibc = parse(&elf(183, 1, b"\0glibc.malloc.check\0"));
        assert_eq!(glibc, Some(Program { arch: Arch::Arm64, c_library: CLibrary::Glibc }));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(&elf(40, 3, b"GLIBC_2.9")), None, "32-bit ARM");
        assert_eq!(parse(&elf(62, 3, b"")), None, "another C library that is linked dynamically");
        assert_eq!(parse(&elf(62, 3, b"")[..100]), None, "cut off");
    }

    #[test]
    fn this_program_is_for_this_machine() {
        let program = inspect(&env::current_exe().unwrap()).unwrap();
        assert_eq!(program.arch, Arch::here().unwrap());
    }

    #[test]
    fn sources_are_copied_without_what_cargo_built() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for path in ["src/a.rs", ".cargo/config.toml", ".git/HEAD", "target/CACHEDIR.TAG", "target/debug/b"] {
            fs::create_dir_all(from.join(path).parent().unwrap()).unwrap();
            fs::write(from.join(path), path).unwrap();
        }
        copy_sources(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("src/a.rs")).unwrap(), "src/a.rs");
        assert!(to.join(".cargo/config.toml").exists() && !to.join(".git").exists() && !to.join("target").exists());
    }
}
