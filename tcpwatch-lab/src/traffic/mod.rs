//! Connections whose course is known: opened, used and ended inside given namespaces, each step returning when
//! the kernel has got there, so that a test can compare counts at once.
//!
//! ```no_run
//! use tcpwatch_lab::traffic::{End, Family, Traffic};
//! use tcpwatch_lab::Path;
//!
//! # fn main() -> anyhow::Result<()> {
//! let path = Path::builder().build()?;
//! let mut pair = Traffic::over(&path, Family::V6).congestion("cubic").connect()?;
//! pair.send(End::Client, 1_000_000)?;
//! pair.close(End::Client)?;
//! # Ok(())
//! # }
//! ```

mod close;
mod pair;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

pub use pair::{End, Pair};

use crate::netns::Netns;
use crate::relay::Path;
use crate::sockopt;

/// How the two ends of a connection speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 on both ends.
    V4,
    /// IPv6 on both ends.
    V6,
    /// IPv4 on the wire; the server is a dual-stack IPv6 socket and sees `::ffff:a.b.c.d`.
    MappedServer,
    /// IPv4 on the wire; both ends are IPv6 sockets.
    MappedBoth,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V4, Self::V6, Self::MappedServer, Self::MappedBoth];

    /// Whether packets are IPv6.
    pub fn is_ipv6_on_the_wire(self) -> bool {
        self == Self::V6
    }

    fn client_domain(self) -> Domain {
        if matches!(self, Self::V6 | Self::MappedBoth) { Domain::IPV6 } else { Domain::IPV4 }
    }

    fn server_domain(self) -> Domain {
        if self == Self::V4 { Domain::IPV4 } else { Domain::IPV6 }
    }
}

/// Where connections are made, and how.
#[derive(Clone, Debug)]
pub struct Traffic {
    client: Netns,
    server: Netns,
    server_ip: IpAddr,
    family: Family,
    port: u16,
    congestion: Option<String>,
    timeout: Duration,
}

impl Traffic {
    /// From A to B of a path.
    pub fn over(path: &Path, family: Family) -> Self {
        let server_ip = if family.is_ipv6_on_the_wire() { Path::IPV6[1].into() } else { Path::IPV4[1].into() };
        Self::between(path.a(), path.b(), server_ip, family)
    }

    /// From B to A of a path.
    pub fn back_over(path: &Path, family: Family) -> Self {
        let server_ip = if family.is_ipv6_on_the_wire() { Path::IPV6[0].into() } else { Path::IPV4[0].into() };
        Self::between(path.b(), path.a(), server_ip, family)
    }

    /// Within one namespace, over its loopback interface.
    pub fn loopback(netns: &Netns, family: Family) -> Self {
        let server_ip =
            if family.is_ipv6_on_the_wire() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        Self::between(netns, netns, server_ip, family)
    }

    /// From a client's namespace to a server's, which has the address `server_ip` (as on the wire: not mapped).
    pub fn between(client: &Netns, server: &Netns, server_ip: IpAddr, family: Family) -> Self {
        Self {
            client: client.clone(),
            server: server.clone(),
            server_ip,
            family,
            port: 0,
            congestion: None,
            timeout: Duration::from_secs(20),
        }
    }

    /// The port of the server; 0, the default, lets the kernel choose.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The congestion control of both ends, by the kernel's name. Default: the namespace's.
    #[must_use]
    pub fn congestion(self, name: &str) -> Self {
        Self { congestion: Some(name.to_owned()), ..self }
    }

    /// How long each step may take before it is an error. Default 20 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Opens a listener in the server's namespace.
    ///
    /// # Errors
    /// When the port is taken or the congestion control unknown.
    pub fn listen(&self) -> Result<Server> {
        let socket = self.bound_server_socket()?;
        socket.listen(1024).context("cannot listen")?;
        let address = self.wire_address(&socket)?;
        Ok(Server { listener: socket.into(), address })
    }

    /// Opens one connection through a listener of its own, which is closed again.
    ///
    /// # Errors
    /// When it does not come about in time.
    pub fn connect(&self) -> Result<Pair> {
        self.connect_to(&self.listen()?)
    }

