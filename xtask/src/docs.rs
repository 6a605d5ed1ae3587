//! `cargo xtask docs`: the pages that tcpwatch writes about itself, and those that are made of what was measured.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench, benchmarks,
    process::{cargo, root, say, stdout_of, succeed, target_dir},
    vm,
};

/// What to give `tcpwatch docs`, and the page it prints.
const PAGES: [(&str, &str); 4] = [
    ("metrics", "docs/METRICS.md"),
    ("config-md", "docs/CONFIG.md"),
    ("filter", "docs/FILTER.md"),
    ("resets", "docs/RESETS.md"),
];

/// It has one part that is made of what was measured.
const README: &str = "README.md";

/// Write the generated pages of docs/, and BENCHMARKS.md
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing, fail if a page is not what would be written
    #[arg(long)]
    check: bool,
    /// Take the results of a run of `cargo xtask test vm` for docs/KERNELS.md: target/vm/results.json
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    kernels: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(results) = &args.kernels {
        vm::record(results)?;
    }
    pages(args.check)
}

/// Writes the pages, or checks them.
pub(crate) fn pages(check: bool) -> Result<()> {
    succeed(cargo()?.args(["build", "--package", "tcpwatch"]))?;
    let binary = target_dir()?.join("debug/tcpwatch");
    page("docs/KERNELS.md", &vm::page()?, check)?;
    for (topic, path) in PAGES {
        page(path, &stdout_of(Command::new(&binary).args(["docs", topic]))?, check)?;
    }
    let results = root()?.join(bench::RESULTS);
    page("BENCHMARKS.md", &benchmarks::page(&results)?, check)?;
    let readme = fs::read_to_string(root()?.join(README)).with_context(|| format!("cannot read {README}"))?;
    page(README, &benchmarks::into_readme(&readme, &results)?, check)
}

fn page(path: &str, text: &str, check: bool) -> Result<()> {
    let file = root()?.join(path);
    let old = fs::read_to_string(&file).unwrap_or_default();
    match difference(&old, text) {
        None => say!("{path} is up to date"),
        Some(difference) if check => bail!("{path} is out of date, {difference}; `cargo xtask docs` writes it"),
        Some(_) => {
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            say!("{path} written");
        }
    }
    Ok(())
}

/// The first line that is not as it should be.
fn difference(old: &str, new: &str) -> Option<String> {
    if old == new {
        return None;
    }
    let same = old.lines().zip(new.lines()).take_while(|(old, new)| old == new).count();
    let line = |text: &str| text.lines().nth(same).map_or_else(|| "nothing".to_owned(), |line| format!("{line:?}"));
    Some(format!("line {} is {} and should be {}", same + 1, line(old), line(new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pages_do_not_differ() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
    }

    #[test]
    fn the_first_different_line_is_named() {
        assert_eq!(difference("a\nb\n", "a\nc\n").as_deref(), Some("line 2 is \"b\" and should be \"c\""));
        assert_eq!(difference("", "a\n").as_deref(), Some("line 1 is nothing and should be \"a\""));
    }
}
