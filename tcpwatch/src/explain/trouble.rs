//! The rules of loss, of peers that do not answer, and of connections that do not end.

use tcpwatch_common::state::TcpState;

use super::facts::{Facts, part};
use super::rules::{congestion, millis, seconds};
use super::verdict::{Id, Verdict, evidence};

/// Nothing happened on it for so long that it does not look like work, µs.
const FORGOTTEN_US: u64 = 10_000_000;

/// R5, R6: the handshake needed more than one SYN.
pub(super) fn syn_lost(f: &Facts<'_>) -> Option<Verdict> {
    let [.., syn, syn_ack, _] = f.by_cause;
    if syn + syn_ack == 0 {
        return None;
    }
    let waits = f.is(TcpState::SynSent);
    let took_us = if waits || f.now.established_ns == 0 {
        f.window_us
    } else {
        f.now.established_ns.saturating_sub(f.now.started_ns) / 1000
    };
    let what = match (syn, syn_ack) {
        (syn, 0) => format!("{syn} SYN"),
        (0, syn_ack) => format!("{syn_ack} SYN-ACK"),
        (syn, syn_ack) => format!("{syn} SYN and {syn_ack} SYN-ACK"),
    };
    Some(Verdict {
        id: Id::SynLost,
        confidence: 0.95,
        share: Some(part(took_us, f.window_us)),
        evidence: evidence! {
            syn_retransmits: syn,
            syn_ack_retransmits: syn_ack,
            handshake_us: took_us,
            established: !waits,
        },
        sentence: if waits {
            format!(
                "nothing answers: {} SYNs in {}; that is no reset, the host or its answer is lost",
                syn + 1,
                seconds(took_us)
            )
        } else {
            format!("opening it took {}: {what} had to be sent again before there was an answer", seconds(took_us))
        },
        remedy: if waits {
            "check the address, the route and the firewalls on the way; net.ipv4.tcp_syn_retries says how long it is tried".to_owned()
        } else {
            "look for loss on the path and for a full SYN or accept queue at the listening end".to_owned()
        },
    })
}

/// Timeouts follow each other and nothing gets through.
fn stuck(f: &Facts<'_>) -> bool {
    f.open() && f.now.backoff >= 2 && f.now.unacked_bytes > 0 && f.now.snd_wnd > 0
}

/// R7: what is lost is always full-size, and smaller segments got through.
pub(super) fn mtu_black_hole(f: &Facts<'_>) -> Option<Verdict> {
    let stuck_or_slow = stuck(f) || (f.open() && f.in_loss() && f.retransmits >= 2);
    let full = f.retransmitted_bytes >= f.retransmits * f.mss() * 95 / 100;
    // Data that was acknowledged, in segments that are on average clearly smaller than what does not get through.
    let acked_segments = f.sent_segments.saturating_sub(f.retransmits).saturating_sub(u64::from(f.now.packets_out));
    let small_passed = f.acked_bytes > 0 && acked_segments > 0 && f.acked_bytes < acked_segments * f.mss() * 9 / 10;
    if !stuck_or_slow || f.retransmits < 2 || !full || !small_passed {
        return None;
    }
    let heard = f.now.sacked_out > 0 || f.since_ack_us < 1_000_000;
    Some(Verdict {
        id: Id::MtuBlackHole,
        confidence: if heard { 0.9 } else { 0.6 },
        share: None,
        evidence: evidence! {
            retransmitted_segments: f.retransmits,
            retransmitted_bytes: f.retransmitted_bytes,
            mss_bytes: f.now.mss,
            acked_bytes: f.acked_bytes,
            acked_segments: acked_segments,
            backoff: f.now.backoff,
            since_ack_us: f.since_ack_us,
        },
        sentence: format!(
            "only full segments of {} bytes are lost, {} times so far, while smaller ones arrived: somewhere on the path the MTU is \
             smaller, and nobody says so{}",
            f.now.mss,
            f.retransmits,
            if heard { "" } else { " (or the peer went away just then)" },
        ),
        remedy: "let ICMP “fragmentation needed” and “packet too big” through; until then `sysctl -w net.ipv4.tcp_mtu_probing=1` finds \
                 the size (default 0; undo by writing it), or lower the route's mtu"
            .to_owned(),
    })
}

