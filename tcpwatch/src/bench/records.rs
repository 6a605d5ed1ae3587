//! Made-up records of many connections, as the kernel programs would send them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use tcpwatch_common::counters::{GAUGE_WORDS, Loss, reason};
use tcpwatch_common::record::{ABI, ConnRecord, Header, Kind, Record, decode, encode};
use tcpwatch_common::state::{Direction, TcpState};

use crate::aggregate::snapshot::Facts;
use crate::kernel::maps::{Counters, SlotCounters};
use crate::recording::Beginning;

/// What the aggregator of a daemon with default settings is made of, but for the size of its table.
pub(super) fn beginning(connections: u64) -> Beginning {
    Beginning {
        facts: Facts { kernel_release: "bench".to_owned(), ticks_per_second: 250, ..Facts::default() },
        services: 16,
        table_capacity: connections as usize,
        ..Beginning::default()
    }
}

/// Counters of so many slots, each of which has counted `count` of everything.
pub(super) fn counters(slots: u32, count: u64) -> Counters {
    let mut slot = SlotCounters::ZERO;
    slot.words.fill(count);
    slot.dist.fill(count);
    Counters {
        slots: vec![slot; slots as usize],
        reasons: vec![0; reason::WORDS],
        losses: [0; Loss::ALL.len()],
        gauges: [0; GAUGE_WORDS],
        stacks: Vec::new(),
    }
}

/// The bytes of a record that says nothing but what it is.
pub(super) fn zeros(kind: Kind, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let header = Header { kind: kind as u16, abi: ABI, len: len as u32, ktime_ns: 0 };
    encode(&header, &mut bytes).context("the record is shorter than a header")?;
    Ok(bytes)
}

/// A connection with numbers of its own, which change from one `moment` to the next.
pub(super) fn connection(cookie: u64, moment: u64, now_ns: u64) -> Result<ConnRecord> {
    let bytes = zeros(Kind::Sample, size_of::<ConnRecord>())?;
    let Ok(Record::Conn(_, mut record)) = decode(&bytes) else { anyhow::bail!("it is no record of a connection") };
    let mixed = (cookie ^ moment).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    record.header.ktime_ns = now_ns;
    record.cookie = cookie;
    record.started_ns = 1;
    (record.key.ip_version, record.key.netns) = (4, 4_026_531_840);
    record.key.local = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    record.key.remote = Ipv4Addr::from_bits(0x0a80_0000 | (cookie as u32 & 0x007f_ffff)).to_ipv6_mapped().octets();
    (record.key.local_port, record.key.remote_port) = (443, cookie as u16);
    (record.state, record.established_ns) = (TcpState::Established as u8, 1);
    record.direction = Direction::Inbound as u8;
    (record.pid, record.snd_cwnd) = (cookie as u32 % 4096 + 2, mixed as u32 % 300 + 2);
    record.comm = *b"a-server-process";
    (record.srtt_us, record.min_rtt_us) = (mixed as u32 % 300_000 + 100, 100);
    (record.bytes_sent, record.bytes_received) = (mixed, mixed / 3);
    record.total_retrans = mixed as u32 % 50;
    Ok(record)
}
