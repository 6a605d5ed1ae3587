//! `cargo xtask bench explain [--json]`: how long an explanation of 50,000 connections takes.

fn main() -> anyhow::Result<()> {
    let mut options = tcpwatch::bench::explain::Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse::<u64>().ok());
        match word.as_str() {
            "--json" => options.json = true,
            "--connections" => {
                options.connections = number().ok_or_else(|| anyhow::anyhow!("--connections takes a number"))?;
            }
            "--rounds" => options.rounds = number().ok_or_else(|| anyhow::anyhow!("--rounds takes a number"))? as usize,
            other => anyhow::bail!("unknown argument {other:?}; known are --json, --connections N and --rounds N"),
        }
    }
    tcpwatch::bench::explain::run(&options)
}
