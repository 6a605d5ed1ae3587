//! S2 to S12: what makes transfers slow.

use std::thread;
use std::time::Instant;

use anyhow::Result;
use tcpwatch_lab::relay::Rate;
use tcpwatch_lab::{End, Family, Path, Traffic, sockopt};

use super::case::Case;
use super::{Choice, Row, limited, ms, path};

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "S2",
        what: "an answer on a new connection; its KB",
        case: short_answer,
        choices: [
            (4, 512, "cubic"),
            (20, 512, "cubic"),
            (4, 256, "bbr"),
            (10, 1024, "cubic"),
            (10, 384, "bbr"),
            (30, 128, "cubic"),
            (30, 256, "bbr"),
            (50, 512, "cubic"),
            (60, 1024, "reno"),
            (75, 300, "cubic"),
        ],
    },
    Row {
        id: "S3",
        what: "512 KB, a pause, 512 KB; its ms",
        case: pause,
        choices: [
            (25, 1200, "cubic"),
            (25, 800, "reno"),
            (50, 1500, "cubic"),
            (10, 700, "cubic"),
            (10, 1000, "reno"),
            (15, 1500, "cubic"),
            (35, 1000, "cubic"),
            (40, 1300, "reno"),
            (60, 1200, "cubic"),
            (75, 1500, "cubic"),
        ],
    },
    Row {
        id: "S4",
        what: "uploads over a path that loses; per mille",
        case: lossy,
        choices: [
            (20, 50, "cubic"),
            (20, 50, "bbr"),
            (40, 50, "cubic"),
            (40, 30, "bbr"),
            (10, 20, "cubic"),
            (10, 30, "bbr"),
            (5, 50, "cubic"),
            (30, 80, "cubic"),
            (15, 80, "bbr"),
            (50, 20, "reno"),
        ],
    },
    Row {
        id: "S5",
        what: "a reader that stands still; for so many ms",
        case: stands_still,
        choices: [
            (10, 2000, "cubic"),
            (10, 3000, "bbr"),
            (2, 2500, "cubic"),
            (2, 1500, "bbr"),
            (30, 2500, "cubic"),
            (30, 2000, "bbr"),
            (50, 3000, "cubic"),
            (20, 1500, "reno"),
            (5, 4000, "cubic"),
            (15, 3500, "bbr"),
        ],
    },
    Row {
        id: "S6",
        what: "a reader that takes everything now and then; each ms",
        case: bursts,
        choices: [
            (10, 1000, "cubic"),
            (10, 800, "bbr"),
            (2, 600, "cubic"),
            (2, 1000, "bbr"),
            (30, 1000, "cubic"),
            (30, 700, "bbr"),
            (5, 500, "cubic"),
            (20, 900, "reno"),
            (40, 800, "cubic"),
            (15, 600, "bbr"),
        ],
    },
    Row {
        id: "S7",
        what: "a writer that pauses; KB of a write",
        case: slow_writer,
        choices: [
            (5, 80, "cubic"),
            (5, 80, "bbr"),
            (2, 40, "cubic"),
            (2, 100, "bbr"),
            (8, 60, "cubic"),
            (8, 120, "bbr"),
            (10, 50, "cubic"),
            (1, 64, "reno"),
            (4, 150, "cubic"),
            (3, 96, "bbr"),
        ],
    },
    Row {
        id: "S8",
        what: "a send buffer that is too small; KB",
        case: small_buffer,
        choices: [
            (40, 40, "cubic"),
            (100, 40, "cubic"),
            (40, 32, "bbr"),
            (60, 24, "cubic"),
            (60, 48, "bbr"),
            (30, 32, "cubic"),
            (80, 64, "cubic"),
            (80, 40, "bbr"),
            (50, 20, "reno"),
            (25, 24, "cubic"),
        ],
    },
    Row {
        id: "S9",
        what: "tiny segments; bytes of a dialogue, 0 for a stream",
        case: tiny,
        choices: [
            (1, 0, "cubic"),
            (10, 1, "cubic"),
            (2, 0, "bbr"),
            (4, 0, "cubic"),
            (5, 1, "bbr"),
            (8, 4, "cubic"),
            (12, 8, "bbr"),
            (15, 16, "cubic"),
            (3, 0, "reno"),
            (20, 2, "cubic"),
        ],
    },
    Row {
        id: "S10",
        what: "write, write, read; bytes of a write",
        case: nagle,
        choices: [
            (1, 100, "cubic"),
            (10, 100, "cubic"),
            (1, 300, "bbr"),
            (2, 50, "cubic"),
            (5, 200, "bbr"),
            (5, 20, "cubic"),
            (8, 400, "cubic"),
            (15, 100, "bbr"),
            (20, 60, "reno"),
            (3, 500, "cubic"),
        ],
    },
    Row {
        id: "S11",
        // bbr does not fill queues.
        what: "10 Mbit/s with a queue; of so many ms",
        case: bloated,
        choices: [
            (10, 200, "cubic"),
            (20, 200, "cubic"),
            (10, 150, "reno"),
            (5, 100, "cubic"),
            (5, 250, "cubic"),
            (15, 300, "cubic"),
            (20, 250, "reno"),
            (30, 200, "cubic"),
            (2, 150, "cubic"),
            (25, 150, "cubic"),
        ],
    },
    Row {
        id: "S12",
        what: "a half-closed client gets its answer; per mille lost",
        case: half_closed,
        choices: [
            (20, 30, "cubic"),
            (20, 30, "bbr"),
            (10, 0, "cubic"),
            (10, 50, "cubic"),
            (40, 0, "cubic"),
            (40, 50, "bbr"),
            (5, 30, "cubic"),
            (30, 20, "reno"),
            (30, 0, "bbr"),
            (15, 80, "cubic"),
        ],
    },
    Row {
        id: "W",
        // Not one of the experiments: the verdict that none of them asks for.
        what: "an early loss on a long path, after which the window grows by a segment a round trip; which segment",
        case: slow_growth,
        choices: [
            (60, 15, "reno"),
            (100, 25, "reno"),
            (50, 12, "reno"),
            (75, 20, "cubic"),
            (100, 12, "cubic"),
            (80, 30, "reno"),
            (40, 15, "reno"),
            (120, 18, "reno"),
            (60, 25, "cubic"),
            (90, 15, "reno"),
        ],
    },
];

