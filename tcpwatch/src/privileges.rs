//! Capabilities: what each is for, what is lost without it, and giving up those that are needed at the start only.

use caps::{CapSet, Capability, CapsHashSet};

/// A capability, and why.
#[derive(Debug)]
pub(crate) struct Privilege {
    pub(crate) capability: Capability,
    /// What it is needed for.
    pub(crate) purpose: &'static str,
    /// What is missing without it.
    pub(crate) without: &'static str,
    /// Whether it is needed when everything is attached.
    pub(crate) lasting: bool,
}

/// All that the daemon wants. The unit grants these and no others, which a test compares.
pub(crate) const WANTED: [Privilege; 5] = [
    Privilege {
        capability: Capability::CAP_BPF,
        purpose: "load the kernel programs; read and write their maps on kernels before 5.19",
        without: "nothing works",
        lasting: true,
    },
    Privilege {
        capability: Capability::CAP_PERFMON,
        purpose: "attach the kernel programs to tracepoints and functions",
        without: "nothing works",
        lasting: false,
    },
    Privilege {
        capability: Capability::CAP_SYS_PTRACE,
        purpose: "find the network namespaces of other users' processes",
        without: "in namespaces that only /proc/PID/ns names: no connections older than tcpwatch that no process holds, \
                  no TIME_WAIT, no accept-queue overflows",
        lasting: true,
    },
    Privilege {
        capability: Capability::CAP_SYS_ADMIN,
        purpose: "enter other network namespaces (setns) to read their sockets and counters",
        without: "in all namespaces but its own: no connections older than tcpwatch that no process holds, no TIME_WAIT, \
                  no accept-queue overflows",
        lasting: true,
    },
    Privilege {
        capability: Capability::CAP_SYSLOG,
        purpose: "read the names of the kernel's functions (/proc/kallsyms with addresses)",
        without: "no stacks of resets, and fewer causes of them",
        lasting: true,
    },
];

/// Kept by who has them: root without a unit reads and writes files of others, such as those that a reload names.
const OF_FILES: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH];

/// Whether this process may use the capability now.
pub(crate) fn held(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Gives up what is needed no more; to be called when everything is attached. What remains is logged.
pub(crate) fn give_up() {
    let outcome = caps::read(None, CapSet::Permitted).and_then(|permitted| {
        let kept: CapsHashSet = permitted.iter().copied().filter(|capability| keeps(*capability)).collect();
        // Nothing that this process starts shall have any: it starts nothing.
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)?;
        Ok(kept)
    });
    match outcome {
        Ok(kept) => {
            let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
            names.sort_unstable();
            log::info!(
                "capabilities from here on: {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            );
        }
        Err(error) => log::warn!("capabilities cannot be given up: {error}"),
    }
}

/// Leaves the calling thread, and what it starts, no capabilities but these.
pub(crate) fn keep_only(wanted: &[Capability]) {
    let outcome = caps::read(None, CapSet::Permitted).and_then(|permitted| {
        let kept: CapsHashSet = permitted.iter().copied().filter(|capability| wanted.contains(capability)).collect();
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    });
    if let Err(error) = outcome {
        log::warn!("capabilities of a thread cannot be given up: {error}");
    }
}

fn keeps(capability: Capability) -> bool {
    OF_FILES.contains(&capability) || WANTED.iter().any(|wanted| wanted.capability == capability && wanted.lasting)
}

/// The wanted ones that are missing, a sentence each.
pub(crate) fn missing() -> impl Iterator<Item = String> {
    WANTED.iter().filter(|wanted| !held(wanted.capability)).map(|wanted| {
        format!(
            "{} is missing, which is there to {}; without it: {}",
            wanted.capability, wanted.purpose, wanted.without
        )
    })
}
