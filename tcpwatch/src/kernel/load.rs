//! Loads the object that fits this kernel, attaches its programs, and hands out the maps.

use std::io;

use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, FEntry, Iter, KProbe, ProgramError, RawTracePoint};
use aya::{Btf as AyaBtf, BtfError, Ebpf, EbpfError, EbpfLoader};
use tcpwatch_common::layout::Layout;
use tcpwatch_common::stack;

use super::facts::{KernelFacts, OLDEST};
use super::maps::{Maps, MapsError};
use super::places::{self, Cast, PlaceError};
use super::probes::{self, CORE, Hook, Probe, ResetWay};
use crate::aggregate::snapshot::{ProbeState, ProbeStatus};
use crate::config::ResetHook;
use crate::objects;
use crate::source::reads::{self, Reads};

/// What the configuration decides about the programs.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Size of the ring buffer, bytes: a power of two and a multiple of the page size.
    pub(crate) ring_bytes: u32,
    /// Retransmit and reset records a second and CPU.
    pub(crate) detail_per_second: u32,
    /// Kernel stacks of resets that are kept.
    pub(crate) reset_stacks: u32,
    /// Look at a socket at most once a jiffy.
    pub(crate) tick_mode: bool,
    /// Where resets that are sent are seen.
    pub(crate) reset_hook: ResetHook,
    /// Inode numbers of the namespaces to keep to; empty for all.
    pub(crate) netns: Vec<u32>,
    /// Logs of the kernel programs.
    pub(crate) kernel_log: bool,
    /// A probe that should attach and does not is an error.
    pub(crate) strict: bool,
}

/// The most namespaces that a filter can name: the size of the frozen table.
pub(crate) const NETNS_FILTER: usize = 8;

