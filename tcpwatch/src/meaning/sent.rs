//! Resets that this host sent, by cause.

use super::limits::{Limits, change, setting, value};
use super::{Facts, Meaning, bytes};
use crate::api::text::time;

const ABORT_ON_OVERFLOW: &str = "net.ipv4.tcp_abort_on_overflow";
const SOMAXCONN: &str = "net.core.somaxconn";
const MAX_ORPHANS: &str = "net.ipv4.tcp_max_orphans";
const TCP_MEM: &str = "net.ipv4.tcp_mem";
const KEEPALIVE_PROBES: &str = "net.ipv4.tcp_keepalive_probes";

pub(super) fn meaning(facts: &Facts<'_>) -> Meaning {
    match facts.cause {
        "unread_data" => unread_data(facts),
        "linger_zero" => linger_zero(facts),
        "no_listener" => no_listener(facts),
        "closed_socket" => closed_socket(facts),
        "time_wait" => time_wait(facts),
        "keepalive" => keepalive(facts),
        "memory" => memory(facts),
        "destroyed" => destroyed(facts),
        "accept_queue" => accept_queue(facts),
        "bad_ack" => bad_ack(facts),
        "disconnect" => disconnect(facts),
        "listener_closed" => listener_closed(facts),
        _ => unknown(facts),
    }
}

fn unread_data(facts: &Facts<'_>) -> Meaning {
    let (who, peer) = (facts.who(), facts.peer());
    let unread = facts.socket.map(|socket| socket.unread_bytes);
    let what = unread.map_or_else(|| "received data".to_owned(), |unread| bytes(unread.into()));
    Meaning::new(
        format!(
            "{who} closed the connection with {peer} and left {what} unread, so the kernel sent a reset in place of a FIN: \
             the peer learns that data was lost."
        ),
        "Read to the end of the stream before close(), or shutdown(SHUT_WR) and read until the peer closes. Look for a \
         limit on the size of requests, a timeout or a crash in that process. No kernel setting changes this.",
    )
    .known("unread_bytes", unread)
    .known("received_bytes", facts.socket.and_then(|socket| socket.received_bytes))
}

fn linger_zero(facts: &Facts<'_>) -> Meaning {
    let (who, peer) = (facts.who(), facts.peer());
    // Programs often deny it: it is a fact that the socket tells.
    let linger_ms = facts.socket.and_then(|socket| socket.linger_ms);
    let option = if linger_ms == Some(0) { " The socket has the option set." } else { "" };
    let lost = facts.socket.map_or_else(String::new, |socket| {
        let all = [
            (socket.unacked_bytes, "sent and not acknowledged"),
            (socket.unsent_bytes.unwrap_or(0), "written and not sent"),
            (socket.unread_bytes, "received and not read"),
        ];
        let all: Vec<_> =
            all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", bytes((*n).into()))).collect();
        if all.is_empty() {
            " No data was lost by that.".to_owned()
        } else {
            format!(" Lost by that: {}.", all.join(", "))
        }
    });
    Meaning::new(
        format!(
            "{who} closed the connection with {peer} with SO_LINGER on and a time of 0, which makes close() send a reset.{option}{lost}"
        ),
        "If it is not intended: find setsockopt(SO_LINGER, {1, 0}) in that program or its configuration (HAProxy: \
         `option nolinger`; nginx: `reset_timedout_connection on`), and turn it off there. If it is: \
         `storm_mute_causes = [\"linger_zero\"]`.",
    )
    .known("linger_ms", linger_ms)
    .known("unacked_bytes", facts.socket.map(|socket| socket.unacked_bytes))
    .known("unsent_bytes", facts.socket.and_then(|socket| socket.unsent_bytes))
}

fn no_listener(facts: &Facts<'_>) -> Meaning {
    let (peer, port) = (facts.peer(), facts.port());
    let at = facts.local.map_or_else(String::new, |local| format!(" of {}", local.ip()));
    let filter = facts.local.map_or_else(String::new, |local| format!(" 'sport = :{}'", local.port()));
    Meaning::new(
        format!("{peer} tried to connect to {port}{at}, where nothing listens in this network namespace."),
        format!(
            "Is it a service that stopped, or listens at another address? `ss --tcp --listening --numeric{filter}` shows who \
             does. If nothing should: drop what scans in the firewall, or tell the peer the right port."
        ),
    )
    .known("port", facts.local.map(|local| local.port()))
}

fn closed_socket(facts: &Facts<'_>) -> Meaning {
    let (who, peer) = (facts.who(), facts.peer());
    let flags = facts.flags.join(",");
    match facts.socket {
        Some(_) => {
            let since =
                facts.in_state_ms.map_or_else(String::new, |ms| format!(" ({} for {})", facts.state, time(ms)));
            Meaning::new(
                format!("{who} had closed this connection{since}, and {peer} still sent data: nobody is left to read it."),
                "The peer should stop when it reads the end of the stream. Or close later: shutdown(SHUT_WR), then read \
                 until the peer closes too.",
            )
            .known("in_state_ms", facts.in_state_ms)
        }
        None => Meaning::new(
            format!(
                "{peer} sent a segment ({flags}) to {}, and no socket here has these two ends: the connection ended here \
                 earlier, or its addresses are translated on the way (DNAT, REDIRECT, a load balancer) and no longer lead \
                 to its socket.",
                facts.port()
            ),
            "Which of the two cannot be told from here. Does the peer keep connections longer than this host (timeouts, \
             restarts)? Is there translation: `nft list ruleset`, `conntrack --dump` for this pair?",
        )
        .fact("flags", flags),
    }
}

