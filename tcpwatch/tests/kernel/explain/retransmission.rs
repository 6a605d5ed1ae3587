//! R1 to R4 and R7: what is lost, what only seems so, and peers that are gone.

use std::thread;

use anyhow::Result;
use tcpwatch_lab::relay::Rate;
use tcpwatch_lab::{End, Family, Path, Traffic};

use super::case::Case;
use super::{Choice, Row, ms, path};

/// Uploads whose peer vanishes: R1 while the kernel still tries, and after it has given up.
pub(super) const VANISHING: [Choice; 10] = [
    (10, 20, "cubic"),
    (10, 20, "bbr"),
    (2, 5, "cubic"),
    (2, 60, "bbr"),
    (30, 10, "cubic"),
    (30, 1, "bbr"),
    (50, 40, "cubic"),
    (20, 3, "reno"),
    (5, 100, "cubic"),
    (40, 30, "bbr"),
];

pub(super) const ROWS: &[Row] = &[
    Row { id: "R1", what: "the peer vanishes; KB of an upload", case: vanishes, choices: VANISHING },
    Row {
        id: "R2",
        what: "so many segments of a flight are lost",
        case: flight,
        choices: [
            (10, 1, "cubic"),
            (40, 1, "cubic"),
            (10, 1, "bbr"),
            (20, 2, "cubic"),
            (20, 2, "bbr"),
            (30, 3, "cubic"),
            (30, 1, "reno"),
            (15, 3, "bbr"),
            (50, 2, "cubic"),
            (25, 1, "bbr"),
        ],
    },
    Row {
        id: "R3",
        what: "the last segment of each answer is lost; bytes of an answer",
        case: tail,
        choices: [
            (10, 6_000, "cubic"),
            (10, 6_000, "bbr"),
            (20, 9_000, "cubic"),
            (20, 12_000, "bbr"),
            (5, 4_000, "cubic"),
            (30, 8_000, "bbr"),
            (30, 5_000, "cubic"),
            (15, 3_000, "reno"),
            (40, 7_000, "cubic"),
            (25, 10_000, "bbr"),
        ],
    },
    Row {
        id: "R4",
        what: "segments overtake others; by ms",
        case: reordering,
        choices: [
            (10, 15, "cubic"),
            (30, 25, "cubic"),
            (10, 15, "bbr"),
            (20, 20, "cubic"),
            (20, 30, "bbr"),
            (15, 20, "cubic"),
            (25, 30, "cubic"),
            (30, 40, "bbr"),
            (10, 20, "reno"),
            (40, 35, "cubic"),
        ],
    },
    Row {
        id: "R7",
        what: "larger packets vanish; than bytes",
        case: black_hole,
        choices: [
            (10, 1200, "cubic"),
            (10, 700, "bbr"),
            (20, 1400, "cubic"),
            (20, 1280, "bbr"),
            (2, 1000, "cubic"),
            (40, 1450, "cubic"),
            (5, 600, "bbr"),
            (30, 900, "reno"),
            (50, 1300, "cubic"),
            (15, 1100, "bbr"),
        ],
    },
];

fn vanishes((one_way, kb, congestion): Choice) -> Result<Case> {
    let case = Case::staged("peer-vanishes", |s| {
        (s.duration, s.one_way, s.size) = (ms(0), ms(one_way), kb << 10);
        s.congestion = Some(congestion);
        s.sysctls = &[(End::Client, "net.ipv4.tcp_retries2", "4")];
    })?;
    Ok(case.client(&["peer_vanished"]))
}

fn flight((one_way, lost, congestion): Choice) -> Result<Case> {
    let flight = move |path: &Path| {
        let mut pair = Traffic::over(path, Family::V4).congestion(congestion).connect()?;
        for n in 0..lost {
            path.forward().drop_nth_data(30 + 5 * n);
        }
        pair.send(End::Client, 200_000)?;
        thread::sleep(ms(2500));
        Ok(())
    };
    let case = Case::own(path(one_way)?, flight).client(&["loss"]);
    Ok(case.evidence(&[("fast", lost), ("timeout", 0), ("lost_segments", lost)]))
}

fn tail((one_way, bytes, congestion): Choice) -> Result<Case> {
    let case = Case::staged("tail-loss", |s| {
        (s.duration, s.one_way, s.size, s.congestion) = (ms(3000), ms(one_way), bytes, Some(congestion));
    })?;
    Ok(case.client(&["loss"]).evidence(&[("timeout", 0), ("fast", 0)]))
}

fn reordering((one_way, extra, congestion): Choice) -> Result<Case> {
    let case = Case::staged("reordering", |s| {
        (s.duration, s.one_way, s.congestion) = (ms(3000), ms(one_way), Some(congestion));
        s.reordering = s.reordering.map(|(share, _)| (share, ms(extra)));
        s.rate = Some(Rate { bits_per_second: 40_000_000, queue_packets: usize::MAX, queue_bytes: 2_000_000 });
    })?;
    Ok(case.client(&["spurious_retransmits"]))
}

fn black_hole((one_way, bytes, congestion): Choice) -> Result<Case> {
    let case = Case::staged("mtu-black-hole", |s| {
        (s.duration, s.one_way, s.congestion) = (ms(0), ms(one_way), Some(congestion));
        (s.vanish_above, s.pause) = (Some(bytes as u32), ms(4000));
    })?;
    Ok(case.client(&["mtu_black_hole"]))
}
