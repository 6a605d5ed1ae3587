//! The rules of a connection, in the order in which they are asked: what explains most comes first, and may hide what would
//! only be its consequence. Thresholds are constants here; docs/EXPLAIN.md tells why.

use super::facts::{Facts, INITIAL_WINDOW, part, slow_start_rounds};
use super::verdict::{Id, Verdict, evidence};
use super::{growth, trouble};

/// A rule.
pub(super) struct Rule {
    /// What it finds.
    pub(super) id: Id,
    /// What need not be asked once it is found, as it would be told again in other words.
    pub(super) hides: &'static [Id],
    /// Looks for it.
    pub(super) check: fn(&Facts<'_>) -> Option<Verdict>,
}

/// All of them.
pub(super) const RULES: &[Rule] = &[
    Rule { id: Id::SynLost, hides: &[Id::PeerVanished, Id::Loss], check: trouble::syn_lost },
    Rule {
        id: Id::MtuBlackHole,
        hides: &[
            Id::PeerVanished,
            Id::ReceiverWindow,
            Id::Loss,
            Id::SendBuffer,
            Id::CongestionWindow,
            Id::Bufferbloat,
            Id::SlowStart,
        ],
        check: trouble::mtu_black_hole,
    },
    Rule {
        id: Id::PeerVanished,
        // What was waited for before has gone on waiting since.
        hides: &[
            Id::ReceiverWindow,
            Id::Loss,
            Id::SendBuffer,
            Id::CongestionWindow,
            Id::Bufferbloat,
            Id::SlowStart,
            Id::Application,
            Id::NagleDelayedAck,
        ],
        check: trouble::peer_vanished,
    },
    Rule {
        id: Id::CloseWaitLeak,
        hides: &[Id::HalfClosed, Id::Application, Id::SlowStart],
        check: trouble::close_wait_leak,
    },
    Rule { id: Id::HalfClosed, hides: &[Id::Application, Id::SlowStart], check: trouble::half_closed },
    Rule {
        id: Id::ReceiverWindow,
        // While a window is closed nothing is sent, which the kernel takes for a pause.
        hides: &[
            Id::Application,
            Id::CongestionWindow,
            Id::SendBuffer,
            Id::SlowStart,
            Id::Bufferbloat,
            Id::IdleRestart,
        ],
        check: receiver_window,
    },
    Rule {
        id: Id::SpuriousRetransmits,
        hides: &[Id::Loss, Id::Bufferbloat, Id::SlowStart, Id::CongestionWindow],
        check: trouble::spurious_retransmits,
    },
    Rule {
        id: Id::NagleDelayedAck,
        hides: &[Id::Bufferbloat, Id::TinySegments, Id::Application, Id::SlowStart, Id::CongestionWindow],
        check: nagle_delayed_ack,
    },
    Rule {
        id: Id::TinySegments,
        hides: &[Id::Application, Id::SlowStart, Id::CongestionWindow, Id::Bufferbloat],
        check: tiny_segments,
    },
    Rule {
        id: Id::Bufferbloat,
        // What a full queue drops is its consequence.
        hides: &[Id::Loss, Id::SlowStart, Id::CongestionWindow, Id::Application],
        check: bufferbloat,
    },
    Rule { id: Id::Loss, hides: &[Id::SlowStart, Id::CongestionWindow, Id::Application], check: trouble::loss },
    Rule { id: Id::SendBuffer, hides: &[Id::SlowStart, Id::CongestionWindow, Id::Application], check: send_buffer },
    Rule {
        id: Id::IdleRestart,
        hides: &[Id::SlowStart, Id::Application, Id::CongestionWindow],
        check: growth::idle_restart,
    },
    Rule { id: Id::SlowStart, hides: &[Id::Application, Id::CongestionWindow], check: growth::slow_start },
    Rule { id: Id::Application, hides: &[Id::CongestionWindow], check: application },
    Rule { id: Id::CongestionWindow, hides: &[], check: growth::congestion_window },
];

/// Time with data waiting below which its shares mean nothing, µs.
const LITTLE_TIME_US: u64 = 100_000;

/// S5, S6: the reader, at either end, does not keep up.
fn receiver_window(f: &Facts<'_>) -> Option<Verdict> {
    let [_, limited_us, _] = f.limited_us;
    let [peer_us, local_us] = f.zero_us;
    let [peer_zeros, local_zeros] = f.zero_windows;
    // A handshake that is not over has no window, and its time is no reader's fault.
    if f.opening() {
        return None;
    }
    let peer_us = if peer_zeros > 0 { peer_us } else { 0 };
    let from_peer = limited_us.max(peer_us);
    // A window that never closed grows with the data as that of the sender does, a little behind it: until both are open,
    // which takes each about as long as slow start, nobody reads too slowly.
    let opens_us = if f.since_open && peer_zeros == 0 {
        2 * slow_start_rounds(f.acked_bytes, f.mss(), INITIAL_WINDOW) * f.rtt_us()
    } else {
        0
    };
    let slow = from_peer >= LITTLE_TIME_US.max(opens_us);
    if slow && part(from_peer, f.busy_us.max(1)) >= 0.3 && part(from_peer, f.window_us) >= 0.05 {
        let share = part(from_peer, f.window_us);
        return Some(Verdict {
            id: Id::ReceiverWindow,
            confidence: if peer_zeros > 0 { 0.95 } else { 0.8 },
            share: Some(share),
            evidence: evidence! {
                side: "peer",
                receive_window_limited_us: limited_us,
                zero_windows: peer_zeros,
                zero_window_us: peer_us,
                send_window_bytes: f.now.snd_wnd,
                unsent_bytes: f.now.unsent_bytes,
                unacked_bytes: f.now.unacked_bytes,
            },
            sentence: format!(
                "the peer does not read as fast as this end sends: its receive window held data back for {} ({:.0} % of the \
                 time), with {} of a closed window{}",
                seconds(from_peer),
                share * 100.0,
                seconds(peer_us),
                if f.now.snd_wnd == 0 { ", and it is closed now" } else { "" },
            ),
            remedy: "look at the reading application at the peer; if it reads at once, its receive buffer is too small for this path \
                     (SO_RCVBUF set by hand, or net.ipv4.tcp_rmem there)"
                .to_owned(),
        });
    }
    if local_us >= LITTLE_TIME_US && part(local_us, f.window_us) >= 0.05 {
        let share = part(local_us, f.window_us);
        return Some(Verdict {
            id: Id::ReceiverWindow,
            confidence: 0.95,
            share: Some(share),
            evidence: evidence! {
                side: "local",
                zero_windows: local_zeros,
                zero_window_us: local_us,
                unread_bytes: f.now.unread_bytes,
                receive_window_bytes: f.now.rcv_wnd,
            },
            sentence: format!(
                "the application here does not read as fast as the peer sends: this end's window was closed for {} ({:.0} % of the \
                 time), {} bytes wait to be read",
                seconds(local_us),
                share * 100.0,
                f.now.unread_bytes,
            ),
            remedy: "make the application that holds this connection read more often, or in a thread of its own"
                .to_owned(),
        });
    }
    None
}

/// S8: data waits for room in the send buffer while the window is open.
fn send_buffer(f: &Facts<'_>) -> Option<Verdict> {
    let [_, _, limited_us] = f.limited_us;
    let share = part(limited_us, f.busy_us);
    let window_bytes = u64::from(f.now.snd_cwnd) * f.mss();
    // The kernel runs this clock only while all that was written is sent and a writer waits, and stops it with the first ACK: of
    // a buffer that is always too small it counts a few percent. What is seen of the buffer counts as much: a writer waits
    // for room in it (it is woken when a third is free), while both windows would take more than all that it holds. A buffer
    // that the kernel tunes grows ahead of the window and is never so.
    let held = u64::from(f.now.unacked_bytes) + u64::from(f.now.unsent_bytes);
    let full = u64::from(f.now.queued_bytes) * 10 >= u64::from(f.now.send_buffer) * 6 && held > 0;
    let room = window_bytes * 10 > held * 12 && u64::from(f.now.snd_wnd) * 10 > held * 12;
    let always = full && room && part(f.busy_us, f.window_us) >= 0.8;
    let counted = limited_us >= LITTLE_TIME_US && share >= 0.3 && part(limited_us, f.window_us) >= 0.05;
    if !(counted || always) {
        return None;
    }
    Some(Verdict {
        id: Id::SendBuffer,
        confidence: if counted { 0.9 } else { 0.75 },
        share: Some(part(limited_us, f.window_us)),
        evidence: evidence! {
            send_buffer_limited_us: limited_us,
            busy_us: f.busy_us,
            held_bytes: held,
            send_window_bytes: f.now.snd_wnd,
            send_buffer_bytes: f.now.send_buffer,
            congestion_window_bytes: window_bytes,
            rtt_us: f.rtt_us(),
        },
        sentence: if counted {
            format!(
                "the send buffer of {} bytes is too small for this path: for {} ({:.0} % of the time with data to send) the \
                 window had room and the buffer had none",
                f.now.send_buffer,
                seconds(limited_us),
                share * 100.0,
            )
        } else {
            format!(
                "the send buffer of {} bytes is too small for this path: {held} bytes fill it while the congestion window would take \
                 {window_bytes} and the peer's window {}",
                f.now.send_buffer, f.now.snd_wnd,
            )
        },
        remedy: format!(
            "do not set SO_SNDBUF in the application (it switches off the kernel's own tuning; now {} bytes), or raise the third \
             number of net.ipv4.tcp_wmem; to undo, write the old numbers back",
            f.now.send_buffer,
        ),
    })
}

/// S10: stalls of the length of a delayed ACK, in a dialogue of small writes.
fn nagle_delayed_ack(f: &Facts<'_>) -> Option<Verdict> {
    // A delayed ACK comes after 40 ms (TCP_DELACK_MIN) on top of the path; the coarse histogram is half an octave wide.
    let (from_us, to_us) = (f.min_rtt_us + 25_000, f.min_rtt_us + 60_000);
    let delayed = f.samples_between(from_us, to_us);
    let small = f.payload() > 0 && f.payload() * 2 < f.mss();
    let dialogue = f.received_segments * 4 >= f.sent_segments && f.received_bytes > 0;
    let nagle = f.now.nodelay == 0;
    if !nagle || !small || !dialogue || f.samples < 10 || delayed < 0.3 || f.retransmits * 20 > f.sent_segments {
        return None;
    }
    let share = part(f.busy_us, f.window_us);
    if share < 0.5 {
        return None;
    }
    let stalls = (delayed * f.samples as f64).round() as u64;
    Some(Verdict {
        id: Id::NagleDelayedAck,
        confidence: 0.85,
        share: Some(part(stalls * 40_000, f.window_us)),
        evidence: evidence! {
            stalls: stalls,
            rtt_samples: f.samples,
            mean_rtt_us: f.mean_rtt_us,
            min_rtt_us: f.min_rtt_us,
            payload_bytes_per_segment: f.payload(),
            tcp_nodelay: false,
        },
        sentence: format!(
            "{stalls} of {} exchanges took about 40 ms longer than the path's {}: a small write waits (Nagle's algorithm) for the ACK \
             of the one before, which the peer delays",
            f.samples,
            millis(f.min_rtt_us),
        ),
        remedy: "set TCP_NODELAY in the sending application, or write each message with one call (writev, MSG_MORE)"
            .to_owned(),
    })
}

/// S9: many segments with next to nothing in them.
fn tiny_segments(f: &Facts<'_>) -> Option<Verdict> {
    let payload = f.payload();
    let per_second = f.sent_segments as f64 * 1e6 / f.window_us.max(1) as f64;
    let stream = payload <= 64 && f.sent_segments >= 500 && per_second >= 50.0;
    // One exchange after the other, as fast as the path lets them: nobody types like that.
    let dialogue =
        payload <= 32 && f.sent_segments >= 50 && part(f.busy_us, f.window_us) >= 0.5 && f.received_segments >= 50;
    if !stream && !dialogue {
        return None;
    }
    let headers = if f.now.key.ip_version == 6 { 60 } else { 40 } + 12;
    let useful = part(f.sent_bytes, f.sent_bytes + f.sent_segments * headers);
    Some(Verdict {
        id: Id::TinySegments,
        confidence: 0.9,
        share: Some(part(f.busy_us, f.window_us)),
        evidence: evidence! {
            payload_bytes_per_segment: payload,
            sent_segments: f.sent_segments,
            sent_segments_per_second: per_second,
            mss_bytes: f.now.mss,
            useful_share: useful,
            rtt_us: f.rtt_us(),
        },
        sentence: format!(
            "{} segments carry {payload} bytes each where {} would fit: {:.0} % of what goes over the wire is data{}",
            f.sent_segments,
            f.now.mss,
            useful * 100.0,
            if dialogue { ", one round trip for each" } else { "" },
        ),
        remedy: "gather small writes into larger ones in the application (a buffered writer, TCP_CORK, several requests at once)".to_owned(),
    })
}

/// S11: the queue on the path is longer than the path.
fn bufferbloat(f: &Facts<'_>) -> Option<Verdict> {
    let rtt = f.median_rtt_us();
    let queueing = rtt.saturating_sub(f.min_rtt_us);
    // bbr keeps up to a round trip in the queue, and more in its first seconds: that alone is no trouble.
    let bbr = congestion(f) == "bbr";
    let (least, least_us) = if bbr { (2 * f.min_rtt_us, 5_000_000) } else { (f.min_rtt_us, 1_000_000) };
    let enough = f.min_rtt_us > 0 && f.samples >= 20 && f.payload() * 2 >= f.mss() && f.window_us >= least_us;
    if !enough || queueing < 30_000 || queueing < least || part(f.busy_us, f.window_us) < 0.3 {
        return None;
    }
    Some(Verdict {
        id: Id::Bufferbloat,
        confidence: 0.85,
        share: Some(part(queueing, rtt) * part(f.busy_us, f.window_us)),
        evidence: evidence! {
            rtt_p50_us: rtt,
            min_rtt_us: f.min_rtt_us,
            queueing_us: queueing,
            cwnd_segments: f.now.snd_cwnd,
            in_flight_segments: f.now.packets_out,
        },
        sentence: format!(
            "a round trip takes {} where the path alone takes {}: {:.0} % of it is spent in a queue, which this end fills with {} \
             segments",
            millis(rtt),
            millis(f.min_rtt_us),
            part(queueing, rtt) * 100.0,
            f.now.snd_cwnd,
        ),
        remedy: if bbr {
            "others fill the queue too: give the bottleneck a fair queue (fq_codel, cake)".to_owned()
        } else {
            format!(
                "use a congestion control that does not fill queues (now {}; try bbr: `sysctl -w \
                 net.ipv4.tcp_congestion_control=bbr`, undo with the old name), or give the bottleneck a fair queue (fq_codel, cake)",
                congestion(f),
            )
        },
    })
}

/// S7: window and path have room, and there is nothing to send.
fn application(f: &Facts<'_>) -> Option<Verdict> {
    let idle_us = f.window_us.saturating_sub(f.busy_us);
    let rate = f.sent_bytes as f64 * 1e6 / f.window_us.max(1) as f64;
    let grown = u64::from(f.now.snd_cwnd) >= 2 * INITIAL_WINDOW;
    let at_it = f.since_sent_us < 2_000_000;
    if f.partial() || !grown || !at_it || f.window_us < 1_000_000 || rate < 65_536.0 || part(idle_us, f.window_us) < 0.5
    {
        return None;
    }
    let share = part(idle_us, f.window_us);
    Some(Verdict {
        id: Id::Application,
        confidence: 0.8,
        share: Some(share),
        evidence: evidence! {
            application_limited_us: idle_us,
            busy_us: f.busy_us,
            sent_bytes: f.sent_bytes,
            sent_bytes_per_second: rate,
            cwnd_segments: f.now.snd_cwnd,
            send_window_bytes: f.now.snd_wnd,
        },
        sentence: format!(
            "the sending application is what limits: for {:.0} % of the time there was nothing to send, while window and path had room",
            share * 100.0,
        ),
        remedy: "look at what the application waits for between its writes; the network is not it".to_owned(),
    })
}

/// A time in words.
pub(super) fn seconds(us: u64) -> String {
    if us < 1_000_000 { millis(us) } else { format!("{:.1} s", us as f64 / 1e6) }
}

/// A time in ms.
pub(super) fn millis(us: u64) -> String {
    if us < 10_000 { format!("{:.1} ms", us as f64 / 1e3) } else { format!("{:.0} ms", us as f64 / 1e3) }
}

/// The congestion control's name.
pub(super) fn congestion(f: &Facts<'_>) -> String {
    let name = crate::api::text::printable(&f.now.congestion);
    if name.is_empty() { "unknown".to_owned() } else { name }
}
