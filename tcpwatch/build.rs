//! Builds the kernel programs (package tcpwatch-ebpf) and hands their objects to the daemon as OUT_DIR/objects.rs.
//!
//! A machine without a BPF toolchain still compiles the daemon, with no objects and the reason in `WHY_NO_OBJECTS`;
//! with TCPWATCH_REQUIRE_BPF=1, as xtask and CI set it, that is an error.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::{
    env,
    error::Error,
    ffi::OsStr,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use toolchain::{Core, LINKER_VAR, Plan, REMEDY, RUSTC_VAR, TARGET};

const REQUIRE_VAR: &str = "TCPWATCH_REQUIRE_BPF";
/// Set by who builds from an archive, where git cannot tell.
const COMMIT_VAR: &str = "TCPWATCH_COMMIT";
/// The profile in the workspace's manifest.
const PROFILE: &str = "bpf";
/// The object of `cargo xtask bench`, built with the feature `bench` only.
const BENCH: &str = "tcpwatch-bench";
/// Instructions of Linux 5.12 and later, a kernel tcpwatch asks for anyhow: without them LLVM has no 32-bit atomics
/// and none that return the old value.
const CPU: &str = "v3";
/// What cargo has set for this script and would mislead the cargo it starts, all but what says how to fetch.
const CARGO_VARS_KEPT: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];
const OTHER_VARS_DROPPED: [&str; 6] =
    ["CLIPPY_ARGS", "RUSTC", "RUSTDOC", "RUSTDOCFLAGS", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&var("CARGO_MANIFEST_DIR")?).parent().ok_or("no workspace around this crate")?.to_owned();
    let out = PathBuf::from(var("OUT_DIR")?);
    watch_sources(&root);
    tell_commit(&root);

    let programs = programs(&root.join("tcpwatch-ebpf/src/bin"))?;
    let found = match toolchain::find() {
        Ok(_) if programs.is_empty() => Err("tcpwatch-ebpf has no programs".to_owned()),
        Ok(plan) => Ok(plan),
        Err(missing) => Err(format!("{missing}; {REMEDY}")),
    };
    match found {
        Ok(plan) => {
            build(&plan, &root, &out, &programs)?;
            watch(&plan.compiler.rustc);
            watch(&plan.linker.path);
            println!("cargo::rustc-env=TCPWATCH_BPF_COMPILER={}", provenance(&plan));
            fs::write(out.join("objects.rs"), generate(&programs, None)?)?;
        }
        Err(why) => {
            println!("cargo::rerun-if-env-changed={REQUIRE_VAR}");
            // Looked for again at every build, until it is there.
            watch(&out.join("looked for"));
            if env::var_os(REQUIRE_VAR).is_some_and(|value| value == "1") {
                return Err(format!("{why}; {REQUIRE_VAR}=1 forbids to go on without").into());
            }
            println!("cargo::warning=built without kernel programs, so tcpwatch cannot observe: {why}");
            println!("cargo::rustc-env=TCPWATCH_BPF_COMPILER=none");
            fs::write(out.join("objects.rs"), generate(&[], Some(&why))?)?;
        }
    }
    Ok(())
}

