//! How long `tcpwatch explain` takes over many connections: the verdicts, their JSON, and what the command makes of it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tcpwatch_common::record::{ABI, ConnRecord, Header, Kind, Record};
use tcpwatch_common::state::TcpState;

use super::report::{Cell, Report, Table};
use super::sample::Median;
use crate::aggregate::kept::Kept;
use crate::api::Listing;
use crate::explain::{Explained, Picture, Sight, command};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Connections.
    pub connections: u64,
    /// How often.
    pub rounds: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 50_000, rounds: 15 }
    }
}

/// When the picture is of, ns.
const NOW_NS: u64 = 601_000_000_000;
/// Jiffies in a second.
const HZ: u32 = 250;

/// Measures.
///
/// # Errors
/// When an answer is not what it should be.
pub fn run(options: &Options) -> Result<Report> {
    let records = (0..options.connections).map(connection).collect::<Result<Vec<_>>>()?;
    let listing = Listing { ktime_ns: NOW_NS, records, ..Listing::default() };
    let now = Picture { listing, ..Picture::default() };
    // The same table twice is a window in which nothing has happened; to find its beginning is what costs.
    let whole = Sight { now: now.clone(), before: None, ticks_per_second: HZ };
    let window = Sight { before: Some(now.clone()), now, ticks_per_second: HZ };
    let mut steps: [(&str, Vec<f64>); 4] = [
        ("troubles", vec![]),
        ("every_connection", vec![]),
        ("every_connection_of_a_window", vec![]),
        ("text", vec![]),
    ];
    for _ in 0..options.rounds {
        let mut took = Vec::new();
        let mut timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            let began = Instant::now();
            work()?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            Ok(())
        };
        let mut lines = String::new();
        timed(&mut || {
            black_box(whole.lines(None, false));
            Ok(())
        })?;
        timed(&mut || {
            lines = whole.lines(None, true);
            Ok(())
        })?;
        timed(&mut || {
            black_box(window.lines(None, true));
            Ok(())
        })?;
        timed(&mut || {
            let explained: Vec<Explained> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            ensure!(explained.len() as u64 == options.connections, "{} lines", explained.len());
            black_box(command::shown(&explained, false));
            Ok(())
        })?;
        for ((_, all), took) in steps.iter_mut().zip(took) {
            all.push(took);
        }
    }
    let mut report = Report::new("explain");
    report.set("connections", options.connections);
    report.set("rounds", options.rounds);
    let title = format!("`tcpwatch explain` over {} connections", options.connections);
    let mut table = Table::new(&title, &["ms, median [95 %]"]);
    let words =
        ["those in trouble", "every connection", "every connection, over a window", "the command: JSON to text"];
    for ((name, values), words) in steps.iter().zip(words) {
        let median = Median::of(values);
        report.median(&format!("{name}_ms"), median);
        table.row(words, vec![Cell::median(median)]);
    }
    report.table(table);
    Ok(report)
}

/// Connections of many kinds, so that all rules have something to look at.
fn connection(cookie: u64) -> Result<Kept> {
    let mut bytes = vec![0_u8; size_of::<ConnRecord>()];
    let header =
        Header { kind: Kind::Sample as u16, abi: ABI, len: bytes.len() as u32, ktime_ns: NOW_NS - cookie * 997 };
    tcpwatch_common::record::encode(&header, &mut bytes).context("a record is longer than a header")?;
    let Ok(Record::Conn(_, mut record)) = tcpwatch_common::record::decode(&bytes) else {
        anyhow::bail!("a record of zeros is not understood")
    };
    let n = cookie as u32;
    record.cookie = cookie + 1;
    record.state = if n % 50 == 7 { TcpState::CloseWait } else { TcpState::Established } as u8;
    (record.started_ns, record.established_ns) = (1_000_000_000, 1_050_000_000);
    (record.snd_wnd, record.rcv_wnd, record.snd_cwnd, record.mss) = (65_535, 65_535, 10 + n % 200, 1448);
    (record.min_rtt_us, record.srtt_us) = (20_000 + n % 1000, 20_000 + n * 7 % 100_000);
    (record.data_segs_out, record.data_segs_in) = (n % 5_000, n % 700);
    record.bytes_sent = u64::from(record.data_segs_out) * u64::from(1 + n % 1448);
    record.bytes_acked = record.bytes_sent;
    (record.rtt_samples, record.rtt_sum_us) = (n % 300, u64::from(n % 300) * u64::from(record.srtt_us));
    record.limited_jiffies = [n % 140_000, n * 3 % 9_000, n * 11 % 4_000];
    record.retrans = [n % 60 / 57, n % 90 / 88, n % 30 / 29, 0, 0, 0];
    record.total_retrans = record.retrans.iter().sum();
    record.since_ack_jiffies = n % 10_000;
    record.since_sent_jiffies = n % 10_000;
    if let Some(bucket) = record.sketch.get_mut(n as usize % 24) {
        *bucket = record.rtt_samples;
    }
    Ok(Kept::new(&record))
}
