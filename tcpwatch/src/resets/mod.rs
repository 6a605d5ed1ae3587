//! `tcpwatch resets`: who resets connections here, and why. Everything comes over the API, from the daemon's socket or
//! from programs that this process loads for itself and lets watch for a while.

mod flame;
mod select;
pub(crate) mod view;

use std::future::pending;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::api::line;
use crate::api::resets::Resets;
use crate::cli::{self, ResetsArgs};
use crate::client::ClientError;
use crate::config::Resolved;
use crate::filter::{Filter, FilterError};
use crate::sys;
use crate::top::{self, TopError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResetsError {
    /// The expression is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Neither a daemon nor programs of our own.
    #[error(transparent)]
    Source(#[from] TopError),
    /// The daemon does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A signal cannot be waited for, or nobody takes the output.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The picture cannot be written.
    #[error("cannot write the flame graph to {}: {reason}; name a file in a folder that you may write to", path.display())]
    Flame {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// There is nothing to draw.
    #[error("there is no flame graph of no resets: {0}")]
    Nothing(&'static str),
}

impl ResetsError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Filter(_) => cli::USAGE,
            Self::Source(error) => error.status(),
            Self::Client(_) | Self::System { .. } | Self::Flame { .. } | Self::Nothing(_) => cli::FAILED,
        }
    }
}

/// Shows the resets.
pub(crate) fn run(resolved: &Resolved, args: &ResetsArgs) -> Result<(), ResetsError> {
    let failed = |what| move |source| ResetsError::System { what, source };
    let filter = Filter::of_words(&args.words)?;
    // What cannot be written is told before somebody has waited for it.
    let picture = args.flamegraph.as_deref().map(flame::Picture::begin).transpose()?;
    let mut resets = sys::run_command(failed("start"), async {
        let (mut client, own) = top::source(resolved).await?;
        match args.duration {
            None if !own => {}
            // Programs that were loaded a moment ago have seen nothing yet.
            duration => {
                let until = duration.map_or_else(String::new, |span| format!("for {span:?} or "));
                let who = if own { "no daemon runs; " } else { "" };
                let _nobody_reads = writeln!(io::stderr(), "tcpwatch: {who}watching {until}until Ctrl-C");
                wait(duration).await?;
            }
        }
        Ok::<_, ResetsError>(client.resets().await?)
    })?;
    if let Some(filter) = &filter {
        let kept = select::select(&mut resets, filter);
        let _nobody_reads = writeln!(
            io::stderr(),
            "tcpwatch: {} of the {kept} newest resets are selected; counts are of all resets with their causes and stacks",
            resets.newest.len()
        );
    }
    if let Some(picture) = picture {
        return picture.finish(&resets);
    }
    print(&shown(&resets, args.json)).map_err(failed("write to standard output"))
}

/// For so long, or until a signal.
async fn wait(duration: Option<Duration>) -> Result<(), ResetsError> {
    let failed = |source| ResetsError::System { what: "wait for a signal", source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let end = async {
        match duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = end => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// What is printed.
pub(crate) fn shown(resets: &Resets, json: bool) -> String {
    if json { lines(resets) } else { view::text(resets) }
}

/// One object a line, each with what it is.
fn lines(resets: &Resets) -> String {
    #[derive(serde::Serialize)]
    struct Told<'a, T> {
        kind: &'static str,
        #[serde(flatten)]
        what: &'a T,
    }
    let Resets { causes, reasons, stacks, newest, .. } = resets;
    let rest = Resets { causes: vec![], reasons: vec![], stacks: vec![], newest: vec![], ..resets.clone() };
    let mut summary = serde_json::to_value(&rest).unwrap_or_default();
    if let Some(summary) = summary.as_object_mut() {
        for list in ["causes", "reasons", "stacks", "newest"] {
            summary.remove(list);
        }
    }
    let mut text = line(&Told { kind: "summary", what: &summary });
    for what in causes {
        text += &line(&Told { kind: "cause", what });
    }
    for what in reasons {
        text += &line(&Told { kind: "reason", what });
    }
    for what in stacks {
        text += &line(&Told { kind: "stack", what });
    }
    for what in newest {
        text += &line(&Told { kind: "reset", what });
    }
    text
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Where a file is made before it gets its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}
