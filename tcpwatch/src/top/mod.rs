//! `tcpwatch top`: the connections, services and resets of this host, live, or those of a recording. `columns` has the
//! tables of what is shown, `list` a table as the user has arranged it, `app` the state machine, `history` what was seen
//! over time; `view` draws, `term` has the terminal. `ask` gets finished pages over the API, from the daemon's socket or
//! from programs that this process loads for itself, or from a recording (`playback`).

pub(crate) mod app;
pub(crate) mod ask;
pub(crate) mod columns;
mod history;
mod list;
pub(crate) mod playback;
pub(crate) mod print;
mod term;
pub(crate) mod view;

use std::io::{self, IsTerminal as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::builder::PossibleValuesParser;
use tokio::sync::oneshot;

use self::app::App;
use self::ask::{AskError, Kept, Order, Question, Source, Table};
use self::columns::{NoColumn, Row as _};
use self::playback::Player;
use self::print::Format;
use crate::api::connection::Connection;
use crate::api::resets::Reset;
use crate::api::service::ServiceTotals;
use crate::cli;
use crate::client::{Client, ClientError};
use crate::config::{Config, Origin, Resolved};
use crate::daemon::{self, DaemonError};
use crate::filter::{Filter, FilterError};
use crate::recording::RecordingError;
use crate::sys;

/// `tcpwatch top`, and `tcpwatch replay FILE top`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Print every row and end
    #[arg(long)]
    once: bool,
    /// Print every row as JSON, an object of the API a line, and end
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print every row as CSV, with the fields of the API that the columns show, and end
    #[arg(long)]
    csv: bool,
    /// The table to begin with, or to print
    #[arg(long, value_name = "TABLE", value_enum, default_value_t)]
    table: Table,
    /// Sort by this column of it [default: sent; of services out, of resets ago]
    #[arg(long, value_name = "COLUMN", value_parser = PossibleValuesParser::new(columns::names()), hide_possible_values = true)]
    sort: Option<String>,
    /// Show those that this selects, such as: port 443 and srtt > 50ms
    #[arg(value_name = "EXPR")]
    expr: Vec<String>,
}

impl Args {
    /// What `--once` prints, sorted by this column.
    #[cfg(test)]
    pub(crate) fn once_by(sort: &str) -> Self {
        Self { once: true, sort: Some(sort.to_owned()), ..Self::default() }
    }

    /// How it is printed; none when it is to be watched.
    pub(crate) const fn format(&self) -> Option<Format> {
        match (self.json, self.csv, self.once) {
            (true, ..) => Some(Format::Json),
            (_, true, _) => Some(Format::Csv),
            (_, _, true) => Some(Format::Text),
            _ => None,
        }
    }

    const fn table(&self) -> Table {
        self.table
    }

    /// Every row that is wanted; an expression may be wrong.
    fn order(&self) -> Result<Order, TopError> {
        let sort = self.sort.as_deref();
        let sort = match self.table {
            Table::Connections => columns::find::<Connection>(sort.unwrap_or(Connection::DEFAULT))?.name,
            Table::Services => columns::find::<ServiceTotals>(sort.unwrap_or(ServiceTotals::DEFAULT))?.name,
            Table::Resets => columns::find::<Reset>(sort.unwrap_or(Reset::DEFAULT))?.name,
        };
        Ok(Order::by(sort, Filter::of_words(&self.expr)?.map_or(Kept::All, Kept::Selected)))
    }
}

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopError {
    /// There is no such column.
    #[error(transparent)]
    Column(#[from] NoColumn),
    /// The filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The daemon does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no daemon, and the programs cannot be loaded without it.
    #[error("no daemon runs, and without it: {0}")]
    Own(#[from] DaemonError),
    /// There is no answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The recording is not whole.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// There is nothing to draw on.
    #[error(
        "standard output is not a terminal; `tcpwatch top --once` prints the connections, --json and --csv for programs"
    )]
    NoTerminal,
    /// The terminal failed.
    #[error("the terminal failed: {0}")]
    Terminal(io::Error),
}

impl TopError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Column(_) | Self::Filter(_) | Self::NoTerminal => cli::USAGE,
            Self::Own(error) => error.status(),
            Self::Client(_) | Self::Ask(_) | Self::Recording(_) | Self::Terminal(_) => cli::FAILED,
        }
    }
}

/// Shows or prints a table.
pub(crate) fn run(resolved: &Resolved, args: &Args) -> Result<(), TopError> {
    let order = args.order()?;
    if args.format().is_none() && !on_terminal() {
        return Err(TopError::NoTerminal);
    }
    sys::run_command(TopError::Terminal, async {
        let source = Source::Daemon(Box::new(source(resolved).await?.0));
        view(source, args, order, args.format()).await
    })
}

/// Shows a recording, or prints what is at its end: to anything that is no terminal, too.
pub(crate) fn replay(file: &Path, args: &Args, out: &mut impl io::Write) -> Result<(), TopError> {
    let order = args.order()?;
    let player = Box::new(Player::open(file)?);
    let format = args.format().or_else(|| (!on_terminal()).then_some(Format::Text));
    let Some(format) = format else {
        return sys::run_command(TopError::Terminal, view(Source::Recording(player), args, order, None));
    };
    let mut player = player;
    let question = Question { rows: Some((args.table(), order)), focus: None, verdicts: false, at: u64::MAX };
    let (picture, broken) = player.last(question)?;
    let text = print::shown(&picture.rows, format, usize::MAX);
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(TopError::Terminal(error)),
        _ => {}
    }
    broken.map_or(Ok(()), |error| Err(error.into()))
}

async fn view(mut source: Source, args: &Args, order: Order, format: Option<Format>) -> Result<(), TopError> {
    if let Some(format) = format {
        let question = Question { rows: Some((args.table(), order)), focus: None, verdicts: false, at: u64::MAX };
        let picture = source.answer(question).await?;
        return print::print(&picture.rows, format).map_err(TopError::Terminal);
    }
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let app = App::new(args.table(), args.sort.as_deref())?.filtered(&args.expr.join(" "));
    term::show(app, source, colour).await.map_err(TopError::Terminal)
}

fn on_terminal() -> bool {
    io::stdout().is_terminal() && io::stdin().is_terminal()
}

/// The daemon, or programs of our own where there is none, and whether it is these. Whoever names a socket wants that one.
pub(crate) async fn source(resolved: &Resolved) -> Result<(Client, bool), TopError> {
    match Client::connect(&resolved.config.socket).await {
        Err(error) if error.nobody() && *resolved.origin("socket") == Origin::Default => {
            Ok((own(&resolved.config).await?, true))
        }
        outcome => Ok((outcome?, false)),
    }
}

/// Loads the programs, on a thread that ends when the client does.
async fn own(config: &Config) -> Result<Client, TopError> {
    let failed = |what| move |source| DaemonError::System { what, source };
    let (ours, theirs) = UnixStream::pair().map_err(failed("talk to the own thread"))?;
    let (tell, told) = oneshot::channel();
    let config = config.clone();
    std::thread::Builder::new()
        .name("daemon".to_owned())
        .spawn(move || {
            daemon::run_for(&config, theirs, |outcome| {
                let _nobody_waits = tell.send(outcome);
            });
        })
        .map_err(failed("start a thread"))?;
    told.await.unwrap_or_else(|_| Err(failed("load the programs")(io::Error::other("the thread ended"))))?;
    ours.set_nonblocking(true).map_err(failed("talk to the own thread"))?;
    let ours = tokio::net::UnixStream::from_std(ours).map_err(failed("talk to the own thread"))?;
    Ok(Client::over(ours).await?)
}
