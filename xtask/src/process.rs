//! Starting other programs: cargo in the workspace, anything as root, and what they leave behind.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::toolchain;

/// A line of progress, apart from what children print; standard output is for results.
macro_rules! say {
    ($($part:tt)*) => { eprintln!("==> {}", format_args!($($part)*)) };
}
pub(crate) use say;

/// The workspace: told by cargo at run time, since a shared target folder may hold the xtask of another clone.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("to be started as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("the workspace is the folder above xtask")?;
    Ok(root.to_owned())
}

/// The target folder this xtask was built into, wherever cargo was told to put it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("where is this xtask?")?;
    let target = exe.ancestors().nth(2).with_context(|| format!("{} is in no target folder", exe.display()))?;
    Ok(target.to_owned())
}

/// The cargo that runs this xtask, in the workspace, where building without kernel programs is an error.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").as_deref().unwrap_or(OsStr::new("cargo")));
    command.current_dir(root()?).env("TCPWATCH_REQUIRE_BPF", "1").stdin(Stdio::null());
    Ok(command)
}

/// Flags that make `cargo test` and `cargo run` start what they built as root, while cargo itself stays the user's.
pub(crate) fn cargo_runs_as_root() -> Result<Vec<String>> {
    if is_root()? {
        return Ok(Vec::new());
    }
    let chore: Vec<_> = env::args().skip(1).collect();
    require_sudo(&format!("cargo xtask {}", chore.join(" ")))?;
    Ok(vec!["--config".to_owned(), "target.'cfg(unix)'.runner = ['sudo', '--preserve-env']".to_owned()])
}

/// A command as root: as it is for root, else through sudo, else an error that says what to run.
pub(crate) fn as_root(words: &[&str]) -> Result<Command> {
    let [program, args @ ..] = words else { bail!("no command") };
    let mut command;
    if is_root()? {
        command = Command::new(program);
    } else {
        require_sudo(&words.join(" "))?;
        command = Command::new("sudo");
        command.arg(program);
    }
    command.args(args);
    Ok(command)
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("/proc must be mounted")?.uid() == 0)
}

fn require_sudo(what: &str) -> Result<()> {
    if toolchain::in_path("sudo").is_none() {
        bail!("needs root and there is no sudo; run as root: {what}");
    }
    Ok(())
}

/// Runs to its end with its output passed through; anything but success is an error that shows the command.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", show(command)))?;
    if !status.success() {
        bail!("{}: {status}", show(command));
    }
    Ok(())
}

/// What it prints on standard output; its errors are passed through.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let out = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", show(command)))?;
    if !out.status.success() {
        bail!("{}: {}", show(command), out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("{} does not print UTF-8", show(command)))
}

/// Whether it runs and succeeds; what it prints is of no interest.
pub(crate) fn works(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

/// The command as one would type it, less the folder of the program.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> =
        std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("/somewhere/bin/cargo");
        command.args(["test", "--workspace"]);
        assert_eq!(show(&command), "cargo test --workspace");
    }
}
