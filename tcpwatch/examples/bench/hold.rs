//! A process that holds connections in a network namespace of its own, and exchanges bytes over them when told so: a
//! process has a limit on descriptors, and what is to be watched shall have many of either.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tcpwatch_lab::Netns;

/// Exchanges in one go.
const CHUNK: usize = 50;
/// What it says when the connections are there.
const READY: &str = "ready";

/// Makes the connections, says so, and does what is said on standard input: a line with a number has so many of them
/// exchange bytes once a second, and is answered by how many exchanges there were since the line before.
pub(crate) fn run(pairs: usize) -> Result<()> {
    Netns::new()?.enter()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut held = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        let client = TcpStream::connect(listener.local_addr()?)?;
        held.push((client, listener.accept()?.0));
    }
    println!("{READY}");
    let (tell, told) = mpsc::channel();
    // It ends with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let (mut busy, mut done, mut at) = (0, 0_u64, 0);
    let mut due = Instant::now();
    loop {
        match told.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{done}");
                (busy, done, at) = (line.trim().parse::<usize>()?.min(held.len()), 0, 0);
                due = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {
                if busy == 0 {
                    due += Duration::from_secs(1);
                    continue;
                }
                for _ in 0..CHUNK.min(busy) {
                    if let Some((client, server)) = held.get_mut(at) {
                        exchange(client, server)?;
                        done += 1;
                    }
                    at = (at + 1) % busy;
                }
                // What the machine cannot do is not caught up with.
                due = (due + Duration::from_secs(1).mul_f64(CHUNK.min(busy) as f64 / busy as f64)).max(Instant::now());
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let mut message = [0_u8; 16];
    client.write_all(&message)?;
    server.read_exact(&mut message)?;
    server.write_all(&message)?;
    Ok(client.read_exact(&mut message)?)
}

/// Such a process; it ends with the value.
pub(crate) struct Holder {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Its connections.
    pub(crate) pairs: usize,
}

impl Holder {
    /// Starts one; [`Holder::ready`] waits for it.
    pub(crate) fn start(pairs: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("hold").arg(pairs.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start this program to hold connections")?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output, pairs })
    }

    /// Waits until its connections are there.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let said = self.line()?;
        ensure!(said.trim() == READY, "a process that holds {} connections says {said:?}", self.pairs);
        Ok(())
    }

    /// Has so many of its connections exchange bytes once a second; returns the exchanges since the last call.
    pub(crate) fn busy(&mut self, pairs: usize) -> Result<u64> {
        writeln!(self.input, "{pairs}")?;
        Ok(self.line()?.trim().parse()?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