fn time_wait(facts: &Facts<'_>) -> Meaning {
    let peer = facts.peer();
    let limits = facts.limits;
    let timeout = limits.and_then(|limits| limits.fin_timeout_s);
    Meaning::new(
        format!(
            "{peer} still sent ({}) after this end had closed the connection: its socket was gone, and only the remainder \
             that waits for the last segments (TIME_WAIT or an orphan in FIN_WAIT2) was left.",
            facts.flags.join(",")
        ),
        "The peer sends after it was told the end of the stream: a keep-alive timeout of ours that is shorter than the \
         peer's is the usual reason. Let the end that sends requests be the first to give up.",
    )
    .fact("flags", facts.flags.join(","))
    .known("net.ipv4.tcp_fin_timeout", timeout)
}

fn keepalive(facts: &Facts<'_>) -> Meaning {
    let (who, peer) = (facts.who(), facts.peer());
    let limits = facts.limits.cloned().unwrap_or_default();
    let Limits { keepalive_time_s, keepalive_interval_s, keepalive_probes, .. } = limits;
    let settings = [
        setting("net.ipv4.tcp_keepalive_time", keepalive_time_s),
        setting("net.ipv4.tcp_keepalive_intvl", keepalive_interval_s),
        setting(KEEPALIVE_PROBES, keepalive_probes),
    ];
    let idle =
        facts.in_state_ms.map_or_else(String::new, |ms| format!(", {} after it came to {}", time(ms), facts.state));
    let probes = facts.socket.and_then(|socket| socket.probes).filter(|probes| *probes > 0);
    let asked = match probes {
        Some(1) => "1 keepalive probe".to_owned(),
        Some(probes) => format!("{probes} keepalive probes"),
        None => "the keepalive probes".to_owned(),
    };
    Meaning::new(
        format!(
            "{peer} did not answer {asked} of this end{idle}: the peer or the path to it is gone, and the \
             connection was given up."
        ),
        format!(
            "Look for a peer that vanished without a FIN, or a firewall that forgot an idle connection. {who} may have set \
             TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT or TCP_USER_TIMEOUT; where it did not, {} hold. To give up later: {}.",
            settings.join(", "),
            change(KEEPALIVE_PROBES, keepalive_probes, &doubled(keepalive_probes))
        ),
    )
    .known("unanswered_probes", probes)
    .fact("net.ipv4.tcp_keepalive_time", value(keepalive_time_s))
    .fact("net.ipv4.tcp_keepalive_intvl", value(keepalive_interval_s))
    .fact(KEEPALIVE_PROBES, value(keepalive_probes))
}

fn memory(facts: &Facts<'_>) -> Meaning {
    let limits = facts.limits.cloned().unwrap_or_default();
    let Limits { max_orphans, orphans, tcp_mem_pages: [_, _, memory_limit_pages], memory_pages, .. } = limits;
    let is_full =
        |level: Option<u64>, limit: Option<u64>| level.zip(limit).is_some_and(|(level, limit)| level >= limit);
    let crowded = is_full(orphans, max_orphans);
    let full = is_full(memory_pages, memory_limit_pages);
    let level = |level: Option<u64>| level.map_or_else(|| "unknown".to_owned(), |level| level.to_string());
    let (why, remedy) = match (crowded, full) {
        (true, false) => (
            format!("there were {} orphans, and {} is the most", level(orphans), setting(MAX_ORPHANS, max_orphans)),
            format!(
                "Raise it: {}. Orphans are closed connections whose data is not acknowledged yet: peers that vanish, or a \
                 service that closes too early.",
                change(MAX_ORPHANS, max_orphans, &doubled(max_orphans))
            ),
        ),
        (false, true) => (
            format!(
                "TCP used {} pages of memory, and {} is the most",
                level(memory_pages),
                setting(&format!("{TCP_MEM}[2]"), memory_limit_pages)
            ),
            format!(
                "Find who fills socket buffers: `ss --tcp --memory`. To give them more: {}.",
                match (limits.tcp_mem(1), limits.tcp_mem(2)) {
                    (Some(now), Some(more)) => {
                        format!("`sysctl -w {TCP_MEM}='{more}'`, undone by `sysctl -w {TCP_MEM}='{now}'`")
                    }
                    _ => format!("`{TCP_MEM}`"),
                }
            ),
        ),
        _ => (
            format!(
                "which of the two cannot be told any more: now there are {} orphans ({}) and {} pages in use ({})",
                level(orphans),
                setting(MAX_ORPHANS, max_orphans),
                level(memory_pages),
                setting(&format!("{TCP_MEM}[2]"), memory_limit_pages)
            ),
            format!(
                "Look at `/proc/net/sockstat` while it happens. {MAX_ORPHANS} and {TCP_MEM} hold for the whole host. An orphan \
                 that does not get through to its peer counts up to four times."
            ),
        ),
    };
    Meaning::new(
        format!(
            "The kernel gave up the connection with {} for want of room (orphans or TCP memory): {why}.",
            facts.peer()
        ),
        remedy,
    )
    .fact("orphans", value(orphans))
    .fact(MAX_ORPHANS, value(max_orphans))
    .fact("memory_pages", value(memory_pages))
    .fact("net.ipv4.tcp_mem[2]", value(memory_limit_pages))
}

