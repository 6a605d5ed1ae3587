//! tcpwatch: why is this TCP connection slow, and who reset it?
//!
//! Reading order: `daemon/` (how everything is wired), `kernel/` (what is loaded, and how kernels differ), `source/`
//! (where events come from), `aggregate/` (what they add up to), `metrics/`, `api/`, `http/` and `top/` (what is shown).

mod aggregate;
mod api;
#[cfg(any(test, feature = "bench"))]
pub mod bench;
mod bundle;
mod cgroup;
mod cli;
mod client;
mod config;
mod daemon;
mod doctor;
mod explain;
mod filter;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
#[cfg(test)]
mod golden;
mod governor;
mod http;
mod instance;
mod kernel;
mod meaning;
mod metrics;
mod objects;
mod privileges;
mod proc_net;
mod record;
mod recording;
mod reload;
mod replay;
mod resets;
mod source;
mod storm;
mod sys;
mod tell;
mod top;
mod trace;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

/// The whole program: parses the command line, does what it asks for, and says how that went.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli::answer(&cli, &mut std::io::stdout().lock()) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => run(&cli),
        Err(error) => Err(Failure { status: error.status(), text: error.to_string() }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _nobody_listens = writeln!(std::io::stderr(), "tcpwatch: {}", failure.text);
            ExitCode::from(failure.status)
        }
    }
}

/// Why the program ends, in words, and with which status.
struct Failure {
    status: u8,
    text: String,
}

fn run(cli: &Cli) -> Result<(), Failure> {
    // It needs no settings, so that wrong ones are not in its way.
    if let Command::Replay(args) = &cli.command {
        let shown = replay::run(args, &mut std::io::stdout().lock());
        return shown.map_err(|error| Failure { status: error.status(), text: error.to_string() });
    }
    let resolved = cli.resolve().map_err(|error| Failure { status: cli::USAGE, text: error.to_string() })?;
    // A live view has the terminal for itself; what goes wrong is shown in it.
    let quiet = matches!(&cli.command, Command::Top(top) if top.format().is_none());
    start_log(&resolved.config, quiet);
    for warning in &resolved.warnings {
        log::warn!("{warning}");
    }
    if let Command::Top(args) = &cli.command {
        return top::run(&resolved, args).map_err(|error| Failure { status: error.status(), text: error.to_string() });
    }
    if let Command::Explain(args) = &cli.command {
        return explain::command::run(&resolved, args)
            .map_err(|error| Failure { status: error.status(), text: error.to_string() });
    }
    if let Command::Trace(args) = &cli.command {
        return trace::run(&resolved, args)
            .map_err(|error| Failure { status: error.status(), text: error.to_string() });
    }
    if let Command::Resets(args) = &cli.command {
        return resets::run(&resolved, args)
            .map_err(|error| Failure { status: error.status(), text: error.to_string() });
    }
    match &cli.command {
        Command::Doctor(doctor) => doctor::run(&resolved.config, doctor.json, doctor.bundle.as_deref()),
        Command::Record(args) => record::run(&resolved.config, args),
        _ => daemon::run(&resolved.config, || cli.resolve()),
    }
    .map_err(|error| Failure { status: error.status(), text: error.to_string() })
}

fn start_log(config: &config::Config, quiet: bool) {
    let (others, own) =
        if quiet { (log::LevelFilter::Off, log::LevelFilter::Off) } else { (log::LevelFilter::Warn, config.log_level) };
    env_logger::Builder::new()
        .filter_level(others)
        // What is let through of our own is said below, and may change.
        .filter_module("tcpwatch", if quiet { own } else { log::LevelFilter::Trace })
        .format_target(false)
        .target(env_logger::Target::Stderr)
        .init();
    log::set_max_level(own);
}
