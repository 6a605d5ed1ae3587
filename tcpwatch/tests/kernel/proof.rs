//! The kernel's own counters beside ours, as the product itself shows them: equal, or the difference explained by name.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::raw::RawSegment;
use tcpwatch_lab::relay::{Flags, Flow};
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, Metrics, PROGRAM, equal};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("proof_ratios_are_1_when_nothing_was_missed_and_stay_when_namespaces_end", ratios),
        trial("proof_a_reset_without_a_route_back_is_named_as_the_gap", unroutable),
    ]
}

const KERNEL_RETRANSMITS: &str = "tcpwatch_kernel_retransmitted_segments_total";
const KERNEL_RESETS: &str = "tcpwatch_kernel_resets_sent_total";
const RATIO: &str = "tcpwatch_coverage_ratio";

/// A daemon that has taken the baseline of both ends.
fn watching(path: &Path) -> Result<Daemon> {
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let read = |metrics: &Metrics| metrics.series_of("tcpwatch_listen_overflows_total") == 2;
    let metrics = daemon.wait("both namespaces to be read", read)?;
    ensure!(!metrics.has(RATIO), "a ratio of nothing\n{metrics}");
    Ok(daemon)
}

fn ratios() -> Result<()> {
    let path = Path::builder().delay(Duration::from_millis(2)).build()?;
    let daemon = watching(&path)?;
    for family in [Family::V4, Family::V6] {
        let mut pair = Traffic::over(&path, family).congestion("cubic").connect()?;
        path.forward().drop_nth_data(5);
        pair.send(End::Client, 100_000)?;
        pair.abort(End::Client)?;
        Traffic::over(&path, family).refused(3)?;
    }
    let sum = |table, name| {
        Ok::<_, anyhow::Error>(path.a().counters()?.get(table, name)? + path.b().counters()?.get(table, name)?)
    };
    let (retransmits, resets) = (sum("Tcp", "RetransSegs")?, sum("Tcp", "OutRsts")?);
    ensure!(retransmits >= 2 && resets == 8, "the set-up: {retransmits} and {resets}");
    let agreed = |metrics: &Metrics| {
        metrics.count(KERNEL_RETRANSMITS, &[]) == retransmits && metrics.count(KERNEL_RESETS, &[]) == resets
    };
    let metrics = daemon.wait("the kernel's counters", agreed)?;
    for counter in ["counter=\"retransmitted_segments\"", "counter=\"resets_sent\""] {
        ensure!((metrics.sum(RATIO, &[counter]) - 1.0).abs() < 1e-9, "{counter}\n{metrics}");
    }
    equal("unreadable", metrics.count("tcpwatch_unreadable_namespaces", &[]), 0, &metrics)?;
    drop(path);
    let ended = |metrics: &Metrics| metrics.series_of("tcpwatch_listen_overflows_total") == 0;
    let metrics = daemon.wait("the namespaces to be forgotten", ended)?;
    ensure!(agreed(&metrics), "what ended was taken back\n{metrics}");
    equal("both ratios", metrics.count(RATIO, &[]), 2, &metrics)
}

fn unroutable() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = watching(&path)?;
    Traffic::over(&path, Family::V6).refused(1)?;
    let nowhere = SocketAddr::from(("2001:db8:ffff::1".parse::<Ipv6Addr>()?, 4000));
    let listening_nowhere = SocketAddr::from((Path::IPV6[1], 9));
    path.inject_segment(&RawSegment::new(Flow { src: nowhere, dst: listening_nowhere }, 1, 0, Flags::SYN))?;
    let metrics = daemon.wait("two resets", |metrics| metrics.count("tcpwatch_resets_sent_total", &[]) == 2)?;
    equal("by the kernel", path.b().counters()?.get("Tcp", "OutRsts")?, 1, &metrics)?;
    daemon.wait("the ratio to show it", |metrics| (metrics.sum(RATIO, &["resets_sent"]) - 2.0).abs() < 1e-9)?;
    let socket = daemon.folder.path().join("tcpwatch.sock");
    let done = Command::new(PROGRAM).arg("--socket").arg(&socket).args(["doctor", "--json"]).output()?;
    let said: serde_json::Value =
        serde_json::from_slice(&done.stdout).with_context(|| String::from_utf8_lossy(&done.stderr).into_owned())?;
    let gaps = said.pointer("/daemon/compared/gaps").and_then(serde_json::Value::as_array).context("no gaps")?;
    ensure!(gaps.len() == 1, "{said}");
    ensure!(gaps[0]["name"] == "ipv6_unroutable" && gaps[0]["count"] == 1, "{said}");
    let done = Command::new(PROGRAM).arg("--socket").arg(&socket).arg("doctor").output()?;
    let text = String::from_utf8_lossy(&done.stdout);
    ensure!(text.contains("resets sent 2 counted, 1 by the kernel: ratio 2.0000"), "{text}");
    ensure!(text.contains("resets_sent: +1 by ipv6_unroutable"), "{text}");
    Ok(())
}
