//! How memory, time and loss grow with connections and events: what is made of the numbers of the example.

use super::report::{Cell, Goal, Report, Table};
use super::sample::Median;
use super::user::Replayed;

/// What a daemon takes with so many real sockets on the host.
#[derive(Clone, Debug, Default)]
pub struct Size {
    /// Sockets; both ends of a connection are on this host.
    pub sockets: u64,
    /// From the start of the process to ready, with the sockets there before, s.
    pub start_s: Vec<f64>,
    /// Connections in its table afterwards.
    pub entries: u64,
    /// Resident memory of the daemon, bytes.
    pub resident_bytes: u64,
    /// What the kernel's slabs have grown by when the daemon began to watch, bytes.
    pub slab_bytes: i64,
    /// CPUs of the daemon while one connection in a hundred had an exchange each second.
    pub idle_cpus: f64,
    /// CPUs of the daemon while every connection had one, as far as the machine got.
    pub busy_cpus: f64,
    /// Segments with data that the sockets received a second while they were busy.
    pub busy_segments_per_second: f64,
    /// A scrape over HTTP, ms.
    pub scrape_ms: Vec<f64>,
    /// Its size, bytes.
    pub scrape_bytes: u64,
    /// What the daemon says was lost, and where.
    pub lost: Vec<(String, u64)>,
}

/// A flood of resets.
#[derive(Clone, Debug, Default)]
pub struct Flood {
    /// What is asked for, in words.
    pub name: String,
    /// By the kernel's count.
    pub resets_per_second: f64,
    /// By ours, share of the kernel's.
    pub counted_share: f64,
    /// Records that the daemon took, a second.
    pub records_per_second: f64,
    /// Share of records that did not fit into the ring.
    pub lost_share: f64,
    /// Share of records that were held back by the limit of the settings.
    pub throttled_share: f64,
    /// CPUs of the daemon.
    pub daemon_cpus: f64,
}

/// Scrapes and starts must be faster, at this many sockets.
const LARGE: u64 = 100_000;
const SCRAPE_MS: f64 = 100.0;
const START_S: f64 = 2.0;
/// CPUs with so many sockets that are mostly idle, or busy.
const IDLE: (u64, f64) = (10_000, 0.01);
const BUSY: (u64, f64) = (50_000, 0.05);

fn lost(places: &[(String, u64)]) -> String {
    let lost: Vec<_> = places.iter().filter(|(_, count)| *count > 0).map(|(p, count)| format!("{p} {count}")).collect();
    if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }
}

/// What they say.
pub fn report(sizes: &[Size], floods: &[Flood], replayed: &[(u64, Replayed)]) -> Report {
    let mut report = Report::new("scale");
    let columns = [
        "start to ready, s",
        "in the table",
        "daemon, MB",
        "kernel, bytes a socket",
        "CPU mostly idle, %",
        "CPU busy, %",
        "segments/s when busy",
        "scrape, ms",
        "scrape, bytes",
        "lost",
    ];
    let mut table = Table::new("Real sockets on this host, watched by one daemon", &columns);
    for size in sizes {
        let (start, scrape) = (Median::of(&size.start_s), Median::of(&size.scrape_ms));
        table.row(
            format!("{} sockets", size.sockets),
            vec![
                Cell::median(start),
                Cell::number(size.entries as f64),
                Cell::number(size.resident_bytes as f64 / 1e6),
                Cell::number(size.slab_bytes as f64 / size.sockets as f64),
                Cell::number(size.idle_cpus * 100.0),
                Cell::number(size.busy_cpus * 100.0),
                Cell::number(size.busy_segments_per_second),
                Cell::median(scrape),
                Cell::number(size.scrape_bytes as f64),
                Cell::text(lost(&size.lost)),
            ],
        );
        let mut goal = |at: u64, what: &str, measured: Option<Median>, limit: f64| {
            if size.sockets >= at && size.sockets < at * 2 {
                report.goal(Goal::at_most(&format!("{what}, with {} sockets", size.sockets), measured, limit));
            }
        };
        let percent = |cpus: f64| Median::of(&[cpus * 100.0]);
        goal(IDLE.0, "the daemon, mostly idle, % of a CPU", percent(size.idle_cpus), IDLE.1 * 100.0);
        goal(BUSY.0, "the daemon, busy, % of a CPU", percent(size.busy_cpus), BUSY.1 * 100.0);
        goal(LARGE, "scrape, ms", scrape, SCRAPE_MS);
        goal(LARGE, "start to ready, s", start, START_S);
    }
    table.note(
        "Sockets are held by processes and network namespaces of their own; every connection has both ends on the host. \
         Mostly idle: one connection in a hundred has an exchange a second. Busy: all have, or as many as the machine can.",
    );
    report.table(table);

    let columns = ["ns a record", "user memory, MB", "bytes each", "resident, MB", "snapshot, ms", "scrape, ms"];
    let mut table = Table::new("Connections replayed into the aggregator, each heard of once", &columns);
    for (connections, replayed) in replayed {
        table.row(
            format!("{connections} connections"),
            [
                replayed.ns_per_record,
                replayed.live_bytes as f64 / 1e6,
                replayed.live_bytes as f64 / *connections as f64,
                replayed.resident_bytes as f64 / 1e6,
                replayed.snapshot_ms,
                replayed.scrape_ms,
            ]
            .map(Cell::number)
            .to_vec(),
        );
    }
    report.table(table);

    let columns = ["resets/s", "counted", "records/s", "lost in the ring", "held back", "daemon, CPUs"];
    let mut table = Table::new("Loss against the rate of events: a flood of resets", &columns);
    for flood in floods {
        table.row(
            flood.name.clone(),
            [
                flood.resets_per_second,
                flood.counted_share,
                flood.records_per_second,
                flood.lost_share,
                flood.throttled_share,
                flood.daemon_cpus,
            ]
            .map(Cell::number)
            .to_vec(),
        );
    }
    table.note(
        "Counted: resets by our counters, as a share of the kernel's own count (OutRsts). Lost and held back: shares of the \
         records of all kinds that there would have been. What is lost is detail, and shown as lost.",
    );
    report.table(table);
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_held_against_the_sizes_that_they_are_for() {
        let size = |sockets: u64| Size {
            sockets,
            start_s: vec![1.0, 1.1, 3.0],
            idle_cpus: 0.005,
            busy_cpus: 0.06,
            scrape_ms: vec![20.0],
            slab_bytes: 512 * sockets as i64,
            lost: vec![("ring".to_owned(), 7), ("map".to_owned(), 0)],
            ..Size::default()
        };
        let report = report(&[size(200), size(10_000), size(50_000), size(100_000)], &[], &[]);
        let object = report.json(false);
        let goals: Vec<_> = object["goals"].as_array().unwrap().iter().map(|goal| &goal["verdict"]).collect();
        assert_eq!(goals, ["reached", "not reached", "reached", "unresolved, width 2.00"]);
        let row = &object["tables"][0]["rows"][3];
        assert_eq!((&row["cells"][3]["value"], &row["cells"][9]["text"]), (&512.0.into(), &"ring 7".into()));
        assert_eq!(lost(&[]), "nothing");
    }
}
