//! What the definitions of metrics are put together from: labels and their values, buckets, bounds.

use tcpwatch_common::close::CloseCause;
use tcpwatch_common::counters::{HANDSHAKE_UNIT_US, slot};
use tcpwatch_common::hist::{LOG2_BUCKETS, RTT_BUCKETS, rtt_lower};
use tcpwatch_common::limits::SIDES;
use tcpwatch_common::record::Kind;
use tcpwatch_common::reset::{REASONS, ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::{Direction, TcpState};

use crate::metrics::model::{Buckets, Factor, Label, Values};

/// Groups that exist whatever services there are: `other` of each direction, and resets without any service.
pub(crate) const FIXED_GROUPS: usize = slot::FIRST_FREE as usize;
/// Services that can have series of their own, whatever the configuration says.
pub(crate) const MOST_SERVICES: usize = slot::COUNT - FIXED_GROUPS;
/// Most programs that the daemon may load.
pub(crate) const MOST_PROGRAMS: usize = 24;
/// Most probes that the table of probes may have: each program may have several ways to attach.
pub(crate) const MOST_PROBES: usize = 32;

/// The names of all values of an enumeration of tcpwatch-common.
macro_rules! names {
    ($($kind:ty: $name:ident),+) => {$(
        pub(crate) const $name: [&str; <$kind>::ALL.len()] = {
            let mut names = [""; <$kind>::ALL.len()];
            let mut i = 0;
            while i < names.len() {
                names[i] = <$kind>::ALL[i].name();
                i += 1;
            }
            names
        };
    )+};
}
names!(
    Direction: DIRECTIONS,
    CloseCause: CLOSE_CAUSES,
    RetransmitCause: RETRANSMIT_CAUSES,
    ResetOrigin: ORIGINS,
    ResetCause: RESET_CAUSES,
    Kind: KINDS
);

/// States in which a socket is a connection. TIME_WAIT belongs to a smaller structure, which the probes do not follow:
/// the kernel counts it in each namespace. LISTEN and CLOSE are no connections.
pub(crate) const STATES: [TcpState; 9] = [
    TcpState::TimeWait,
    TcpState::Established,
    TcpState::SynSent,
    TcpState::SynRecv,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];

pub(super) const STATE_NAMES: [&str; STATES.len()] = {
    let mut names = [""; STATES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = STATES[i].name();
        i += 1;
    }
    names
};

/// The states and a last one for every other.
pub(super) const STATE_NAMES_AND_OTHER: [&str; STATES.len() + 1] = {
    let mut names = ["other"; STATES.len() + 1];
    let mut i = 0;
    while i < STATES.len() {
        names[i] = STATE_NAMES[i];
        i += 1;
    }
    names
};

/// Why a record could not be decoded.
pub(crate) const DECODE_REASONS: [&str; 3] = ["too_short", "abi_mismatch", "unknown_kind"];
/// How RTT samples are taken.
pub(crate) const MODES: [&str; 2] = ["every-ack", "tick"];
/// Quantiles of the round-trip time.
pub(crate) const PERCENTILES: [&str; 3] = ["p50", "p90", "p99"];
/// Listeners with series of their own.
pub(crate) const MOST_LISTENERS: usize = 64;
/// Network namespaces with series of their own.
pub(crate) const MOST_NAMESPACES: usize = 64;
/// Counters that the kernel has too.
pub(crate) const COMPARED: [&str; 2] = ["retransmitted_segments", "resets_sent"];
/// Kernel stacks with series of their own, and `other`.
pub(super) const MOST_STACKS: usize = crate::aggregate::resets::stacks::MOST + 1;
/// IP versions.
pub(crate) const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
pub(super) const PLACES: [&str; 8] = ["ring", "throttled", "storage", "map", "stack", "recursion", "decode", "table"];
pub(super) const HOOKS: [&str; 5] = ["tp_btf", "raw_tp", "fentry", "kprobe", "iter"];

pub(super) const fn closed(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: Values::Closed(values), factor: Factor::Values }
}

pub(super) const fn follows(label: Label) -> Label {
    Label { factor: Factor::Determined, ..label }
}

pub(super) const fn open(name: &'static str, values: &'static str, most: usize) -> Label {
    Label { name, values: Values::Open(values), factor: Factor::Most(most) }
}