/// Twice a setting, as `sysctl` takes it.
fn doubled(setting: Option<u64>) -> String {
    setting.map_or_else(|| "N".to_owned(), |setting| setting.saturating_mul(2).to_string())
}

fn destroyed(facts: &Facts<'_>) -> Meaning {
    let peer = facts.peer();
    let whose =
        facts.owner.filter(|owner| !owner.comm.is_empty()).map_or_else(String::new, |_| format!(" of {}", facts.who()));
    Meaning::new(
        format!(
            "The socket{whose} with {peer} was destroyed from outside while it was {}: by `ss --kill`, sock_diag or a BPF \
             program, and not by the process that has it.",
            if facts.state.is_empty() { "open" } else { facts.state }
        ),
        "Ask who administers this host: it takes CAP_NET_ADMIN. Failover scripts, network managers and CNI plugins do it when \
         an address goes away.",
    )
}

fn accept_queue(facts: &Facts<'_>) -> Meaning {
    let limits = facts.limits.cloned().unwrap_or_default();
    let Limits { abort_on_overflow, somaxconn, .. } = limits;
    let queue = facts.listener.map_or_else(String::new, |listener| {
        format!(" (its limit is {}; {} were waiting when it was read last)", listener.limit, listener.queue)
    });
    Meaning::new(
        format!(
            "The accept queue of {} was full{queue} when {} finished its handshake, and {} answers that with a reset.",
            facts.port(),
            facts.peer(),
            setting(ABORT_ON_OVERFLOW, abort_on_overflow)
        ),
        format!(
            "Let the process accept faster, or give listen() a larger backlog; {} caps it. To let peers try again in place of \
             a reset: {}.",
            setting(SOMAXCONN, somaxconn),
            change(ABORT_ON_OVERFLOW, abort_on_overflow, "0")
        ),
    )
    .known("queue_limit", facts.listener.map(|listener| listener.limit))
    .known("queue", facts.listener.map(|listener| listener.queue))
    .fact(ABORT_ON_OVERFLOW, value(abort_on_overflow))
    .fact(SOMAXCONN, value(somaxconn))
}

fn bad_ack(facts: &Facts<'_>) -> Meaning {
    let flags = facts.flags.join(",");
    let place = match facts.state {
        "LISTEN" => "a listener",
        "SYN_RECV" | "NEW_SYN_RECV" => "a handshake that is not finished",
        "SYN_SENT" => "an attempt of ours to connect",
        _ => "a socket",
    };
    Meaning::new(
        format!(
            "{} sent a segment ({flags}) to {place} at {} that acknowledges nothing that was sent from here.",
            facts.peer(),
            facts.port()
        ),
        "Left over from a connection that ended (a restart, a failover to this host), or forged. Where it goes on: does a load \
         balancer send the middle of connections to another host than their beginning?",
    )
    .fact("flags", flags)
}

fn disconnect(facts: &Facts<'_>) -> Meaning {
    let unacked = facts.socket.map(|socket| socket.unacked_bytes);
    let lost = unacked.map_or_else(String::new, |unacked| format!(" with {} not acknowledged", bytes(unacked.into())));
    Meaning::new(
        format!("{} dissolved the connection with {} by connect(AF_UNSPEC){lost}.", facts.who(), facts.peer()),
        "It is how a program uses a socket again without closing it. If the peer should see an orderly end, it must close() \
         and open another.",
    )
    .known("unacked_bytes", unacked)
}

fn listener_closed(facts: &Facts<'_>) -> Meaning {
    Meaning::new(
        format!(
            "The listener of {} was closed while {} waited to be accepted: the connection was established by the kernel, and no \
             process had taken it.",
            facts.port(),
            facts.peer()
        ),
        "Mostly a service that stops or restarts. Stop sending it traffic first, hand the listening socket over (socket \
         activation), or accept what waits before it is closed.",
    )
}

fn unknown(facts: &Facts<'_>) -> Meaning {
    let reason = if matches!(facts.reason, "" | "none" | "not_specified") {
        "the kernel gives no reason".to_owned()
    } else {
        format!("the kernel's reason is {}", facts.reason)
    };
    let state = if facts.state.is_empty() {
        "there was no socket".to_owned()
    } else {
        format!("its state was {}", facts.state)
    };
    Meaning::new(
        format!("This host sent a reset to {}; why is not known: {reason}, {state}.", facts.peer()),
        "The kernel stack of the reset tells which code sent it: `tcpwatch resets`.",
    )
}
