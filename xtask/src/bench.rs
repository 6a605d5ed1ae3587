//! `cargo xtask bench WHAT`: tcpwatch/examples/bench, optimised and as root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{as_root, cargo, root, say, succeed, target_dir},
    setup,
};

/// Every benchmark, in the order of BENCHMARKS.md. Those that say what is the machine's own come first.
pub(crate) const ALL: [&str; 7] = ["kernel", "impact", "user", "scale", "flood", "top", "explain"];
/// Where the numbers of BENCHMARKS.md are.
pub(crate) const RESULTS: &str = "docs/benchmarks";

/// Measure what tcpwatch costs
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark, or all; without one, they are listed
    what: Option<String>,
    /// One JSON object on standard output
    #[arg(long, conflicts_with = "out")]
    json: bool,
    /// As little as shows that it works; the numbers mean nothing
    #[arg(long)]
    smoke: bool,
    /// Write FOLDER/WHAT.json too; docs/benchmarks is where BENCHMARKS.md takes its numbers from
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// More for the benchmark, as `-- --most`
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(what) = &args.what else {
        println!("benchmarks: {}, all", ALL.join(", "));
        return Ok(());
    };
    let wanted: Vec<_> = ALL.into_iter().filter(|name| what == "all" || what == name).collect();
    if wanted.is_empty() {
        bail!("no benchmark {what:?}; there are {}, and all", ALL.join(", "));
    }
    setup::ensure_all(true)?;
    let program = build()?;
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for name in wanted {
        let mut command = command(&program, name)?;
        command.args(args.smoke.then_some("--smoke")).args(args.json.then_some("--json")).args(&args.more);
        if let Some(folder) = &args.out {
            command.arg(format!("--json={}", folder.join(format!("{name}.json")).display()));
        }
        if !args.json {
            say!("benchmark {name}");
        }
        succeed(&mut command)?;
    }
    Ok(())
}

/// Runs each with as little as shows that it works, and what it writes into a folder of its own; returns how many.
pub(crate) fn smoke() -> Result<u64> {
    let program = build()?;
    let folder = tempfile::tempdir()?;
    for name in ALL {
        say!("benchmark {name}");
        let file = folder.path().join(format!("{name}.json"));
        succeed(command(&program, name)?.arg("--smoke").arg(format!("--json={}", file.display())))?;
    }
    // What they say must be what BENCHMARKS.md can be made from.
    crate::benchmarks::page(folder.path())?;
    Ok(ALL.len() as u64)
}

fn build() -> Result<PathBuf> {
    let what = ["build", "--release", "--package", "tcpwatch", "--features", "bench", "--example", "bench"];
    succeed(cargo()?.args(what))?;
    Ok(target_dir()?.join("release/examples/bench"))
}

fn command(program: &Path, name: &str) -> Result<Command> {
    let program = program.to_str().context("the path of the target folder is not UTF-8")?;
    let mut command = as_root(&[program, name])?;
    command.current_dir(root()?);
    Ok(command)
}
