//! tcpwatch.
mod aggregate;
mod kernel;
mod objects;
mod source;
mod sys;
fn main() -> anyhow::Result<()> {
    env_logger::init();
    let t = std::time::Instant::now();
    let facts = kernel::facts::KernelFacts::gather(std::path::Path::new("/"))?;
    println!("facts {:?} hz {}", t.elapsed(), facts.hz);
    for (s, f) in facts.layout.fields() { print!("{}={}/{}/{} ", s.name, f.offset, f.shift, f.bits); }
    let o = kernel::load::Options { ring_bytes: 1 << 20, detail_per_second: 1000, tick_mode: false, netns: vec![], kernel_log: false, strict: false };
    let l = kernel::load::load(&facts, &o)?;
    println!("load {:?}", t.elapsed());
    for p in &l.probes { println!("{p:?}"); }
    println!("maps {}", l.maps.map_bytes);
    std::thread::sleep(std::time::Duration::from_secs(std::env::args().nth(1).map_or(1, |s| s.parse().unwrap())));
    let c = l.maps.read(4)?;
    println!("{:?} {:?} {:?}", &c.slots.iter().map(|s| &s.words[..60]).collect::<Vec<_>>(), c.losses, c.gauges);
    Ok(())
}