pub(super) const DIRECTION: Label = closed("direction", &DIRECTIONS);
/// The direction beside a service: a group has one.
pub(super) const GROUP: Label = follows(DIRECTION);
pub(super) const SERVICE: Label = Label {
    name: "service",
    values: Values::Open("a port that listens here (inbound) or that we connect to (outbound), `other`, `none`"),
    factor: Factor::Groups,
};
pub(super) const CLOSE_CAUSE: Label = closed("cause", &CLOSE_CAUSES);
pub(super) const RETRANSMIT_CAUSE: Label = closed("cause", &RETRANSMIT_CAUSES);
pub(super) const ORIGIN: Label = closed("origin", &ORIGINS);
pub(super) const RESET_CAUSE: Label = closed("cause", &RESET_CAUSES);
/// Whose receive window.
pub(super) const SIDE: Label = closed("side", &SIDES);
/// What `explain` says of a service.
pub(super) const VERDICTS: [&str; crate::explain::SERVICE_IDS.len()] = {
    let mut names = [""; crate::explain::SERVICE_IDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = crate::explain::SERVICE_IDS[i].name();
        i += 1;
    }
    names
};
pub(super) const VERDICT: Label = closed("id", &VERDICTS);
pub(super) const STORM_CAUSE: Label = closed("cause", &crate::storm::CAUSES);
pub(super) const REASON: Label =
    open("reason", "the kernel's name in lower case without the enum's prefix; `none` where it gives none", REASONS);
pub(super) const LISTENER: Label =
    open("listener", "address and port; `other` for those beyond the first by port and address", MOST_LISTENERS + 1);
pub(super) const STACK: Label = open("stack", "a fingerprint, `other` for those beyond the first", MOST_STACKS);
pub(super) const PROGRAM: Label = open("program", "the name of the kernel program", MOST_PROGRAMS);

/// Finite edges of a histogram in powers of two.
pub(super) const LOG2_EDGES: usize = LOG2_BUCKETS - 1;
/// The first edge of the RTT histogram, µs.
pub(crate) const RTT_FIRST_US: u64 = 32;
/// Finite edges of the RTT histogram. The last fine bucket has no upper edge, so none lies above its lower one.
pub(crate) const RTT_EDGES: usize = (rtt_lower(RTT_BUCKETS - 1) / RTT_FIRST_US).ilog2() as usize + 1;

/// `first`, then each edge twice the one before, divided by `per_unit`.
const fn doubling<const N: usize>(first: u64, per_unit: f64) -> [f64; N] {
    let mut edges = [0.0; N];
    let mut i = 0;
    while i < N {
        edges[i] = (first << i) as f64 / per_unit;
        i += 1;
    }
    edges
}

pub(super) const RTT_SECONDS: [f64; RTT_EDGES] = doubling(RTT_FIRST_US, 1e6);
pub(super) const HANDSHAKE_SECONDS: [f64; LOG2_EDGES] = doubling(HANDSHAKE_UNIT_US as u64, 1e6);
pub(super) const DURATION_SECONDS: [f64; LOG2_EDGES] = doubling(1, 1e3);
pub(super) const WINDOW_SEGMENTS: [f64; LOG2_EDGES] = doubling(1, 1.0);

pub(super) const RTT: Buckets = Buckets {
    edges: &RTT_SECONDS,
    reason: "Powers of two from 32 µs, below which even loopback rarely falls, to beyond what a connection survives. \
             They are exact sums of the finer buckets that the kernel counts in, of which the API has quantiles. A \
             sample exactly on an edge counts above it.",
};
pub(super) const HANDSHAKE: Buckets =
    Buckets { edges: &HANDSHAKE_SECONDS, reason: "Powers of two from 32 µs to 8.4 s: the kernel counts in them." };
pub(super) const DURATION: Buckets = Buckets {
    edges: &DURATION_SECONDS,
    reason: "Powers of two from 1 ms to 4.4 minutes: short connections are the expensive ones.",
};
pub(super) const WINDOW: Buckets =
    Buckets { edges: &WINDOW_SEGMENTS, reason: "Powers of two: windows double in slow start and halve at a loss." };
