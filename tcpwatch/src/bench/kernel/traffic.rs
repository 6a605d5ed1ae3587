//! What is done while programs are measured, with both ends of a connection in one thread: loopback delivers within the
//! call that sends.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use anyhow::Result;

use crate::bench::report::Output;

/// A piece of a bulk transfer.
const BLOCK: usize = 1 << 16;

/// A connection.
pub(super) struct PingPong {
    client: TcpStream,
    server: TcpStream,
    round_trips: u32,
    blocks: u32,
    block: Vec<u8>,
}

impl PingPong {
    pub(super) fn new(output: &Output) -> Result<Self> {
        let (client, server) = connect(&TcpListener::bind("127.0.0.1:0")?)?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
        }
        Ok(Self {
            client,
            server,
            round_trips: output.count(20_000, 200),
            blocks: output.count(4_000, 50),
            block: vec![0; BLOCK],
        })
    }

    /// Each is at least two tcp_probe events.
    pub(super) fn round_trips(&self) -> u32 {
        self.round_trips
    }

    pub(super) fn warm_up(&mut self) -> Result<()> {
        self.exchange(self.round_trips / 20)
    }

    pub(super) fn ask_and_answer(&mut self) -> Result<()> {
        self.exchange(self.round_trips)
    }

    fn exchange(&mut self, round_trips: u32) -> Result<()> {
        let mut message = [0_u8; 16];
        for _ in 0..round_trips {
            self.client.write_all(&message)?;
            self.server.read_exact(&mut message)?;
            self.server.write_all(&message)?;
            self.client.read_exact(&mut message)?;
        }
        Ok(())
    }

    /// One way only.
    pub(super) fn bulk(&mut self) -> Result<()> {
        for _ in 0..self.blocks {
            self.client.write_all(&self.block)?;
            self.server.read_exact(&mut self.block)?;
        }
        Ok(())
    }
}

fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// So many connections, one after the other: a question of 16 bytes, an answer, and the client closes first.
pub(super) fn lives(count: u32) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut message = [0_u8; 16];
    for _ in 0..count {
        let (mut client, mut server) = connect(&listener)?;
        client.write_all(&message)?;
        server.read_exact(&mut message)?;
        server.write_all(&message)?;
        client.read_exact(&mut message)?;
        drop(client);
        // Until the FIN, so that the server's end closes afterwards.
        let _end_of_file = server.read(&mut message)?;
    }
    Ok(())
}

/// So many connections that stay: both ends of each.
pub(super) fn pairs(count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    (0..count).map(|_| connect(&listener)).collect()
}

/// Something new on each, two times.
pub(super) fn twice_each(pairs: &mut [(TcpStream, TcpStream)]) -> Result<()> {
    for (client, server) in pairs {
        for _ in 0..2 {
            client.write_all(b"x")?;
            server.read_exact(&mut [0])?;
        }
    }
    Ok(())
}