fn watch_sources(root: &Path) {
    for name in [RUSTC_VAR, LINKER_VAR, COMMIT_VAR, "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let sources = ["tcpwatch-ebpf/src", "tcpwatch-common/src", "xtask/src/toolchain.rs", "tcpwatch/build.rs"];
    let manifests = ["Cargo.toml", "Cargo.lock", "tcpwatch-ebpf/Cargo.toml", "tcpwatch-common/Cargo.toml"];
    for path in sources.into_iter().chain(manifests) {
        watch(&root.join(path));
    }
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// The commit as `TCPWATCH_COMMIT`, empty where nobody knows it.
fn tell_commit(root: &Path) {
    let git = |args: &[&str]| {
        // The tree may belong to somebody else than who builds, in a container say; asking for a name is harmless.
        let out = Command::new("git").args(["-c", "safe.directory=*", "-C"]).arg(root).args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let named = env::var(COMMIT_VAR).ok();
    let commit = named.or_else(|| git(&["rev-parse", "--short=12", "HEAD"])).unwrap_or_default();
    println!("cargo::rustc-env={COMMIT_VAR}={commit}");
    // The log of HEAD grows with every commit and checkout, HEAD itself only with a checkout.
    let head = ["logs/HEAD", "HEAD"].iter().find_map(|file| {
        let path = root.join(git(&["rev-parse", "--git-path", file])?);
        path.is_file().then_some(path)
    });
    if let Some(head) = head {
        watch(&head);
    }
}

/// The names of the programs: every file or folder in src/bin is one, as for cargo.
fn programs(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("rs")) || path.join("main.rs").is_file() {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    // The yardsticks are for measuring only.
    names.retain(|name| name != BENCH || env::var_os("CARGO_FEATURE_BENCH").is_some());
    names.sort();
    Ok(names)
}

/// Builds the objects into the folder `out`, by a cargo of its own.
fn build(plan: &Plan, root: &Path, out: &Path, programs: &[String]) -> Result<(), Box<dyn Error>> {
    let target_dir = target_dir(out)?;
    let cargo = match plan.compiler.core {
        Core::Ready => PathBuf::from(var("CARGO")?),
        Core::FromSource => plan.compiler.rustc.with_file_name("cargo"),
    };
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = ["CARGO", "RUSTC_"].iter().any(|prefix| text.starts_with(prefix));
        let kept = CARGO_VARS_KEPT.iter().any(|prefix| text.starts_with(prefix));
        if (of_cargo && !kept) || OTHER_VARS_DROPPED.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", "tcpwatch-ebpf", "--profile", PROFILE, "--target", TARGET])
        .args(programs.iter().flat_map(|name| ["--bin", name]))
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(plan, root, &target_dir)?.join("\u{1f}"))
        // Not by `-C linker=`: flags go into the names of symbols, and the same source shall give the same object
        // wherever the linker lies.
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &plan.linker.path)
        .env("RUSTC", &plan.compiler.rustc)
        // A distribution's compiler is a stable one, and BPF needs features that are not.
        .env("RUSTC_BOOTSTRAP", "1")
        // It need not be as new as the cargo that the lock file was made with.
        .env("CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS", "fallback")
        .stdin(Stdio::null());
    if plan.compiler.core == Core::FromSource {
        command.args(["-Z", "build-std=core"]);
    }
    let done =
        command.output().map_err(|error| format!("cannot start {}: {error}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        eprintln!("{said}");
        return Err(format!("building the kernel programs failed ({}) with {plan}", done.status).into());
    }
    // Cargo shows what a build script says only when it fails, or as a warning.
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    for name in programs {
        let object = target_dir.join(TARGET).join(PROFILE).join(name);
        fs::copy(&object, out.join(name)).map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    }
    Ok(())
}

/// A target folder of its own, since the cargo that runs this script holds the lock of the other, and inside of that
/// one, so that clippy, debug and release builds of the daemon share it.
fn target_dir(out: &Path) -> Result<PathBuf, String> {
    // TARGET/PROFILE/build/PACKAGE/out, or else whatever a later cargo does.
    let above: Vec<&Path> = out.ancestors().take(5).collect();
    let shared = match above[..] {
        [_, _, build, _, target] if build.ends_with("build") => target,
        _ => out,
    };
    Ok(shared.join(format!("bpf-{}", var("CARGO_CFG_TARGET_ARCH")?)))
}

fn rustflags(plan: &Plan, root: &Path, target_dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let arch = var("CARGO_CFG_TARGET_ARCH")?;
    let mut flags = vec![
        // Whose registers and struct layouts kprobes read: aya would otherwise guess the machine that builds.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Ctarget-cpu={CPU}"),
        // The linker makes BTF of the debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    // No path of this machine in the objects; of several that match, rustc takes the last.
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut remap = |path: &Path, name: &str| flags.push(format!("--remap-path-prefix={}={name}", path.display()));
    remap(root, "/tcpwatch");
    if let Some(cargo_home) = cargo_home {
        remap(&cargo_home, "/cargo");
    }
    remap(target_dir, "/target");
    if plan.compiler.core == Core::FromSource
        && let Some(sysroot) = plan.compiler.rustc.parent().and_then(Path::parent)
    {
        remap(sysroot, "/rust");
    }
    Ok(flags)
}

fn provenance(plan: &Plan) -> String {
    let version = &plan.compiler.version;
    format!("rustc {}, LLVM {}, BPF {CPU}", version.release, version.llvm)
}

/// The source of objects.rs. ELF is read in place, so its bytes must lie as aligned as its widest field.
fn generate(programs: &[String], why_none: Option<&str>) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    if !programs.is_empty() {
        writeln!(text, "#[repr(C, align(8))]\nstruct Aligned<T: ?Sized>(T);")?;
    }
    for (index, name) in programs.iter().enumerate() {
        let bytes = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))");
        writeln!(text, "const OBJECT_{index}: &Aligned<[u8]> = &Aligned(*{bytes});")?;
    }
    writeln!(text, "/// The kernel programs: ELF objects by name.\npub(crate) const OBJECTS: &[(&str, &[u8])] = &[")?;
    for (index, name) in programs.iter().enumerate() {
        writeln!(text, "    ({name:?}, &OBJECT_{index}.0),")?;
    }
    writeln!(text, "];\n/// Why there are none.")?;
    writeln!(text, "pub(crate) const WHY_NO_OBJECTS: Option<&str> = {why_none:?};")?;
    Ok(text)
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
