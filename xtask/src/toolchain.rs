//! Finds what compiles the kernel programs: a rustc that has a `core` for BPF, and a bpf-linker made for its LLVM.
//!
//! Shared by xtask and by tcpwatch/build.rs, which includes this file: standard library only, reads and never installs.
//! `cargo xtask setup` is what installs, into the places that are searched here.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The target of the kernel programs: all machines tcpwatch is built for are little-endian.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The bpf-linker that `cargo xtask setup` builds.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// Names a rustc to compile the kernel programs with.
pub(crate) const RUSTC_VAR: &str = "TCPWATCH_BPF_RUSTC";
/// Names a bpf-linker; taken as it is, whatever LLVM it was made for.
pub(crate) const LINKER_VAR: &str = "TCPWATCH_BPF_LINKER";
/// What to do when something is missing.
pub(crate) const REMEDY: &str = "`cargo xtask setup` installs what is missing";

/// The oldest Rust that this workspace compiles with.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");
/// Where distributions put their rustc; rustup's, usually earlier in PATH, has no `core` for BPF.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
/// The rustup toolchain that may build `core` itself.
const NIGHTLY: &str = "nightly";

/// Everything needed to build the kernel programs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, linked by {}", self.compiler, self.linker)
    }
}

/// A rustc that can compile for BPF.
#[derive(Debug)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) version: Version,
    pub(crate) core: Core,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Ready => "which ships core for BPF",
            Core::FromSource => "building core from rust-src",
        };
        write!(f, "{} (rustc {}, LLVM {}), {core}", self.rustc.display(), self.version.release, self.version.llvm)
    }
}

/// Where the `core` of the kernel programs comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// The compiler's sysroot has it.
    Ready,
    /// `-Z build-std=core`, which takes the cargo beside the compiler.
    FromSource,
}

/// What `rustc -vV` says of itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) release: String,
    /// Major version: bitcode is read by a linker of the same one.
    pub(crate) llvm: u32,
}

/// A bpf-linker and how it was found.
#[derive(Debug)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    found: LinkerFound,
}

#[derive(Debug)]
enum LinkerFound {
    Named,
    Cache,
    Path,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.found {
            LinkerFound::Named => LINKER_VAR,
            LinkerFound::Cache => "built by setup",
            LinkerFound::Path => "from PATH",
        };
        write!(f, "{} ({found})", self.path.display())
    }
}

/// What is missing, and what was looked at.
#[derive(Debug)]
pub(crate) enum Missing {
    Compiler { tried: Vec<String> },
    Linker { llvm: u32, tried: Vec<String> },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried = match self {
            Missing::Compiler { tried } => {
                write!(f, "no Rust compiler for BPF")?;
                tried
            }
            Missing::Linker { llvm, tried } => {
                write!(f, "no bpf-linker for LLVM {llvm}")?;
                tried
            }
        };
        write!(f, " ({})", tried.join("; "))
    }
}

/// The compiler and the linker, or the first of them that is missing.
pub(crate) fn find() -> Result<Plan, Missing> {
    let compiler = find_compiler()?;
    let linker = find_linker(compiler.version.llvm)?;
    Ok(Plan { compiler, linker })
}

/// The system's compiler if it ships `core` for BPF, else rustup's nightly with rust-src.
pub(crate) fn find_compiler() -> Result<Compiler, Missing> {
    let (system, named) = match env::var_os(RUSTC_VAR) {
        Some(named) => (PathBuf::from(named), true),
        None => (PathBuf::from(SYSTEM_RUSTC), false),
    };
    let mut tried = match examine(&system) {
        Ok(compiler) => return Ok(compiler),
        Err(why) => vec![why],
    };
    if !named {
        match nightly_rustc().and_then(|rustc| examine(&rustc)) {
            Ok(compiler) => return Ok(compiler),
            Err(why) => tried.push(why),
        }
    }
    Err(Missing::Compiler { tried })
}

/// The named bpf-linker, else the one setup built for this LLVM, else the one in PATH.
pub(crate) fn find_linker(llvm: u32) -> Result<Linker, Missing> {
    let mut tried = Vec::new();
    if let Some(named) = env::var_os(LINKER_VAR) {
        let path = PathBuf::from(named);
        if path.is_file() {
            return Ok(Linker { path, found: LinkerFound::Named });
        }
        tried.push(format!("{LINKER_VAR} names {}, which is not a file", path.display()));
        return Err(Missing::Linker { llvm, tried });
    }
    match linker_root(llvm).map(|root| root.join("bin/bpf-linker")) {
        // It may have outlived the libLLVM it was linked to.
        Some(path) if path.is_file() => match output(Command::new(&path).arg("--version")) {
            Ok(_) => return Ok(Linker { path, found: LinkerFound::Cache }),
            Err(why) => tried.push(why),
        },
        Some(path) => tried.push(format!("{} does not exist", path.display())),
        None => tried.push("neither XDG_CACHE_HOME nor HOME is set".to_owned()),
    }
    if let Some(path) = in_path("bpf-linker") {
        return Ok(Linker { path, found: LinkerFound::Path });
    }
    tried.push("none in PATH".to_owned());
    Err(Missing::Linker { llvm, tried })
}

