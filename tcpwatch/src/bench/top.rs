//! What `tcpwatch top` takes with very many connections: a recording of them for the example to replay on a terminal, and
//! what its numbers say.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;
use tcpwatch_common::counters::{GAUGE_WORDS, Loss, reason, slot};
use tcpwatch_common::record::{ABI, ConnRecord, Header, Kind, Record, decode, encode};
use tcpwatch_common::state::TcpState;

use crate::aggregate::Reading;
use crate::aggregate::snapshot::Facts;
use crate::kernel::maps::{Counters, SlotCounters};
use crate::recording::{Beginning, Input, NewFile, Recorder};

/// What must be reached.
const FIRST_FRAME_S: f64 = 1.0;
const MEMORY_BYTES: u64 = 150_000_000;
const CPUS: f64 = 0.05;
/// Readings a second, of all connections together: what the daemon lets through at most.
const READINGS: u64 = 5000;

/// Makes a recording of so many connections, all there at the first of `seconds` snapshots.
pub fn make(path: &Path, connections: u64, seconds: u64) -> Result<()> {
    let beginning = Beginning {
        facts: Facts { kernel_release: "bench".to_owned(), ticks_per_second: 250, ..Facts::default() },
        services: 16,
        table_capacity: connections as usize,
        ..Beginning::default()
    };
    let mut recorder = Recorder::begin(NewFile::create(path)?, &beginning)?;
    let mut bytes = vec![0; size_of::<ConnRecord>()];
    for second in 1..=seconds {
        let now_ns = second * 1_000_000_000;
        let read = if second == 1 { connections } else { READINGS };
        for n in 0..read {
            let cookie = (second * READINGS + n) % connections + 1;
            let record = connection(cookie, second, now_ns)?;
            encode(&record, &mut bytes).context("the record does not fit")?;
            recorder.add(Input::Record(&bytes));
        }
        let counters = Counters {
            slots: vec![SlotCounters::ZERO; slot::FIRST_FREE as usize],
            reasons: vec![0; reason::WORDS],
            losses: [0; Loss::ALL.len()],
            gauges: [0; GAUGE_WORDS],
            stacks: Vec::new(),
        };
        let reading = Reading { ktime_ns: now_ns, ..Reading::default() };
        recorder.add(Input::Reading(&counters, &reading));
        recorder.flush()?;
    }
    recorder.finish()?;
    Ok(())
}

/// A connection with numbers of its own.
fn connection(cookie: u64, second: u64, now_ns: u64) -> Result<ConnRecord> {
    let mut bytes = vec![0; size_of::<ConnRecord>()];
    let header = Header { kind: Kind::Sample as u16, abi: ABI, len: bytes.len() as u32, ktime_ns: now_ns };
    encode(&header, &mut bytes).context("the header does not fit")?;
    let Ok(Record::Conn(_, mut record)) = decode(&bytes) else { anyhow::bail!("it is no record of a connection") };
    let mixed = (cookie ^ second).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    record.cookie = cookie;
    record.started_ns = 1;
    (record.key.ip_version, record.key.netns) = (4, 4_026_531_840);
    record.key.local = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    record.key.remote = Ipv4Addr::from_bits(0x0a80_0000 | (cookie as u32 & 0x007f_ffff)).to_ipv6_mapped().octets();
    (record.key.local_port, record.key.remote_port) = (443, cookie as u16);
    (record.state, record.established_ns) = (TcpState::Established as u8, 1);
    (record.pid, record.snd_cwnd) = (cookie as u32 % 4096 + 2, mixed as u32 % 300 + 2);
    record.comm = *b"a-server-process";
    (record.srtt_us, record.min_rtt_us) = (mixed as u32 % 300_000 + 100, 100);
    (record.bytes_sent, record.bytes_received) = (mixed, mixed / 3);
    record.total_retrans = mixed as u32 % 50;
    Ok(record)
}

/// What was measured of the process.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Connections.
    pub connections: u64,
    /// From its start to the first frame with all of them.
    pub first_frame_s: f64,
    /// The most memory that it had.
    pub peak_bytes: u64,
    /// Processors that it took, at a frame a second.
    pub cpus: f64,
}

/// Prints the numbers; whether they are what must be reached.
pub fn report(measured: &Measured, json: bool) -> Result<bool> {
    let Measured { connections, first_frame_s, peak_bytes, cpus } = *measured;
    let reached = first_frame_s < FIRST_FRAME_S && peak_bytes < MEMORY_BYTES && cpus < CPUS;
    let mut out = std::io::stdout().lock();
    if json {
        let object = json!({
            "connections": connections, "first_frame_s": first_frame_s, "peak_bytes": peak_bytes, "cpus": cpus,
            "reached": reached,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{connections} connections")?;
        writeln!(out, "first frame  {first_frame_s:>8.3} s   (below {FIRST_FRAME_S} s)")?;
        writeln!(out, "memory       {:>8.1} MB  (below {} MB)", peak_bytes as f64 / 1e6, MEMORY_BYTES / 1_000_000)?;
        writeln!(out, "redraws      {:>8.2} % of a CPU  (below {} %)", cpus * 100.0, CPUS * 100.0)?;
    }
    Ok(reached)
}
