//! Resets sent and received, by origin and cause, equal to what the namespaces' kernels count.

use std::io::Write as _;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{End, Family, Path, Traffic};

use crate::daemon::{Daemon, Metrics, equal, nothing_lost};
use crate::{gives_reasons, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("resets_of_linger_zero_are_active_and_end_the_peer", linger_zero),
        trial("resets_of_unread_data_are_active_and_end_the_peer", unread_data),
        trial("resets_of_a_closed_port_are_passive_without_service", closed_port),
        trial("resets_of_data_after_close_are_not_taken_for_received_ones", data_after_close),
        trial("resets_of_a_flood_are_all_counted_when_details_are_not", flood),
    ]
}

const SENT: &str = "tcpwatch_resets_sent_total";
const RECEIVED: &str = "tcpwatch_resets_received_total";
const CLOSED: &str = "tcpwatch_connections_closed_total";

/// The label with the kernel's reason, where it gives any.
fn told(reason: &str) -> String {
    let given = if gives_reasons() { reason } else { "none" };
    format!("reason=\"{given}\"")
}

/// Resets sent equal OutRsts of both namespaces, whichever way they are summed up.
fn agrees_with_the_kernel(metrics: &Metrics, path: &Path) -> Result<i64> {
    let truth = path.a().counters()?.get("Tcp", "OutRsts")? + path.b().counters()?.get("Tcp", "OutRsts")?;
    equal("resets by cause", metrics.count(SENT, &[]), truth, metrics)?;
    equal("resets by reason", metrics.count("tcpwatch_resets_sent_by_reason_total", &[]), truth, metrics)?;
    Ok(truth)
}

fn linger_zero() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    for family in Family::ALL {
        for by in [End::Client, End::Server] {
            Traffic::over(&path, family).connect()?.abort(by)?;
        }
    }
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 8, &metrics)?;
    equal("cause", metrics.count(SENT, &["origin=\"active\"", "cause=\"linger_zero\""]), 8, &metrics)?;
    equal("received", metrics.count(RECEIVED, &["state=\"ESTABLISHED\""]), 8, &metrics)?;
    equal("closed by our reset", metrics.count(CLOSED, &["cause=\"reset_sent\""]), 8, &metrics)?;
    equal("closed by theirs", metrics.count(CLOSED, &["cause=\"reset_received\""]), 8, &metrics)?;
    let v6 = metrics.count("tcpwatch_resets_sent_by_reason_total", &["family=\"ipv6\""]);
    equal("over IPv6", v6, 2, &metrics)?;
    nothing_lost(&metrics)
}

fn unread_data() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    for family in Family::ALL {
        for by in [End::Client, End::Server] {
            Traffic::over(&path, family).connect()?.close_with_unread(by, 777)?;
        }
    }
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 8, &metrics)?;
    equal("cause", metrics.count(SENT, &["origin=\"active\"", "cause=\"unread_data\""]), 8, &metrics)?;
    let reason = metrics.count("tcpwatch_resets_sent_by_reason_total", &[&told("tcp_abort_on_close")]);
    equal("the kernel's reason", reason, 8, &metrics)?;
    equal("received", metrics.count(RECEIVED, &[]), 8, &metrics)?;
    nothing_lost(&metrics)
}

pub(crate) fn closed_port() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    for (family, count) in [(Family::V4, 7), (Family::V6, 5)] {
        Traffic::over(&path, family).refused(count)?;
    }
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 12, &metrics)?;
    let labels = ["origin=\"passive\"", "cause=\"no_listener\"", "service=\"none\""];
    equal("cause", metrics.count(SENT, &labels), 12, &metrics)?;
    for (family, count) in [("ipv4", 7), ("ipv6", 5)] {
        let labels = [&*format!("family=\"{family}\""), &told("no_socket")];
        equal(family, metrics.count("tcpwatch_resets_sent_by_reason_total", &labels), count, &metrics)?;
    }
    equal("received", metrics.count(RECEIVED, &["state=\"SYN_SENT\""]), 12, &metrics)?;
    equal("failed opens", metrics.count(CLOSED, &["cause=\"failed_open\""]), 12, &metrics)?;
    equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 0, &metrics)?;
    nothing_lost(&metrics)
}

fn data_after_close() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    for family in [Family::V4, Family::V6] {
        Traffic::over(&path, family).connect()?.send_after_close(End::Server)?;
    }
    let metrics = daemon.metrics()?;
    let truth = agrees_with_the_kernel(&metrics, &path)?;
    equal("the set-up", truth, 2, &metrics)?;
    equal("passive", metrics.count(SENT, &["origin=\"passive\""]), 2, &metrics)?;
    let causes = metrics.count(SENT, &["cause=\"closed_socket\""]) + metrics.count(SENT, &["cause=\"time_wait\""]);
    equal("cause", causes, 2, &metrics)?;
    // The end that closed and then answered data with a reset did not receive one.
    equal("received", metrics.count(RECEIVED, &[]), 2, &metrics)?;
    equal("closed by a received reset", metrics.count(CLOSED, &["cause=\"reset_received\""]), 2, &metrics)?;
    equal("closed in all", metrics.count(CLOSED, &[]), 4, &metrics)?;
    nothing_lost(&metrics)
}

fn flood() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "detail_per_second = 10")?;
    Traffic::over(&path, Family::V4).refused(400)?;
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.client.write_all(b"the daemon still counts")?;
    let metrics = daemon.metrics()?;
    equal("the set-up", agrees_with_the_kernel(&metrics, &path)?, 400, &metrics)?;
    let throttled = metrics.count("tcpwatch_events_lost_total", &["where=\"throttled\"", "program=\"tcp_send_reset\""]);
    let taken = metrics.count("tcpwatch_events_total", &["kind=\"reset_sent\""]);
    ensure!(throttled > 0, "nothing was throttled\n{metrics}");
    equal("taken and throttled", taken + throttled, 400, &metrics)?;
    let elsewhere = metrics.count("tcpwatch_events_lost_total", &[])
        - metrics.count("tcpwatch_events_lost_total", &["where=\"throttled\""]);
    equal("lost elsewhere", elsewhere, 0, &metrics)
}
