//! `tcpwatch trace`: what happens, a line each. `line` makes the lines.
//!
//! The daemon makes only events of the kinds that are asked for, and sends only those that the filter selects.

mod line;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use serde_json::Value;
use tcpwatch_common::record::Kind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::interest::Kinds;
use crate::cli;
use crate::client::{ClientError, Events};
use crate::config::Resolved;
use crate::filter::{Filter, FilterError};
use crate::http::events::Notice;
use crate::sys;
use crate::top::{self, TopError};

/// How often it is looked whether somebody still reads.
const LOOK: Duration = Duration::from_millis(250);
/// How long the daemon may take to end the stream when the time is over.
const GRACE: Duration = Duration::from_secs(5);

/// `tcpwatch trace`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Time after which to stop, such as 90s or 10m; without it, at SIGINT or SIGTERM
    #[arg(long, value_name = "T", value_parser = cli::duration)]
    duration: Option<Duration>,
    /// What to print, and an expression that selects among it
    #[arg(value_name = "WHAT EXPR")]
    words: Vec<String>,
}

impl Args {
    /// The kinds of events, and the filter.
    fn wanted(&self) -> Result<(Kinds, Option<Filter>), FilterError> {
        let (kinds, rest) = match self.words.split_first() {
            Some((what, rest)) => match what.as_str() {
                "resets" => (Kinds::of(&[Kind::Reset, Kind::ResetReceived]), rest),
                "retransmits" => (Kinds::of(&[Kind::Retransmit]), rest),
                "connections" => (Kinds::of(&[Kind::Open, Kind::Close]), rest),
                "all" => (Kinds::ALL, rest),
                _ => (Kinds::ALL, self.words.as_slice()),
            },
            None => (Kinds::ALL, self.words.as_slice()),
        };
        Ok((kinds, Filter::of_words(rest)?))
    }
}

/// Why the trace ends badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// The filter is wrong.
    #[error("{0}\nbefore it there may be one of resets, retransmits, connections, all")]
    Filter(#[from] FilterError),
    /// There is nobody to ask.
    #[error(transparent)]
    Source(#[from] TopError),
    /// The daemon ended, or it broke off.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon ended before the trace.
    #[error("the daemon ended")]
    Ended,
    /// The terminal, a signal or the output failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

impl TraceError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Filter(_) => cli::USAGE,
            Self::Source(error) => error.status(),
            Self::Client(_) | Self::Ended | Self::System(..) => cli::FAILED,
        }
    }
}

/// Prints events until the time is over, a signal comes or nobody reads any more.
pub(crate) fn run(resolved: &Resolved, args: &Args) -> Result<(), TraceError> {
    let (kinds, filter) = args.wanted()?;
    sys::run_command(|error| TraceError::System("start the runtime", error), async {
        let (client, _) = top::source(resolved).await?;
        let events = client.events(kinds, filter.as_ref(), args.duration).await?;
        // Whatever happens from now on is told.
        let _nobody_listens =
            writeln!(io::stderr(), "tcpwatch: tracing {}; Ctrl-C ends", kinds.list().replace(',', ", "));
        let out = io::stdout();
        let colour = out.is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let mut printer = Printer { out: out.lock(), json: args.json, colour, left_out: LeftOut::default() };
        let traced = follow(events, args.duration, &mut printer).await;
        printer.finish().and(traced)
    })
}

async fn follow(
    mut events: Events,
    time: Option<Duration>,
    printer: &mut Printer<impl Write>,
) -> Result<(), TraceError> {
    let failed = |error| TraceError::System("wait for signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    // The daemon ends the stream in time; a daemon that hangs does not hold us.
    let late = time.and_then(|time| Instant::now().checked_add(time + GRACE));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            now = look.tick() => {
                if late.is_some_and(|late| now > late) || !somebody_reads() {
                    return Ok(());
                }
                continue;
            }
        };
        let Some(event) = event else { return Err(TraceError::Ended) };
        match printer.take(&event) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(TraceError::System("write to standard output", error)),
        }
    }
}

/// Whether standard output still has a reader.
fn somebody_reads() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_err() || !fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR))
}

/// Events that are not shown, by why.
#[derive(Debug, Default, PartialEq, Eq)]
struct LeftOut(BTreeMap<String, u64>);

