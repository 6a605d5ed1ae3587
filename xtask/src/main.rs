//! `cargo xtask`: the chores of this project, one module each.

mod bench;
mod benchmarks;
mod build;
mod dist;
mod dist_build;
mod dist_test;
mod docs;
mod fuzz;
mod lab;
mod lint;
mod packages;
mod process;
mod prometheus;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The chores of tcpwatch")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    /// Formatting, clippy and the rules that neither knows
    Lint,
    Docs(docs::Args),
    Dist(dist::Args),
    Bench(bench::Args),
    Lab(lab::Args),
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Setup(args) => setup::run(&args),
        Chore::Build(args) => build::run(&args),
        Chore::Run(args) => run::run(&args),
        // Has said what failed, and its count is the last line.
        Chore::Test(args) => return test::run(&args),
        Chore::Lint => lint::run(),
        Chore::Docs(args) => docs::run(&args),
        Chore::Dist(args) => dist::run(&args),
        Chore::Bench(args) => bench::run(&args),
        Chore::Lab(args) => lab::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
