//! `cargo xtask fuzz`: the targets of `fuzz/`, each for a while, beginning with its corpus.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    packages::Apt,
    process::{cargo, root, say, succeed, target_dir, works},
    toolchain,
};

const VERSION: &str = "0.13.2";
/// More memory than a target needs is a finding.
const MEMORY_MB: u32 = 1024;
/// An input that takes longer is a finding, s.
const SLOWEST: u32 = 10;

/// Fuzz what reads foreign bytes: records, recordings, expressions, configuration, requests
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which of them; all without one
    targets: Vec<String>,
    /// How long each, s
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Add the inputs that reach what the corpus does not to the corpus of the repository
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("no fuzz target {unknown:?}; there are {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { known } else { args.targets.clone() };
    chosen.iter().try_for_each(|target| fuzz(target, args.seconds, args.keep))
}

/// Every target for a minute, as the long run of the tests does; how many there are.
pub(crate) fn all() -> Result<u64> {
    let known = targets()?;
    known.iter().try_for_each(|target| fuzz(target, 60, false))?;
    Ok(known.len() as u64)
}

fn targets() -> Result<Vec<String>> {
    let folder = root()?.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        names.extend(file?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn fuzz(target: &str, seconds: u32, keep: bool) -> Result<()> {
    say!("fuzzing {target} for {seconds} s");
    let corpus = root()?.join("fuzz/corpus").join(target);
    // What is found goes to the first folder; the repository's is only read.
    let found = target_dir()?.join("fuzz-corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let base = |options: &[String]| -> Result<_> {
        let mut command = cargo()?;
        // Sanitizers are a feature of the nightly compiler; this makes one of any.
        command.env("RUSTC_BOOTSTRAP", "1").env("PATH", path()?).env_remove("CARGO_TARGET_DIR");
        command.args(["fuzz", "run", target]);
        command.args(if keep { [&corpus, &found] } else { [&found, &corpus] }).arg("--").args(options);
        Ok(command)
    };
    let bounds =
        [format!("-rss_limit_mb={MEMORY_MB}"), format!("-timeout={SLOWEST}"), "-print_final_stats=1".to_owned()];
    if keep {
        // The other way round: of what was found, only what reaches more.
        return succeed(&mut base(&["-merge=1".to_owned()])?);
    }
    succeed(base(&[])?.arg(format!("-max_total_time={seconds}")).args(bounds))
        .with_context(|| format!("{target}: the input is in fuzz/artifacts/{target}; add it to {}", corpus.display()))
}

/// PATH with cargo-fuzz in it, which is built once into the user's cache.
fn path() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cache = toolchain::cache().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let folder: PathBuf = cache.join(format!("cargo-fuzz-{VERSION}"));
    let joined = env::join_paths([folder.join("bin")].into_iter().chain(env::split_paths(&path)))?;
    if works(cargo()?.args(["fuzz", "--version"]).env("PATH", &joined)) {
        return Ok(joined);
    }
    if toolchain::in_path("c++").is_none() {
        match Apt::find() {
            Some(mut apt) => {
                apt.update()?;
                apt.install(&["g++".to_owned()])?;
            }
            None => bail!("libFuzzer needs a C++ compiler; install one with the packages of this system"),
        }
    }
    say!("building cargo-fuzz {VERSION}, about two minutes on two processors");
    let mut install = cargo()?;
    install.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--root"]).arg(&folder);
    succeed(install.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS"))?;
    Ok(joined)
}
