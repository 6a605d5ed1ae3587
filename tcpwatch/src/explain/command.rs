//! `tcpwatch explain`: asks the daemon, or programs of its own, and puts the verdicts into lines.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use super::Explained;
use super::verdict::Verdict;
use crate::api::line;
use crate::cli;
use crate::client::ClientError;
use crate::config::Resolved;
use crate::filter::{Filter, FilterError};
use crate::sys;
use crate::top::{self, TopError};

/// `tcpwatch explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Answer at once, and again after this time, such as 10s: from what happened in it
    #[arg(long = "for", value_name = "T", value_parser = cli::duration)]
    time: Option<Duration>,
    /// Show connections that nothing is wrong with, too
    #[arg(long)]
    all: bool,
    /// An expression that selects connections; without it, services, listeners and the host are looked at as well
    #[arg(value_name = "EXPR")]
    words: Vec<String>,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    /// The filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// There is nobody to ask.
    #[error(transparent)]
    Source(#[from] TopError),
    /// The daemon broke off.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The runtime or the output failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

impl ExplainError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Filter(_) => cli::USAGE,
            Self::Source(error) => error.status(),
            Self::Client(_) | Self::System(..) => cli::FAILED,
        }
    }
}

/// Explains at once, and then what happened in a time, if one is given.
pub(crate) fn run(resolved: &Resolved, args: &Args) -> Result<(), ExplainError> {
    let filter = Filter::of_words(&args.words)?;
    sys::run_command(|error| ExplainError::System("start the runtime", error), async {
        let (mut client, _) = top::source(resolved).await?;
        print(&client.explain(filter.as_ref(), None, args.all).await?, args)?;
        if args.time.is_some() {
            print(&client.explain(filter.as_ref(), args.time, args.all).await?, args)?;
        }
        Ok(())
    })
}

fn print(explained: &[Explained], args: &Args) -> Result<(), ExplainError> {
    let text = shown(explained, args.json);
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `tcpwatch explain | head` is not a failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ExplainError::System("write the answer", error)),
        _ => Ok(()),
    }
}

/// One JSON object a line, or text for readers.
pub(crate) fn shown(explained: &[Explained], json: bool) -> String {
    if json { explained.iter().map(line).collect() } else { text(explained) }
}

/// For readers.
fn text(explained: &[Explained]) -> String {
    let mut text = String::new();
    for one in explained {
        let _to_memory = writeln!(text, "{}  ({})", one.subject.line(), window(one));
        for verdict in &one.verdicts {
            text.push_str(&said(verdict));
        }
    }
    if explained.is_empty() {
        text.push_str("no connection is selected, and nothing else is in trouble\n");
    }
    text
}

/// The time that it stands on.
pub(crate) fn window(explained: &Explained) -> String {
    match explained.window.as_str() {
        "interval" => format!("over {:.1} s", explained.window_s),
        _ if explained.window_s > 0.0 => format!("since it began, {:.1} s", explained.window_s),
        _ => "now".to_owned(),
    }
}

/// A verdict in three lines, or two when there is nothing to be done.
pub(crate) fn said(verdict: &Verdict) -> String {
    let share = verdict.share.map_or_else(String::new, |share| format!(", {:.0} % of the time", share * 100.0));
    let mut text = format!("  {} (sure to {:.0} %{share})\n", verdict.id.name(), verdict.confidence * 100.0);
    let _to_memory = writeln!(text, "    {}", verdict.sentence);
    if !verdict.remedy.is_empty() {
        let _to_memory = writeln!(text, "    → {}", verdict.remedy);
    }
    text
}