fn short_answer((one_way, kb, congestion): Choice) -> Result<Case> {
    let answer = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        pair.send(End::Server, kb << 10)?;
        thread::sleep(ms(2500));
        Ok(())
    };
    Ok(Case::own(path(one_way)?, answer).server(&["slow_start"]))
}

fn pause((one_way, pause, congestion): Choice) -> Result<Case> {
    let case = Case::staged("idle-restart", |s| {
        (s.duration, s.pause, s.one_way) = (ms(3000), ms(pause), ms(one_way));
        s.congestion = Some(congestion);
    })?;
    Ok(case.client(&["idle_restart"]))
}

fn lossy((one_way, per_mille, congestion): Choice) -> Result<Case> {
    let case = Case::staged("loss", |s| {
        (s.duration, s.congestion, s.one_way) = (ms(3500), Some(congestion), ms(one_way));
        s.loss = [per_mille as f64 / 1000.0, 0.0];
        // bbr is not slowed by loss, and need not show how fast this machine is. The queue takes 12 ms.
        s.rate = Some(Rate { bits_per_second: 20_000_000, queue_packets: usize::MAX, queue_bytes: 30_000 });
    })?;
    Ok(case.client(&["loss"]).window("1500ms"))
}

fn stands_still((one_way, pause, congestion): Choice) -> Result<Case> {
    let case = Case::staged("zero-window", |s| {
        (s.duration, s.pause, s.one_way) = (ms(0), ms(pause), ms(one_way));
        s.congestion = Some(congestion);
    })?;
    Ok(case.client(&["receiver_window"]).server(&["receiver_window"]))
}

