//! Every metric, declared once. Registration, the exporter, docs/METRICS.md and the bound on the number of series are
//! made from this list; the values are read by the functions of `series` that it names.

mod labels;

use tcpwatch_common::counters::Loss;
use tcpwatch_common::limits::LIMITS;

use super::model::{Metric, Unit};
use super::series as read;

pub(crate) use labels::*;

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
        .note(
            "Absent for a probe that another one stands in for. `tcpwatch doctor` tells what is lost where it is 0. \
             tcp_rcv_space_adjust rests while nobody is accepted, and counts as running.",
        )
        .read(OWN, read::probes),
    Metric::gauge("tcpwatch_sample_interval_seconds", Unit::Seconds, "Interval at which busy connections are reported.")
        .note("It grows while `records_per_second` or `cpu_budget` would be exceeded.")
        .read(OWN, read::sample_interval),
    Metric::gauge("tcpwatch_governor_level", Unit::Count, "What is held back to keep the budgets.")
        .note(
            "0: nothing; 1: busy connections are reported less often than `sample_interval`; 2: the histograms are \
             thinned, too. Counters never lose anything.",
        )
        .read(OWN, read::governor_level),
    Metric::gauge(
        "tcpwatch_governor_sampled_ratio",
        Unit::Ratio,
        "RTT samples that enter the histograms of round-trip times and congestion windows, over those there were.",
    )
    .note("1 while they are not thinned. Which samples enter does not depend on what they say: quantiles stay right, counts are so much smaller.")
    .read(OWN, read::histogram_ratio),
    Metric::counter(
        "tcpwatch_governor_thinned_seconds_total",
        Unit::Seconds,
        "Time for which the histograms of round-trip times and congestion windows were thinned.",
    )
    .note("A range in which it does not grow has histograms that are whole.")
    .read(OWN, read::thinned_seconds),
    Metric::gauge("tcpwatch_governor_cpu_ratio", Unit::Ratio, "CPU time that tcpwatch takes, over that of one CPU.")
        .note("Of the last seconds: that of the daemon and, while the kernel's BPF statistics are on, that of its programs.")
        .read(OWN, read::governor_cpu),
    Metric::gauge("tcpwatch_governor_cpu_budget_ratio", Unit::Ratio, "CPU time that it may take: `cpu_budget`.")
        .read(OWN, read::governor_cpu_budget),
    Metric::gauge(
        "tcpwatch_governor_records_per_second",
        Unit::Count,
        "Periodic records that came from the kernel, a second, in the last seconds.",
    )
    .read(OWN, read::governor_records),
    Metric::gauge(
        "tcpwatch_governor_records_per_second_budget",
        Unit::Count,
        "Periodic records that may come, a second: `records_per_second`.",
    )
    .read(OWN, read::governor_records_budget),
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
