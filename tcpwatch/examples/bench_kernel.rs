//! `cargo xtask bench kernel [--json]`: what the programs cost per event, beside the usual ways to do the same.

fn main() -> anyhow::Result<()> {
    let mut options = tcpwatch::bench::kernel::Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--json" => options.json = true,
            "--rounds" => {
                let count = words.next().and_then(|n| n.parse().ok());
                options.rounds = count.ok_or_else(|| anyhow::anyhow!("--rounds takes a number"))?;
            }
            other => anyhow::bail!("unknown argument {other:?}; known are --json and --rounds N"),
        }
    }
    tcpwatch::bench::kernel::run(&options)
}
