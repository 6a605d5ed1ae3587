//! `tcpwatch top`: the connections of this host, live. `columns` is the table of what is shown, `app` the state machine,
//! `view` draws it, `term` has the terminal. Everything shown comes over the API, from the daemon's socket or from
//! programs that this process loads for itself.

mod app;
pub(crate) mod columns;
mod term;
mod view;

use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;

use tokio::sync::oneshot;

use self::app::{App, Picture};
use self::columns::{COLUMNS, Column, NoColumn};
use crate::api::connection::Connection;
use crate::cli;
use crate::client::{Client, ClientError};
use crate::config::{Config, Origin, Resolved};
use crate::daemon::{self, DaemonError};
use crate::filter::{Filter, FilterError};
use crate::sys;

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
    /// There is nothing to draw on.
    #[error("standard output is not a terminal; `tcpwatch top --once` prints the connections")]
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
            Self::Client(_) | Self::Terminal(_) => cli::FAILED,
        }
    }
}

/// Shows or prints the connections.
pub(crate) fn run(resolved: &Resolved, once: bool, sort: &str, expr: &[String]) -> Result<(), TopError> {
    let column = columns::find(sort)?;
    let filter = Filter::of_words(expr)?;
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !once && !terminal {
        return Err(TopError::NoTerminal);
    }
    sys::run_command(TopError::Terminal, async {
        let (mut client, _) = source(resolved).await?;
        if once {
            let picture = picture(&mut client, column.name, None, filter.as_ref()).await?;
            return print(&picture.connections).map_err(TopError::Terminal);
        }
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        term::show(App::new(column).filtered(&expr.join(" ")), client, colour).await.map_err(TopError::Terminal)
    })
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

/// What the daemon says now.
async fn picture(
    client: &mut Client,
    column: &str,
    limit: Option<usize>,
    filter: Option<&Filter>,
) -> Result<Picture, ClientError> {
    Ok(Picture { status: client.status().await?, connections: client.connections(column, limit, filter).await? })
}

/// Prints every row; on a terminal no wider than that.
fn print(connections: &[Connection]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let width = if out.is_terminal() { ratatui::crossterm::terminal::size()?.0 } else { u16::MAX };
    match out.write_all(table(connections, usize::from(width)).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Every row of the table of columns; no line is longer than `most`.
pub(crate) fn table(connections: &[Connection], most: usize) -> String {
    let cells: Vec<Vec<String>> =
        connections.iter().map(|connection| COLUMNS.iter().map(|column| (column.text)(connection)).collect()).collect();
    let widths: Vec<usize> = COLUMNS
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let widest = cells.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(column.title.len())
        })
        .collect();
    let line =
        |row: &mut dyn Iterator<Item = (&str, &Column)>| {
            let padded = row.zip(&widths).map(|((cell, column), width)| {
                if column.numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let line: String = padded.collect::<Vec<_>>().join(" ").trim_end().chars().take(most).collect();
            line + "\n"
        };
    let mut text = line(&mut COLUMNS.iter().map(|column| (column.title, column)));
    for row in &cells {
        text += &line(&mut row.iter().map(String::as_str).zip(COLUMNS));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};

    #[test]
    fn every_row_is_printed_in_full() {
        let mut record = busy(1);
        record.key.ip_version = 6;
        record.comm = *b"a-very-long-name";
        let text = table(&[shown(&busy(2)), shown(&record)], usize::MAX);
        crate::golden::check("tests/golden/top/once.txt", &text);
        assert!(table(&[shown(&record)], 20).lines().all(|line| line.chars().count() <= 20));
    }
}
