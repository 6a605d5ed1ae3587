//! THE TABLE: every program, the hook it needs, whether the daemon can do without it, and what users lose then.
//! The loader walks it; nothing else decides what is attached.

use super::facts::KernelFacts;
use crate::config::ResetHook;

/// What a program hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A tracepoint with typed arguments.
    BtfTracepoint(&'static str),
    /// A tracepoint with untyped arguments.
    RawTracepoint(&'static str),
    /// Entry of a function, through a trampoline.
    Fentry(&'static str),
    /// Entry of a function, through a breakpoint.
    Kprobe(&'static str),
    /// A walk over the kernel's objects, run when the daemon asks for it.
    Iterator(&'static str),
}

impl Hook {
    /// The value of the metric label `hook`.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::BtfTracepoint(_) => "tp_btf",
            Self::RawTracepoint(_) => "raw_tp",
            Self::Fentry(_) => "fentry",
            Self::Kprobe(_) => "kprobe",
            Self::Iterator(_) => "iter",
        }
    }

    /// Whether the kernel has it, by its BTF.
    pub(crate) fn missing_in(self, facts: &KernelFacts) -> Option<String> {
        match self {
            Self::BtfTracepoint(name) | Self::RawTracepoint(name) => {
                facts.btf.tracepoint_args(name).is_none().then(|| format!("this kernel has no tracepoint {name}"))
            }
            Self::Fentry(name) | Self::Kprobe(name) if !facts.btf.has_function(name) => {
                Some(format!("this kernel has no function {name}"))
            }
            // The kernel would take it, and never call it.
            Self::Kprobe(_) if !facts.ftrace_enabled => Some(
                "the sysctl kernel.ftrace_enabled is 0: a kprobe at the entry of a function would never fire".into(),
            ),
            Self::Fentry(_) | Self::Kprobe(_) => None,
            Self::Iterator(name) => (!facts.btf.has_function(&format!("bpf_iter_{name}")))
                .then(|| format!("this kernel has no iterator over {name}")),
        }
    }
}

/// One program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Name of the program in its object.
    pub(crate) program: &'static str,
    /// Where it is attached.
    pub(crate) hook: Hook,
    /// Without it the daemon does not start.
    pub(crate) required: bool,
    /// What users lose without it.
    pub(crate) loses: &'static str,
}

/// The programs that every object has, in the order of attaching: what ends a connection first, so that no event is
/// seen whose beginning was missed by a program that was not there yet.
pub(crate) const CORE: &[Probe] = &[
    Probe {
        program: "adopt_files",
        hook: Hook::Iterator("task_file"),
        required: false,
        loses: "owners of accepted connections, and connections older than tcpwatch until their next segment",
    },
    Probe {
        program: "adopt_sockets",
        hook: Hook::Iterator("tcp"),
        required: false,
        loses: "connections older than tcpwatch that no process holds, until their next segment",
    },
    Probe {
        program: "read_sockets",
        hook: Hook::Iterator("bpf_sk_storage_map"),
        required: false,
        loses: "readings of half-closed connections and of listeners between their transitions",
    },
    Probe {
        program: "tcp_destroy_sock",
        hook: Hook::BtfTracepoint("tcp_destroy_sock"),
        required: false,
        loses: "the gauge of states keeps connections that vanish without a close",
    },
    Probe {
        program: "tcp_receive_reset",
        hook: Hook::BtfTracepoint("tcp_receive_reset"),
        required: false,
        loses: "received resets; such closes count as reset_sent",
    },
    Probe {
        program: "tcp_cong_state_set",
        hook: Hook::BtfTracepoint("tcp_cong_state_set"),
        required: false,
        loses: "time in recovery and loss",
    },
    Probe {
        program: "tcp_rcv_space_adjust",
        hook: Hook::BtfTracepoint("tcp_rcv_space_adjust"),
        required: false,
        loses: "owners of accepted connections within their first seconds",
    },
    Probe {
        program: "tcp_retransmit_synack",
        hook: Hook::BtfTracepoint("tcp_retransmit_synack"),
        required: false,
        loses: "retransmitted SYN-ACKs",
    },
    Probe {
        program: "tcp_retransmit_skb",
        hook: Hook::BtfTracepoint("tcp_retransmit_skb"),
        required: true,
        loses: "retransmitted segments and their causes",
    },
    Probe {
        program: "inet_sock_set_state",
        hook: Hook::BtfTracepoint("inet_sock_set_state"),
        required: true,
        loses: "connections",
    },
    Probe {
        program: "tcp_probe",
        hook: Hook::BtfTracepoint("tcp_probe"),
        required: true,
        loses: "RTT and congestion windows",
    },
];

/// One way to see the resets that are sent: an object, and the programs in it beyond [`CORE`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResetWay {
    /// Name of the object.
    pub(crate) object: &'static str,
    /// The programs.
    pub(crate) probes: &'static [Probe],
}

