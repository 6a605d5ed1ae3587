//! A process of the test's own, to own sockets: this program started again, which does as it is told.
//!
//! Its standard input is where it is told what to do, and where descriptors may come with that; its standard error may be
//! a socket that it inherits.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tcpwatch_lab::{Netns, sockopt};

/// Set in the environment of an actor.
const ROLE: &str = "TCPWATCH_TEST_ACTOR";
/// What each end of a crowd sends.
const CROWD_BYTES: usize = 100;
/// Longer than anything here takes, but for a hang.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// An actor; it ends with the value.
pub(crate) struct Actor {
    child: Child,
    control: OwnedFd,
}

impl Actor {
    /// Starts one in a namespace. It inherits `socket`, if there is one.
    pub(crate) fn start(netns: &Netns, socket: Option<OwnedFd>) -> Result<Self> {
        let (control, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = netns.command(std::env::current_exe()?);
        command.env(ROLE, "1").stdin(Stdio::from(its)).stdout(Stdio::null());
        command.stderr(socket.map_or_else(Stdio::null, Stdio::from));
        let child = command.spawn().context("cannot start this program again")?;
        let actor = Self { child, control };
        actor.tell("ready")?;
        Ok(actor)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something, and returns what it says when that is done.
    pub(crate) fn tell(&self, what: &str) -> Result<String> {
        self.give(what, None)
    }

    /// The same with a descriptor that it gets.
    pub(crate) fn give(&self, what: &str, socket: Option<&dyn AsFd>) -> Result<String> {
        send(&self.control, what, socket)?;
        let mut ready = [PollFd::new(&self.control, PollFlags::IN)];
        ensure!(poll(&mut ready, Some(&PATIENCE))? == 1, "{what}: no answer from {}", self.pid());
        let (answer, _) = receive(&self.control)?;
        match answer.split_once(' ') {
            Some(("done", said)) => Ok(said.to_owned()),
            _ => bail!("{what}: {answer:?}"),
        }
    }

    /// Has it run this program anew, as the same process, with its connection as what it inherits.
    pub(crate) fn exec(&self) -> Result<()> {
        send(&self.control, "exec", None)?;
        self.tell("inherit")?;
        Ok(())
    }

    /// Ends it, and waits until it has.
    pub(crate) fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn send(to: &OwnedFd, text: &str, socket: Option<&dyn AsFd>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
    if !fds.is_empty() {
        ensure!(extra.push(SendAncillaryMessage::ScmRights(&fds)), "no room for a descriptor");
    }
    sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut extra, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(from: &impl AsFd) -> Result<(String, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut extra, RecvFlags::empty())?;
    let mut socket = None;
    for message in extra.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            socket = fds.next();
        }
    }
    Ok((String::from_utf8_lossy(&text[..got.bytes]).into_owned(), socket))
}

/// Whether this process is an actor; if so, it has been one.
pub(crate) fn played() -> Option<ExitCode> {
    std::env::var_os(ROLE)?;
    let mut play = Play::default();
    let control = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    loop {
        // The end of the test is the end of the play.
        let Ok((what, socket)) = receive(&control) else { return Some(ExitCode::FAILURE) };
        if what.is_empty() {
            return Some(ExitCode::SUCCESS);
        }
        let answer = match play.act(&what, socket) {
            Ok(said) => format!("done {said}"),
            Err(error) => format!("failed: {error:#}"),
        };
        if send(&control, &answer, None).is_err() {
            return Some(ExitCode::FAILURE);
        }
    }
}

/// What an actor has.
#[derive(Default)]
struct Play {
    stream: Option<TcpStream>,
    listener: Option<TcpListener>,
    /// Both ends of connections with itself.
    crowd: Vec<[TcpStream; 2]>,
}

impl Play {
    fn act(&mut self, what: &str, socket: Option<OwnedFd>) -> Result<String> {
        let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
        match verb {
            "ready" => {}
            "connect" => self.stream = Some(TcpStream::connect(rest.parse::<SocketAddr>()?)?),
            "take" => self.stream = Some(socket.context("no descriptor came")?.into()),
            "inherit" => self.stream = Some(std::io::stderr().as_fd().try_clone_to_owned()?.into()),
            "listen" => {
                let listener = TcpListener::bind(rest)?;
                let address = listener.local_addr()?.to_string();
                self.listener = Some(listener);
                return Ok(address);
            }
            "accept" => {
                let listener = TcpListener::from(std::io::stderr().as_fd().try_clone_to_owned()?);
                self.stream = Some(listener.accept()?.0);
            }
            "serve" => {
                let listener = TcpListener::from(std::io::stderr().as_fd().try_clone_to_owned()?);
                let mut stream = listener.accept()?.0;
                stream.read_exact(&mut [0])?;
                return Ok(sockopt::cookie(&stream)?.to_string());
            }
            "read" => self.stream()?.read_exact(&mut [0])?,
            "write" => self.stream()?.write_all(b"x")?,
            "fill" => {
                self.stream()?.set_nonblocking(true)?;
                while self.stream()?.write(&[0; 4096]).is_ok() {}
            }
            "crowd" => {
                // A port of its own, and with it all ports of the other side.
                let listener = TcpListener::bind("127.0.0.1:0")?;
                let address = listener.local_addr()?;
                for _ in 0..rest.parse()? {
                    let mut pair = [TcpStream::connect(address)?, listener.accept()?.0];
                    for (from, to) in [(0, 1), (1, 0)] {
                        pair[from].write_all(&[0; CROWD_BYTES])?;
                        pair[to].read_exact(&mut [0; CROWD_BYTES])?;
                    }
                    self.crowd.push(pair);
                }
            }
            "disperse" => {
                for [client, server] in self.crowd.drain(..) {
                    sockopt::abort_on_close(&client)?;
                    drop(client);
                    drop(server);
                }
            }
            "abort" => {
                sockopt::abort_on_close(self.stream()?)?;
                self.stream = None;
            }
            "uid" => rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(rest.parse()?))?,
            "name" => rustix::thread::set_name(&CString::new(rest)?)?,
            "cgroup" => std::fs::write(format!("{rest}/cgroup.procs"), "0")?,
            "exec" => {
                let stream = OwnedFd::from(self.stream()?.try_clone()?);
                return Err(Command::new(std::env::current_exe()?).stderr(Stdio::from(stream)).exec().into());
            }
            _ => bail!("there is no {verb}"),
        }
        self.stream.as_ref().map_or(Ok(String::new()), |stream| Ok(sockopt::cookie(stream)?.to_string()))
    }

    fn stream(&mut self) -> Result<&mut TcpStream> {
        self.stream.as_mut().context("there is no connection")
    }
}
