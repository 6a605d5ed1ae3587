//! The live view on a terminal, fed by a recording: it is left as it was, whatever ends the view. Needs no privileges.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tcpwatch_lab::Pty;

const PATIENCE: Duration = Duration::from_secs(60);

fn top() -> Result<Pty> {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/lossy_v4.twr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpwatch"));
    command.arg("replay").arg(recording).arg("top");
    let pty = Pty::spawn(&command, 100, 30)?;
    // Keys before the first picture find no rows.
    pty.wait_for("connections (2)", PATIENCE)?;
    Ok(pty)
}

fn is_left(pty: Pty, why: &str, exit: bool) -> Result<()> {
    let ended = pty.end(PATIENCE)?;
    let text = &ended.text;
    ensure!(text.contains("\x1b[?1049h"), "{why}: no screen of its own: {text:?}");
    let left = text.rfind("\x1b[?1049l");
    ensure!(left.is_some_and(|at| !text[at..].contains("LOCAL")), "{why}: the screen was not left: {text:?}");
    ensure!(text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "{why}: no cursor: {text:?}");
    ensure!(ended.as_before, "{why}: the terminal is in another mode than before");
    ensure!(ended.status.success() == exit, "{why}: {}", ended.status);
    Ok(())
}

#[test]
fn the_terminal_is_as_before_after_each_way_to_end() -> Result<()> {
    for keys in ["q", "\x03"] {
        let mut pty = top()?;
        pty.send(keys)?;
        is_left(pty, &format!("{keys:?}"), true)?;
    }
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        let pty = top()?;
        let pid = rustix::process::Pid::from_raw(pty.pid() as i32).expect("a process");
        rustix::process::kill_process(pid, signal)?;
        is_left(pty, &format!("{signal:?}"), true)?;
    }
    Ok(())
}

#[test]
fn keys_lead_through_a_recording() -> Result<()> {
    let mut pty = top()?;
    for (keys, seen) in [
        ("?", "keys, then columns"),
        ("x/prot 1", "filter: prot 1"),
        ("\x1b", "by sent"),
        ("s", "by received"),
        ("2", "DIRECTION"),
        ("3", "AGO"),
        ("1", "connections (2)"),
        ("\r", "handshake"),
        ("\x1b", "Enter detail"),
    ] {
        pty.send(keys)?;
        pty.wait_for(seen, PATIENCE)?;
    }
    pty.send("q")?;
    is_left(pty, "q", true)
}
