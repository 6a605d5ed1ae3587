//! The kernel's functions by address, from /proc/kallsyms, modules included. Nothing is kept: the file is read when the
//! programs are loaded and when a stack has an address that no stack had before, which takes some 50 ms and 10 MB for
//! that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tcpwatch_common::stack::{CUTS, Range, path};

/// Frames that a stack is shown with.
const MOST_FRAMES: usize = 12;
/// Where the story of a reset begins.
const RESET_FUNCTIONS: [&str; 3] = ["tcp_send_active_reset", "tcp_v4_send_reset", "tcp_v6_send_reset"];
/// How the frames of tracing begin, for kernels where the function above is inlined.
const TRACERS: [&str; 9] =
    ["bpf_", "__bpf_", "___bpf_", "__traceiter_", "ftrace_", "kprobe_", "optimized_callback", "__kprobe", UNKNOWN];
/// Where a system call enters: the same below, whatever was called.
const ENTRIES: [&str; 6] = [
    "x64_sys_call",
    "do_syscall_64",
    "entry_SYSCALL_64",
    "entry_SYSCALL_64_after_hwframe",
    "invoke_syscall",
    "el0_svc",
];
/// A function without a name.
const UNKNOWN: &str = "?";
/// No function is longer: an address farther from the symbol before it belongs to something that has none.
const LONGEST: u64 = 1 << 18;

/// What the kernel tells of its functions.
#[derive(Clone, Debug)]
pub(crate) struct Symbols {
    file: PathBuf,
    /// Where stacks are cut.
    pub(crate) cuts: [Range; CUTS.len()],
    /// What tells resets apart; none unless all that matter are there.
    pub(crate) paths: [Range; path::FUNCTIONS.len()],
    /// Why there are no addresses, in a sentence; `None` when there are.
    pub(crate) hidden: Option<String>,
}

impl Symbols {
    /// Looks for what the programs need, below `root`.
    pub(crate) fn gather(root: &Path) -> Self {
        let file = root.join("proc/kallsyms");
        let none =
            Self { cuts: [Range::NONE; CUTS.len()], paths: [Range::NONE; path::FUNCTIONS.len()], hidden: None, file };
        let text = match fs::read(&none.file) {
            Ok(text) => text,
            Err(error) => {
                let why = format!("cannot read {}: {error}", none.file.display());
                return Self { hidden: Some(why), ..none };
            }
        };
        let table = Table::of(&text);
        if table.functions.is_empty() {
            return Self { hidden: Some(why_hidden(root)), ..none };
        }
        let cuts = CUTS.map(|name| table.range(name).unwrap_or(Range::NONE));
        let found = path::FUNCTIONS.map(|(names, _)| names.iter().find_map(|name| table.range(name)));
        let whole = found.iter().zip(path::FUNCTIONS).all(|(range, (_, needed))| range.is_some() || !needed);
        let paths = found.map(|range| range.filter(|_| whole).unwrap_or(Range::NONE));
        Self { cuts, paths, ..none }
    }

    /// Whether stacks can be cut where they should be.
    pub(crate) fn can_cut(&self) -> bool {
        self.cuts.iter().any(|range| *range != Range::NONE)
    }

    /// The names of functions by the addresses that calls return to.
    pub(crate) fn names(&self, ips: &BTreeSet<u64>) -> BTreeMap<u64, String> {
        let text = if self.hidden.is_none() { fs::read(&self.file).unwrap_or_default() } else { Vec::new() };
        let table = Table::of(&text);
        ips.iter().map(|ip| (*ip, table.name(*ip))).collect()
    }
}

fn why_hidden(root: &Path) -> String {
    let restrict = fs::read_to_string(root.join("proc/sys/kernel/kptr_restrict")).unwrap_or_default();
    match restrict.trim() {
        "2" => {
            "kernel.kptr_restrict = 2 hides the kernel's addresses from everybody; 1 lets CAP_SYSLOG see them".into()
        }
        _ => "the kernel hides its addresses from this process: it lacks CAP_SYSLOG".into(),
    }
}

/// Functions in the order of their addresses.
struct Table<'a> {
    functions: Vec<(u64, &'a [u8])>,
}

impl<'a> Table<'a> {
    fn of(text: &'a [u8]) -> Self {
        let mut functions: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(function).collect();
        functions.sort_by_key(|(address, _)| *address);
        Self { functions }
    }

    fn range(&self, name: &str) -> Option<Range> {
        let at = self.functions.iter().position(|(_, known)| *known == name.as_bytes())?;
        let (start, _) = *self.functions.get(at)?;
        let end = self.functions.iter().skip(at).map(|(address, _)| *address).find(|address| *address > start)?;
        Some(Range { start, len: end - start })
    }

    fn name(&self, ip: u64) -> String {
        // A call that never returns may be the last instruction of its function.
        let call = ip.saturating_sub(1);
        let above = self.functions.partition_point(|(address, _)| *address <= call);
        match above.checked_sub(1).and_then(|at| self.functions.get(at)) {
            Some((address, name)) if call - address < LONGEST => plain(name),
            _ => UNKNOWN.to_owned(),
        }
    }
}

