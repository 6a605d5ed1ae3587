//! `tcpwatch record`: the daemon without its outputs, with a recording instead. It loads the programs itself, beside a
//! daemon that may be running, and takes them out again.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use crate::aggregate::snapshot::Snapshot;
use crate::cli::Record;
use crate::config::Config;
use crate::daemon::{self, Daemon, DaemonError, TICK};
use crate::metrics::Recorded;
use crate::recording::{NewFile, Written};

/// Records until the time is over, or SIGTERM or SIGINT, and prints what was recorded.
pub(crate) fn run(config: &Config, args: &Record) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::System { what: "start the runtime", source })?;
    runtime.block_on(record(config, args))
}

async fn record(config: &Config, args: &Record) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
    // What can fail for want of a free name fails before the kernel is touched.
    let file = NewFile::create(&args.file)?;
    let (facts, loaded) = match daemon::attach(config) {
        Ok(attached) => attached,
        Err(error) => {
            file.discard();
            return Err(error);
        }
    };
    let mut daemon = Daemon::new(config, &facts, loaded, Some(file))?;
    drop(facts);
    let mut shown = Recorded::default();
    daemon.announce();
    shown.take(&*daemon.read()?);
    log::info!("recording to {}", args.file.display());

    let began = Instant::now();
    let enough = tokio::time::sleep(args.duration.unwrap_or(Duration::MAX));
    tokio::pin!(enough);
    let mut tick = tokio::time::interval_at(began + TICK, TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut enough => break,
            batch = daemon.next_batch() => {
                batch?;
            }
            _ = tick.tick() => {
                daemon.every_tick()?;
                shown.take(&*daemon.read()?);
            }
        }
    }
    let last = daemon.read()?;
    shown.take(&last);
    let written = daemon.finish()?;
    let mut out = io::stdout().lock();
    let said = if args.metrics {
        out.write_all(shown.text()?.as_bytes())
    } else {
        write!(out, "{}", summary(args, &written, &last, began.elapsed()))
    };
    match said {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(DaemonError::Output(error)),
        _ => Ok(()),
    }
}

fn summary(args: &Record, written: &Written, last: &Arc<Snapshot>, time: Duration) -> String {
    let own = &last.own;
    let missed = own.programs.iter().map(|program| program.recursion_misses);
    let lost: u64 = own.losses.iter().copied().chain(missed).sum();
    format!(
        "{}: {} records and {} snapshots of {:.1} s in {} bytes; {lost} events lost\n",
        args.file.display(),
        written.records,
        written.readings,
        time.as_secs_f64(),
        written.bytes,
    )
}
