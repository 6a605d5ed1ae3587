//! What `explain` says of situations that people meet: the right cause for each, on the right end, and no second wrong one.
//!
//! Each row of situations is a table of ten choices of parameters. All of them are played in the long run, and at least
//! nine must be right; the short run plays the first one or two. Several play at once on paths of their own, watched by
//! one daemon, and what was said last of each connection before it closed is held against what it is known to suffer.

mod alone;
mod case;
mod healthy;
mod life;
mod opening;
mod recorded;
mod retransmission;
mod slow;

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::relay::Rate;
use tcpwatch_lab::{Netns, Path};

use self::case::Case;
use crate::daemon::Daemon;
use crate::{is_long, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("explain_names_what_makes_transfers_slow", || all(slow::ROWS)),
        trial("explain_names_what_is_lost_and_what_is_sent_again", || all(retransmission::ROWS)),
        trial("explain_names_what_connections_of_a_service_suffer_together", || all(opening::ROWS)),
        trial("explain_names_ends_that_are_not_closed", || all(life::ROWS)),
        trial("explain_names_listeners_and_hosts_whose_queues_fill", life::queues),
        trial("explain_has_nothing_to_say_against_healthy_connections", healthy::healthy),
        trial("explain_without_a_daemon_answers_at_once_and_then_refines", alone::alone),
        trial("the_recordings_of_explanations_can_be_made_anew", recorded::all),
    ]
}

/// One choice of parameters: ms from one end to the other, the parameter that the row names, and the congestion control.
type Choice = (u64, u64, &'static str);

/// A row of situations that are one.
struct Row {
    id: &'static str,
    /// What it plays; what its parameter is.
    what: &'static str,
    case: fn(Choice) -> Result<Case>,
    choices: [Choice; 10],
}

/// Of the choices of a row, so many must be right in the long run.
const MUST_BE_RIGHT: usize = 9;

/// How many of each row the short run plays.
fn chosen() -> usize {
    if is_long() { 10 } else { 2 }
}

/// As many as one daemon takes: it watches up to eight namespaces.
const CASES_OF_A_DAEMON: usize = 4;

/// Plays the choices of all rows, and counts those that were judged rightly.
fn all(rows: &[Row]) -> Result<()> {
    let tasks: Vec<(&Row, Choice)> =
        rows.iter().flat_map(|row| row.choices.iter().take(chosen()).map(move |choice| (row, *choice))).collect();
    let wrong = Mutex::new(Vec::new());
    for group in tasks.chunks(CASES_OF_A_DAEMON) {
        play(group, &wrong)?;
    }
    let wrong = wrong.into_inner().map_err(|_| anyhow!("a thread panicked"))?;
    let mut failed = Vec::new();
    for row in rows {
        let right = chosen() - wrong.iter().filter(|(id, _)| *id == row.id).count();
        println!("{}: {right} of {} right ({})", row.id, chosen(), row.what);
        let needed = if is_long() { MUST_BE_RIGHT } else { chosen() };
        failed.extend((right < needed).then_some(row.id));
    }
    let told: Vec<&str> = wrong.iter().map(|(_, error)| error.as_str()).collect();
    println!("{}", told.join("\n\n"));
    ensure!(failed.is_empty(), "rows {failed:?}:\n{}", told.join("\n\n"));
    Ok(())
}

/// Plays some at once; what was wrong is noted by row.
fn play(group: &[(&Row, Choice)], wrong: &Mutex<Vec<(&'static str, String)>>) -> Result<()> {
    let cases = group.iter().map(|(row, choice)| (row.case)(*choice)).collect::<Result<Vec<Case>>>()?;
    let together: Vec<&Netns> =
        cases.iter().filter(|c| c.service.is_none()).flat_map(|case| [case.path().a(), case.path().b()]).collect();
    let shared = if together.is_empty() { None } else { Some(daemon(&together)?) };
    thread::scope(|scope| {
        for ((row, choice), case) in group.iter().zip(&cases) {
            let shared = &shared;
            scope.spawn(move || {
                let outcome = match shared {
                    Some(daemon) if case.service.is_none() => case.check(daemon),
                    _ => daemon(&[case.path().a(), case.path().b()]).and_then(|daemon| case.check(&daemon)),
                };
                if let Err(error) = outcome.with_context(|| format!("{} {choice:?}, {}", row.id, row.what)) {
                    wrong
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((row.id, format!("{error:#}")));
                }
            });
        }
    });
    Ok(())
}

fn daemon(namespaces: &[&Netns]) -> Result<Daemon> {
    Daemon::with(namespaces, "sample_interval = \"100ms\"")
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A path without trouble, so many ms long.
fn path(one_way: u64) -> Result<Path> {
    Path::builder().delay(ms(one_way)).build()
}

/// The same, of 20 Mbit/s either way with a queue of 12 ms: what keeps sending need not show how fast this machine is.
fn limited(one_way: u64) -> Result<Path> {
    let path = path(one_way)?;
    let rate = Rate { bits_per_second: 20_000_000, queue_packets: usize::MAX, queue_bytes: 30_000 };
    path.forward().set_rate(Some(rate));
    path.backward().set_rate(Some(rate));
    Ok(path)
}
