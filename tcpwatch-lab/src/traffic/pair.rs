//! Both ends of an established connection, and what can be sent over it.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::SockRef;

use super::{Traffic, poll_until, wait_ready};
use crate::clock;
use crate::netns::Netns;
use crate::relay::Flow;
use crate::sockets::canonical;
use crate::sockopt::{self, TcpInfo};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

impl End {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// An established connection, both ends in one hand. Dropping it closes both without waiting for anything.
#[derive(Debug)]
pub struct Pair {
    /// The end that connected; a blocking socket.
    pub client: TcpStream,
    /// The end that accepted; a blocking socket.
    pub server: TcpStream,
    pub(super) namespaces: [Netns; 2],
    pub(super) timeout: Duration,
    /// Addresses of both ends when they were connected, the own one first.
    connected: [(SocketAddr, SocketAddr); 2],
}

fn addresses(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr)> {
    let local = stream.local_addr().context("a connection has no address of its own")?;
    Ok((local, stream.peer_addr().context("a connection has no peer any more")?))
}

/// How much is written and read at once.
const CHUNK: usize = 64 << 10;

impl Pair {
    pub(super) fn new(traffic: &Traffic, client: TcpStream, server: TcpStream) -> Result<Self> {
        let namespaces = [traffic.client.clone(), traffic.server.clone()];
        let connected = [addresses(&client)?, addresses(&server)?];
        Ok(Self { client, server, namespaces, timeout: traffic.timeout, connected })
    }

    /// The socket of one end.
    pub fn stream(&self, end: End) -> &TcpStream {
        match end {
            End::Client => &self.client,
            End::Server => &self.server,
        }
    }

    /// The namespace of one end.
    pub fn netns(&self, end: End) -> &Netns {
        &self.namespaces[end as usize]
    }

    /// What an end sends: its address and the other's, as on the wire (IPv4 also where a socket maps it). Where the
    /// connection is over, what it was.
    pub fn flow(&self, from: End) -> Flow {
        let (src, dst) = self.addresses(from);
        Flow { src: canonical(src), dst: canonical(dst) }
    }

    /// A socket that was connected again has others than at first, one that was reset has none.
    pub(super) fn addresses(&self, end: End) -> (SocketAddr, SocketAddr) {
        addresses(self.stream(end)).unwrap_or(self.connected[end as usize])
    }

    /// What the kernel knows of one end.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn info(&self, end: End) -> Result<TcpInfo> {
        sockopt::tcp_info(self.stream(end))
    }

    /// Sends so many bytes one way. On return the other end has read them and the sender's kernel knows it.
    ///
    /// # Errors
    /// When the connection breaks or it takes too long.
    pub fn send(&mut self, from: End, bytes: u64) -> Result<()> {
        self.send_while(from, bytes, || true).map(drop)
    }

    /// As [`Pair::send`], given up as soon as `go_on` says no; it is asked before each step. Returns the bytes read.
    ///
    /// # Errors
    /// As [`Pair::send`].
    pub fn send_while(&mut self, from: End, bytes: u64, go_on: impl FnMut() -> bool) -> Result<u64> {
        let read = self.transfer(from, bytes, bytes, go_on);
        let read = read.with_context(|| format!("cannot send {bytes} bytes from the {from:?}"))?;
        if read == bytes {
            self.wait_acknowledged(from)?;
        }
        Ok(read)
    }

