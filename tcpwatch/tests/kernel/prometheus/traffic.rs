//! What the daemons see while Prometheus watches: some of everything, or what a healthy service has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tcpwatch_lab::{End, Family, Pair, Path, Traffic};

/// Refused connections a second, which is a storm.
const STORM_RATE: u32 = 200;

/// Goes on until it is told not to.
type Work<'a> = dyn Fn(&AtomicBool) -> Result<()> + Sync + 'a;

/// Does `what` while `work` goes on in other threads; an error of either is the error.
pub(crate) fn while_busy<T>(work: &[&Work<'_>], what: impl FnOnce() -> Result<T>) -> Result<T> {
    let go_on = AtomicBool::new(true);
    thread::scope(|scope| {
        let threads: Vec<_> = work.iter().map(|work| scope.spawn(|| work(&go_on))).collect();
        let done = what();
        go_on.store(false, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("the traffic panicked"))??;
        }
        done
    })
}

fn goes_on(go_on: &AtomicBool) -> bool {
    go_on.load(Ordering::Relaxed)
}

/// Transfers with losses, stalls, and ends of all kinds, in both families.
pub(crate) fn of_all_kinds(path: &Path, go_on: &AtomicBool) -> Result<()> {
    let server = Traffic::over(path, Family::V4).listen()?;
    let mut open: Pair = Traffic::over(path, Family::V4).congestion("cubic").connect_to(&server)?;
    let mut round = 0;
    while goes_on(go_on) {
        round += 1;
        open.ping_pong(20, 200)?;
        let losses = path.forward().drop_share(0.02, round);
        open.send(End::Client, 300_000)?;
        losses.remove();
        if round % 4 == 1 {
            // Until the receiver's buffer is full.
            let stalled = open.fill(End::Client, Duration::from_millis(100))?;
            open.read_out(End::Server, stalled)?;
        }
        for family in [Family::V4, Family::V6] {
            let traffic = Traffic::over(path, family);
            for end in [End::Client, End::Server] {
                traffic.connect()?.close(end)?;
                traffic.connect()?.abort(end)?;
            }
            traffic.connect()?.close_with_unread(End::Server, 500)?;
            traffic.connect()?.send_after_close(End::Server)?;
            traffic.refused(3)?;
        }
    }
    Ok(())
}

/// Connections to a port where nothing listens, so many that it is a storm.
pub(crate) fn storm(path: &Path, go_on: &AtomicBool) -> Result<()> {
    let traffic = Traffic::loopback(path.a(), Family::V4);
    while goes_on(go_on) {
        traffic.refused(STORM_RATE as usize / 20)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Requests and transfers that end by FIN, one in twenty by a client that leaves, on a path that loses next to nothing.
pub(crate) fn healthy(path: &Path, go_on: &AtomicBool) -> Result<()> {
    let traffic = Traffic::over(path, Family::V4);
    let server = traffic.listen()?;
    let mut open = traffic.connect_to(&server)?;
    for request in 1.. {
        if !goes_on(go_on) {
            break;
        }
        open.ping_pong(5, 300)?;
        if request % 5 == 0 {
            // Only here: a reset that is lost is not sent again, and waited for in vain.
            let losses = path.forward().drop_share(0.005, request);
            open.send(End::Client, 100_000)?;
            losses.remove();
        }
        let mut short = traffic.connect_to(&server)?;
        short.ping_pong(2, 1000)?;
        if request % 20 == 0 {
            short.abort(End::Client)?;
        } else {
            short.close(End::Client)?;
        }
        thread::sleep(Duration::from_millis(10));
    }
    open.close(End::Client)
}