    /// Opens one connection to a listener made by [`Traffic::listen`]; both ends are established on return.
    ///
    /// # Errors
    /// When it does not come about in time.
    pub fn connect_to(&self, server: &Server) -> Result<Pair> {
        let client = self.client_socket()?;
        client
            .connect_timeout(&self.target(server.address), self.timeout)
            .with_context(|| format!("cannot connect to {}", server.address))?;
        let own = client.local_addr()?.as_socket().context("a client has no address")?;
        // Connections that others opened to the same listener are not this one's.
        let deadline = Instant::now() + self.timeout;
        loop {
            wait_ready(&server.listener, PollFlags::IN, deadline, "a connection to accept")?;
            let (stream, peer) = server.listener.accept().context("cannot accept a connection")?;
            if crate::sockets::canonical(peer) == crate::sockets::canonical(own) {
                return Pair::new(self, client.into(), stream);
            }
        }
    }

    /// Opens `count` connections through one listener and keeps them, idle, as long as the pairs live.
    ///
    /// # Errors
    /// When one does not come about in time.
    pub fn connect_many(&self, count: usize) -> Result<Vec<Pair>> {
        let server = self.listen()?;
        (0..count).map(|_| self.connect_to(&server)).collect()
    }

    /// Connects `count` times, one after the other, to a port where no one listens. Returns its address.
    ///
    /// # Errors
    /// When a connection is not refused.
    pub fn refused(&self, count: usize) -> Result<SocketAddr> {
        // A bound socket that does not listen keeps the port from being given to someone who does.
        let reserved = self.bound_server_socket()?;
        let address = self.wire_address(&reserved)?;
        for _ in 0..count {
            match self.client_socket()?.connect_timeout(&self.target(address), self.timeout) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("connecting to closed port {address} was not refused"));
                }
                Ok(()) => bail!("connecting to {address} succeeded although no one listens there"),
            }
        }
        Ok(address)
    }

    /// Tries to connect to a listener for at most `patience`, and returns whether it came about. For paths that
    /// lose the handshake.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn try_connect(&self, server: &Server, patience: Duration) -> Result<bool> {
        Ok(self.client_socket()?.connect_timeout(&self.target(server.address), patience).is_ok())
    }

    fn client_socket(&self) -> Result<Socket> {
        self.socket(&self.client, self.family.client_domain())
    }

    fn bound_server_socket(&self) -> Result<Socket> {
        let domain = self.family.server_domain();
        let socket = self.socket(&self.server, domain)?;
        // A server that was just ended leaves connections in TIME_WAIT on a fixed port.
        socket.set_reuse_address(true).context("cannot set SO_REUSEADDR")?;
        let ip = match self.server_ip {
            IpAddr::V4(_) if domain == Domain::IPV6 => {
                socket.set_only_v6(false).context("cannot clear IPV6_V6ONLY")?;
                Ipv6Addr::UNSPECIFIED.into()
            }
            ip => ip,
        };
        let address = SocketAddr::new(ip, self.port);
        socket.bind(&address.into()).with_context(|| format!("cannot bind {address} in the server's namespace"))?;
        Ok(socket)
    }

    /// Makes a socket in a namespace; congestion control set here is inherited by accepted connections.
    fn socket(&self, netns: &Netns, domain: Domain) -> Result<Socket> {
        let socket = netns.try_run(|| Socket::new(domain, Type::STREAM, None))?.context("cannot make a TCP socket")?;
        if let Some(name) = &self.congestion {
            sockopt::set_congestion(&socket, name)?;
        }
        Ok(socket)
    }

    /// The server's address on the wire.
    fn wire_address(&self, socket: &Socket) -> Result<SocketAddr> {
        let bound = socket.local_addr()?.as_socket().context("a server has no address")?;
        Ok(SocketAddr::new(self.server_ip, bound.port()))
    }

    /// The server's address as the client's socket has to be told.
    fn target(&self, wire: SocketAddr) -> SockAddr {
        match wire.ip() {
            IpAddr::V4(ip) if self.family.client_domain() == Domain::IPV6 => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), wire.port()).into()
            }
            _ => wire.into(),
        }
    }
}

/// A listener in the server's namespace.
#[derive(Debug)]
pub struct Server {
    /// The listening socket.
    pub listener: TcpListener,
    /// Its address on the wire, where clients connect to.
    pub address: SocketAddr,
}

/// Waits until a descriptor is ready for one of `events`, or in error, and returns what it is ready for.
pub(crate) fn wait_ready(fd: &impl AsFd, events: PollFlags, deadline: Instant, what: &str) -> Result<PollFlags> {
    let mut fds = [PollFd::new(fd, events)];
    poll_until(&mut fds, deadline, what)?;
    Ok(fds[0].revents())
}

/// Waits until one of several descriptors is ready.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant, what: &str) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(fds, Some(&timeout)) {
            Ok(0) => bail!("waited for {what}, in vain: the time allowed for a step of traffic is over"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot wait for {what}")),
        }
    }
}