    /// Writes on one end, with no one reading at the other, until there has been no room for `patience`: both buffers
    /// are full then and the window is closed. Returns the bytes written; [`Pair::read_out`] reads them.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn fill(&mut self, from: End, patience: Duration) -> Result<u64> {
        let mut written = 0;
        loop {
            let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
            match poll(&mut [PollFd::new(self.stream(from), PollFlags::OUT)], Some(&timeout)) {
                Ok(0) => return Ok(written),
                Ok(_) => written += write_some(self.stream(from), u64::MAX)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for room to send"),
            }
        }
    }

    /// Reads so many bytes that were written at the other end before. On return its kernel knows that they arrived.
    ///
    /// # Errors
    /// When the connection breaks or it takes too long.
    pub fn read_out(&mut self, on: End, bytes: u64) -> Result<()> {
        self.transfer(on.other(), 0, bytes, || true)?;
        self.wait_acknowledged(on.other())
    }

    /// Sends so many bytes from the client and, from the server, all of them back.
    ///
    /// # Errors
    /// As [`Pair::send`].
    pub fn echo(&mut self, bytes: u64) -> Result<()> {
        self.send(End::Client, bytes)?;
        self.send(End::Server, bytes)
    }

    /// Sends `size` bytes forth and back, `rounds` times, each only when the one before has been read. On return
    /// everything is acknowledged.
    ///
    /// # Errors
    /// As [`Pair::send`]; each round may take the whole time allowed for a step.
    pub fn ping_pong(&mut self, rounds: usize, size: u64) -> Result<()> {
        for stream in [&self.client, &self.server] {
            stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        }
        for round in 0..rounds {
            for from in [End::Client, End::Server] {
                self.transfer(from, size, size, || true).with_context(|| format!("ping-pong round {round} failed"))?;
            }
        }
        self.wait_acknowledged(End::Client)?;
        self.wait_acknowledged(End::Server)
    }

    /// Waits until nothing that an end has sent is unacknowledged.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_acknowledged(&self, end: End) -> Result<()> {
        clock::wait_for(self.timeout, "everything sent to be acknowledged", || {
            Ok((sockopt::unacknowledged(self.stream(end))? == 0).then_some(()))
        })
    }

    /// Writes so many bytes on one end without anyone reading them, and returns when they are in the other end's
    /// receive queue. They must fit into it.
    ///
    /// # Errors
    /// When they do not get there in time.
    pub fn send_unread(&mut self, from: End, bytes: u32) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let before = sockopt::unread(self.stream(from.other()))?;
        let mut left = u64::from(bytes);
        while left > 0 {
            wait_ready(self.stream(from), PollFlags::OUT, deadline, "room to send")?;
            left -= write_some(self.stream(from), left)?;
        }
        clock::wait_for(self.timeout, "bytes to arrive in the receive queue", || {
            Ok((sockopt::unread(self.stream(from.other()))? >= before + bytes).then_some(()))
        })
    }

    /// Ends one end's sending with FIN; on return the other end has read the end of the stream, and can still
    /// send.
    ///
    /// # Errors
    /// When the FIN does not arrive in time, or data was still to be read before it.
    pub fn half_close(&mut self, by: End) -> Result<()> {
        self.stream(by).shutdown(Shutdown::Write).context("cannot shut down the sending side")?;
        self.read_end(by.other())
    }

    /// Reads the end of the stream on one end.
    pub(super) fn read_end(&mut self, on: End) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        wait_ready(self.stream(on), PollFlags::IN, deadline, "the end of the stream")?;
        match self.stream(on).read(&mut [0; 1]).context("cannot read the end of the stream")? {
            0 => Ok(()),
            _ => bail!("there was data to be read before the end of the stream"),
        }
    }

    /// Moves bytes from one end to the other, writing and reading as there is room, for as long as `go_on` says so. Returns
    /// the bytes read.
    fn transfer(&mut self, from: End, unsent: u64, bytes: u64, mut go_on: impl FnMut() -> bool) -> Result<u64> {
        let (sender, receiver) = (self.stream(from), self.stream(from.other()));
        let mut buffer = vec![0; CHUNK];
        let (mut unsent, mut unread) = (unsent, bytes);
        // The time allowed is for standing still, not for the whole: slow paths are what this is for.
        let mut deadline = Instant::now() + self.timeout;
        while unread > 0 && go_on() {
            let wanted = if unsent > 0 { PollFlags::OUT } else { PollFlags::empty() };
            let mut fds = [PollFd::new(receiver, PollFlags::IN), PollFd::new(sender, wanted)];
            poll_until(&mut fds, deadline, "data to move")?;
            // An end that hung up is always ready, so the wait itself does not see the deadline.
            if Instant::now() >= deadline {
                bail!("no data has moved for {:?}; {unread} bytes are missing", self.timeout);
            }
            let [reading, writing] = [fds[0].revents(), fds[1].revents()];
            if writing.intersects(PollFlags::ERR | PollFlags::HUP)
                && let Some(error) = sender.take_error()?
            {
                return Err(error).context("the sender's connection broke");
            }
            if writing.contains(PollFlags::OUT) {
                unsent -= write_some(sender, unsent)?;
            }
            if !reading.is_empty() {
                let most = unread.min(CHUNK as u64) as usize;
                match (&mut &*receiver).read(&mut buffer[..most]).context("cannot read")? {
                    0 => bail!("the stream ended {unread} bytes too early"),
                    count => unread -= count as u64,
                }
                deadline = Instant::now() + self.timeout;
            }
        }
        Ok(bytes - unread)
    }
}

/// Writes as much of `left` bytes as there is room for, without blocking; 0 when there is none.
fn write_some(stream: &TcpStream, left: u64) -> Result<u64> {
    static FILLER: [u8; CHUNK] = [0x74; CHUNK];
    let most = left.min(CHUNK as u64) as usize;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    match SockRef::from(stream).send_with_flags(&FILLER[..most], flags) {
        Ok(count) => Ok(count as u64),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        Err(error) => Err(error).context("cannot write"),
    }
}