/// Why nothing was attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Built without kernel programs.
    #[error("this tcpwatch was built without its kernel programs ({0}); run `cargo xtask build --release`")]
    NoObjects(&'static str),
    /// The kernel says no.
    #[error(
        "the kernel does not let this process load BPF programs ({what}: {source}): run as root, or with CAP_BPF and \
         CAP_PERFMON, outside a container that forbids bpf()"
    )]
    NotPermitted {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A required program cannot run here.
    #[error("probe {probe} cannot be attached: {why}; without it there are no {loses}")]
    Required {
        /// The probe.
        probe: &'static str,
        /// What was tried and what the kernel said.
        why: String,
        /// What is lost.
        loses: &'static str,
    },
    /// `strict` is on.
    #[error("probe {probe} is not attached: {why}; `strict` is set, so this is an error")]
    Strict {
        /// The probe.
        probe: String,
        /// What was tried and what the kernel said.
        why: String,
    },
    /// The object does not fit this daemon.
    #[error("object {object}: {source}")]
    Places {
        /// Its name.
        object: &'static str,
        /// What is wrong.
        source: PlaceError,
    },
    /// The object itself was refused.
    #[error("kernel {release} refuses the object {object}: {source}")]
    Object {
        /// `uname -r`.
        release: String,
        /// Name of the object.
        object: &'static str,
        /// What aya or the kernel said.
        source: Box<EbpfError>,
    },
    /// aya cannot read the BTF.
    #[error("cannot read the kernel's BTF: {0}")]
    Btf(#[from] BtfError),
    /// A map is not as expected.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// What runs in the kernel. Dropping it detaches everything: nothing is pinned.
pub(crate) struct Loaded {
    /// The programs, held by their links.
    pub(crate) ebpf: Ebpf,
    /// The maps.
    pub(crate) maps: Maps,
    /// The table, with what became of each line.
    pub(crate) probes: Vec<ProbeStatus>,
    /// The program that is not attached all the time.
    pub(crate) reads: Reads,
}

/// Loads and attaches.
pub(crate) fn load(facts: &KernelFacts, options: &Options) -> Result<Loaded, LoadError> {
    if let Some(why) = objects::WHY_NO_OBJECTS {
        return Err(LoadError::NoObjects(why));
    }
    let cast = Cast::of(&facts.btf);
    match load_with(facts, options, cast) {
        // Whatever a kernel may have against it.
        Err(LoadError::Required { why, .. }) if cast.is_some() => {
            log::debug!("again without a cast: {why}");
            load_with(facts, options, None)
        }
        outcome => outcome,
    }
}

fn load_with(facts: &KernelFacts, options: &Options, cast: Option<Cast>) -> Result<Loaded, LoadError> {
    let btf = AyaBtf::from_sys_fs()?;
    let ways = probes::reset_ways(facts, options.reset_hook);
    let mut refused: Vec<ProbeStatus> = Vec::new();
    for (i, way) in ways.iter().enumerate() {
        let mut ebpf = load_object(facts, options, &btf, way, cast)?;
        // The resets first: whether this way works decides which object stays.
        let resets = attach_resets(&mut ebpf, &btf, facts, way);
        let works = resets.iter().all(|p| p.state == ProbeState::Attached);
        if !works && i + 1 < ways.len() {
            // Those that were attached go with their object.
            refused.extend(resets.into_iter().filter(|probe| probe.state != ProbeState::Attached));
            continue;
        }
        let (mut table, reads) = attach_core(&mut ebpf, &btf, facts)?;
        table.extend(resets);
        if works {
            // Nothing is missing then; but why it is not the usual way may be asked.
            for ProbeStatus { probe, hook, state, .. } in &refused {
                if let ProbeState::Unsupported(why) | ProbeState::Broken(why) = state {
                    log::info!("probe {probe} ({hook}): {why}; another way is taken");
                }
            }
        } else {
            table.extend(refused);
        }
        if options.strict {
            strict(&table)?;
        }
        let maps = Maps::take(&mut ebpf, options)?;
        return Ok(Loaded { ebpf, maps, probes: table, reads: Reads::new(reads) });
    }
    Err(LoadError::NoObjects("no way to load the programs is known"))
}

/// Of the ring: so much may wait until the daemon looks by the clock.
const WAKING_SHARE: u32 = 4;

pub(crate) fn load_object(
    facts: &KernelFacts,
    options: &Options,
    btf: &AyaBtf,
    way: &ResetWay,
    cast: Option<Cast>,
) -> Result<Ebpf, LoadError> {
    let object = objects::OBJECTS
        .iter()
        .find(|(name, _)| *name == way.object)
        .map(|(_, bytes)| *bytes)
        .ok_or(LoadError::NoObjects("an object is missing"))?;
    let object =
        places::fill(object, &facts.layout, cast).map_err(|source| LoadError::Places { object: way.object, source })?;
    let layout = layout_bytes(&facts.layout);
    let has_err = u32::from(facts.btf.tracepoint_args("tcp_retransmit_skb").is_some_and(|args| args >= 3));
    let has_reason = u32::from(probes::tracepoint_is_complete(facts));
    let filtered = u32::from(!options.netns.is_empty());
    let mut netns = [0_u32; NETNS_FILTER];
    for (place, wanted) in netns.iter_mut().zip(&options.netns) {
        *place = *wanted;
    }
    let tick = u32::from(options.tick_mode);
    let wake = options.ring_bytes / WAKING_SHARE;
    let log_level = if options.kernel_log { u8::MAX } else { 0 };
    let symbols = &facts.symbols;
    let frames = if symbols.can_cut() { stack::FRAMES as u32 } else { stack::FRAMES_UNCUT };
    let (cuts, paths) = (range_bytes(&symbols.cuts), range_bytes(&symbols.paths));
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("LAYOUT", layout.as_slice(), true)
        .override_global("REASON_HINTS", facts.reason_hints.as_slice(), true)
        .override_global("RETRANSMIT_HAS_ERR", &has_err, true)
        .override_global("RESET_HAS_REASON", &has_reason, false)
        .override_global("NETNS_FILTERED", &filtered, true)
        .override_global("NETNS", netns.as_slice(), true)
        .override_global("HZ", &facts.hz, true)
        .override_global("DETAIL_PER_SECOND", &options.detail_per_second, true)
        .override_global("WAKE_BYTES", &wake, true)
        .override_global("TICK_MODE", &tick, true)
        .override_global("STACK_CUTS", cuts.as_slice(), true)
        .override_global("STACK_PATHS", paths.as_slice(), true)
        .override_global("STACK_FRAMES", &frames, true)
        .override_global("AYA_LOG_LEVEL", &log_level, false)
        .map_max_entries("STACKS", options.reset_stacks)
        .map_max_entries("EVENTS", options.ring_bytes);
    if !options.kernel_log {
        loader.map_max_entries("AYA_LOGS", crate::sys::page_size() as u32);
    }
    loader.load(&object).map_err(|source| {
        let what = format!("object {}", way.object);
        match permission(&source) {
            Some(source) => LoadError::NotPermitted { what, source },
            None => LoadError::Object { release: facts.release.clone(), object: way.object, source: Box::new(source) },
        }
    })
}

/// The layout as it lies in the program's read-only data.
pub(crate) fn layout_bytes(layout: &Layout) -> Vec<u8> {
    layout
        .fields()
        .flat_map(|(_, field)| {
            let [a, b] = field.offset.to_ne_bytes();
            // To the programs a byte is a bit field of 8.
            [a, b, field.shift, if field.bits == 0 { 8 } else { field.bits }]
        })
        .collect()
}

fn range_bytes(ranges: &[stack::Range]) -> Vec<u8> {
    ranges.iter().flat_map(|range| [range.start.to_ne_bytes(), range.len.to_ne_bytes()]).flatten().collect()
}

fn attach_resets(ebpf: &mut Ebpf, btf: &AyaBtf, facts: &KernelFacts, way: &ResetWay) -> Vec<ProbeStatus> {
    let partial = way.object == probes::BY_TRACEPOINT.object && !probes::tracepoint_is_complete(facts);
    way.probes
        .iter()
        .map(|probe| {
            let mut status = status(probe, attach(ebpf, btf, facts, probe).map(drop));
            if partial && status.state == ProbeState::Attached {
                status.loses =
                    "passive resets incomplete: this kernel's tracepoint misses those without a full socket".into();
            }
            status
        })
        .collect()
}

fn attach_core(
    ebpf: &mut Ebpf,
    btf: &AyaBtf,
    facts: &KernelFacts,
) -> Result<(Vec<ProbeStatus>, Option<BtfTracePointLinkId>), LoadError> {
    let mut reads = None;
    let table = CORE
        .iter()
        .map(|probe| {
            let outcome = attach(ebpf, btf, facts, probe);
            match outcome {
                Err(Refused::Missing(why) | Refused::Failed(why)) if probe.required => {
                    Err(LoadError::Required { probe: probe.program, why, loses: probe.loses })
                }
                Err(Refused::NotPermitted(source)) => {
                    Err(LoadError::NotPermitted { what: format!("probe {}", probe.program), source })
                }
                outcome => Ok(status(
                    probe,
                    outcome.map(|link| {
                        if probe.program == reads::PROGRAM {
                            reads = link;
                        }
                    }),
                )),
            }
        })
        .collect::<Result<_, _>>()?;
    Ok((table, reads))
}

fn strict(table: &[ProbeStatus]) -> Result<(), LoadError> {
    for line in table {
        if let ProbeState::Broken(why) = &line.state {
            return Err(LoadError::Strict { probe: line.probe.clone(), why: why.clone() });
        }
    }
    Ok(())
}

enum Refused {
    /// The kernel does not have the hook.
    Missing(String),
    /// It has, and refused the program.
    Failed(String),
    /// This process may not.
    NotPermitted(io::Error),
}

fn status(probe: &Probe, outcome: Result<(), Refused>) -> ProbeStatus {
    ProbeStatus {
        probe: probe.program.to_owned(),
        hook: probe.hook.kind().into(),
        required: probe.required,
        state: match outcome {
            Ok(()) => ProbeState::Attached,
            Err(Refused::Missing(why)) => ProbeState::Unsupported(why),
            Err(Refused::Failed(why)) => ProbeState::Broken(why),
            Err(Refused::NotPermitted(source)) => ProbeState::Broken(format!("not permitted: {source}")),
        },
        loses: probe.loses.into(),
    }
}

/// Returns what a program on a typed tracepoint is detached by.
fn attach(
    ebpf: &mut Ebpf,
    btf: &AyaBtf,
    facts: &KernelFacts,
    probe: &Probe,
) -> Result<Option<BtfTracePointLinkId>, Refused> {
    if let Some(why) = probe.hook.missing_in(facts) {
        return Err(Refused::Missing(why));
    }
    let program = ebpf
        .program_mut(probe.program)
        .ok_or_else(|| Refused::Failed(format!("the object has no program {}", probe.program)))?;
    let attached: Result<_, ProgramError> =
        match probe.hook {
            Hook::BtfTracepoint(name) => <&mut BtfTracePoint>::try_from(program)
                .and_then(|p| p.load(name, btf).and_then(|()| p.attach()).map(Some)),
            Hook::RawTracepoint(name) => <&mut RawTracePoint>::try_from(program)
                .and_then(|p| p.load().and_then(|()| p.attach(name)).map(|_| None)),
            Hook::Fentry(name) => {
                <&mut FEntry>::try_from(program).and_then(|p| p.load(name, btf).and_then(|()| p.attach()).map(|_| None))
            }
            Hook::Iterator(name) => <&mut Iter>::try_from(program).and_then(|p| p.load(name, btf)).map(|()| None),
            Hook::Kprobe(name) => {
                <&mut KProbe>::try_from(program).and_then(|p| p.load().and_then(|()| p.attach(name, 0)).map(|_| None))
            }
        };
    attached.map_err(|error| match &error {
        // The verifier answers with EACCES or EINVAL and a log; EPERM alone is a lack of privilege, or of the hook.
        ProgramError::LoadError { io_error, verifier_log }
            if io_error.kind() == io::ErrorKind::PermissionDenied
                && io_error.raw_os_error() == Some(libc::EPERM)
                && verifier_log.to_string().is_empty()
                && matches!(probe.hook, Hook::BtfTracepoint(_)) =>
        {
            Refused::NotPermitted(io::Error::from_raw_os_error(libc::EPERM))
        }
        error => Refused::Failed(sentence(probe, error)),
    })
}

/// What was tried and what the kernel answered; the verifier's log goes to the debug log, it is not a sentence.
fn sentence(probe: &Probe, error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        log::debug!("verifier log of {}: {verifier_log}", probe.program);
        match lacking(&verifier_log.to_string()) {
            // The loader takes the older name where it could not find the newer one.
            Some("bpf_probe_read_kernel" | "bpf_probe_read") => return LOCKED_DOWN.to_owned(),
            Some(what) => return format!("this kernel's tracing programs have no {what}: {OLDEST} or newer is needed"),
            None => {}
        }
        return format!(
            "the kernel refused the program ({io_error}); `log_level = \"debug\"` shows the verifier's log"
        );
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Every kernel in question has this helper, and takes it away in one case (security/lockdown, LOCKDOWN_BPF_READ_KERNEL).
const LOCKED_DOWN: &str = "the kernel is locked down for confidentiality and lets no program read its memory: boot it with \
                           lockdown=integrity, or without";

/// What the verifier says such programs do not have: `unknown func bpf_sk_storage_get#107`. The instructions that return
/// what was there before came with 5.12; the verifiers before know one only and take them for a wrong form of it.
fn lacking(log: &str) -> Option<&str> {
    if log.contains(" uses reserved fields") {
        return Some("atomic exchange");
    }
    // The second is what newer kernels say.
    let (_, name) = log.split_once("unknown func ").or_else(|| log.split_once("cannot use helper "))?;
    name.split(['#', '\n']).next()
}

/// The underlying EPERM of a refused object, if it was that.
fn permission(error: &EbpfError) -> Option<io::Error> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return (io.raw_os_error() == Some(libc::EPERM)).then(|| io::Error::from_raw_os_error(libc::EPERM));
        }
        source = inner.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let log = "47: (85) call bpf_sk_storage_get#107\nunknown func bpf_sk_storage_get#107\nprocessed 45 insns\n";
        assert_eq!(lacking(log), Some("bpf_sk_storage_get"));
        assert_eq!(lacking("BPF_STX uses reserved fields\n"), Some("atomic exchange"));
        let log = "program of this type cannot use helper bpf_probe_read#4\n";
        assert_eq!(lacking(log), Some("bpf_probe_read"));
        assert_eq!(lacking("R1 type=scalar expected=fp"), None);
    }
}
