//! Programs on a terminal of their own: what they write, what is typed, and whether they leave the terminal as it was.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// What was written so far.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// What a terminal makes of it.
    screen: vt100::Parser,
    /// There will be no more.
    ended: bool,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.screen.screen().contents())
    }
}

type Written = Arc<(Mutex<Output>, Condvar)>;

/// A program on a terminal of its own; it ends with the value.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    master: File,
    slave: OwnedFd,
    before: Termios,
    written: Written,
    reader: JoinHandle<()>,
}

/// How a program on a terminal has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// All that it wrote, escape sequences included.
    pub text: String,
    /// The terminal has the modes that it had before.
    pub as_before: bool,
}

impl Pty {
    /// Starts a program on a new terminal of this size, which is the one that it controls.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the program cannot be started.
    pub fn spawn(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("cannot open a pseudo-terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        let name = ptsname(&master, Vec::new())?;
        let name = name.to_str().context("the name of the terminal is not UTF-8")?;
        let slave: OwnedFd = File::options().read(true).write(true).open(name).with_context(|| name.to_owned())?.into();
        let before = tcgetattr(&slave)?;
        // A terminal of its own, so that nothing reaches the one that the test was started from.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args()).env("TERM", "xterm-256color");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let end = || slave.try_clone();
        let child = session.stdin(end()?).stdout(end()?).stderr(end()?).spawn();
        let child = child.with_context(|| format!("cannot start {session:?}"))?;
        // Its copies of the terminal would keep it open.
        drop(session);
        let output = Output { screen: vt100::Parser::new(size(rows)?, size(columns)?, 0), ..Output::default() };
        let (master, written) = (File::from(master), Arc::new((Mutex::new(output), Condvar::new())));
        let (mut from, to) = (master.try_clone()?, Arc::clone(&written));
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let read = from.read(&mut piece).unwrap_or(0);
                let mut written = to.0.lock().unwrap_or_else(PoisonError::into_inner);
                let piece = piece.get(..read).unwrap_or_default();
                written.bytes.extend_from_slice(piece);
                written.screen.process(piece);
                written.ended = read == 0;
                to.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        Ok(Self { child, master, slave, before, written, reader })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn send(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("cannot type")
    }

    /// Waits until `text` is on the screen; returns how long that took.
    ///
    /// # Errors
    /// With what is on the screen, when it does not come.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        let mut written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let screen = written.screen.screen().contents();
            if screen.contains(text) {
                return Ok(began.elapsed());
            }
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() || written.ended {
                bail!("{text:?} is not on the screen:\n{screen}");
            }
            (written, _) = self.written.1.wait_timeout(written, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The program's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it has not.
    pub fn end(mut self, patience: Duration) -> Result<Ended> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if began.elapsed() > patience {
                let _already_gone = self.child.kill();
                let _reaped = self.child.wait();
                let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
                bail!("it has not ended; on the screen is\n{written:?}");
            }
            thread::sleep(Duration::from_millis(10));
        };
        let after = tcgetattr(&self.slave)?;
        let before = &self.before;
        let as_before = (after.local_modes, after.input_modes, after.output_modes)
            == (before.local_modes, before.input_modes, before.output_modes);
        drop(self.slave);
        ensure!(self.reader.join().is_ok(), "the reader panicked");
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Ended { status, text: String::from_utf8_lossy(&written.bytes).into_owned(), as_before })
    }
}

fn size(cells: u16) -> Result<NonZeroU16> {
    NonZeroU16::new(cells).context("a terminal has at least one row and column")
}
