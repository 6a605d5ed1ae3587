//! The ways in which a connection ends. Each takes the pair and returns when both kernels are done with it.

use std::io;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::PollFlags;

use super::pair::{End, Pair};
use super::wait_ready;
use crate::sockets::{TcpSocket, TcpState, canonical};
use crate::sockopt;

impl Pair {
    /// Ends the connection in order: `first` closes, the other end reads the end of the stream and closes too. On
    /// return `first` is in TIME_WAIT and the other end's socket is gone.
    ///
    /// # Errors
    /// When there was unread data, or it takes too long.
    pub fn close(mut self, first: End) -> Result<()> {
        let timeout = self.timeout;
        let (local, remote) = self.addresses(first);
        let [closing, following] = [self.netns(first).clone(), self.netns(first.other()).clone()];
        self.half_close(first)?;
        drop(self);
        following.wait_state(remote, local, None, timeout).context("the end that closed second stays")?;
        closing
            .wait_state(local, remote, Some(TcpState::TimeWait), timeout)
            .context("the end that closed first does not reach TIME_WAIT")
    }

    /// Ends a connection whose other end has half-closed: `last` closes, and the other reads the end of the stream and goes.
    /// On return the other is in TIME_WAIT and the socket of `last` is gone.
    ///
    /// # Errors
    /// When there was unread data, or it takes too long.
    pub fn finish_close(mut self, last: End) -> Result<()> {
        let timeout = self.timeout;
        let (local, remote) = self.addresses(last);
        let [closing, other] = [self.netns(last).clone(), self.netns(last.other()).clone()];
        self.half_close(last)?;
        drop(self);
        closing.wait_state(local, remote, None, timeout).context("the end that closed last stays")?;
        other
            .wait_state(remote, local, Some(TcpState::TimeWait), timeout)
            .context("the end that closed first does not reach TIME_WAIT")
    }

    /// Aborts the connection by closing one end with `bytes` that it has received and not read, which makes its
    /// kernel send RST. On return the other end has seen it.
    ///
    /// # Errors
    /// When the RST does not arrive in time.
    pub fn close_with_unread(mut self, by: End, bytes: u32) -> Result<()> {
        if bytes == 0 {
            bail!("closing with no unread byte is an orderly close: Pair::close does that");
        }
        self.send_unread(by.other(), bytes)?;
        // Its ACK must be on its way before the RST is, or the other end could still be retransmitting.
        self.wait_acknowledged(by.other())?;
        self.end_by_reset(by)
    }

    /// Aborts the connection by closing one end with `SO_LINGER` {on, 0 s}: its kernel sends RST. On return the
    /// other end has seen it.
    ///
    /// # Errors
    /// When the RST does not arrive in time.
    pub fn abort(self, by: End) -> Result<()> {
        sockopt::abort_on_close(self.stream(by))?;
        self.end_by_reset(by)
    }

    /// Closes one end in order and then sends from the other, to which the closed end's kernel answers with RST
    /// (a passive one). On return the sending end has seen it.
    ///
    /// # Errors
    /// When the FIN or the RST does not arrive in time.
    pub fn send_after_close(mut self, closed: End) -> Result<()> {
        let sending = closed.other();
        let timeout = self.timeout;
        let flow = self.flow(closed);
        let netns = self.netns(closed).clone();
        self.half_close(closed)?;
        let (kept, gone) = match sending {
            End::Client => (self.client, self.server),
            End::Server => (self.server, self.client),
        };
        drop(gone);
        // The other end's acknowledgement of the FIN must be in, or data would find a socket still closing.
        netns.wait_tcp(timeout, "the closed end's FIN to be acknowledged", |sockets| {
            let is_it = |s: &TcpSocket| canonical(s.local) == flow.src && canonical(s.remote) == flow.dst;
            !sockets.iter().any(|s| is_it(s) && s.state == TcpState::FinWait1)
        })?;
        io::Write::write_all(&mut &kept, b"late").context("cannot send after the other end has closed")?;
        let deadline = Instant::now() + timeout;
        wait_reset(&kept, deadline)
    }

    /// Closes one end, which is known to send RST, and waits until the other has seen it.
    fn end_by_reset(self, by: End) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let (kept, gone) = match by {
            End::Client => (self.server, self.client),
            End::Server => (self.client, self.server),
        };
        drop(gone);
        wait_reset(&kept, deadline)
    }
}

/// Waits until a connection has been reset from the other end.
fn wait_reset(stream: &std::net::TcpStream, deadline: Instant) -> Result<()> {
    // No event is asked for: hanging up and errors are always told, and data that waits is none of them.
    wait_ready(stream, PollFlags::empty(), deadline, "the connection to be reset")?;
    match stream.take_error().context("cannot ask for the error of a connection")? {
        // After the other end's FIN a reset shows as a broken pipe.
        Some(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Ok(()),
        Some(error) => Err(error).context("the connection ended, but not by a reset"),
        None => bail!("the connection ended without the error that a reset leaves"),
    }
}
