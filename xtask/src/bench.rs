//! `cargo xtask bench WHAT`: tcpwatch/examples/bench_WHAT.rs, optimised and as root.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, cargo_runs_as_root, root, succeed},
    setup,
};

const FOLDER: &str = "tcpwatch/examples";
const PREFIX: &str = "bench_";

/// Measure what tcpwatch costs
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which benchmark; without one, they are listed
    what: Option<String>,
    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let known = benchmarks(&root()?.join(FOLDER))?;
    let list = if known.is_empty() { "there are none yet".to_owned() } else { known.join(", ") };
    let Some(what) = &args.what else {
        println!("benchmarks: {list}");
        return Ok(());
    };
    if !known.contains(what) {
        bail!("no benchmark {what:?} in {FOLDER}: {list}");
    }
    setup::ensure_all(true)?;
    let mut command = cargo()?;
    command
        .args(["run", "--release", "--package", "tcpwatch", "--features", "bench", "--example"])
        .arg(format!("{PREFIX}{what}"));
    command.args(cargo_runs_as_root()?).arg("--");
    if args.json {
        command.arg("--json");
    }
    succeed(&mut command)
}

fn benchmarks(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        // As for cargo: a file, or a folder with its main.rs.
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        names.extend(name.strip_prefix(PREFIX).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