/// R1: timeouts with backoff and no word from the peer.
pub(super) fn peer_vanished(f: &Facts<'_>) -> Option<Verdict> {
    let silence_us = f.since_ack_us;
    if !stuck(f) || silence_us < f.rto_us / 2 {
        return None;
    }
    let next_us = f.rto_us.saturating_sub(f.stale_us);
    Some(Verdict {
        id: Id::PeerVanished,
        confidence: if f.now.backoff >= 3 { 0.95 } else { 0.8 },
        share: Some(part(silence_us, f.window_us)),
        evidence: evidence! {
            timeouts_in_a_row: f.now.backoff,
            rto_us: f.rto_us,
            next_attempt_us: next_us,
            since_ack_us: silence_us,
            unacked_bytes: f.now.unacked_bytes,
            unsent_bytes: f.now.unsent_bytes,
        },
        sentence: format!(
            "no answer for {}: {} timeouts in a row, {} bytes are not acknowledged, the next attempt is due within {}",
            seconds(silence_us),
            f.now.backoff,
            f.now.unacked_bytes,
            seconds(next_us),
        ),
        remedy: "the peer, or the path to it, is gone; net.ipv4.tcp_retries2 (default 15, about 15 minutes) or TCP_USER_TIMEOUT says how \
                 long it is tried"
            .to_owned(),
    })
}

/// Nothing was sent again but tail loss probes, or what may have been some before tcpwatch looked. They prove nothing: a late ACK
/// makes a lone one, and a closed window each of them.
fn only_probes(f: &Facts<'_>) -> bool {
    let [fast, timeout, probes, ..] = f.by_cause;
    let [peer_zeros, _] = f.zero_windows;
    let [_, _, recovery_us, loss_us] = f.ca_us;
    let vague = probes + f.retransmits.saturating_sub(f.by_cause.iter().sum());
    let closed = peer_zeros > 0 || f.now.snd_wnd == 0;
    fast + timeout + recovery_us + loss_us == 0 && vague > 0 && (vague < 3 || closed)
}

/// R4: what was sent again had arrived.
pub(super) fn spurious_retransmits(f: &Facts<'_>) -> Option<Verdict> {
    // What a window proves may have been sent before it.
    if f.spurious == 0 || f.retransmits == 0 || f.spurious * 2 < f.retransmits || only_probes(f) {
        return None;
    }
    let reordered = f.now.reord_seen > 0 || f.now.reordering > 3;
    Some(Verdict {
        id: Id::SpuriousRetransmits,
        confidence: if reordered { 0.95 } else { 0.8 },
        share: Some(part(f.ca_us.iter().sum(), f.window_us)),
        evidence: evidence! {
            spurious_retransmits: f.spurious,
            retransmitted_segments: f.retransmits,
            reorderings_seen: f.now.reord_seen,
            reordering_segments: f.now.reordering,
            recoveries: f.now.recoveries[0],
        },
        sentence: format!(
            "{} of {} segments that were sent again had arrived: {}",
            f.spurious,
            f.retransmits,
            if reordered { "the path reorders, it does not lose" } else { "ACKs come late, or the network duplicates" },
        ),
        remedy:
            "look for packet spraying or several queues on the path; this host has adapted by itself (`reordering`), \
                 net.ipv4.tcp_reordering raises where it begins"
                .to_owned(),
    })
}