impl LeftOut {
    fn add(&mut self, notice: &Notice) {
        let mut add = |why: &str, count| *self.0.entry(why.to_owned()).or_default() += count;
        match notice {
            Notice::Missed { missed } => add("too_slow", *missed),
            Notice::Lost { lost } => lost.iter().for_each(|(place, count)| add(place, *count)),
            Notice::End => {}
        }
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: u64 = self.0.values().sum();
        let reasons: Vec<_> = self.0.iter().map(|(why, count)| format!("{why} {count}")).collect();
        write!(f, "left out {total}")?;
        if reasons.is_empty() { Ok(()) } else { write!(f, ": {}", reasons.join(", ")) }
    }
}

/// Where lines go.
struct Printer<W> {
    out: W,
    json: bool,
    colour: bool,
    left_out: LeftOut,
}

impl<W: Write> Printer<W> {
    /// Prints an event; false when it is the last.
    fn take(&mut self, event: &str) -> io::Result<bool> {
        if let Ok(notice) = serde_json::from_str::<Notice>(event) {
            if notice == Notice::End {
                return Ok(false);
            }
            self.left_out.add(&notice);
            if self.json {
                writeln!(self.out, "{event}")?;
            } else {
                let mut now = LeftOut::default();
                now.add(&notice);
                let _nobody_listens = writeln!(io::stderr(), "tcpwatch: {now}");
            }
        } else if self.json {
            writeln!(self.out, "{event}")?;
        } else {
            let event: Value = serde_json::from_str(event).unwrap_or_default();
            writeln!(self.out, "{}", line::line(&event, self.colour))?;
        }
        // Whoever reads a trace waits for its lines.
        self.out.flush()?;
        Ok(true)
    }

    /// Says what was left out.
    fn finish(&mut self) -> Result<(), TraceError> {
        let told = if self.json {
            let summary = serde_json::json!({"event": "end", "left_out": self.left_out.0});
            writeln!(self.out, "{summary}").and_then(|()| self.out.flush())
        } else {
            let _nobody_listens = writeln!(io::stderr(), "tcpwatch: {}", self.left_out);
            Ok(())
        };
        match told {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(TraceError::System("write to standard output", error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Args {
        Args { json: false, duration: None, words: words.iter().map(|word| (*word).to_owned()).collect() }
    }

    #[test]
    fn the_first_word_may_be_what_to_print() {
        for (words, kinds, filter) in [
            (&[][..], Kinds::ALL, None),
            (&["resets"], Kinds::of(&[Kind::Reset, Kind::ResetReceived]), None),
            (&["retransmits", "port", "443"], Kinds::of(&[Kind::Retransmit]), Some("port 443")),
            (&["connections", "port 443 and pid 5"], Kinds::of(&[Kind::Open, Kind::Close]), Some("port 443 and pid 5")),
            (&["all", "ipv4"], Kinds::ALL, Some("ipv4")),
            (&["port", "443"], Kinds::ALL, Some("port 443")),
        ] {
            let (found, selects) = args(words).wanted().unwrap();
            assert_eq!((found, selects.map(|filter| filter.to_string()).as_deref()), (kinds, filter), "{words:?}");
        }
        let error = TraceError::from(args(&["reset"]).wanted().unwrap_err());
        assert!(error.status() == cli::USAGE && error.to_string().contains("one of resets, retransmits"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_added_up_and_told_at_the_end() {
        let mut printer = Printer { out: Vec::new(), json: true, colour: false, left_out: LeftOut::default() };
        for event in [
            r#"{"event":"missed","missed":3}"#,
            r#"{"event":"lost","lost":{"ring":2,"throttled":5}}"#,
            r#"{"event":"listener","pid":1}"#,
            r#"{"event":"missed","missed":1}"#,
        ] {
            assert!(printer.take(event).unwrap());
        }
        assert!(!printer.take(r#"{"event":"end"}"#).unwrap());
        printer.finish().unwrap();
        let text = String::from_utf8(printer.out).unwrap();
        let end = r#"{"event":"end","left_out":{"ring":2,"throttled":5,"too_slow":4}}"#;
        assert_eq!((text.lines().count(), text.lines().last()), (5, Some(end)));
        assert_eq!(printer.left_out.to_string(), "left out 11: ring 2, throttled 5, too_slow 4");
        assert_eq!(LeftOut::default().to_string(), "left out 0");
    }
}
