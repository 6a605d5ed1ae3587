//! What a scenario really did: known from the traffic itself, the relay and the kernels' counters.

use std::fmt;
use std::time::Duration;

use crate::relay::Totals;
use crate::snmp::Counters;
use crate::traffic::End;

/// What happened on a stage.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// From the first packet to the last.
    pub took: Duration,
    /// Connections that were established.
    pub connections: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Payload that clients sent and servers read.
    pub client_bytes: u64,
    /// Payload that servers sent and clients read.
    pub server_bytes: u64,
    /// How long each transfer, exchange or handshake took: whatever the scenario is made of.
    pub transfers: Vec<Duration>,
    /// Deliberate pauses, together.
    pub paused: Duration,
    /// What the relay did, from client to server and back.
    pub relay: [Totals; 2],
    /// What the kernels counted, the clients' and the servers'.
    pub kernel: [Counters; 2],
}

impl Truth {
    pub(crate) fn moved(&mut self, from: End, bytes: u64) {
        match from {
            End::Client => self.client_bytes += bytes,
            End::Server => self.server_bytes += bytes,
        }
    }

    /// Adds what another flow of the same scenario did.
    pub(crate) fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.refused += other.refused;
        self.client_bytes += other.client_bytes;
        self.server_bytes += other.server_bytes;
        self.transfers.extend(other.transfers);
        self.paused += other.paused;
    }

    /// The median of [`Truth::transfers`].
    pub fn median_transfer(&self) -> Option<Duration> {
        let mut sorted = self.transfers.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

/// The counters that tell of trouble, by their names in `/proc/net/snmp` and `/proc/net/netstat`.
const TELLING: [(&str, &str); 12] = [
    ("Tcp", "RetransSegs"),
    ("TcpExt", "TCPFastRetrans"),
    ("TcpExt", "TCPLossProbes"),
    ("TcpExt", "TCPTimeouts"),
    ("TcpExt", "TCPSynRetrans"),
    ("TcpExt", "TCPDSACKRecv"),
    ("TcpExt", "TCPDSACKUndo"),
    ("TcpExt", "TCPToZeroWindowAdv"),
    ("TcpExt", "TCPAbortOnTimeout"),
    ("Tcp", "AttemptFails"),
    ("Tcp", "EstabResets"),
    ("Tcp", "OutRsts"),
];

impl fmt::Display for Truth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} s, {} connections, {} bytes from clients, {} from servers",
            self.took.as_secs_f64(),
            self.connections,
            self.client_bytes,
            self.server_bytes
        )?;
        if self.refused > 0 {
            write!(f, ", {} refused", self.refused)?;
        }
        if let (Some(median), Some(longest)) = (self.median_transfer(), self.transfers.iter().max()) {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let count = self.transfers.len();
            write!(f, "\n{count} transfers: median {:.1} ms, longest {:.1} ms", ms(median), ms(*longest))?;
        }
        if !self.paused.is_zero() {
            write!(f, "\npauses: {:.1} s", self.paused.as_secs_f64())?;
        }
        for (totals, way) in self.relay.iter().zip(["client to server", "server to client"]) {
            write!(
                f,
                "\nrelay, {way}: {} packets, {} lost, {} dropped by the queue, {} held back, longest on the way {:.1} ms",
                totals.packets,
                totals.dropped_by_rule,
                totals.dropped_for_room,
                totals.held,
                totals.longest_transit_ns as f64 / 1e6
            )?;
        }
        for (counters, end) in self.kernel.iter().zip(["client", "server"]) {
            let told = TELLING.iter().filter_map(|(group, name)| {
                // A kernel without one of them has nothing to tell of it.
                let value = counters.get(group, name).ok().filter(|value| *value != 0)?;
                Some(format!("{name} {value}"))
            });
            let told: Vec<_> = told.collect();
            if !told.is_empty() {
                write!(f, "\nkernel of the {end}: {}", told.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_happen_is_not_told() {
        let text = Truth { connections: 2, ..Truth::default() }.to_string();
        assert!(text.starts_with("0.0 s, 2 connections"), "{text}");
        assert!(!text.contains("refused") && !text.contains("kernel") && !text.contains("pauses"), "{text}");
    }

    #[test]
    fn flows_add_up() {
        let mut all = Truth { connections: 1, ..Truth::default() };
        let second = Duration::from_secs(1);
        all.add(Truth { connections: 2, client_bytes: 7, transfers: vec![second], ..Truth::default() });
        assert_eq!((all.connections, all.client_bytes, all.median_transfer()), (3, 7, Some(second)));
    }
}
