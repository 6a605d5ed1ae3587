//! Two hosts on one Prometheus, as docs/FLEET.md has it: the dashboards show both, the rules add them up, and what a host
//! costs is what that page says.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tcpwatch_lab::Path;

use super::server::{Prometheus, Setup};
use super::traffic::{self, while_busy};
use super::{RULES, filled, hasty};
use crate::daemon::Daemon;
use crate::dashboard;

/// The most bytes of plain text that a series takes, as docs/FLEET.md reckons.
const BYTES_PER_SERIES: f64 = 120.0;
/// The bound of the contract.
const MOST_SERIES: f64 = 6000.0;

/// The only value of an expression.
fn value(prometheus: &Prometheus, expression: &str) -> Result<f64> {
    let row = prometheus.wait(|p| Ok(p.rows(expression)?.pop()), expression)?;
    Ok(row["value"][1].as_str().context("no value")?.parse()?)
}

pub(crate) fn two_hosts() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(1)).build()?;
    let hosts = [Daemon::watching(&[path.a()])?, Daemon::watching(&[path.b()])?];
    let targets = hosts.each_ref().map(|daemon| daemon.address);
    let prometheus = Prometheus::start(&Setup { rules: RULES.map(hasty).to_vec(), ..Setup::of(&targets) })?;
    prometheus.wait(|p| Ok((p.rows("up == 1")?.len() == 2).then_some(())), "both hosts")?;
    let busy = |go_on: &_| traffic::of_all_kinds(&path, go_on);
    let storm = |go_on: &_| traffic::storm(&path, go_on);
    while_busy(&[&busy, &storm], || {
        let both = "sum(fleet:tcpwatch_hosts:count) == 2";
        prometheus.wait(|p| Ok(p.rows(both)?.pop()), both)?;
        // Until there are rates of all that happens, and the kernel's own counters have moved on both.
        for series in ["tcpwatch_reset_stacks_total", "tcpwatch_kernel_resets_sent_total", "tcpwatch_rtt_seconds_count"]
        {
            let both = format!("count(count by (instance) (rate({series}[1m]) > 0)) == 2");
            prometheus.wait(|p| Ok(p.rows(&both)?.pop()), &both)?;
        }
        let (mut of_one, mut of_both) = (Vec::new(), 0);
        let boards = dashboard::all();
        let panels = boards.iter().flat_map(|board| &board.panels).filter(|panel| !panel.may_be_empty);
        for (panel, query) in panels.flat_map(|panel| panel.queries.iter().map(move |query| (panel, query))) {
            let rows = |host: &SocketAddr| {
                let host = host.to_string().replace('.', "\\\\.");
                Ok(prometheus.rows(&filled(query, &host, "1m", "1h"))?.len())
            };
            let rows: Vec<usize> = targets.iter().map(rows).collect::<Result<_>>()?;
            ensure!(rows.iter().any(|rows| *rows > 0), "{}: no rows of {query}", panel.title);
            if rows.iter().all(|rows| *rows > 0) { of_both += 1 } else { of_one.push(&panel.title) }
        }
        println!("{of_both} queries have rows of both hosts, of one: {of_one:?}");
        // Only one of them has what listens and waits.
        ensure!(of_both > 70 && of_one.len() < 8, "{of_both} queries have rows of both hosts, of one: {of_one:?}");
        let both = value(&prometheus, "count(count by (instance) (rate(tcpwatch_sent_bytes_total[1m]) > 0))")?;
        ensure!((both - 2.0).abs() < 0.1, "both send: {both}");
        Ok(())
    })?;
    for records in ["service.*:.+", "fleet:.+"] {
        let count = value(&prometheus, &format!("count({{__name__=~\"{records}\"}})"))?;
        println!("{count} series are recorded as {records}");
    }
    for daemon in &hosts {
        let (_, page) = daemon.get("/metrics")?;
        let series = page.lines().filter(|line| !line.starts_with('#')).count() as f64;
        let bytes = page.len() as f64;
        let took = daemon.metrics()?.sum("tcpwatch_scrape_duration_seconds", &[]);
        println!("{series} series, {bytes} bytes, {:.1} each, {:.1} ms to prepare", bytes / series, took * 1e3);
        ensure!(series < MOST_SERIES && bytes / series < BYTES_PER_SERIES, "{series} series in {bytes} bytes");
    }
    Ok(())
}
