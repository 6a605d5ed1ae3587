//! `cargo xtask run`: the daemon from this tree.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::{
    build,
    process::{as_root, say, show, target_dir},
    setup,
};

/// Set up, build and start the daemon
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of `tcpwatch run`
    #[arg(last = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure_toolchain()?;
    build::build(true)?;
    let binary = target_dir()?.join("release/tcpwatch");
    let binary = binary.to_str().context("the path of the target folder is not UTF-8")?;
    let mut words = vec![binary, "run"];
    words.extend(args.args.iter().map(String::as_str));
    let mut command = as_root(&words)?;
    say!("{}", show(&command));
    // In place of xtask, so that signals and the exit status are the daemon's own.
    Err(command.exec()).with_context(|| format!("cannot start {}", show(&command)))
}