/// S4, R2, R3: segments are lost.
pub(super) fn loss(f: &Facts<'_>) -> Option<Verdict> {
    let lost = f.needed_retransmits();
    let [_, _, recovery_us, loss_us] = f.ca_us;
    let repairing_us = recovery_us + loss_us;
    let ratio = part(lost, f.sent_segments);
    if lost == 0 || only_probes(f) || (ratio < 0.005 && part(repairing_us, f.busy_us) < 0.1) {
        return None;
    }
    let [fast, timeout, probes, ..] = f.by_cause;
    let how = [(fast, "fast retransmit"), (timeout, "timeout"), (probes, "tail loss probe")];
    let how: Vec<String> = how.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} by {what}")).collect();
    let how = if how.is_empty() { "before tcpwatch looked".to_owned() } else { how.join(", ") };
    Some(Verdict {
        id: Id::Loss,
        confidence: if lost >= 3 { 0.95 } else { 0.8 },
        share: Some(part(repairing_us, f.window_us)),
        evidence: evidence! {
            lost_segments: lost,
            sent_segments: f.sent_segments,
            loss_ratio: ratio,
            fast: fast,
            timeout: timeout,
            tail_loss_probe: probes,
            recovery_us: recovery_us,
            loss_us: loss_us,
            cwnd_segments: f.now.snd_cwnd,
            congestion_control: congestion(f),
        },
        sentence: format!(
            "{lost} of {} segments ({:.1} %) were lost and sent again ({how}){}; repairing took {}, the window is {} segments",
            f.sent_segments,
            ratio * 100.0,
            if timeout == 0 { ", without a timeout" } else { "" },
            seconds(repairing_us),
            f.now.snd_cwnd,
        ),
        remedy: if ratio >= 0.01 && congestion(f) != "bbr" {
            format!(
                "find where the path drops; until then bbr keeps its speed under such loss (`sysctl -w \
                 net.ipv4.tcp_congestion_control=bbr`, now {}; undo with the old name)",
                congestion(f)
            )
        } else {
            "find where the path drops: interface errors, a shaper, a full queue".to_owned()
        },
    })
}

/// L1: the peer is done, and this end's application does not close.
pub(super) fn close_wait_leak(f: &Facts<'_>) -> Option<Verdict> {
    let quiet_us = f.since_ack_us.min(f.since_sent_us);
    let pending = f.now.unsent_bytes > 0 || f.now.unacked_bytes > 0;
    if !f.is(TcpState::CloseWait) || pending || quiet_us < FORGOTTEN_US {
        return None;
    }
    Some(Verdict {
        id: Id::CloseWaitLeak,
        confidence: if quiet_us > 60_000_000 { 0.95 } else { 0.7 },
        share: Some(part(quiet_us, f.window_us)),
        evidence: evidence! {
            quiet_us: quiet_us,
            unread_bytes: f.now.unread_bytes,
            closed_first: "peer",
        },
        sentence: format!(
            "the peer closed at least {} ago and the application here has not: the socket stays in CLOSE_WAIT until it does",
            seconds(quiet_us),
        ),
        remedy: "the process that holds it forgets to close sockets whose peer has gone (a read that returns 0); restarting it frees them"
            .to_owned(),
    })
}

/// L4: this end has closed its direction, and the peer keeps the other one open.
pub(super) fn half_closed(f: &Facts<'_>) -> Option<Verdict> {
    let quiet_us = f.since_ack_us.min(f.since_sent_us);
    if !f.is(TcpState::FinWait2) || quiet_us < FORGOTTEN_US {
        return None;
    }
    Some(Verdict {
        id: Id::HalfClosed,
        confidence: 0.9,
        share: Some(part(quiet_us, f.window_us)),
        evidence: evidence! {
            quiet_us: quiet_us,
            closed_first: "local",
            received_bytes: f.received_bytes,
            rtt_us: f.rtt_us(),
        },
        sentence: format!(
            "this end closed its direction and has waited for {} for the peer to close the other (a round trip takes {})",
            seconds(quiet_us),
            millis(f.rtt_us()),
        ),
        remedy: "the application at the peer has not closed its end; here, closing the socket instead of shutting one direction down \
                 lets net.ipv4.tcp_fin_timeout end it"
            .to_owned(),
    })
}
