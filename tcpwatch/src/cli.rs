//! The command line: what can be asked of the program, and the answers that need neither the daemon nor the kernel.
//!
//! `main.rs` parses a [`Cli`], gives it to [`answer`], and what that leaves (`run`, `doctor`) to the modules that do
//! the work. Usage errors are clap's and end with status 2, like those of the configuration.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{self, Choice, ConfigError, Flag, Layers, Resolved};
use crate::explain;
use crate::filter;
use crate::http::WebConfigError;
use crate::meaning;
use crate::metrics;
use crate::reload;
use crate::top;
use crate::trace;

/// Exit status: something failed.
pub(crate) const FAILED: u8 = 1;
/// Exit status: the command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// Exit status: not permitted, or the kernel is too old.
pub(crate) const NOT_PERMITTED: u8 = 3;

static VERSION: LazyLock<String> = LazyLock::new(|| version(option_env!("TCPWATCH_COMMIT").unwrap_or_default()));

/// Why is this TCP connection slow, and who reset it?
#[derive(Debug, Parser)]
#[command(name = "tcpwatch", version = VERSION.as_str(), max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Unix socket of the daemon [default: /run/tcpwatch/tcpwatch.sock] [env: TCPWATCH_SOCKET]
    // The resolver reads the variable, so that it knows who gave the value.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    /// Configuration file [default: /etc/tcpwatch/tcpwatch.toml, which may be absent]
    #[arg(long, global = true, value_name = "FILE", env = config::FILE_VARIABLE, hide_env_values = true)]
    config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch every TCP connection of this host and serve what is seen
    Run(Run),
    /// Show the connections, services and resets of this host, live
    ///
    /// It asks the daemon by its socket, which needs to be of the socket's group, or root. When no daemon runs and no
    /// socket was named, it loads the kernel programs itself, for as long as it runs, which needs root. `?` shows the
    /// keys. Colours are left out where NO_COLOR is set.
    Top(top::Args),
    /// Print what happens, a line each
    ///
    /// WHAT is `resets`, `retransmits`, `connections` (opens and closes) or `all`, which it is when it is left out. EXPR
    /// selects among them, as in: tcpwatch trace resets port 443 and not cause no_listener
    ///
    /// It asks the daemon as `top` does. What could not be shown is counted on standard error, or in the lines of --json.
    #[command(override_usage = "tcpwatch trace [OPTIONS] [resets|retransmits|connections|all] [EXPR]")]
    Trace(trace::Args),
    /// Tell what limits each connection and service, and what would help
    ///
    /// With a daemon, from what it has counted; without one, at once from what the kernel has kept per socket. Nothing is
    /// changed: remedies are for you to weigh.
    Explain(explain::command::Args),
    /// Show who resets connections, and why: by cause and kernel stack, then the newest with their evidence
    ///
    /// It asks the daemon by its socket, for all since that began. When no daemon runs and no socket was named, it loads
    /// the kernel programs itself and watches until Ctrl-C, or for the time of --duration.
    Resets(ResetsArgs),
    /// Tell what this kernel offers, what is attached and what is lost
    Doctor(Doctor),
    /// Record everything that the daemon would see, to replay it anywhere
    Record(Record),
    /// Show a recording as it was when it was made
    Replay(Replay),
    /// Check a configuration file, with the environment as it is
    CheckConfig(CheckConfig),
    /// Print the settings that hold, and where each comes from
    Config,
    /// Print a script that completes commands in a shell
    Completions(Completions),
    /// Print a page of the documentation
    #[command(hide = true)]
    Docs(Docs),
}

/// `tcpwatch run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Address and port for Prometheus [default: 127.0.0.1:10793] [env: TCPWATCH_LISTEN]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
}

/// `tcpwatch resets`.
#[derive(Debug, Args)]
pub(crate) struct ResetsArgs {
    /// Print JSON, one object a line; `kind` tells what it is: summary, cause, reason, stack or reset
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the stacks of the resets sent to this file, as a flame graph
    #[arg(long, value_name = "FILE.svg", conflicts_with = "json")]
    pub(crate) flamegraph: Option<PathBuf>,
    /// Time to watch before the answer, such as 30s or 5m [default: none with a daemon, until Ctrl-C without]
    #[arg(long, value_name = "T", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// An expression that selects among the newest resets, and with them their causes and stacks
    #[arg(value_name = "EXPR")]
    pub(crate) words: Vec<String>,
}

