//! OpenMetrics with exemplars, and native histograms: as a real Prometheus takes them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tcpwatch_lab::{End, Family, Path, Traffic};

use super::server::{Prometheus, Setup, percent};
use super::traffic::{self, while_busy};
use crate::daemon::Daemon;

/// What `/metrics` answers to who asks for this.
fn ask(daemon: &Daemon, accept: &str) -> Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(daemon.address)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n",
        daemon.address
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("no HTTP answer")?;
    let head = String::from_utf8(answer[..end].to_vec())?.to_ascii_lowercase();
    ensure!(head.contains("\r\nvary: accept"), "{head}");
    Ok((head, answer[end + 4..].to_vec()))
}

/// The exemplars that Prometheus keeps of a metric.
fn exemplars_of(prometheus: &Prometheus, metric: &str) -> Result<Vec<Value>> {
    let query = format!("query_exemplars?query={}&start=0&end=4000000000", percent(metric));
    let data = prometheus.api(&query)?;
    let all = data.as_array().context("no list")?.iter();
    Ok(all.filter_map(|series| series["exemplars"].as_array()).flatten().cloned().collect())
}

pub(crate) fn exemplars() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let setup = Setup { features: "exemplar-storage", ..Setup::of(&[daemon.address]) };
    let prometheus = Prometheus::start(&setup)?;
    let server = Traffic::over(&path, Family::V4).listen()?;
    let mut pair = Traffic::over(&path, Family::V4).connect_to(&server)?;
    let cookie = tcpwatch_lab::sockopt::cookie(pair.stream(End::Client))?.to_string();
    pair.ping_pong(50, 200)?;
    let kept = prometheus.wait(
        |p| {
            let kept = exemplars_of(p, "tcpwatch_rtt_seconds_bucket")?;
            Ok(kept.into_iter().find(|exemplar| exemplar["labels"]["cookie"] == *cookie))
        },
        "an exemplar of the client's socket",
    )?;
    let rtt: f64 = kept["value"].as_str().context("no value")?.parse()?;
    ensure!((0.004..0.5).contains(&rtt), "a path of 4 ms: {kept}");
    pair.abort(End::Client)?;
    let reset = prometheus.wait(
        |p| {
            let kept = exemplars_of(p, "tcpwatch_resets_sent_total")?;
            Ok(kept.into_iter().find(|exemplar| exemplar["labels"]["cookie"] == *cookie))
        },
        "an exemplar of the reset",
    )?;
    println!("{kept}\n{reset}");
    let (_, page) = daemon.get("/metrics")?;
    if let Some(stack) = reset["labels"]["stack"].as_str() {
        ensure!(page.contains(&format!("tcpwatch_reset_stacks_total{{stack=\"{stack}\"}}")), "{stack}: {page}");
    }
    let (head, body) = ask(&daemon, "application/openmetrics-text;version=1.0.0")?;
    ensure!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    let text = String::from_utf8(body)?;
    ensure!(text.ends_with("# EOF\n"), "no end");
    for end in [path.a(), path.b()] {
        let address = end.run(|| std::fs::read_to_string("/proc/thread-self/net/fib_trie"))?;
        let addresses =
            address.lines().filter_map(|line| line.trim().strip_prefix("|-- ")).filter(|a| a.starts_with("10."));
        for address in addresses {
            let found = text.lines().find(|line| line.split_once(" # ").is_some_and(|(_, e)| e.contains(address)));
            ensure!(found.is_none(), "an address in {found:?}");
        }
    }
    Ok(())
}

pub(crate) fn native() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(5)).build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let setup = Setup { features: "native-histograms", ..Setup::of(&[daemon.address]) };
    let prometheus = Prometheus::start(&setup)?;
    prometheus.wait(|p| Ok(p.rows("up == 1")?.pop()), "the first scrape")?;
    let busy = |go_on: &_| traffic::healthy(&path, go_on);
    let (median, classic) = while_busy(&[&busy], || {
        let quantile = "histogram_quantile(0.5, sum(rate(tcpwatch_rtt_seconds{direction=\"outbound\"}[30s])))";
        let row = prometheus.wait(|p| Ok(p.rows(quantile)?.pop()), "a quantile of the native histogram")?;
        let median: f64 = row["value"][1].as_str().context("no value")?.parse()?;
        let (head, body) =
            ask(&daemon, "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")?;
        ensure!(head.contains("encoding=delimited"), "{head}");
        println!("a scrape in protobuf has {} bytes", body.len());
        // Who asks for plain text gets the classic buckets as ever.
        Ok((median, daemon.metrics()?))
    })?;
    println!("the median is {median} s");
    // 10 ms there and back, and what the machine adds.
    ensure!((0.0095..0.05).contains(&median), "{median}");
    ensure!(classic.sum("tcpwatch_rtt_seconds_bucket", &["le=\"+Inf\""]) > 0.0, "{classic}");
    // One series a group in place of 22.
    let series = prometheus.rows("count({__name__=~\"tcpwatch_rtt_seconds.*\"})")?;
    let groups = classic.series_of("tcpwatch_rtt_seconds_count");
    ensure!(series[0]["value"][1].as_str() == Some(&*groups.to_string()), "{series:?}, and {groups} groups");
    let names = prometheus.api("label/__name__/values")?.to_string();
    ensure!(names.contains("\"tcpwatch_congestion_window_segments_bucket\""), "{names}");
    Ok(())
}
