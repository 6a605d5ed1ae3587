//! Listeners by their queues, and network namespaces by what short connections leave behind.

use super::facts::part;
use super::verdict::{Explained, Id, Subject, Verdict, evidence};
use super::{Picture, seconds, window};
use crate::aggregate::snapshot::{ListenerStats, NamespaceStats};

/// A queue this full is near its limit.
const FULL: f64 = 0.5;
/// Sockets in TIME_WAIT from which they are worth a word.
const MANY_TIME_WAIT: u64 = 1000;

/// Every listener and namespace in trouble.
pub(super) fn judge(now: &Picture, before: Option<&Picture>) -> Vec<Explained> {
    let window_us = before.map_or(0, |before| now.ktime_ns().saturating_sub(before.ktime_ns()) / 1000);
    let told = |subject: Subject, verdicts: Vec<Verdict>| {
        (!verdicts.is_empty()).then(|| Explained {
            subject,
            window_s: seconds(window_us),
            window: window(before.is_none()),
            verdicts,
        })
    };
    let listeners = now.listeners.iter().filter_map(|listener| {
        let earlier = before.and_then(|before| before.listeners.iter().find(|known| known.address == listener.address));
        let drops = listener.drops.saturating_sub(earlier.map_or(0, |earlier| earlier.drops));
        let verdicts = [syn_backlog(listener), listen_queue(listener, drops)].into_iter().flatten().collect();
        told(Subject::Listener { address: listener.address.clone() }, verdicts)
    });
    let namespaces = now.namespaces.iter().filter_map(|namespace| {
        let verdicts = time_wait(namespace).into_iter().collect();
        told(Subject::Host { netns: namespace.netns }, verdicts)
    });
    listeners.chain(namespaces).collect()
}

/// L5: connections wait for accept().
fn listen_queue(listener: &ListenerStats, drops: u32) -> Option<Verdict> {
    let fill = part(listener.queue.into(), listener.limit.into());
    if listener.limit == 0 || fill < FULL {
        return None;
    }
    Some(Verdict {
        id: Id::ListenQueue,
        confidence: if fill >= 1.0 || drops > 0 { 0.95 } else { 0.8 },
        share: None,
        evidence: evidence! { queue: listener.queue, limit: listener.limit, drops: drops },
        sentence: format!(
            "{} connections wait to be accepted where {} may, {} segments were dropped: the application accepts too slowly",
            listener.queue, listener.limit, drops
        ),
        remedy: format!(
            "accept faster (more workers), or allow more: the smaller of the backlog given to listen() and net.core.somaxconn holds, \
             now {}",
            listener.limit
        ),
    })
}

/// L3: handshakes that are not finished.
fn syn_backlog(listener: &ListenerStats) -> Option<Verdict> {
    let fill = part(listener.half_open.into(), listener.limit.into());
    if listener.limit == 0 || fill < FULL {
        return None;
    }
    Some(Verdict {
        id: Id::SynBacklog,
        confidence: 0.85,
        share: None,
        evidence: evidence! { half_open: listener.half_open, limit: listener.limit, drops: listener.drops },
        sentence: format!(
            "{} handshakes are half open where about {} may be: a SYN flood, or clients whose ACKs do not arrive",
            listener.half_open, listener.limit
        ),
        remedy: "see that net.ipv4.tcp_syncookies is 1 (the default), and raise net.ipv4.tcp_max_syn_backlog and the backlog for bursts \
                 that are wanted"
            .to_owned(),
    })
}

/// L2: ports that wait for the end of TIME_WAIT.
fn time_wait(namespace: &NamespaceStats) -> Option<Verdict> {
    let [low, high] = namespace.port_range.map(u64::from);
    let ports = (high + 1).saturating_sub(low);
    if namespace.time_wait < MANY_TIME_WAIT {
        return None;
    }
    let share = part(namespace.time_wait, ports);
    Some(Verdict {
        id: Id::TimeWaitPressure,
        confidence: if share > 0.5 { 0.9 } else { 0.7 },
        share: None,
        evidence: evidence! {
            time_wait: namespace.time_wait,
            local_ports: ports,
            ports_left_to_one_destination: ports.saturating_sub(namespace.time_wait),
        },
        sentence: format!(
            "{} sockets are in TIME_WAIT: connections are short and this host closes them first, about {:.0} a second over the last \
             minute; ip_local_port_range has {ports} ports for each destination",
            namespace.time_wait,
            namespace.time_wait as f64 / 60.0,
        ),
        remedy: format!(
            "keep connections open and use them again, or let the peer close first; more room: net.ipv4.ip_local_port_range (now {low} \
             {high}), and net.ipv4.tcp_tw_reuse=1 for outgoing ones; undo by writing the old values"
        ),
    })
}
