//! One emulated machine: started, listened to, ended.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{process::say, toolchain};

const QEMU: &str = "qemu-system-x86_64";
const DEVICE: &str = "/dev/kvm";
/// A machine that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(400);
/// An accelerated one has booted by then, or never will: nested virtualisation may hang.
const BOOT: Duration = Duration::from_secs(15);
const MEMORY_MIB: &str = "2560";

/// How the machine's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// By the processor.
    Kvm,
    /// By emulation.
    Tcg,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // A processor with all that can be emulated is slower to emulate.
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"],
        }
    }

    /// The faster one that boots this image.
    pub(crate) fn find(kernel: &Path, image: &Path) -> Self {
        if fs::OpenOptions::new().read(true).write(true).open(DEVICE).is_err() {
            return Self::Tcg;
        }
        let booted = machine(Self::Kvm, kernel, image).map(|mut machine| {
            let deadline = Instant::now() + BOOT;
            let mut booted = false;
            while let Some(left) = deadline.checked_duration_since(Instant::now()) {
                match machine.lines.recv_timeout(left) {
                    Ok(line) if line.starts_with("@@booted") => {
                        booted = true;
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            machine.end();
            booted
        });
        let found = if booted.unwrap_or(false) { Self::Kvm } else { Self::Tcg };
        say!("{DEVICE} is there; accelerator: {found:?}");
        found
    }
}

/// Runs a machine to its end; `each` is told every line. An error when it hangs or dies before it says that it is done.
pub(crate) fn run(
    accelerator: Accelerator,
    kernel: &Path,
    image: &Path,
    log: &Path,
    mut each: impl FnMut(&str),
) -> Result<()> {
    let mut machine = machine(accelerator, kernel, image)?;
    let mut log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut last = String::new();
    let outcome = loop {
        match machine.lines.recv_timeout(SILENCE) {
            Ok(line) => {
                writeln!(log, "{line}").context("cannot write the log")?;
                each(&line);
                if line == "@@done" {
                    break Ok(());
                }
                last = line;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(format!("it has said nothing for {} s", SILENCE.as_secs()));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err("it ended early".to_owned()),
        }
    };
    machine.end();
    match outcome {
        Ok(()) => Ok(()),
        Err(why) => bail!("{why}; its last words: {last:?}"),
    }
}

struct Machine {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Machine {
    fn end(&mut self) {
        // Gone already, or has nothing left to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn machine(accelerator: Accelerator, kernel: &Path, image: &Path) -> Result<Machine> {
    let program = toolchain::in_path(QEMU).with_context(|| format!("there is no {QEMU} here"))?;
    let mut child = Command::new(program)
        .args(accelerator.arguments())
        .args(["-m", MEMORY_MIB, "-smp", "2", "-nographic", "-no-reboot", "-net", "none", "-append"])
        .arg("console=ttyS0 panic=-1 rdinit=/init quiet loglevel=1 mitigations=off")
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot start {QEMU}"))?;
    let output = child.stdout.take().context("it has no console")?;
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for bytes in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = clean(&String::from_utf8_lossy(&bytes));
            if send.send(line).is_err() {
                break;
            }
        }
    });
    Ok(Machine { child, lines })
}

/// Without carriage returns and what the firmware does to the screen.
fn clean(line: &str) -> String {
    let mut words = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // ESC c, or ESC [ and parameters up to a letter.
                if chars.next() == Some('[') {
                    let _sequence = chars.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            c if c.is_control() && c != '\t' => {}
            c => words.push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_leaves_no_traces() {
        assert_eq!(clean("\u{1b}c\u{1b}[?7l\u{1b}[2J@@booted 6.1\r"), "@@booted 6.1");
        assert_eq!(clean("test a\t... ok\r"), "test a\t... ok");
    }
}
