//! The rules of congestion windows that have not grown, or have been thrown away.

use super::facts::{Facts, INITIAL_WINDOW, part, slow_start_rounds};
use super::rules::{congestion, millis, seconds};
use super::verdict::{Id, Verdict, evidence};

/// S3: the window was thrown away after pauses.
pub(super) fn idle_restart(f: &Facts<'_>) -> Option<Verdict> {
    if f.idle_restarts == 0 {
        return None;
    }
    // What is sent between two pauses needs so many rounds from the initial window on, and with the one that was there one.
    let bytes = f.acked_bytes / (f.idle_restarts + 1);
    let rounds = slow_start_rounds(bytes, f.mss(), INITIAL_WINDOW);
    let kept = u64::from(f.now.cwnd_max.max(f.now.snd_cwnd));
    let lost_rounds = rounds.saturating_sub(slow_start_rounds(bytes, f.mss(), kept));
    let cost_us = f.idle_restarts * lost_rounds * f.rtt_us();
    // Requests that fit into an initial window lose nothing.
    if part(cost_us, f.busy_us) < 0.1 {
        return None;
    }
    Some(Verdict {
        id: Id::IdleRestart,
        confidence: 0.9,
        share: Some(part(cost_us, f.window_us)),
        evidence: evidence! {
            idle_restarts: f.idle_restarts,
            bytes_between_pauses: bytes,
            rtt_us: f.rtt_us(),
            rounds_to_grow_again: lost_rounds,
            cost_us: cost_us,
        },
        sentence: format!(
            "the congestion window was reset {} times after a pause, and had to grow again each time: about {} in all",
            f.idle_restarts,
            seconds(cost_us),
        ),
        remedy: "`sysctl -w net.ipv4.tcp_slow_start_after_idle=0` keeps the window over pauses (now 1; undo by writing 1), or bbr, \
                 which never resets it"
            .to_owned(),
    })
}

/// S2: over before the window had grown.
pub(super) fn slow_start(f: &Facts<'_>) -> Option<Verdict> {
    let rtt = f.rtt_us();
    let rounds = slow_start_rounds(f.acked_bytes, f.mss(), INITIAL_WINDOW);
    let grown = u64::from(f.now.snd_cwnd) >= 2 * INITIAL_WINDOW;
    // What is not over yet may still find its window. Fewer rounds may be a few pages, each of an initial window.
    let over = f.now.unsent_bytes == 0;
    if !over || !f.never_set_back() || !grown || rounds < 4 || rtt == 0 || f.partial() || !f.since_open {
        return None;
    }
    // Whether the sender's window limits or that of the peer, which opens with it, does not matter.
    let took = (rounds * rtt).min(f.busy_us);
    if part(took, f.busy_us) < 0.55 {
        return None;
    }
    let wide = slow_start_rounds(f.acked_bytes, f.mss(), 100);
    let saved_us = rounds.saturating_sub(wide) * rtt;
    let flights: Vec<u64> = (0..rounds.min(8)).map(|round| INITIAL_WINDOW << round).collect();
    Some(Verdict {
        id: Id::SlowStart,
        confidence: 0.8,
        share: Some(part(took, f.window_us)),
        evidence: evidence! {
            rounds: rounds,
            initial_window_segments: INITIAL_WINDOW,
            flights_segments: flights,
            rtt_us: rtt,
            busy_us: f.busy_us,
            acked_bytes: f.acked_bytes,
            saved_by_initcwnd_100_us: saved_us,
        },
        sentence: format!(
            "{} bytes were sent while the window still grew: {rounds} round trips of {} in slow start from {INITIAL_WINDOW} segments, \
             {:.0} % of the time with data to send",
            f.acked_bytes,
            millis(rtt),
            part(took, f.busy_us) * 100.0,
        ),
        remedy: format!(
            "keep connections open and use them again; for a path that is known to take it, a larger initial window (`ip route change … \
             initcwnd 100`, now {INITIAL_WINDOW}; undo without it) would save about {} here",
            seconds(saved_us),
        ),
    })
}

/// Round trips below which a window grows so fast that it is never small for long, µs.
const SHORT_PATH_US: u64 = 5_000;

/// The window is full, more data waits, and the path has no queue: it would take more, and neither loss nor a buffer explains
/// why it does not get it. A window that fell once and grows by a segment a round trip, or one that a route clamps.
pub(super) fn congestion_window(f: &Facts<'_>) -> Option<Verdict> {
    let [congestion_us, _, _] = f.limited_us;
    let window_bytes = u64::from(f.now.snd_cwnd) * f.mss();
    // The histogram is coarse: its median may come out below the smallest sample.
    let rtt = f.median_rtt_us().max(f.min_rtt_us);
    let long = f.min_rtt_us >= SHORT_PATH_US && f.window_us >= 20 * f.min_rtt_us && f.window_us >= 1_000_000;
    // Half of the samples are shorter than the median: where it is near the smallest, what is in flight does not fill the path.
    let no_queue = f.samples >= 20 && rtt <= f.min_rtt_us + f.min_rtt_us / 4 + 2_000;
    let full = f.now.in_flight() + 3 >= f.now.snd_cwnd && f.now.unsent_bytes > 0;
    let room = u64::from(f.now.snd_wnd) * 4 >= 5 * window_bytes;
    let busy = part(congestion_us, f.window_us) >= 0.8;
    // bbr limits by its pace, and shrinks the window itself now and then to measure the path.
    let own_pace = congestion(f) == "bbr";
    if !(long && no_queue && full && room && busy) || own_pace || f.payload() * 2 < f.mss() || !f.in_open() {
        return None;
    }
    let rate = f.acked_bytes as f64 * 1e6 / f.window_us.max(1) as f64;
    Some(Verdict {
        id: Id::CongestionWindow,
        confidence: 0.75,
        share: Some(part(congestion_us, f.window_us)),
        evidence: evidence! {
            congestion_window_limited_us: congestion_us,
            congestion_window_bytes: window_bytes,
            cwnd_segments: f.now.snd_cwnd,
            ssthresh_segments: f.ssthresh(),
            in_flight_segments: f.now.in_flight(),
            unsent_bytes: f.now.unsent_bytes,
            send_window_bytes: f.now.snd_wnd,
            rtt_p50_us: rtt,
            min_rtt_us: f.min_rtt_us,
            lost_segments: f.needed_retransmits(),
            acked_bytes_per_second: rate,
            congestion_control: congestion(f),
        },
        sentence: format!(
            "the congestion window of {} segments is what limits: it is full, {} bytes wait, and a round trip of {} (at best {}) shows \
             no queue, so the path would take more{}",
            f.now.snd_cwnd,
            f.now.unsent_bytes,
            millis(rtt),
            millis(f.min_rtt_us),
            f.ssthresh().map_or_else(String::new, |segments| format!(
                "; {} left slow start at {segments} segments and grows slowly since",
                congestion(f)
            )),
        ),
        remedy: format!(
            "on a long path bbr does not wait for a window that grows by a segment a round trip (`sysctl -w \
             net.ipv4.tcp_congestion_control=bbr`, now {}; undo with the old name); see as well whether the route clamps the window \
             (`ip route get PEER` shows cwnd) or the kernel remembers a small one (`ip tcp_metrics show PEER`)",
            congestion(f)
        ),
    })
}