/// `tcpwatch doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the findings to this new file, for a bug report: without addresses, names and paths
    #[arg(long, value_name = "FILE")]
    pub(crate) bundle: Option<PathBuf>,
}

/// `tcpwatch record`.
#[derive(Debug, Args)]
pub(crate) struct Record {
    /// The file to make; it must not exist
    pub(crate) file: PathBuf,
    /// Time after which to stop, such as 90s or 10m; without it, at SIGINT or SIGTERM
    #[arg(long, value_name = "T", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Print the metrics of the last snapshot, and no summary: what a replay must give
    #[arg(long, hide = true)]
    pub(crate) metrics: bool,
}

/// `tcpwatch replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// A file that `tcpwatch record` made
    pub(crate) file: PathBuf,
    /// What to show [default: metrics]
    #[command(subcommand)]
    pub(crate) reader: Option<Reader>,
}

/// A way to look at a recording.
#[derive(Debug, Subcommand)]
pub(crate) enum Reader {
    /// Print the metrics, without those of the running process
    Metrics(MetricsReader),
    /// Show the connections, services and resets as `tcpwatch top` does, a second of it each second
    ///
    /// To anything that is no terminal, and with --once, --json or --csv, it prints those at the end.
    Top(top::Args),
    /// Print the connections at the end, one JSON object a line, as `/api/v1/connections` does
    Connections,
    /// Print the resets, as `tcpwatch resets` does
    Resets(ResetsReader),
    /// Say what limits what was there at the end, as `tcpwatch explain` does
    Explain(ExplainReader),
}

/// `tcpwatch replay FILE explain`.
#[derive(Debug, Default, Args)]
pub(crate) struct ExplainReader {
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Judge the last part of it, such as 10s [default: all that is known]
    #[arg(long = "for", value_name = "T", value_parser = duration)]
    pub(crate) time: Option<Duration>,
    /// Show connections that nothing is wrong with, too
    #[arg(long)]
    pub(crate) all: bool,
    /// An expression that selects connections; without it, services, listeners and the host are looked at as well
    #[arg(value_name = "EXPR")]
    pub(crate) expr: Vec<String>,
}

/// `tcpwatch replay FILE resets`.
#[derive(Debug, Args)]
pub(crate) struct ResetsReader {
    /// Print JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `tcpwatch replay FILE metrics`.
#[derive(Debug, Args)]
pub(crate) struct MetricsReader {
    /// Number of the snapshot, from 1 [default: the last]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) at: Option<u64>,
}

/// `tcpwatch check-config`.
#[derive(Debug, Args)]
pub(crate) struct CheckConfig {
    /// The file; without it, the one that `tcpwatch run` would read
    file: Option<PathBuf>,
}

/// `tcpwatch completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// `tcpwatch docs`.
#[derive(Debug, Args)]
pub(crate) struct Docs {
    /// The page
    topic: Topic,
    /// For `man`: which page
    #[arg(default_value = "tcpwatch")]
    page: String,
}

/// A page that the program writes about itself.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Topic {
    /// docs/METRICS.md
    Metrics,
    /// deploy/tcpwatch.toml
    Config,
    /// docs/CONFIG.md
    ConfigMd,
    /// A manual page
    Man,
    /// The names of all manual pages
    ManList,
    /// docs/FILTER.md
    Filter,
    /// docs/RESETS.md
    Resets,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The web configuration is wrong.
    #[error(transparent)]
    Web(#[from] WebConfigError),
    /// Nobody takes the answer.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl CliError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Web(_) => USAGE,
            Self::Output(_) => FAILED,
        }
    }
}

impl Cli {
    /// The settings by all that this command line, the environment and the file say.
    pub(crate) fn resolve(&self) -> Result<Resolved, ConfigError> {
        config::resolve(&self.layers())
    }