fn bursts((one_way, pause, congestion): Choice) -> Result<Case> {
    let case = Case::staged("bursty-reader", |s| {
        (s.duration, s.pause, s.one_way) = (ms(3500), ms(pause), ms(one_way));
        s.congestion = Some(congestion);
    })?;
    Ok(case.client(&["receiver_window"]).server(&["receiver_window"]).window("2s"))
}

fn slow_writer((one_way, kb, congestion): Choice) -> Result<Case> {
    let writes = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        for _ in 0..25 {
            pair.send(End::Client, kb << 10)?;
            thread::sleep(ms(140));
        }
        Ok(())
    };
    Ok(Case::own(path(one_way)?, writes).client(&["application"]).window("1500ms"))
}

fn small_buffer((one_way, kb, congestion): Choice) -> Result<Case> {
    let small = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        sockopt::set_send_buffer(&pair.client, (kb << 10) as usize)?;
        let began = Instant::now();
        pair.send_while(End::Client, u64::MAX, || began.elapsed() < ms(4000)).map(drop)
    };
    Ok(Case::own(path(one_way)?, small).client(&["send_buffer"]).window("2s"))
}

fn tiny((one_way, bytes, congestion): Choice) -> Result<Case> {
    if bytes == 0 {
        let case = Case::staged("tiny-writes", |s| {
            (s.duration, s.one_way, s.congestion) = (ms(3500), ms(one_way), Some(congestion));
        })?;
        return Ok(case.client(&["tiny_segments"]));
    }
    let rounds = (4000 / (2 * one_way)) as usize;
    let dialogue =
        move |path: &Path| Traffic::over(path, Family::V4).congestion(congestion).connect()?.ping_pong(rounds, bytes);
    Ok(Case::own(path(one_way)?, dialogue).client(&["tiny_segments"]).server(&["tiny_segments"]))
}

fn nagle((one_way, bytes, congestion): Choice) -> Result<Case> {
    let case = Case::staged("nagle", |s| {
        (s.duration, s.one_way, s.size, s.congestion) = (ms(3000), ms(one_way), bytes, Some(congestion));
    })?;
    Ok(case.client(&["nagle_delayed_ack"]))
}

fn bloated((one_way, queue, congestion): Choice) -> Result<Case> {
    let case = Case::staged("bufferbloat", |s| {
        (s.duration, s.one_way, s.congestion) = (ms(3500), ms(one_way), Some(congestion));
        let bits_per_second = 10_000_000;
        let queue_bytes = (bits_per_second / 8 * queue / 1000) as usize;
        s.rate = Some(Rate { bits_per_second, queue_packets: usize::MAX, queue_bytes });
    })?;
    Ok(case.client(&["bufferbloat"]).window("1500ms"))
}

fn half_closed((one_way, per_mille, congestion): Choice) -> Result<Case> {
    let answer = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        pair.send(End::Client, 300)?;
        pair.half_close(End::Client)?;
        if per_mille == 0 {
            pair.send(End::Server, 512 << 10)?;
            thread::sleep(ms(2500));
            return Ok(());
        }
        path.backward().drop_share(per_mille as f64 / 1000.0, 1);
        let began = Instant::now();
        pair.send_while(End::Server, u64::MAX, || began.elapsed() < ms(4000)).map(drop)
    };
    if per_mille == 0 {
        return Ok(Case::own(path(one_way)?, answer).server(&["slow_start"]));
    }
    Ok(Case::own(limited(one_way)?, answer).server(&["loss"]))
}

fn slow_growth((one_way, segment, congestion): Choice) -> Result<Case> {
    let upload = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        path.forward().drop_nth_data(segment);
        let began = Instant::now();
        pair.send_while(End::Client, u64::MAX, || began.elapsed() < ms(6000)).map(drop)
    };
    Ok(Case::own(path(one_way)?, upload).client(&["congestion_window"]))
}
