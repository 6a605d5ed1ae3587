//! What the running kernel is: its BTF, release, tick rate. Everything is read below a root path, so that a test can
//! point it at a captured kernel. Whether something is there is decided by these facts, never by a version number.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tcpwatch_common::layout::{Field, Layout};
use tcpwatch_common::reset::{REASONS, ReasonHint};

use super::btf::{Btf, BtfError};
use super::symbols::Symbols;
use crate::sys;

/// Below this the socket storage that everything rests on does not work in tracing programs. Wording only.
pub(super) const OLDEST: &str = "5.15";

/// Why this kernel cannot be watched. Every text names what is missing and the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FactsError {
    /// No BTF at all.
    #[error(
        "kernel {release} offers no BTF at {}: tcpwatch needs a kernel built with CONFIG_DEBUG_INFO_BTF=y ({OLDEST} or \
         newer, as the large distributions ship it)",
        path.display()
    )]
    NoBtf {
        /// `uname -r`.
        release: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// BTF is there and cannot be read.
    #[error("cannot read the kernel's BTF at {}: {source}; run as root or let the user read the file", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("the BTF of kernel {release} at {} is damaged: {source}; reinstall the kernel", path.display())]
    Damaged {
        /// `uname -r`.
        release: String,
        /// Where it is.
        path: PathBuf,
        /// How.
        source: BtfError,
    },
    /// A field without which the programs are of no use.
    #[error(
        "kernel {release} has no field {path} in struct {root}: tcpwatch cannot read this kernel ({OLDEST} or newer is \
         needed; please report it with the output of `tcpwatch doctor --json`)"
    )]
    MissingField {
        /// `uname -r`.
        release: String,
        /// The structure.
        root: &'static str,
        /// The member.
        path: &'static str,
    },
}

/// The facts.
pub(crate) struct KernelFacts {
    /// `uname -r`.
    pub(crate) release: String,
    /// Jiffies in a second.
    pub(crate) hz: u32,
    /// Places of the fields.
    pub(crate) layout: Layout,
    /// The kernel's reset reasons by number, in lower case, without the prefix of the enum.
    pub(crate) reasons: Vec<String>,
    /// What each reason means to us.
    pub(crate) reason_hints: [u8; REASONS],
    /// Whether the kernel's function tracer may be used: kprobes at the entry of functions rest on it.
    pub(crate) ftrace_enabled: bool,
    /// Types and functions.
    pub(crate) btf: Btf,
    /// Addresses of functions.
    pub(crate) symbols: Symbols,
}

impl KernelFacts {
    /// Gathers them; `root` is `/` but for tests.
    pub(crate) fn gather(root: &Path) -> Result<Self, FactsError> {
        let release = fs::read_to_string(root.join("proc/sys/kernel/osrelease"))
            .map_or_else(|_| "of unknown release".to_owned(), |s| s.trim().to_owned());
        let path = root.join("sys/kernel/btf/vmlinux");
        let data = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => FactsError::NoBtf { release: release.clone(), path: path.clone() },
            _ => FactsError::Unreadable { path: path.clone(), source },
        })?;
        let btf = Btf::parse(data).map_err(|source| FactsError::Damaged { release: release.clone(), path, source })?;
        let layout = resolve(&btf, &release)?;
        let (reasons, reason_hints) = reset_reasons(&btf);
        Ok(Self {
            release,
            hz: sys::ticks_per_second(),
            layout,
            reasons,
            reason_hints,
            // Where there is no such sysctl there is no such tracer, and a kprobe is a breakpoint.
            ftrace_enabled: fs::read_to_string(root.join("proc/sys/kernel/ftrace_enabled"))
                .map_or(true, |value| value.trim() != "0"),
            btf,
            symbols: Symbols::gather(root),
        })
    }
}

/// The layout of a kernel; a missing mandatory field is an error.
pub(crate) fn resolve(btf: &Btf, release: &str) -> Result<Layout, FactsError> {
    Layout::resolve(|spec| match btf.field(spec) {
        Some(field) => Ok(field),
        None if spec.required => {
            Err(FactsError::MissingField { release: release.to_owned(), root: spec.root, path: spec.path })
        }
        None => Ok(Field { ..Layout::ABSENT.skc_family }),
    })
}

/// Names and meanings of `enum sk_rst_reason`; both empty on kernels that have none.
fn reset_reasons(btf: &Btf) -> (Vec<String>, [u8; REASONS]) {
    let mut hints = [ReasonHint::None as u8; REASONS];
    let mut names: Vec<String> = Vec::new();
    for (name, number) in btf.enum_values("sk_rst_reason").unwrap_or_default() {
        let number = number as usize;
        let short = name.strip_prefix("SK_RST_REASON_").unwrap_or(&name);
        if number >= REASONS || short == "MAX" {
            continue;
        }
        if names.len() <= number {
            names.resize(number + 1, String::new());
        }
        if let Some(slot) = names.get_mut(number) {
            *slot = if number == 0 { "none".to_owned() } else { short.to_ascii_lowercase() };
        }
        if let Some(hint) = hints.get_mut(number) {
            *hint = ReasonHint::from_kernel_name(short) as u8;
        }
    }
    if names.is_empty() {
        names.push("none".to_owned());
    }
    for (number, name) in names.iter_mut().enumerate() {
        if name.is_empty() {
            *name = format!("reason_{number}");
        }
    }
    (names, hints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_btf_is_told_in_one_sentence() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        fs::write(root.path().join("proc/sys/kernel/osrelease"), "5.4.0-test\n").unwrap();
        let error = KernelFacts::gather(root.path()).err().unwrap().to_string();
        assert!(error.starts_with("kernel 5.4.0-test offers no BTF at "), "{error}");
        assert!(error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn damaged_btf_is_told() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/kernel/btf")).unwrap();
        fs::write(root.path().join("sys/kernel/btf/vmlinux"), b"not BTF").unwrap();
        let error = KernelFacts::gather(root.path()).err().unwrap().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
}