const RESETS: &str = "resets sent";
const PASSIVE: &str = "passive resets without a full socket: closed ports and TIME_WAIT";

/// The tracepoint: complete where it has its `reason` argument.
pub(crate) const BY_TRACEPOINT: ResetWay = ResetWay {
    object: "tcpwatch-tracepoint",
    probes: &[Probe {
        program: "tcp_send_reset",
        hook: Hook::RawTracepoint("tcp_send_reset"),
        required: false,
        loses: RESETS,
    }],
};

/// The functions behind it, by fentry.
pub(crate) const BY_FENTRY: ResetWay = ResetWay {
    object: "tcpwatch-fentry",
    probes: &[
        Probe {
            program: "tcp_send_active_reset",
            hook: Hook::Fentry("tcp_send_active_reset"),
            required: false,
            loses: RESETS,
        },
        Probe {
            program: "tcp_v4_send_reset",
            hook: Hook::Fentry("tcp_v4_send_reset"),
            required: false,
            loses: PASSIVE,
        },
        Probe {
            program: "tcp_v6_send_reset",
            hook: Hook::Fentry("tcp_v6_send_reset"),
            required: false,
            loses: PASSIVE,
        },
    ],
};

/// The same by kprobe.
pub(crate) const BY_KPROBE: ResetWay = ResetWay {
    object: "tcpwatch-kprobe",
    probes: &[
        Probe {
            program: "tcp_send_active_reset",
            hook: Hook::Kprobe("tcp_send_active_reset"),
            required: false,
            loses: RESETS,
        },
        Probe {
            program: "tcp_v4_send_reset",
            hook: Hook::Kprobe("tcp_v4_send_reset"),
            required: false,
            loses: PASSIVE,
        },
        Probe {
            program: "tcp_v6_send_reset",
            hook: Hook::Kprobe("tcp_v6_send_reset"),
            required: false,
            loses: PASSIVE,
        },
    ],
};

/// Whether the tracepoint sees every reset: it has its `reason` argument.
pub(crate) fn tracepoint_is_complete(facts: &KernelFacts) -> bool {
    facts.btf.tracepoint_args("tcp_send_reset").is_some_and(|args| args >= 3)
}

/// The ways to try, best first. The last resort is the tracepoint even where it is incomplete.
pub(crate) fn reset_ways(facts: &KernelFacts, wanted: ResetHook) -> &'static [ResetWay] {
    match wanted {
        ResetHook::Auto if !tracepoint_is_complete(facts) => &[BY_FENTRY, BY_KPROBE, BY_TRACEPOINT],
        ResetHook::Auto | ResetHook::Tracepoint => &[BY_TRACEPOINT],
        ResetHook::Fentry => &[BY_FENTRY],
        ResetHook::Kprobe => &[BY_KPROBE],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_once_in_each_way() {
        for way in [BY_TRACEPOINT, BY_FENTRY, BY_KPROBE] {
            let mut names: Vec<_> = CORE.iter().chain(way.probes).map(|p| p.program).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), CORE.len() + way.probes.len(), "{}", way.object);
        }
    }

    #[test]
    fn the_hot_path_is_attached_last() {
        assert_eq!(CORE.last().map(|p| p.program), Some("tcp_probe"));
    }
}