    fn layers(&self) -> Layers {
        let named = match &self.command {
            Command::CheckConfig(CheckConfig { file: Some(file) }) => Some(file),
            _ => self.config.as_ref(),
        };
        let listen = match &self.command {
            Command::Run(run) => run.listen.as_ref(),
            _ => None,
        };
        let flag = |key, name, value: Option<&String>| value.map(|value| Flag { key, name, value: value.clone() });
        Layers {
            file: named
                .map_or_else(|| Choice::Default(config::DEFAULT_FILE.into()), |file| Choice::Named(file.clone())),
            environment: env::vars_os().collect(),
            flags: [flag("listen", "--listen", listen), flag("socket", "--socket", self.socket.as_ref())]
                .into_iter()
                .flatten()
                .collect(),
        }
    }
}

/// Writes the answer to a question that the program can answer by itself; false when `cli` asks for something else.
pub(crate) fn answer(cli: &Cli, out: &mut impl Write) -> Result<bool, CliError> {
    let text = match &cli.command {
        Command::Run(_)
        | Command::Top(_)
        | Command::Trace(_)
        | Command::Explain(_)
        | Command::Resets(_)
        | Command::Doctor(_)
        | Command::Record(_)
        | Command::Replay(_) => {
            return Ok(false);
        }
        Command::CheckConfig(_) => verdict(&cli.resolve()?)?,
        Command::Config => shown(&cli.resolve()?),
        Command::Completions(Completions { shell }) => completions(*shell),
        Command::Docs(Docs { topic: Topic::Metrics, .. }) => metrics::docs::page(),
        Command::Docs(Docs { topic: Topic::Config, .. }) => config::example(),
        Command::Docs(Docs { topic: Topic::Filter, .. }) => filter::docs::page(),
        Command::Docs(Docs { topic: Topic::Resets, .. }) => meaning::docs::page(),
        Command::Docs(Docs { topic: Topic::ConfigMd, .. }) => config::page(),
        Command::Docs(Docs { topic: Topic::Man, page }) => manual(page).map_err(CliError::Output)?,
        Command::Docs(Docs { topic: Topic::ManList, .. }) => {
            manuals().iter().map(|(name, _)| format!("{name}\n")).collect::<Vec<_>>().concat()
        }
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `tcpwatch config | head` is not a failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        written => written.map(|()| true).map_err(CliError::Output),
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "it must be a time such as 500ms, 90s or 10m".to_owned())
}

fn version(commit: &str) -> String {
    let number = env!("CARGO_PKG_VERSION");
    if commit.is_empty() { number.to_owned() } else { format!("{number} ({commit})") }
}

fn verdict(resolved: &Resolved) -> Result<String, CliError> {
    let file = match &resolved.file {
        Some(file) => format!("{}: no errors\n", file.display()),
        None => format!("{}: no such file; the defaults hold\n", config::DEFAULT_FILE),
    };
    let web = reload::check(&resolved.config)?;
    let web = web.map_or_else(String::new, |web| format!("{}: no errors\n", web.display()));
    Ok(warnings(resolved, "") + &file + &web)
}

fn shown(resolved: &Resolved) -> String {
    warnings(resolved, "# ") + &resolved.to_toml()
}

