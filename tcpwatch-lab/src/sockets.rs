//! The kernel's table of TCP sockets in a namespace (`/proc/net/tcp` and `tcp6`), and waiting for a state.
//!
//! Used by [`crate::traffic`] to return only when the kernel has got where a test believes it is, and by tests
//! that ask what sockets a namespace holds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock;
use crate::netns::{Netns, read_own_proc};

/// The state of a TCP socket, with the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the states of RFC 9293 under the kernel's names")]
pub enum TcpState {
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
}

impl TcpState {
    /// The state of the kernel's number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            _ => return None,
        })
    }
}

/// One socket of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// The socket's own address. An IPv6 socket that speaks IPv4 shows as `::ffff:a.b.c.d`.
    pub local: SocketAddr,
    /// The peer's address; all zeros for a listener.
    pub remote: SocketAddr,
    /// The state of the connection.
    pub state: TcpState,
    /// Bytes written but not yet acknowledged; 0 for a listener.
    pub send_queue: u32,
    /// Bytes received but not yet read; for a listener, connections not yet accepted.
    pub receive_queue: u32,
    /// Retransmissions since the last progress (`icsk_retransmits`).
    pub retransmits: u32,
    /// The inode of the socket file; 0 when no process holds it any more.
    pub inode: u64,
}

impl Netns {
    /// The TCP sockets of the namespace, IPv4 and IPv6, in any state.
    ///
    /// # Errors
    /// When the table cannot be read or is in another format.
    pub fn tcp_sockets(&self) -> Result<Vec<TcpSocket>> {
        self.try_run(read_own_table)?
    }

    /// Waits until `condition` holds of the namespace's TCP sockets; `what` names it for the error.
    ///
    /// # Errors
    /// When it does not hold within `timeout`, with the table as it was last seen.
    pub fn wait_tcp(
        &self,
        timeout: Duration,
        what: &str,
        mut condition: impl FnMut(&[TcpSocket]) -> bool + Send,
    ) -> Result<()> {
        self.try_run(|| {
            let mut last = Vec::new();
            clock::wait_for(timeout, what, || {
                last = read_own_table()?;
                Ok(condition(&last).then_some(()))
            })
            .with_context(|| format!("sockets of namespace {}: {last:?}", self.inode()))
        })?
    }

    /// Waits until the socket with these addresses is in `state`, or, with `None`, is no more. IPv4 addresses
    /// also match the socket that has them as mapped IPv6 addresses.
    ///
    /// # Errors
    /// When that is not so within `timeout`.
    pub fn wait_state(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        state: Option<TcpState>,
        timeout: Duration,
    ) -> Result<()> {
        let wanted = (canonical(local), canonical(remote));
        let what = format!("the TCP socket {local} -> {remote} to be in state {state:?}");
        self.wait_tcp(timeout, &what, |sockets| {
            let found = sockets.iter().find(|socket| (canonical(socket.local), canonical(socket.remote)) == wanted);
            found.map(|socket| socket.state) == state
        })
    }
}

/// An address without the mapping of IPv4 into IPv6, flow label and scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn read_own_table() -> Result<Vec<TcpSocket>> {
    let mut sockets = parse(&read_own_proc("tcp")?)?;
    sockets.extend(parse(&read_own_proc("tcp6")?)?);
    Ok(sockets)
}

fn parse(table: &str) -> Result<Vec<TcpSocket>> {
    let lines = table.lines().skip(1);
    lines.map(|line| parse_line(line).with_context(|| format!("cannot read the socket line '{line}'"))).collect()
}

/// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode ...`, numbers in hexadecimal up to `retrnsmt`.
fn parse_line(line: &str) -> Result<TcpSocket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, remote, state, queues, _, retransmits, _, _, inode, ..] = fields[..] else {
        bail!("it has {} fields", fields.len());
    };
    let state = u8::from_str_radix(state, 16)?;
    let (send, receive) = queues.split_once(':').context("no colon between the queues")?;
    Ok(TcpSocket {
        local: parse_address(local)?,
        remote: parse_address(remote)?,
        state: TcpState::from_number(state).with_context(|| format!("{state} is no state"))?,
        send_queue: u32::from_str_radix(send, 16)?,
        receive_queue: u32::from_str_radix(receive, 16)?,
        retransmits: u32::from_str_radix(retransmits, 16)?,
        inode: inode.parse()?,
    })
}

/// Addresses are printed as 32-bit words in the byte order of the machine.
fn parse_address(text: &str) -> Result<SocketAddr> {
    let (host, port) = text.split_once(':').context("an address has no port")?;
    let word = |n: usize| -> Result<[u8; 4]> {
        let digits = host.get(n * 8..n * 8 + 8).context("an address is too short")?;
        Ok(u32::from_str_radix(digits, 16)?.to_ne_bytes())
    };
    let host = if host.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut octets = [0; 16];
        for (n, place) in octets.chunks_exact_mut(4).enumerate() {
            place.copy_from_slice(&word(n)?);
        }
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    Ok(SocketAddr::new(host, u16::from_str_radix(port, 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
        0: 0100007F:1F90 0200007F:D431 01 00000005:0000000A 00:00000000 00000002     0        0 42 1 0 20 4 30 10 -1\n";

    #[cfg(target_endian = "little")]
    #[test]
    fn a_line_of_the_table_is_read() {
        let sockets = parse(TABLE).unwrap();
        assert_eq!(
            sockets,
            [TcpSocket {
                local: "127.0.0.1:8080".parse().unwrap(),
                remote: "127.0.0.2:54321".parse().unwrap(),
                state: TcpState::Established,
                send_queue: 5,
                receive_queue: 10,
                retransmits: 2,
                inode: 42,
            }]
        );
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn mapped_addresses_are_read() {
        let address = parse_address("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(address, "[::ffff:127.0.0.1]:80".parse().unwrap());
        assert_eq!(canonical(address), "127.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn a_line_of_another_format_is_an_error() {
        assert!(parse("header\n 0: nonsense\n").is_err());
    }
}
