//! `cargo xtask build`: the daemon with its kernel programs inside.

use anyhow::Result;

use crate::process::{cargo, say, succeed, target_dir};

/// Build tcpwatch; fails rather than leave the kernel programs out
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised, as it is shipped
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    build(args.release)?;
    let profile = if args.release { "release" } else { "debug" };
    say!("built {}", target_dir()?.join(profile).join("tcpwatch").display());
    Ok(())
}

pub(crate) fn build(release: bool) -> Result<()> {
    let mut command = cargo()?;
    command.args(["build", "--package", "tcpwatch"]);
    if release {
        command.arg("--release");
    }
    succeed(&mut command)
}