fn warnings(resolved: &Resolved, start: &str) -> String {
    let lines = resolved.warnings.iter().map(|warning| format!("{start}warning: {warning}\n"));
    lines.collect::<Vec<_>>().concat()
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tcpwatch", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Every command with a manual page, by the name of the page.
fn manuals() -> Vec<(String, clap::Command)> {
    let mut root = Cli::command();
    root.build();
    let commands = root.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let pages = commands.map(|command| {
        let name = format!("tcpwatch-{}", command.get_name());
        (name.clone(), command.display_name(name))
    });
    std::iter::once(("tcpwatch".to_owned(), root.clone())).chain(pages).collect()
}

fn manual(page: &str) -> io::Result<String> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("there is no page {page:?}"));
    let (_, command) = manuals().into_iter().find(|(name, _)| name == page).ok_or_else(unknown)?;
    let mut text = Vec::new();
    // Without a date, so that the same program gives the same page.
    clap_mangen::Man::new(command).date("").render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;
    use std::fs;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn answered(line: &str) -> Result<String, CliError> {
        let mut out = Vec::new();
        assert!(answer(&parse(line).unwrap(), &mut out)?, "{line}");
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_as_agreed() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut pages = vec![command.clone().render_long_help().to_string()];
        pages.extend(command.get_subcommands_mut().map(|command| command.render_long_help().to_string()));
        let text = pages.join("----\n");
        crate::golden::check("tests/golden/help.txt", &text);
    }

    #[test]
    fn usage_errors_end_with_status_2_and_help_with_0() {
        for line in
            ["tcpwatch", "tcpwatch runn", "tcpwatch run --listn x", "tcpwatch completions", "tcpwatch top --sort x"]
        {
            assert_eq!(parse(line).unwrap_err().exit_code(), i32::from(USAGE), "{line}");
        }
        let version = parse("tcpwatch --version").unwrap_err();
        assert_eq!((version.kind(), version.exit_code()), (ErrorKind::DisplayVersion, 0));
        assert!(version.to_string().starts_with(concat!("tcpwatch ", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn a_known_commit_is_part_of_the_version() {
        assert_eq!(version("abc"), concat!(env!("CARGO_PKG_VERSION"), " (abc)"));
        assert_eq!(version(""), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for line in [
            "tcpwatch --socket /a --config /b run --listen [::1]:1",
            "tcpwatch run --listen [::1]:1 --socket /a --config /b",
        ] {
            let layers = parse(line).unwrap().layers();
            assert_eq!(layers.file, Choice::Named("/b".into()));
            let flags: Vec<_> = layers.flags.iter().map(|flag| (flag.key, flag.name, flag.value.as_str())).collect();
            assert_eq!(flags, [("listen", "--listen", "[::1]:1"), ("socket", "--socket", "/a")]);
        }
    }

    #[test]
    fn the_time_of_a_recording_and_the_number_of_a_snapshot_are_checked() {
        for line in ["record", "record f --duration 5", "record f --duration 0s", "replay", "replay f metrics --at 0"] {
            assert_eq!(parse(&format!("tcpwatch {line}")).unwrap_err().exit_code(), i32::from(USAGE), "{line}");
        }
        let Command::Record(record) = parse("tcpwatch record f --duration 2m").unwrap().command else {
            panic!("other")
        };
        assert_eq!(record.duration, Some(Duration::from_secs(120)));
    }

    #[test]
    fn run_and_doctor_are_left_to_others() {
        let lines = [
            "tcpwatch run",
            "tcpwatch top --once --sort rtt port 443",
            "tcpwatch trace resets --json --duration 5s port 443",
            "tcpwatch doctor --json",
            "tcpwatch record f",
            "tcpwatch replay f",
        ];
        for line in lines {
            assert!(!answer(&parse(line).unwrap(), &mut Vec::new()).unwrap());
        }
    }

    #[test]
    fn check_config_tells_what_is_wrong_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        fs::write(&file, "services = 2\n").unwrap();
        let line = format!("tcpwatch check-config {}", file.display());
        assert!(answered(&line).unwrap().ends_with("t.toml: no errors\n"));
        fs::write(&file, "servces = 2\n").unwrap();
        let error = answered(&line).unwrap_err();
        assert_eq!(error.status(), USAGE);
        assert!(error.to_string().ends_with("t.toml:1: unknown key `servces`; did you mean `services`?"), "{error}");
    }

    #[test]
    fn config_prints_the_settings_with_their_origins() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        fs::write(&file, "services = 2\n").unwrap();
        let text = answered(&format!("tcpwatch --config {} --socket /x config", file.display())).unwrap();
        assert!(text.contains(&format!("services = 2 # {}:1\n", file.display())), "{text}");
        assert!(text.contains("socket = \"/x\" # flag --socket\n"), "{text}");
    }

    #[test]
    fn completions_and_pages_are_not_empty() {
        for shell in ["bash", "fish", "zsh", "elvish", "powershell"] {
            assert!(answered(&format!("tcpwatch completions {shell}")).unwrap().contains("check-config"), "{shell}");
        }
        for page in ["metrics", "config", "filter"] {
            assert!(answered(&format!("tcpwatch docs {page}")).unwrap().starts_with("# "), "{page}");
        }
    }
}
