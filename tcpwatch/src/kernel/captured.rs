//! What was captured of kernels: the part of their BTF that is asked for, in tests/kernels. It tells for each of them,
//! without booting it, where the fields are and what would be attached.
//!
//! With TCPWATCH_BTF_FROM=FOLDER, which has `NAME.btf` files with the whole BTF of kernels, the fixtures are made anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use tcpwatch_common::layout::{ABSENT, FIELDS};

use super::btf::Btf;
use super::btf::prune::pruned;
use super::facts::{FactsError, KernelFacts};
use super::probes::{BY_FENTRY, BY_KPROBE, BY_TRACEPOINT, CORE, Hook, reset_ways};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// The kernels, by what their fixtures are called.
const KERNELS: [&str; 6] = ["5.10.0-32", "6.1.0-56", "6.12.107", "6.18.15", "6.18.44", "7.3.4"];

/// All hooks that the table has.
fn hooks() -> impl Iterator<Item = Hook> {
    let ways = [BY_TRACEPOINT, BY_FENTRY, BY_KPROBE];
    let probes = CORE.iter().chain(ways.iter().flat_map(|way| way.probes));
    probes.map(|probe| probe.hook).collect::<Vec<_>>().into_iter()
}

/// A file system that has nothing but this kernel's BTF.
fn facts(kernel: &str) -> Result<KernelFacts, FactsError> {
    let root = tempfile::tempdir().unwrap();
    for (path, data) in [
        ("proc/sys/kernel/osrelease", format!("{kernel}\n").into_bytes()),
        ("sys/kernel/btf/vmlinux", fs::read(folder().join(format!("{kernel}.btf"))).unwrap()),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    KernelFacts::gather(root.path())
}

#[test]
fn fixtures_are_made_of_whole_btf_and_say_the_same() {
    let Some(from) = env::var_os("TCPWATCH_BTF_FROM") else { return };
    for kernel in KERNELS {
        let file = fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.trim_start_matches("host-").starts_with(kernel) && path.extension().is_some_and(|ext| ext == "btf")
        });
        let file = file.unwrap_or_else(|| panic!("no BTF of {kernel} in {}", Path::new(&from).display()));
        let whole = Btf::parse(fs::read(file).unwrap()).unwrap();
        let data = pruned(&whole, FIELDS, &hooks().collect::<Vec<_>>());
        let part = Btf::parse(data.clone()).unwrap();
        for spec in FIELDS {
            assert_eq!(part.field(spec), whole.field(spec), "{kernel}: {spec:?}");
        }
        for hook in hooks() {
            if let Hook::BtfTracepoint(name) | Hook::RawTracepoint(name) = hook {
                assert_eq!(part.prototype(name), whole.prototype(name), "{kernel}: {name}");
            }
        }
        assert_eq!(part.enum_values("sk_rst_reason"), whole.enum_values("sk_rst_reason"), "{kernel}");
        fs::create_dir_all(folder()).unwrap();
        fs::write(folder().join(format!("{kernel}.btf")), data).unwrap();
    }
}

/// Read off the same kernels by other means (pahole).
#[test]
fn fields_lie_where_they_do() {
    let places: [(&str, [u16; 6]); 6] = [
        ("skc_family", [16, 16, 16, 16, 16, 16]),
        ("srtt_us", [1624, 1672, 1728, 1672, 1680, 1784]),
        ("snd_cwnd", [1728, 1776, 1452, 1452, 1444, 1484]),
        ("bytes_acked", [1448, 1496, 1840, 1816, 1824, 1608]),
        ("total_retrans", [2096, 2144, 2216, 2192, 2200, 2304]),
        ("sk_err", [568, 544, 284, 284, 284, 284]),
    ];
    let mut absent = Vec::new();
    for (at, kernel) in KERNELS.into_iter().enumerate() {
        let layout = facts(kernel).unwrap_or_else(|error| panic!("{error}")).layout;
        let fields: BTreeMap<_, _> = layout.fields().map(|(spec, field)| (spec.name, field)).collect();
        for (name, offsets) in &places {
            assert_eq!(fields[name].offset, offsets[at], "{kernel}: {name}");
        }
        let not_there = fields.iter().filter(|(_, field)| field.offset == ABSENT).map(|(name, _)| *name);
        absent.extend(not_there.map(|name| (kernel, name)));
    }
    // Optional ones, that a kernel does not have.
    assert_eq!(absent, [("5.10.0-32", "sk_cgroup")]);
}

/// What of the table a kernel does not have, and how resets are seen on it first.
#[test]
fn what_is_attached_follows_from_what_is_there() {
    let expected: [(&str, &[&str], &str); 6] = [
        ("5.10.0-32", &["tcp_cong_state_set"], "tcpwatch-fentry"),
        ("6.1.0-56", &[], "tcpwatch-fentry"),
        ("6.12.107", &[], "tcpwatch-tracepoint"),
        ("6.18.15", &[], "tcpwatch-tracepoint"),
        ("6.18.44", &[], "tcpwatch-tracepoint"),
        ("7.3.4", &[], "tcpwatch-tracepoint"),
    ];
    for (kernel, missing, way) in expected {
        let facts = facts(kernel).unwrap_or_else(|error| panic!("{error}"));
        let ways = reset_ways(&facts, crate::config::ResetHook::Auto);
        let probes = CORE.iter().chain(ways.iter().flat_map(|way| way.probes));
        let not_there: Vec<_> =
            probes.filter(|probe| probe.hook.missing_in(&facts).is_some()).map(|probe| probe.program).collect();
        assert_eq!((not_there.as_slice(), ways[0].object), (missing, way), "{kernel}");
    }
}

/// The comment above each entry point has the arguments of the newest kernel; older ones lack some at the end, or a const.
#[test]
fn prototypes_in_comments_are_those_of_the_kernels() {
    let sources = [
        include_str!("../../../tcpwatch-ebpf/src/entry.rs"),
        include_str!("../../../tcpwatch-ebpf/src/bin/tcpwatch-tracepoint.rs"),
    ];
    // What is left of an argument without its name is its type.
    let type_of =
        |argument: &str| argument.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').trim_end().to_owned();
    let comments: BTreeMap<_, _> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.strip_prefix("// hook: ")?.split_once(')')?.0.split_once('('))
        .map(|(name, arguments)| (name, arguments.split(", ").map(type_of).collect::<Vec<_>>()))
        .collect();
    for hook in hooks() {
        let (Hook::BtfTracepoint(name) | Hook::RawTracepoint(name)) = hook else { continue };
        let comment = comments.get(name).unwrap_or_else(|| panic!("no comment with the arguments of {name}"));
        for kernel in KERNELS {
            let facts = facts(kernel).unwrap_or_else(|error| panic!("{error}"));
            let Some(prototype) = facts.btf.prototype(name) else { continue };
            let plain = |argument: &str| argument.replace("const ", "");
            assert!(prototype.len() <= comment.len(), "{kernel}: {name}: {prototype:?}");
            for (argument, said) in prototype.iter().zip(comment) {
                assert_eq!(plain(argument), plain(said), "{kernel}: {name}");
            }
        }
    }
}
