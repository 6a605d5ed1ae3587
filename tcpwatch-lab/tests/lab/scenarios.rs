//! Scenarios: each does what it says, as short as it can, and ends when it is told to.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::harness::trial;
use tcpwatch_lab::scenario::{self, Scenario, Truth};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = scenario::ALL
        .iter()
        .map(|scenario| {
            let name = format!("scenario_{}_does_what_it_says", scenario.name.replace('-', "_"));
            trial(&name, || short(*scenario))
        })
        .collect();
    trials.push(trial("a_scenario_ends_when_it_is_interrupted", interrupted));
    trials
}

const MS: Duration = Duration::from_millis(1);

/// One round, with shorter pauses.
fn short(mut scenario: Scenario) -> Result<()> {
    let setup = &mut scenario.setup;
    setup.duration = Duration::ZERO;
    setup.pause = setup.pause.min(500 * MS);
    if scenario.name == "peer-vanishes" {
        setup.sysctls = &[(tcpwatch_lab::End::Client, "net.ipv4.tcp_retries2", "3")];
    }
    let truth = scenario.stage()?.run()?;
    check(scenario.name, &truth).with_context(|| truth.to_string())
}

fn check(name: &str, truth: &Truth) -> Result<()> {
    let [client, server] = &truth.kernel;
    let [forward, backward] = truth.relay;
    let retransmits = client.get("Tcp", "RetransSegs")?;
    ensure!(truth.connections > 0 || truth.refused > 0, "no connection");
    let (median, longest) = (truth.median_transfer(), truth.transfers.iter().max().copied());
    match name {
        "loss" => ensure!(forward.dropped_by_rule > 0 && retransmits > 0 && backward.dropped() == 0),
        "bufferbloat" => ensure!(forward.longest_transit_ns > 150_000_000),
        "zero-window" | "bursty-reader" => {
            ensure!(server.get("TcpExt", "TCPToZeroWindowAdv")? > 0 && truth.paused >= 500 * MS);
        }
        "idle-restart" => ensure!(truth.transfers.len() == 2 && retransmits == 0 && truth.paused > Duration::ZERO),
        "tail-loss" => ensure!(forward.dropped_by_rule == 1 && client.get("TcpExt", "TCPLossProbes")? == 1),
        "reordering" => ensure!(
            forward.held > 5 && forward.dropped() == 0 && client.get("TcpExt", "TCPDSACKRecv")? > 0 && retransmits > 0
        ),
        "syn-loss" => ensure!(client.get("TcpExt", "TCPSynRetrans")? > 0 && longest >= Some(900 * MS)),
        "peer-vanishes" => ensure!(client.get("TcpExt", "TCPAbortOnTimeout")? == 1 && retransmits >= 4),
        "mtu-black-hole" => ensure!(forward.dropped_by_rule > 0 && retransmits > 0 && truth.client_bytes == 1000),
        "short-connections" => ensure!(truth.connections == 1 && longest >= Some(200 * MS)),
        "tiny-writes" => ensure!(forward.packets > truth.client_bytes && truth.client_bytes == 200),
        "nagle" => ensure!(longest >= Some(38 * MS) && median >= Some(2 * MS)),
        "half-close" => ensure!(truth.server_bytes == 2_000_000 && truth.client_bytes == 300),
        "reset-storm" => ensure!(truth.refused == 50 && server.get("Tcp", "OutRsts")? == 50),
        "mixed" => {
            ensure!(truth.refused == 50 && truth.connections == 3 && server.get("TcpExt", "TCPToZeroWindowAdv")? > 0);
        }
        _ => anyhow::bail!("this test does not know what {name} is to do"),
    }
    Ok(())
}

/// What Ctrl-C does to the program that plays a scenario, in the middle of a transfer.
fn interrupted() -> Result<()> {
    for scenario in ["loss", "peer-vanishes", "mixed"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tcpwatch-lab"))
            .args([scenario, "--duration", "1m"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut said = String::new();
        while !said.contains("until Ctrl-C") {
            ensure!(output.read_line(&mut said)? > 0, "{scenario} ended: {said}");
        }
        crate::namespaces::interrupt(child.id())?;
        output.read_to_string(&mut said)?;
        let status = child.wait()?;
        ensure!(status.success() && said.contains("interrupted: "), "{scenario}: {status}: {said}");
    }
    Ok(())
}
