//! Thirty connections that nothing is wrong with, of mixed kinds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use tcpwatch_lab::relay::Rate;
use tcpwatch_lab::{End, Family, Netns, Pair, Path, Traffic};

use super::case::{is_silent, verdicts};
use super::{daemon, ms, path};
use crate::daemon::Daemon;
use crate::is_long;

/// What a connection does again and again.
type Habit = fn(&mut Pair) -> Result<()>;

/// Kinds of connections.
const HABITS: &[(&str, Habit)] = &[
    ("idle", |_| {
        thread::sleep(ms(100));
        Ok(())
    }),
    ("interactive, with time to think", |pair| {
        thread::sleep(ms(250));
        pair.ping_pong(1, 100)
    }),
    ("keys and their echo", |pair| {
        thread::sleep(ms(120));
        pair.ping_pong(1, 1)
    }),
    ("streaming from the server", |pair| {
        thread::sleep(ms(100));
        pair.send(End::Server, 3000)
    }),
    ("streaming from the client", |pair| {
        thread::sleep(ms(50));
        pair.send(End::Client, 1000)
    }),
    ("long-poll", |pair| {
        pair.send(End::Client, 300)?;
        thread::sleep(ms(1500));
        pair.send(End::Server, 5000)
    }),
    ("pages now and then", |pair| {
        thread::sleep(ms(700));
        pair.send(End::Client, 400)?;
        pair.send(End::Server, 12_000)
    }),
    ("records of a log", |pair| {
        thread::sleep(ms(400));
        pair.send(End::Client, 8000)
    }),
];

/// Half-closed, and still sending; and bulk, in bbr. The other kinds are habits.
const OTHERS: usize = 2;

/// Ten connections on a path, until `over`.
pub(crate) fn ten(path: &Path, over: &(dyn Fn() -> bool + Sync)) -> Result<()> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for (name, habit) in HABITS {
            let lives = move || {
                let mut pair = Traffic::over(path, Family::V4).connect()?;
                while !over() {
                    habit(&mut pair)?;
                }
                Ok(())
            };
            running.push((*name, scope.spawn(lives)));
        }
        let half_closed = move || {
            let mut pair = Traffic::over(path, Family::V4).connect()?;
            pair.half_close(End::Client)?;
            while !over() {
                thread::sleep(ms(150));
                pair.send(End::Server, 4000)?;
            }
            Ok(())
        };
        running.push(("half-closed", scope.spawn(half_closed)));
        let bulk = move || {
            let mut pair = Traffic::over(path, Family::V4).congestion("bbr").connect()?;
            pair.send_while(End::Client, u64::MAX, || !over()).map(drop)
        };
        running.push(("bulk", scope.spawn(bulk)));
        running.into_iter().try_for_each(|(name, flow)| {
            flow.join().map_err(|_| anyhow!("{name}: it panicked"))?.map_err(|error| error.context(name))
        })
    })
}

/// Ten connections on each of three paths: whatever is asked and whenever, nothing is to be said against one of them.
pub(super) fn healthy() -> Result<()> {
    let paths = [healthy_path(2)?, healthy_path(15)?, healthy_path(50)?];
    let namespaces: Vec<&Netns> = paths.iter().flat_map(|path| [path.a(), path.b()]).collect();
    let daemon = daemon(&namespaces)?;
    let (began, lasts) = (Instant::now(), if is_long() { ms(30_000) } else { ms(8000) });
    let failed = AtomicBool::new(false);
    let over = || began.elapsed() > lasts || failed.load(Ordering::Relaxed);
    let mut said = Said::default();
    thread::scope(|scope| {
        let running: Vec<_> = paths.iter().map(|path| scope.spawn(|| ten(path, &over))).collect();
        let asked = said.ask_until(&daemon, &over);
        failed.store(asked.is_err(), Ordering::Relaxed);
        running.into_iter().try_for_each(|flows| flows.join().map_err(|_| anyhow!("flows panicked"))?)?;
        asked
    })?;
    ensure!(said.judged.len() >= 2 * 3 * (HABITS.len() + OTHERS), "only {} ends were judged", said.judged.len());
    println!("{} ends were judged {} times: {} complaints", said.judged.len(), said.times, said.wrong.len());
    ensure!(said.wrong.is_empty(), "{} complaints:\n{}", said.wrong.len(), said.wrong.join("\n"));
    Ok(())
}

/// A path that is long enough for its rate, with a queue that nobody fills.
pub(crate) fn healthy_path(one_way: u64) -> Result<Path> {
    let path = path(one_way)?;
    let rate = Rate { bits_per_second: 20_000_000, queue_packets: usize::MAX, queue_bytes: 1_000_000 };
    path.forward().set_rate(Some(rate));
    Ok(path)
}

/// What was said of connections, and against anything.
#[derive(Default)]
struct Said {
    judged: BTreeSet<u64>,
    times: usize,
    wrong: Vec<String>,
}

impl Said {
    /// Asks of whole lives and of windows by turns.
    fn ask_until(&mut self, daemon: &Daemon, over: &dyn Fn() -> bool) -> Result<()> {
        while !over() {
            for more in ["", "&for=500ms"] {
                for line in daemon.ask(&format!("/api/v1/explain?all=true{more}"))? {
                    self.take(&line);
                }
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn take(&mut self, line: &Value) {
        self.judged.extend(line["subject"]["cookie"].as_u64());
        self.times += 1;
        if !verdicts(line).keys().all(|id| is_silent(id)) {
            self.wrong.push(line.to_string());
        }
    }
}
