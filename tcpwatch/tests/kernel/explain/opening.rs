//! S1, R5 and R6, and R1 after its end: what connections of a service suffer together, each case under a daemon of its
//! own, as they are counted together.

use anyhow::{Result, ensure};
use tcpwatch_lab::{End, Family, Path, Traffic};

use super::case::Case;
use super::retransmission::VANISHING;
use super::{Choice, Row, ms, path};

pub(super) const ROWS: &[Row] = &[
    Row {
        id: "S1",
        what: "a connection for each upload; of KB",
        case: short_connections,
        choices: [
            (50, 50, "cubic"),
            (100, 1000, "cubic"),
            (10, 20, "bbr"),
            (25, 100, "cubic"),
            (25, 200, "bbr"),
            (50, 500, "cubic"),
            (75, 10, "bbr"),
            (15, 2, "cubic"),
            (40, 300, "reno"),
            (100, 100, "bbr"),
        ],
    },
    Row {
        id: "R5",
        what: "SYNs and SYN-ACKs are lost; bytes of an upload",
        case: late,
        choices: [
            (10, 10_000, "cubic"),
            (30, 5_000, "bbr"),
            (5, 1_000, "cubic"),
            (50, 10_000, "bbr"),
            (20, 20_000, "cubic"),
            (40, 2_000, "cubic"),
            (15, 8_000, "bbr"),
            (25, 500, "reno"),
            (2, 10_000, "cubic"),
            (60, 4_000, "cubic"),
        ],
    },
    Row {
        id: "R6",
        what: "a silent host; 0: SYNs vanish, 1: answers do, 2 and 3: the same with IPv6",
        case: silent,
        choices: [
            (10, 0, "cubic"),
            (10, 1, "bbr"),
            (20, 2, "cubic"),
            (20, 3, "bbr"),
            (50, 0, "bbr"),
            (50, 1, "cubic"),
            (5, 2, "bbr"),
            (5, 3, "cubic"),
            (80, 0, "reno"),
            (80, 2, "cubic"),
        ],
    },
    Row {
        id: "R1",
        what: "the peer vanishes, and the kernel gives up; KB of an upload",
        case: given_up,
        choices: VANISHING,
    },
];

fn short_connections((one_way, kb, congestion): Choice) -> Result<Case> {
    let uploads = move |path: &Path| {
        let traffic = Traffic::over(path, Family::V4).congestion(congestion);
        let server = traffic.listen()?;
        for _ in 0..5 {
            let mut pair = traffic.connect_to(&server)?;
            pair.send(End::Client, kb << 10)?;
            pair.close(End::Client)?;
        }
        Ok(())
    };
    Ok(Case::own(path(one_way)?, uploads).also(&["slow_start"]).service("not_reused"))
}

fn late((one_way, bytes, congestion): Choice) -> Result<Case> {
    let case = Case::staged("syn-loss", |s| {
        (s.duration, s.one_way, s.size, s.congestion) = (ms(3000), ms(one_way), bytes, Some(congestion));
    })?;
    // And it is a new connection for each transfer.
    Ok(case.client(&["syn_lost"]).also(&["syn_lost", "not_reused"]).service("syn_lost"))
}

fn silent((one_way, way, congestion): Choice) -> Result<Case> {
    let silent = move |path: &Path| {
        path.a().sysctl("net.ipv4.tcp_syn_retries", "1")?;
        let family = if way < 2 { Family::V4 } else { Family::V6 };
        let traffic = Traffic::over(path, family).congestion(congestion);
        let server = traffic.listen()?;
        let lane = if way % 2 == 0 { path.forward() } else { path.backward() };
        lane.blackhole();
        ensure!(!traffic.try_connect(&server, ms(20_000))?, "it connected through a black hole");
        Ok(())
    };
    Ok(Case::own(path(one_way)?, silent).client(&["syn_lost"]).service("syn_lost"))
}

fn given_up((one_way, kb, congestion): Choice) -> Result<Case> {
    let case = Case::staged("peer-vanishes", |s| {
        (s.duration, s.one_way, s.size) = (ms(0), ms(one_way), kb << 10);
        s.congestion = Some(congestion);
        s.sysctls = &[(End::Client, "net.ipv4.tcp_retries2", "3")];
    })?;
    Ok(case.client(&["peer_vanished"]).service("peer_vanished"))
}
