//! `cargo xtask bench WHAT`: what tcpwatch costs. One program for all benchmarks; where one needs a daemon or a viewer,
//! that is this program again. What is made of the numbers, and why they are measured so, is in `src/bench`.

mod allocator;
mod daemon;
mod flood;
mod hold;
mod impact;
mod scale;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tcpwatch::bench::report::Output;
use tcpwatch::bench::{explain, kernel, user};
use tcpwatch_lab::{End, Family, Match, Netns, Path, Traffic};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

#[derive(Parser)]
#[command(name = "bench", about = "What tcpwatch costs")]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// One JSON object on standard output, or into FILE beside the tables
    #[arg(long, global = true, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// As little as shows that it works; the numbers mean nothing
    #[arg(long, global = true)]
    smoke: bool,
}

#[derive(Subcommand)]
enum What {
    /// Time of an event in the kernel, beside a ring-buffer record, an LRU hash and bpftrace
    Kernel {
        /// How often each program is measured
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Throughput, latency and connection rate with and without tcpwatch, and with bpftrace
    Impact {
        /// How often each is measured
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Time, memory and allocations of a record, a snapshot and a scrape
    User,
    /// Memory, CPU and start with many connections; loss against the rate of events
    Scale {
        /// As many sockets as the machine takes, too
        #[arg(long)]
        most: bool,
    },
    /// A bulk transfer beside a flood of resets
    Flood {
        /// Pairs with and without tcpwatch
        #[arg(long)]
        pairs: Option<usize>,
        /// Resets a second
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
    },
    /// `tcpwatch top` with very many connections
    Top {
        /// How many
        #[arg(long)]
        connections: Option<u64>,
    },
    /// `tcpwatch explain` over very many connections
    Explain {
        /// How many
        #[arg(long)]
        connections: Option<u64>,
        /// How often
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// Holds connections for `scale`
    #[command(hide = true)]
    Hold {
        /// How many
        pairs: usize,
    },
}

const MEMORY: user::Memory = user::Memory { allocations: allocator::allocations, live_bytes: allocator::live_bytes };

fn main() -> Result<ExitCode> {
    // The daemon and the viewer that are measured.
    if std::env::args().nth(1).is_some_and(|word| word == "--config" || word == "replay") {
        return Ok(tcpwatch::main());
    }
    let cli = Cli::parse();
    let json = cli.json.as_ref().is_some_and(|file| file.as_os_str() == "-");
    let output = Output { json, file: cli.json.filter(|_| !json), smoke: cli.smoke };
    let report = match cli.what {
        What::Kernel { rounds } => {
            let mut trouble = Trouble::new(&output)?;
            // Nobody else's connections are counted with ours.
            let ns = quiet_namespace()?;
            ns.try_run(|| kernel::run(&kernel::Options { rounds }, &output, &mut || trouble.make()))??
        }
        What::Impact { rounds } => impact::run(&output, rounds)?,
        What::User => {
            allocator::count();
            user::run(&output, MEMORY)?
        }
        What::Scale { most } => {
            allocator::count();
            scale::run(&output, most)?
        }
        What::Flood { pairs, rate } => flood::run(&output, pairs, rate)?,
        What::Top { connections } => top::run(&output, connections)?,
        What::Explain { connections, rounds } => explain::run(&explain::Options {
            connections: connections.unwrap_or(output.count(50_000, 500)),
            rounds: rounds.unwrap_or(output.count(15, 2)),
        })?,
        What::Hold { pairs } => {
            hold::run(pairs)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    report.publish(&output)?;
    Ok(ExitCode::SUCCESS)
}

/// A namespace where thousands of connections leave nothing behind.
fn quiet_namespace() -> Result<Netns> {
    let ns = Netns::new()?;
    ns.sysctl("net.ipv4.tcp_max_tw_buckets", "1000")?;
    Ok(ns)
}

/// A path that loses and repeats segments, and connections over it.
struct Trouble {
    path: Path,
    connections: usize,
}

impl Trouble {
    fn new(output: &Output) -> Result<Self> {
        let path = Path::builder().delay(Duration::from_millis(1)).record_cap(0).build()?;
        path.forward().drop_share(0.03, 1);
        // A SYN that comes twice has its SYN-ACK sent again.
        path.forward().duplicate(Match::syn(), 1, Duration::from_micros(200));
        Ok(Self { path, connections: output.count(10, 2) })
    }

    fn make(&mut self) -> Result<()> {
        let traffic = Traffic::over(&self.path, Family::V4).congestion("cubic");
        let server = traffic.listen()?;
        for _ in 0..self.connections {
            let mut pair = traffic.connect_to(&server)?;
            pair.send(End::Client, 200_000)?;
            // On the way that loses nothing: nobody sends a reset again.
            pair.abort(End::Server)?;
        }
        traffic.refused(self.connections)?;
        Ok(())
    }
}
