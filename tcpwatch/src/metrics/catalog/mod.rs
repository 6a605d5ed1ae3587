//! Every metric, declared once. Registration, the exporter, docs/METRICS.md and the bound on the number of series are
//! made from this list; the values are read by the functions of `series` that it names.

use tcpwatch_common::close::CloseCause;
use tcpwatch_common::counters::{HANDSHAKE_UNIT_US, Loss, slot};
use tcpwatch_common::hist::{LOG2_BUCKETS, RTT_BUCKETS, rtt_lower};
use tcpwatch_common::limits::{LIMITS, SIDES};
use tcpwatch_common::record::Kind;
use tcpwatch_common::reset::{REASONS, ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::{Direction, TcpState};

use super::model::{Buckets, Factor, Label, Metric, Unit, Values};
use super::series as read;

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

const STATE_NAMES: [&str; STATES.len()] = {
    let mut names = [""; STATES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = STATES[i].name();
        i += 1;
    }
    names
};

/// The states and a last one for every other.
const STATE_NAMES_AND_OTHER: [&str; STATES.len() + 1] = {
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
const MOST_STACKS: usize = crate::aggregate::resets::stacks::MOST + 1;
/// IP versions.
pub(crate) const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
const PLACES: [&str; 8] = ["ring", "throttled", "storage", "map", "stack", "recursion", "decode", "table"];
const HOOKS: [&str; 5] = ["tp_btf", "raw_tp", "fentry", "kprobe", "iter"];

const fn closed(name: &'static str, values: &'static [&'static str]) -> Label {
    Label { name, values: Values::Closed(values), factor: Factor::Values }
}

const fn follows(label: Label) -> Label {
    Label { factor: Factor::Determined, ..label }
}

const fn open(name: &'static str, values: &'static str, most: usize) -> Label {
    Label { name, values: Values::Open(values), factor: Factor::Most(most) }
}

const DIRECTION: Label = closed("direction", &DIRECTIONS);
/// The direction beside a service: a group has one.
const GROUP: Label = follows(DIRECTION);
const SERVICE: Label = Label {
    name: "service",
    values: Values::Open("a port that listens here (inbound) or that we connect to (outbound), `other`, `none`"),
    factor: Factor::Groups,
};
const CLOSE_CAUSE: Label = closed("cause", &CLOSE_CAUSES);
const RETRANSMIT_CAUSE: Label = closed("cause", &RETRANSMIT_CAUSES);
const ORIGIN: Label = closed("origin", &ORIGINS);
const RESET_CAUSE: Label = closed("cause", &RESET_CAUSES);
/// Whose receive window.
const SIDE: Label = closed("side", &SIDES);
/// What `explain` says of a service.
const VERDICTS: [&str; crate::explain::SERVICE_IDS.len()] = {
    let mut names = [""; crate::explain::SERVICE_IDS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = crate::explain::SERVICE_IDS[i].name();
        i += 1;
    }
    names
};
const VERDICT: Label = closed("id", &VERDICTS);
const STORM_CAUSE: Label = closed("cause", &crate::storm::CAUSES);
const REASON: Label =
    open("reason", "the kernel's name in lower case without the enum's prefix; `none` where it gives none", REASONS);
const LISTENER: Label =
    open("listener", "address and port; `other` for those beyond the first by port and address", MOST_LISTENERS + 1);
const STACK: Label = open("stack", "a fingerprint, `other` for those beyond the first", MOST_STACKS);
const PROGRAM: Label = open("program", "the name of the kernel program", MOST_PROGRAMS);

/// Finite edges of a histogram in powers of two.
const LOG2_EDGES: usize = LOG2_BUCKETS - 1;
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

const RTT_SECONDS: [f64; RTT_EDGES] = doubling(RTT_FIRST_US, 1e6);
const HANDSHAKE_SECONDS: [f64; LOG2_EDGES] = doubling(HANDSHAKE_UNIT_US as u64, 1e6);
const DURATION_SECONDS: [f64; LOG2_EDGES] = doubling(1, 1e3);
const WINDOW_SEGMENTS: [f64; LOG2_EDGES] = doubling(1, 1.0);

const RTT: Buckets = Buckets {
    edges: &RTT_SECONDS,
    reason: "Powers of two from 32 µs, below which even loopback rarely falls, to beyond what a connection survives. \
             They are exact sums of the finer buckets that the kernel counts in, of which the API has quantiles. A \
             sample exactly on an edge counts above it.",
};
const HANDSHAKE: Buckets =
    Buckets { edges: &HANDSHAKE_SECONDS, reason: "Powers of two from 32 µs to 8.4 s: the kernel counts in them." };
const DURATION: Buckets = Buckets {
    edges: &DURATION_SECONDS,
    reason: "Powers of two from 1 ms to 4.4 minutes: short connections are the expensive ones.",
};
const WINDOW: Buckets =
    Buckets { edges: &WINDOW_SEGMENTS, reason: "Powers of two: windows double in slow start and halve at a loss." };

const CONNECTIONS: &str = "Connections";
const LISTENERS: &str = "Listeners";
const PATH: &str = "Round trips and windows";
const TRAFFIC: &str = "Traffic and retransmissions";
const LIMITED: &str = "Limits";
const RESETS: &str = "Resets";
const PROOF: &str = "Proof: the kernel's own counters";
const OWN: &str = "tcpwatch itself";
const PROCESS: &str = "The process";

/// Every metric, in the order of the documentation.
pub(crate) const CATALOG: &[Metric] = &[
    Metric::gauge("tcpwatch_connections", Unit::Count, "Connections by TCP state.")
        .by(&[closed("state", &STATE_NAMES)])
        .note("TIME_WAIT is what the kernel counts in each network namespace, orphans in FIN_WAIT2 among it.")
        .read(CONNECTIONS, read::connections),
    Metric::counter(
        "tcpwatch_connections_opened_total",
        Unit::Count,
        "Connections that reached ESTABLISHED while tcpwatch watched.",
    )
    .by(&[GROUP, SERVICE])
    .read(CONNECTIONS, read::opened),
    Metric::counter("tcpwatch_connections_adopted_total", Unit::Count, "Connections that existed before tcpwatch saw them.")
        .by(&[GROUP, SERVICE])
        .note("What they did earlier is in no counter and no histogram.")
        .read(CONNECTIONS, read::adopted),
    Metric::counter("tcpwatch_connections_closed_total", Unit::Count, "Connections that ended, by cause.")
        .by(&[GROUP, SERVICE, CLOSE_CAUSE])
        .note("`fin_local` and `fin_remote`: whose FIN came first; `failed_open`: it never reached ESTABLISHED.")
        .read(CONNECTIONS, read::closed),
    Metric::histogram("tcpwatch_handshake_seconds", Unit::Seconds, "Round-trip time of the handshake.", HANDSHAKE)
        .by(&[DIRECTION])
        .note("Of handshakes without a retransmission: with one, nobody can tell which copy was answered.")
        .read(CONNECTIONS, read::handshake),
    Metric::histogram(
        "tcpwatch_connection_duration_seconds",
        Unit::Seconds,
        "Time from ESTABLISHED to the end of a connection.",
        DURATION,
    )
    .by(&[DIRECTION])
    .read(CONNECTIONS, read::duration),
    Metric::histogram("tcpwatch_rtt_seconds", Unit::Seconds, "Raw round-trip time samples, before smoothing.", RTT)
        .by(&[GROUP, SERVICE])
        .note(
            "One for each ACK that acknowledges data for the first time which was sent once: the time of the newest such \
             segment, or, without SACK, of the oldest. A connection that only receives has none. `tcpwatch_sampling_mode` \
             tells how often they are taken.",
        )
        .read(PATH, read::rtt),
    Metric::gauge(
        "tcpwatch_rtt_recent_seconds",
        Unit::Seconds,
        "Quantiles of the raw round-trip time samples of the last 30 to 60 seconds.",
    )
    .by(&[DIRECTION, closed("percentile", &PERCENTILES)])
    .note("Within 3 %, from finer buckets than those of `tcpwatch_rtt_seconds`. Absent without samples.")
    .read(PATH, read::rtt_recent),
    Metric::histogram(
        "tcpwatch_congestion_window_segments",
        Unit::Segments,
        "Congestion window at each round-trip time sample.",
        WINDOW,
    )
    .by(&[DIRECTION])
    .read(PATH, read::window),
    Metric::gauge("tcpwatch_listener_queue", Unit::Count, "Connections that wait in the accept queue of a listener.")
        .by(&[LISTENER])
        .read(LISTENERS, read::listener_queue),
    Metric::gauge("tcpwatch_listener_queue_limit", Unit::Count, "The most connections that may wait in an accept queue.")
        .by(&[LISTENER])
        .note("Of sockets that share an address, the sum.")
        .read(LISTENERS, read::listener_limit),
    Metric::counter("tcpwatch_listener_drops_total", Unit::Count, "Segments that a listener dropped.")
        .by(&[LISTENER])
        .note("The kernel's `sk_drops`: a full accept queue, a full SYN backlog, a bad segment.")
        .read(LISTENERS, read::listener_drops),
    Metric::counter(
        "tcpwatch_listen_overflows_total",
        Unit::Count,
        "Connections that found an accept queue full, by network namespace.",
    )
    .by(&[open("netns", "the inode number of the network namespace", MOST_NAMESPACES)])
    .note("The kernel's ListenOverflows, since the namespace exists.")
    .read(LISTENERS, read::listen_overflows),
    Metric::counter("tcpwatch_sent_bytes_total", Unit::Bytes, "Payload bytes sent, retransmissions included.")
        .by(&[GROUP, SERVICE])
        .read(TRAFFIC, read::sent_bytes),
    Metric::counter("tcpwatch_received_bytes_total", Unit::Bytes, "Payload bytes received in order.")
        .by(&[GROUP, SERVICE])
        .read(TRAFFIC, read::received_bytes),
    Metric::counter(
        "tcpwatch_sent_segments_total",
        Unit::Segments,
        "Segments with payload sent, retransmissions included.",
    )
    .by(&[GROUP, SERVICE])
    .read(TRAFFIC, read::sent_segments),
    Metric::counter("tcpwatch_retransmitted_segments_total", Unit::Segments, "Segments sent again, by cause.")
        .by(&[GROUP, SERVICE, RETRANSMIT_CAUSE])
        .note(
            "The sum is what the kernel counts as RetransSegs: transmits that failed are included. A tail loss probe \
             is a question to the peer and happens on healthy paths.",
        )
        .read(TRAFFIC, read::retransmitted),
    Metric::counter(
        "tcpwatch_retransmit_failures_total",
        Unit::Count,
        "Retransmissions that this host refused to send.",
    )
    .by(&[GROUP, SERVICE])
    .note("A part of `tcpwatch_retransmitted_segments_total` where the kernel counts them there.")
    .read(TRAFFIC, read::refused),
    Metric::counter(
        "tcpwatch_spurious_retransmits_total",
        Unit::Count,
        "Retransmissions that were proven needless.",
    )
    .by(&[GROUP, SERVICE])
    .note(
            "Told by the receiver's DSACK, in which duplicates made by the network look the same; without SACK, by the kernel's \
             taking back its reduction of the congestion window.",
        )
    .read(TRAFFIC, read::spurious),
    Metric::counter("tcpwatch_limited_seconds_total", Unit::Seconds, "Time of connections, by what limited their sending.")
        .by(&[GROUP, SERVICE, closed("by", &LIMITS)])
        .note(
            "The sum over all connections that may still send. With data to send, by the kernel's chronographs: the peer's \
             receive window, our send buffer, or else the congestion window, which stands for the path. Without: the \
             application. Counted in jiffies.",
        )
        .read(LIMITED, read::limited),
    Metric::counter("tcpwatch_zero_window_total", Unit::Count, "Times that a receive window became zero.")
        .by(&[GROUP, SERVICE, SIDE])
        .note(
            "`peer`: the peer stopped us. `local`: we stopped the peer, because the application here does not read; it is \
             seen when a segment comes in meanwhile, at the latest the peer's first probe: shorter ones are not.",
        )
        .read(LIMITED, read::zero_windows),
    Metric::counter("tcpwatch_zero_window_seconds_total", Unit::Seconds, "Time that receive windows were zero.")
        .by(&[GROUP, SERVICE, SIDE])
        .note("Those of the peer to a jiffy; ours last until the next segment comes in.")
        .read(LIMITED, read::zero_window_seconds),
    Metric::counter(
        "tcpwatch_idle_restarts_total",
        Unit::Count,
        "Times that the kernel reduced a congestion window because the connection had paused.",
    )
    .by(&[GROUP, SERVICE])
    .note("After a pause longer than the retransmission timeout, unless `net.ipv4.tcp_slow_start_after_idle` is 0. bbr never does it.")
    .read(LIMITED, read::idle_restarts),
    Metric::gauge(
        "tcpwatch_service_verdict",
        Unit::Flag,
        "Whether `tcpwatch explain` says this of a service, of what ended in the last minute or two.",
    )
    .by(&[GROUP, SERVICE, VERDICT])
    .note("The rules and what to do: docs/EXPLAIN.md. Single connections have no series; `tcpwatch explain` names them.")
    .read(LIMITED, read::service_verdicts),
    Metric::counter("tcpwatch_resets_sent_total", Unit::Count, "RSTs that this host sent, by origin and cause.")
        .by(&[GROUP, SERVICE, ORIGIN, RESET_CAUSE])
        .note(
            "`active`: something here ended a connection; `passive`: the answer to a segment that fits none. \
             `service=\"none\"` has those that neither a listener nor a connection explains.",
        )
        .read(RESETS, read::resets_sent),
    Metric::counter(
        "tcpwatch_resets_sent_by_reason_total",
        Unit::Count,
        "RSTs that this host sent, by the reason that the kernel gives.",
    )
    .by(&[ORIGIN, REASON, closed("family", &FAMILIES)])
    .note("Reasons appear when they first occur. Kernels before 6.10 give none.")
    .read(RESETS, read::resets_by_reason),
    Metric::counter("tcpwatch_reset_stacks_total", Unit::Count, "RSTs that this host sent, by kernel stack.")
        .by(&[STACK])
        .note(
            "A fingerprint is made of the cause and the names of the functions above the softirq: it stays over reboots. \
             Stacks that the table of the kernel programs has no place for are in \
             `tcpwatch_events_lost_total{where=\"map\"}`.",
        )
        .read(RESETS, read::reset_stacks),
    Metric::gauge("tcpwatch_reset_stack_info", Unit::Info, "The functions of each kernel stack, the innermost first.")
        .by(&[
            STACK,
            follows(open("cause", "as of `tcpwatch_resets_sent_total`", 1)),
            follows(open("frames", "names of functions, separated by `;`; empty where the kernel hides them", 1)),
        ])
        .read(RESETS, read::reset_stack_info),
    Metric::counter(
        "tcpwatch_resets_received_total",
        Unit::Count,
        "RSTs of peers that ended a connection, by its state at that moment.",
    )
    .by(&[GROUP, SERVICE, closed("state", &STATE_NAMES_AND_OTHER)])
    .read(RESETS, read::resets_received),
    Metric::gauge(
        "tcpwatch_reset_storm_active",
        Unit::Flag,
        "Whether there is a storm of resets of a service and cause.",
    )
    .by(&[GROUP, SERVICE, STORM_CAUSE])
    .note(
        "1 for two minutes after its end too, so that no scrape misses it. `cause=\"received\"`: RSTs of peers. What \
         makes a storm: docs/STORMS.md.",
    )
    .read(RESETS, read::storm_active),
    Metric::counter("tcpwatch_reset_storms_total", Unit::Count, "Storms of resets that began.")
        .by(&[GROUP, SERVICE, STORM_CAUSE])
        .read(RESETS, read::storms),
    Metric::counter(
        "tcpwatch_kernel_retransmitted_segments_total",
        Unit::Segments,
        "Segments retransmitted as the kernel counts them, since tcpwatch started.",
    )
    .note("RetransSegs of every network namespace that can be read, from when it was first read; ended ones stay in it.")
    .read(PROOF, read::kernel_retransmits),
    Metric::counter(
        "tcpwatch_kernel_resets_sent_total",
        Unit::Count,
        "RSTs sent as the kernel counts them, since tcpwatch started.",
    )
    .note("OutRsts of the same namespaces.")
    .read(PROOF, read::kernel_resets),
    Metric::gauge(
        "tcpwatch_coverage_ratio",
        Unit::Ratio,
        "What tcpwatch counted, over what the kernel counted in the same namespaces since the same moment.",
    )
    .by(&[closed("counter", &COMPARED)])
    .note(
        "1 when nothing was missed. Both sides are read while the kernel's stand still. Absent while the kernel has \
         counted nothing. `tcpwatch doctor` names what explains another value.",
    )
    .read(PROOF, read::coverage),
    Metric::gauge(
        "tcpwatch_unreadable_namespaces",
        Unit::Count,
        "Network namespaces where tcpwatch counted something and the kernel's counters cannot be read.",
    )
    .note("No process is in them, or CAP_SYS_ADMIN or CAP_SYS_PTRACE is missing. They are not compared.")
    .read(PROOF, read::unreadable_namespaces),
    Metric::counter("tcpwatch_events_total", Unit::Count, "Records taken from the kernel, by kind.")
        .by(&[closed("kind", &KINDS)])
        .read(OWN, read::events),
    Metric::counter("tcpwatch_events_lost_total", Unit::Count, "Items that could not be kept, by place and program.")
        .by(&[
            follows(closed("where", &PLACES)),
            open(
                "program",
                "the kernel program, or `daemon`",
                // Each kernel place has a program of its own, each program may miss events, and the daemon has two places.
                Loss::ALL.len() + MOST_PROGRAMS + 2,
            ),
        ])
        .note(
            "`ring`, `throttled`, `stack`, `table`: details are missing, totals are right. `storage`, `map`, `recursion`: events \
             are missing from the totals too. `decode`: records that the daemon did not understand.",
        )
        .read(OWN, read::lost),
    Metric::counter("tcpwatch_decode_errors_total", Unit::Count, "Records that the daemon could not decode, by reason.")
        .by(&[closed("reason", &DECODE_REASONS)])
        .read(OWN, read::decode_errors),
    Metric::counter("tcpwatch_program_runs_total", Unit::Count, "Runs of each kernel program.")
        .by(&[PROGRAM])
        .note("Counted by the kernel while its BPF statistics are on (`kernel.bpf_stats_enabled`); absent otherwise.")
        .read(OWN, read::program_runs),
    Metric::gauge("tcpwatch_program_mean_run_seconds", Unit::Seconds, "Mean time of a run of each kernel program.")
        .by(&[PROGRAM])
        .note("Present while the kernel's BPF statistics are on. It contains the cost of measuring.")
        .read(OWN, read::program_time),
    Metric::gauge("tcpwatch_sampling_mode", Unit::Flag, "How round-trip time is sampled: 1 for the mode that is on.")
        .by(&[closed("mode", &MODES)])
        .read(OWN, read::sampling_mode),
    Metric::gauge("tcpwatch_probe_attached", Unit::Flag, "Whether a probe runs.")
        .by(&[
            open("probe", "the name in the table of probes", MOST_PROBES),
            follows(closed("hook", &HOOKS)),
        ])
        .note("Absent for a probe that another one stands in for. `tcpwatch doctor` tells what is lost where it is 0.")
        .read(OWN, read::probes),
    Metric::gauge("tcpwatch_sample_interval_seconds", Unit::Seconds, "Interval at which busy connections are reported.")
        .note("It grows with their number, so that `records_per_second` is kept.")
        .read(OWN, read::sample_interval),
    Metric::gauge("tcpwatch_snapshot_age_seconds", Unit::Seconds, "Age of the picture that this scrape shows.")
        .of_process()
        .read(OWN, read::snapshot_age),
    Metric::gauge("tcpwatch_ring_size_bytes", Unit::Bytes, "Size of the ring buffer between kernel and daemon.")
        .read(OWN, read::ring_size),
    Metric::gauge("tcpwatch_ring_used_bytes", Unit::Bytes, "Bytes that waited in the ring buffer.")
        .read(OWN, read::ring_used),
    Metric::gauge("tcpwatch_map_memory_bytes", Unit::Bytes, "Kernel memory of all maps, by the kernel's account.")
        .note("The state that is kept in each socket is not in it.")
        .read(OWN, read::map_memory),
    Metric::gauge("tcpwatch_table_entries", Unit::Count, "Connections in the daemon's table.")
        .read(OWN, read::table_entries),
    Metric::gauge("tcpwatch_table_capacity", Unit::Count, "Connections that the daemon's table holds at most.")
        .read(OWN, read::table_capacity),
    Metric::gauge("tcpwatch_scrape_duration_seconds", Unit::Seconds, "Time that the last scrape took to prepare.")
        .of_process()
        .read(OWN, read::scrape_duration),
    Metric::counter(
        "tcpwatch_http_disconnects_total",
        Unit::Count,
        "HTTP clients that went away before they had their answer.",
    )
    .of_process()
        .read(OWN, read::disconnects),
    Metric::gauge("tcpwatch_build_info", Unit::Info, "What tcpwatch was built from.")
        .by(&[
            open("version", "the version", 1),
            follows(open("commit", "the commit, may be empty", 1)),
            follows(open("bpf_compiler", "what compiled the kernel programs", 1)),
        ])
        .of_process()
        .read(OWN, read::build_info),
    Metric::gauge("tcpwatch_kernel_info", Unit::Info, "The kernel that is watched.")
        .by(&[open("release", "what `uname -r` prints", 1)])
        .read(OWN, read::kernel_info),
    Metric::counter("process_cpu_seconds_total", Unit::Seconds, "User and system time of the daemon.")
        .of_process()
        .read(PROCESS, read::cpu_seconds),
    Metric::gauge("process_resident_memory_bytes", Unit::Bytes, "Resident memory of the daemon.")
        .of_process()
        .read(PROCESS, read::resident_memory),
    Metric::gauge("process_virtual_memory_bytes", Unit::Bytes, "Virtual memory of the daemon.")
        .of_process()
        .read(PROCESS, read::virtual_memory),
    Metric::gauge("process_open_fds", Unit::Count, "Open file descriptors of the daemon.")
        .of_process()
        .read(PROCESS, read::open_fds),
    Metric::gauge("process_max_fds", Unit::Count, "File descriptors that the daemon may open.")
        .of_process()
        .read(PROCESS, read::max_fds),
    Metric::gauge("process_threads", Unit::Count, "Threads of the daemon.").of_process()
        .read(PROCESS, read::threads),
    Metric::gauge("process_start_time_seconds", Unit::Seconds, "When the daemon started, since the epoch.")
        .of_process()
        .read(PROCESS, read::start_time),
];

/// The most series of one scrape when the configuration allows so many services.
pub(crate) fn bound(services: usize) -> usize {
    CATALOG.iter().map(|metric| metric.bound(services + FIXED_GROUPS)).sum()
}

#[cfg(test)]
mod tests;