/// Where setup installs the bpf-linker for this LLVM: outside the work tree, so that every clone shares it.
pub(crate) fn linker_root(llvm: u32) -> Option<PathBuf> {
    Some(cache()?.join(format!("bpf-linker-{LINKER_VERSION}-llvm{llvm}")))
}

/// Where setup puts what it makes or fetches.
pub(crate) fn cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("tcpwatch"))
}

/// The first executable of this name in PATH.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Whether this rustc can compile for BPF, or in words why not.
fn examine(rustc: &Path) -> Result<Compiler, String> {
    let name = rustc.display();
    if !rustc.is_file() {
        return Err(format!("{name} does not exist"));
    }
    let version = output(Command::new(rustc).arg("-vV"))?;
    let version = parse_version(&version).ok_or_else(|| format!("{name} -vV does not name its release and LLVM"))?;
    if is_older(&version.release, OLDEST) {
        return Err(format!("{name} is Rust {}, older than {OLDEST}", version.release));
    }
    let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?);
    let rustlib = sysroot.join("lib/rustlib");
    if has_core(&rustlib.join(TARGET).join("lib")) {
        return Ok(Compiler { rustc: rustc.to_owned(), version, core: Core::Ready });
    }
    let source = rustlib.join("src/rust/library/core/Cargo.toml").is_file();
    if source && rustc.with_file_name("cargo").is_file() {
        return Ok(Compiler { rustc: rustc.to_owned(), version, core: Core::FromSource });
    }
    Err(format!("{name} has neither core for {TARGET} nor rust-src"))
}

fn has_core(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn nightly_rustc() -> Result<PathBuf, String> {
    let Some(rustup) = in_path("rustup") else { return Err("no rustup in PATH".to_owned()) };
    // Looking must not start a download.
    let mut which = Command::new(rustup);
    which.args(["which", "--toolchain", NIGHTLY, "rustc"]).env("RUSTUP_AUTO_INSTALL", "0");
    output(&mut which).map(PathBuf::from).map_err(|_| format!("rustup has no {NIGHTLY} toolchain"))
}

/// `rustc -vV`: lines of `key: value`.
fn parse_version(text: &str) -> Option<Version> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    let llvm = value("LLVM version")?.split('.').next()?.trim().parse().ok()?;
    Some(Version { release: value("release")?.trim().to_owned(), llvm })
}

/// Whether a version is below another, as far as the second has numbers.
pub(crate) fn is_older(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.').map_while(|part| part.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
    };
    numbers(version) < numbers(than)
}

fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_owned();
    let failed = |why: String| format!("{} {why}", name.display());
    match command.stdin(Stdio::null()).output() {
        Ok(out) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned()),
        Ok(out) => Err(failed(format!("failed: {}", out.status))),
        Err(error) => Err(failed(format!("could not be started: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_a_distribution_and_of_a_nightly() {
        let debian = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                      host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(debian), Some(Version { release: "1.96.0".to_owned(), llvm: 22 }));
        let nightly = "rustc 1.98.0-nightly\nrelease: 1.98.0-nightly\nLLVM version: 23\n";
        assert_eq!(parse_version(nightly), Some(Version { release: "1.98.0-nightly".to_owned(), llvm: 23 }));
    }

    #[test]
    fn version_without_llvm_is_none() {
        assert_eq!(parse_version("rustc 1.96.0\nrelease: 1.96.0\n"), None);
        assert_eq!(parse_version("release: 1.96.0\nLLVM version: unknown\n"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(is_older("1.63.0", "1.88"));
        assert!(is_older("1.9.0", "1.88"));
        assert!(is_older("1.85.0+dfsg3-1", "1.88"));
        assert!(!is_older("1.88.0", "1.88"));
        assert!(!is_older("1.96.0+dfsg1-1~deb12u2", "1.88"));
        assert!(!is_older("1.98.0-nightly", "1.88"));
    }

    #[test]
    fn what_is_missing_names_what_was_tried() {
        let compiler = Missing::Compiler { tried: vec!["a has no core".to_owned(), "no rustup in PATH".to_owned()] };
        assert_eq!(compiler.to_string(), "no Rust compiler for BPF (a has no core; no rustup in PATH)");
        let linker = Missing::Linker { llvm: 22, tried: vec!["none in PATH".to_owned()] };
        assert_eq!(linker.to_string(), "no bpf-linker for LLVM 22 (none in PATH)");
    }

    #[test]
    fn a_compiler_that_is_not_there_is_told_as_such() {
        let why = examine(Path::new("/nonexistent/rustc")).unwrap_err();
        assert_eq!(why, "/nonexistent/rustc does not exist");
    }
}