/// Address and name of a line; `None` for data, and for an address that is hidden.
fn function(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut parts = line.split(u8::is_ascii_whitespace);
    let address = u64::from_str_radix(std::str::from_utf8(parts.next()?).ok()?, 16).ok().filter(|a| *a != 0)?;
    let kind = parts.next()?;
    let name = parts.next().filter(|name| !name.is_empty())?;
    matches!(kind, b"t" | b"T" | b"w" | b"W").then_some((address, name))
}

/// Without what the compiler added, and with nothing that a terminal or a page could take for a command.
fn plain(name: &[u8]) -> String {
    let name = name.split(|byte| *byte == b'.').next().unwrap_or_default();
    let shown = |byte: &u8| if byte.is_ascii_alphanumeric() || *byte == b'_' { char::from(*byte) } else { '?' };
    name.iter().map(shown).collect()
}

/// The frames that tell of a reset: without those of tracing above, and those of what was interrupted below.
pub(crate) fn story(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    let begin = match names.iter().position(|name| RESET_FUNCTIONS.contains(&name.as_str())) {
        Some(begin) => begin,
        None => names.iter().take_while(|name| TRACERS.iter().any(|tracer| name.starts_with(tracer))).count(),
    };
    names.drain(..begin);
    let end = names.iter().position(|name| [&CUTS[..], &ENTRIES].concat().contains(&name.as_str()));
    names.truncate(end.unwrap_or(MOST_FRAMES).min(MOST_FRAMES));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "ffffffff81000000 T _stext\nffffffff81000100 T tcp_abort\nffffffff81000200 t handle_softirqs\n\
        ffffffff81000280 d some_data\nffffffff81000300 T tcp_send_active_reset\nffffffff81000400 T __tcp_close\n\
        ffffffff81000500 T tcp_disconnect\nffffffff81000600 T inet_csk_listen_stop\nffffffff81000700 T end\n\
        ffffffffc0000000 t ip6_input_finish.isra.0\t[ipv6]\nffffffffc0000010 t odd\x1b[name\t[x]\n";

    fn root(kallsyms: &str, restrict: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        fs::write(root.path().join("proc/kallsyms"), kallsyms).unwrap();
        fs::write(root.path().join("proc/sys/kernel/kptr_restrict"), restrict).unwrap();
        root
    }

    #[test]
    fn functions_are_found_with_their_lengths_and_by_address() {
        let root = root(KALLSYMS, "1\n");
        let symbols = Symbols::gather(root.path());
        assert_eq!(symbols.hidden, None);
        let softirq = Range { start: 0xffff_ffff_8100_0200, len: 0x100 };
        assert_eq!(symbols.cuts[CUTS.iter().position(|name| *name == "handle_softirqs").unwrap()], softirq);
        assert_eq!(symbols.paths[1], Range { start: 0xffff_ffff_8100_0100, len: 0x100 });
        // The timer is not there: it may be part of another function.
        assert_eq!(symbols.paths[5], Range::NONE);
        let ips = [0xffff_ffff_8100_0200, 0xffff_ffff_8100_0201, 0xffff_ffff_c000_0008, 0xffff_ffff_c000_0020, 1];
        let names = symbols.names(&BTreeSet::from(ips));
        assert_eq!(
            ips.map(|ip| names[&ip].as_str()),
            ["tcp_abort", "handle_softirqs", "ip6_input_finish", "odd??name", "?"]
        );
        assert_eq!(symbols.names(&BTreeSet::from([0xffff_ffff_9000_0000])).into_values().next().unwrap(), "?");
    }

    #[test]
    fn a_function_that_matters_and_is_missing_makes_the_rest_say_nothing() {
        let root = root(&KALLSYMS.replace("tcp_disconnect", "tcp_other"), "1\n");
        assert_eq!(Symbols::gather(root.path()).paths, [Range::NONE; path::FUNCTIONS.len()]);
    }

    #[test]
    fn hidden_addresses_are_told_with_the_privilege_that_is_missing() {
        let hidden = "0000000000000000 T tcp_abort\n0000000000000000 t handle_softirqs\n";
        for (restrict, said) in [("1\n", "CAP_SYSLOG"), ("2\n", "kptr_restrict = 2")] {
            let root = root(hidden, restrict);
            let symbols = Symbols::gather(root.path());
            assert!(symbols.hidden.as_ref().unwrap().contains(said) && !symbols.can_cut(), "{symbols:?}");
            assert_eq!(symbols.names(&BTreeSet::from([5])).into_values().next().unwrap(), "?");
        }
    }

    #[test]
    fn a_stack_is_told_without_tracer_and_interrupted_task() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (frames, told) in [
            (
                "? bpf_trace_run3 __traceiter_tcp_send_reset tcp_v4_send_reset tcp_v4_rcv handle_softirqs do_idle",
                "tcp_v4_send_reset tcp_v4_rcv",
            ),
            ("bpf_prog_1 bpf_trampoline_2 tcp_disconnect __tcp_close do_syscall_64", "tcp_disconnect __tcp_close"),
            ("tcp_send_active_reset a b c d e f g h i j k l m", "tcp_send_active_reset a b c d e f g h i j k"),
        ] {
            assert_eq!(story(words(frames)), words(told), "{frames}");
        }
        assert_eq!(story(words("? ? ? ?")), Vec::<String>::new());
    }
}
