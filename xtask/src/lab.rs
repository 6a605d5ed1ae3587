//! `cargo xtask lab SCENARIO`: a situation of the lab, played until it is over or Ctrl-C, to be watched with `tcpwatch top`.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::process::{as_root, cargo, say, show, succeed, target_dir};
use crate::{build, setup};

/// The program of the crate `tcpwatch-lab`.
const PROGRAM: &str = "tcpwatch-lab";

/// What is watched at once: a scenario where there is something of everything, for an hour unless one quits.
const DEMO: &str = "demo";
const SHOWN: [&str; 3] = ["mixed", "--duration", "60m"];

/// Play a situation that people meet, to be watched with `tcpwatch top`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which one; without a name they are listed. `demo` plays a mix of them and starts `tcpwatch top` on it
    scenario: Option<String>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// For how long rounds of traffic begin: 30s, 2m; 0s is one round
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Arguments of the program that plays it: --seed, --congestion
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut build = cargo()?;
    build.args(["build", "--release", "--package", PROGRAM, "--bin", PROGRAM]);
    succeed(&mut build)?;
    let binary = target_dir()?.join("release").join(PROGRAM);
    let binary = binary.to_str().context("the path of the target folder is not UTF-8")?;
    if args.scenario.as_deref() == Some(DEMO) && !args.list {
        return demo(binary);
    }
    let words = words(args);
    let needs_root = words.iter().any(|word| !word.starts_with("--"));
    let mut command = if needs_root {
        as_root(&[&[binary], &words[..]].concat())?
    } else {
        let mut command = std::process::Command::new(binary);
        command.args(words);
        command
    };
    say!("{}", show(&command));
    // In place of xtask, so that Ctrl-C and the exit status are the program's own.
    Err(command.exec()).with_context(|| format!("cannot start {}", show(&command)))
}

/// Retransmits, a zero window and a small storm of resets within a minute, with `tcpwatch top` to see them in.
fn demo(lab: &str) -> Result<()> {
    setup::ensure_toolchain()?;
    build::build(true)?;
    let tcpwatch = target_dir()?.join("release/tcpwatch");
    let tcpwatch = tcpwatch.to_str().context("the path of the target folder is not UTF-8")?;
    let mut command = as_root(&[&[lab], &SHOWN[..], &["--watch", tcpwatch]].concat())?;
    say!("{}", show(&command));
    Err(command.exec()).with_context(|| format!("cannot start {}", show(&command)))
}

/// What the program is told.
fn words(args: &Args) -> Vec<&str> {
    let Some(scenario) = args.scenario.as_deref().filter(|_| !args.list) else { return vec!["--list"] };
    let mut words = vec![scenario];
    if let Some(duration) = &args.duration {
        words.extend(["--duration", duration]);
    }
    words.extend(args.more.iter().map(String::as_str));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_scenarios_are_listed() {
        let mut args = Args { scenario: None, list: false, duration: Some("1m".to_owned()), more: Vec::new() };
        assert_eq!(words(&args), ["--list"]);
        args.scenario = Some("loss".to_owned());
        assert_eq!(words(&args), ["loss", "--duration", "1m"]);
        args.list = true;
        assert_eq!(words(&args), ["--list"]);
    }
}
