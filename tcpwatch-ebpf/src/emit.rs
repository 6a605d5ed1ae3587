//! The only writer of records and distributions. Whatever cannot be kept is counted by place.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use core::mem::MaybeUninit;
use tcpwatch_common::close::flag;
use tcpwatch_common::conn::Conn;
use tcpwatch_common::counters::{Loss, dist, group, netns, setting, slot};
use tcpwatch_common::hist::{
    LOG2_BUCKETS, RTT_BUCKETS, SKETCH_BUCKETS, rtt_bucket, rtt_bucket_straight, sketch_bucket,
};
use tcpwatch_common::history;
use tcpwatch_common::limits::application;
use tcpwatch_common::owner;
use tcpwatch_common::record::{ABI, ConnRecord, Header, Kind, ListenerRecord};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::rtt::sample;
use tcpwatch_common::state::{Direction, ca_state};
use tcpwatch_common::thinning;

use crate::add::{atomic_add, exchange, opaque, put};
use crate::config::{DETAIL_PER_SECOND, HZ, WAKE_BYTES, frozen};
use crate::count::{Group, count, count_netns, lost, slot_of};
use crate::limits;
use crate::maps::{DISTS, EVENTS, SETTINGS, TOKENS, Tokens};
use crate::sock::{TcpSock, jiffies};

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether the program that owns `bucket` may emit another record in this second; counts the refusal as `loss`.
#[inline(always)]
pub fn allowed(bucket: u32, loss: Loss) -> bool {
    let Some(tokens) = TOKENS.get_ptr_mut(bucket) else { return false };
    // SAFETY: a value of the map; one program a bucket, and the kernel never nests a program in itself.
    let tokens: &mut Tokens = unsafe { &mut *tokens };
    let now = jiffies();
    if now.wrapping_sub(tokens.since) >= u64::from(frozen(&HZ)) {
        tokens.since = now;
        tokens.used = 0;
    }
    if tokens.used >= u64::from(frozen(&DETAIL_PER_SECOND)) {
        lost(loss);
        return false;
    }
    tokens.used += 1;
    true
}

/// `BPF_RB_NO_WAKEUP`, include/uapi/linux/bpf.h.
const NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const FORCE_WAKEUP: u64 = 2;
/// `BPF_RB_AVAIL_DATA`.
const AVAIL_DATA: u64 = 0;

/// When the daemon shall see a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// When it next looks. Waking it costs the CPU that carries the traffic several times what the record does.
    Whenever,
    /// At once: a listener's service gets its slot before the first connection comes.
    AtOnce,
}

/// How to submit a record.
#[inline(always)]
pub fn wake(haste: Haste) -> u64 {
    let sleeps = SETTINGS.get(setting::SLEEPS).is_none_or(|sleeps| *sleeps != 0);
    if haste == Haste::AtOnce || sleeps || EVENTS.query(AVAIL_DATA) >= u64::from(frozen(&WAKE_BYTES)) {
        FORCE_WAKEUP
    } else {
        NO_WAKEUP
    }
}

/// Reserves a record, has it filled and submits it; counts a full ring as `loss`.
#[inline(always)]
pub fn record<T: 'static>(loss: Loss, haste: Haste, fill: impl FnOnce(*mut T)) {
    match EVENTS.reserve::<T>(0) {
        Some(mut entry) => {
            let place: &mut MaybeUninit<T> = &mut entry;
            fill(place.as_mut_ptr());
            entry.submit(wake(haste));
        }
        None => lost(loss),
    }
}

/// The header of a record of type `T` that begins now.
#[inline(always)]
pub fn header<T>(kind: Kind) -> Header {
    header_at::<T>(kind, now_ns())
}

/// The same of one that began at `now_ns`: to ask for the time is a call, and dear on virtual machines.
#[inline(always)]
fn header_at<T>(kind: Kind, now_ns: u64) -> Header {
    Header { kind: kind as u16, abi: ABI, len: size_of::<T>() as u32, ktime_ns: now_ns }
}

/// Takes the RTT sample, if there is one, that the kernel folded in since the last reading.
///
/// `OWNED`: the caller is tcp_probe, which alone writes the lower half of the distributions. `cwnd`: the window now, which
/// [`limits::watch`] was told of.
#[inline(always)]
pub fn observe<const OWNED: bool>(sock: TcpSock, conn: &mut Conn, cwnd: u32) {
    let srtt = sock.srtt_us();
    let delivered = sock.delivered();
    let old = conn.srtt;
    if srtt == old {
        if delivered == conn.delivered {
            return;
        }
        conn.delivered = delivered;
        // Equal samples leave srtt as it is; so does an ACK of retransmitted data, which brings none (Karn).
        if conn.rtt_guard != 0 {
            if sock.ca_state() == ca_state::OPEN {
                conn.rtt_guard = 0;
            }
            return;
        }
    }
    conn.delivered = delivered;
    conn.srtt = srtt;
    let Some(us) = sample(sock.rack_rtt_us(), old, srtt) else { return };
    // The histograms may be thinned; extremes, the last sample and all counters are not.
    let Some(&mask) = SETTINGS.get(setting::THINNING) else { return };
    let mask = mask as u32;
    if OWNED && mask != 0 && !thinning::counts(jiffies(), mask) {
        extremes(conn, us, cwnd);
        return;
    }
    let n = if OWNED { 1 } else { thinning::weight(jiffies(), mask) };
    let bucket = if OWNED { rtt_bucket(us) } else { rtt_bucket_straight(us) };
    conn.rtt_samples += n as u32;
    conn.rtt_sum_us += u64::from(us) * n;
    extremes(conn, us, cwnd);
    let coarse = opaque(sketch_bucket(bucket) as usize);
    if coarse < SKETCH_BUCKETS {
        conn.sketch[coarse] += n as u32;
    }
    let entry = if OWNED { conn.slot } else { conn.slot + slot::COUNT as u32 };
    let Some(words) = DISTS.get_ptr_mut(entry) else { return };
    let words = words.cast::<u64>();
    let (bucket, cwnd_bucket) = (opaque(bucket as usize), opaque(usize::from(conn.cwnd_bucket)));
    if bucket < RTT_BUCKETS && cwnd_bucket < LOG2_BUCKETS {
        bump::<OWNED>(words, dist::RTT + bucket, n);
        bump::<OWNED>(words, dist::RTT_SUM, u64::from(us) * n);
        bump::<OWNED>(words, dist::CWND + cwnd_bucket, n);
        bump::<OWNED>(words, dist::CWND_SUM, u64::from(cwnd) * n);
    }
}

#[inline(always)]
fn extremes(conn: &mut Conn, us: u32, cwnd: u32) {
    conn.rtt_last_us = us;
    if us < conn.rtt_min_us {
        conn.rtt_min_us = us;
    }
    if us > conn.rtt_max_us {
        conn.rtt_max_us = us;
    }
    if cwnd < conn.cwnd_min {
        conn.cwnd_min = cwnd;
    }
    if cwnd > conn.cwnd_max {
        conn.cwnd_max = cwnd;
    }
}

#[inline(always)]
fn bump<const OWNED: bool>(words: *mut u64, word: usize, n: u64) {
    // SAFETY: the caller keeps `word` below dist::WORDS.
    unsafe {
        let word = words.add(word);
        if OWNED { *word += n } else { atomic_add(word, n) }
    }
}

/// Adds to the group what the connection has moved since it was last added. Whoever comes first takes a difference:
/// the sum of all is right even when an iterator and tcp_probe do this at once.
#[inline(always)]
pub fn flush_traffic(sock: TcpSock, conn: &mut Conn) {
    // tcp_disconnect clears the totals of a socket that is closed; all of it was flushed at the close.
    if conn.flags & flag::CLOSED != 0 {
        return;
    }
    let Some(group) = Group::of(conn.slot) else { return };
    let move_over =
        |flushed: &mut u64, total: u64, word: usize| group.add(word, total.wrapping_sub(put(flushed, total)));
    move_over(&mut conn.flushed_sent, sock.bytes_sent(), group::SENT_BYTES);
    move_over(&mut conn.flushed_received, sock.payload_received(), group::RECEIVED_BYTES);
    move_over(&mut conn.flushed_segments, u64::from(sock.data_segs_out()), group::SENT_SEGMENTS);
    limits::flush(sock, conn, &group);
}

/// The same, and what only a program that holds the socket's lock may settle: retransmissions and duplicates.
#[inline(always)]
pub fn flush(sock: TcpSock, conn: &mut Conn) {
    if conn.flags & flag::CLOSED != 0 {
        return;
    }
    flush_traffic(sock, conn);
    let dsacks = sock.dsack_dups();
    let retransmitted = unattributed(sock, conn);
    let Some(group) = Group::of(conn.slot) else { return };
    if retransmitted != 0 {
        let cause = match sock.ca_state() {
            ca_state::RECOVERY => RetransmitCause::Fast,
            ca_state::LOSS => RetransmitCause::Timeout,
            _ => RetransmitCause::Other,
        };
        attribute(sock.netns(), conn, &group, cause, retransmitted);
    }
    let reported = dsacks.wrapping_sub(conn.flushed_dsacks);
    conn.flushed_dsacks = dsacks;
    if reported != 0 {
        prove_needless(conn, reported);
    }
}

/// Counts segments that were sent again without need. A duplicate that the network made is reported in the same way: never
/// more than we sent again.
#[inline(always)]
pub fn prove_needless(conn: &mut Conn, segments: u32) {
    let mut again = 0;
    for n in conn.retrans {
        again += n;
    }
    let proven = segments.min(again.saturating_sub(conn.spurious));
    if proven != 0 {
        conn.spurious += proven;
        count(conn.slot, group::SPURIOUS, u64::from(proven));
    }
}

/// Segments that the kernel counted as retransmitted and we have not.
#[inline(always)]
pub fn unattributed(sock: TcpSock, conn: &mut Conn) -> u32 {
    let total = sock.total_retrans();
    let delta = total.wrapping_sub(conn.retrans_seen);
    conn.retrans_seen = total;
    // Cleared by tcp_disconnect.
    if delta > u32::MAX / 2 { total } else { delta }
}

/// Counts retransmitted segments under a cause.
#[inline(always)]
pub fn attribute(inode: u32, conn: &mut Conn, group: &Group, cause: RetransmitCause, segments: u32) {
    count_netns(inode, netns::RETRANSMITS, u64::from(segments));
    let index = cause as usize;
    if index < conn.retrans.len() {
        conn.retrans[index] += segments;
        group.add_at(group::retransmits(cause), u64::from(segments));
    }
}

/// Sets up the state of a connection that is older than our sight of it: what it has counted so far is not ours.
/// False when somebody else is doing so.
#[inline(always)]
pub fn adopt(sock: TcpSock, conn: &mut Conn, direction: Direction) -> bool {
    // SAFETY: a field of a map value.
    if unsafe { exchange(&raw mut conn.claimed, 1) } != 0 {
        return false;
    }
    begin(sock, conn, direction, now_ns());
    conn.flags = flag::PARTIAL | flag::COUNTED;
    conn.flushed_sent = sock.bytes_sent();
    conn.flushed_received = sock.payload_received();
    conn.flushed_segments = u64::from(sock.data_segs_out());
    conn.flushed_dsacks = sock.dsack_dups();
    conn.retrans_seen = sock.total_retrans();
    // Whether the last sample was of a retransmitted segment is not known.
    conn.rtt_guard = 1;
    count(conn.slot, group::ADOPTED, 1);
    true
}

/// The fields that every fresh state begins with.
#[inline(always)]
pub fn begin(sock: TcpSock, conn: &mut Conn, direction: Direction, now_ns: u64) {
    conn.claimed = 1;
    conn.direction = direction as u8;
    conn.slot = slot_of(sock, direction);
    conn.started_ns = now_ns;
    conn.rtt_min_us = u32::MAX;
    conn.cwnd_min = u32::MAX;
    conn.srtt = sock.srtt_us();
    conn.delivered = sock.delivered();
    conn.ca_state = sock.ca_state();
    if conn.cgroup == 0 {
        conn.cgroup = sock.cgroup();
    }
    conn.ca_since_us = (conn.started_ns / 1000) as u32;
    limits::begin(sock, conn);
    conn.begun = 1;
}

/// Time in Disorder, CWR, Recovery and Loss up to this moment, µs.
#[inline(always)]
pub fn congestion_times(conn: &Conn, now_us: u32) -> [u32; 4] {
    let mut times = conn.ca_us;
    if conn.ca_state != ca_state::OPEN {
        // Wraps after 71 minutes, longer than any recovery lasts.
        let index = usize::from(conn.ca_state - 1) & 3;
        times[index] = times[index].wrapping_add(now_us.wrapping_sub(conn.ca_since_us));
    }
    times
}

/// Remembers that a connection moved from one state to another.
#[inline(always)]
pub fn remember_state(conn: &mut Conn, old: u8, new: u8, now_ns: u64) {
    conn.history = history::push(conn.history, old, new);
    conn.state_since_ms = (now_ns / 1_000_000) as u32;
}

/// What a connection record says beyond the socket and its state.
pub struct Moment {
    /// When it is, ns of CLOCK_MONOTONIC.
    pub now_ns: u64,
    /// What kind of record.
    pub kind: Kind,
    /// State before the event.
    pub old_state: u8,
    /// State after it.
    pub state: u8,
    /// Cause of a close.
    pub cause: u8,
    /// Where a full ring is counted.
    pub loss: Loss,
}

/// Emits everything known of a connection.
#[inline(always)]
pub fn connection(sock: TcpSock, conn: &mut Conn, moment: &Moment) {
    conn.told_segments = activity(sock);
    record::<ConnRecord>(moment.loss, Haste::Whenever, |place| {
        // SAFETY: `place` is a reserved record; every field is written, none is read.
        unsafe { write_connection(place, sock, conn, moment) }
    });
    conn.cwnd_min = u32::MAX;
    conn.cwnd_max = 0;
}

/// What grows with everything that a connection sends or receives.
#[inline(always)]
pub fn activity(sock: TcpSock) -> u32 {
    sock.segs_in().wrapping_add(sock.segs_out())
}

/// Copies word by word, which the compiler's own `memcpy` for BPF, a loop over bytes, does not.
///
/// # Safety
/// Both point to a `T`, aligned as a `W` is, in a map value or a record.
#[inline(always)]
unsafe fn copy_words<W: Copy, T>(to: *mut T, from: *const T) {
    const { assert!(size_of::<T>().is_multiple_of(size_of::<W>())) };
    for i in 0..size_of::<T>() / size_of::<W>() {
        // SAFETY: within both.
        unsafe { to.cast::<W>().add(i).write_volatile(from.cast::<W>().add(i).read_volatile()) }
    }
}

/// Writes everything known of a connection.
///
/// # Safety
/// `r` points to memory for a record.
#[inline(always)]
pub unsafe fn write_connection(r: *mut ConnRecord, sock: TcpSock, conn: &Conn, moment: &Moment) {
    // Field by field: a whole record would not fit the stack.
    macro_rules! set {
        ($($field:ident: $value:expr;)+) => {
            // SAFETY: a field of the record.
            unsafe { $((&raw mut (*r).$field).write($value);)+ }
        };
    }
    let (snd_una, snd_nxt, write_seq) = (sock.snd_una(), sock.snd_nxt(), sock.write_seq());
    // What is larger than a register is copied from place to place: a copy in between would be on the stack.
    // SAFETY: fields of the record, and of a map value, of the same types.
    unsafe {
        sock.write_key(&raw mut (*r).key);
        copy_words::<u64, _>(&raw mut (*r).sketch, &raw const conn.sketch);
        copy_words::<u64, _>(&raw mut (*r).comm, &raw const conn.comm);
        copy_words::<u32, _>(&raw mut (*r).retrans, &raw const conn.retrans);
    }
    let now = limits::jiffies32();
    let (zero_windows, zero_jiffies) = limits::zero_windows(sock, conn, now);
    let ca_us = congestion_times(conn, (moment.now_ns / 1000) as u32);
    let busy = if sock.app_limited() != 0 { application::LIMITS_NOW } else { 0 };
    let rate = if sock.rate_app_limited() { application::LIMITED_RATE } else { 0 };
    // SAFETY: a field of the record, of 16 bytes.
    unsafe { (&raw mut (*r).congestion).cast::<[u64; 2]>().write(sock.congestion()) };
    set! {
        header: header_at::<ConnRecord>(moment.kind, moment.now_ns);
        cookie: sock.cookie();
        started_ns: conn.started_ns;
        established_ns: conn.established_ns;
        bytes_sent: sock.bytes_sent();
        bytes_retrans: sock.bytes_retrans();
        bytes_acked: sock.bytes_acked();
        bytes_received: sock.bytes_received();
        rtt_sum_us: conn.rtt_sum_us;
        pacing_rate: sock.sk_pacing_rate();
        slot: conn.slot;
        generation: conn.generation;
        pid: conn.pid;
        uid: sock.sk_uid();
        srtt_us: sock.srtt_us() >> 3;
        mdev_us: sock.mdev_us() >> 2;
        min_rtt_us: sock.min_rtt_us();
        rtt_samples: conn.rtt_samples;
        rtt_last_us: conn.rtt_last_us;
        rtt_min_us: conn.rtt_min_us;
        rtt_max_us: conn.rtt_max_us;
        handshake_us: conn.handshake_us;
        snd_cwnd: sock.snd_cwnd();
        snd_ssthresh: sock.snd_ssthresh();
        cwnd_min: conn.cwnd_min;
        cwnd_max: conn.cwnd_max;
        packets_out: sock.packets_out();
        sacked_out: sock.sacked_out();
        lost_out: sock.lost_out();
        retrans_out: sock.retrans_out();
        snd_wnd: sock.snd_wnd();
        rcv_wnd: sock.rcv_wnd();
        mss: sock.mss_cache();
        rto_jiffies: sock.icsk_rto();
        segs_out: sock.segs_out();
        segs_in: sock.segs_in();
        data_segs_out: sock.data_segs_out();
        data_segs_in: sock.data_segs_in();
        delivered: sock.delivered();
        total_retrans: sock.total_retrans();
        spurious: conn.spurious;
        retrans_failed: conn.retrans_failed;
        dsack_dups: sock.dsack_dups();
        unread_bytes: sock.rcv_nxt().wrapping_sub(sock.copied_seq());
        unsent_bytes: write_seq.wrapping_sub(snd_nxt);
        unacked_bytes: snd_nxt.wrapping_sub(snd_una);
        recoveries: conn.recoveries;
        ca_us: ca_us;
        limited_jiffies: limits::chronographs(sock, now);
        zero_windows: zero_windows;
        zero_jiffies: zero_jiffies;
        idle_restarts: conn.idle_restarts;
        rate_delivered: sock.rate_delivered();
        rate_interval_us: sock.rate_interval_us();
        delivered_ce: sock.delivered_ce();
        advmss: u32::from(sock.advmss());
        queued_bytes: sock.sk_wmem_queued();
        send_buffer: sock.sk_sndbuf();
        rcv_rtt_us: sock.rcv_rtt_us() >> 3;
        rcv_space: sock.rcv_space();
        reordering: sock.reordering();
        reord_seen: sock.reord_seen();
        lost: sock.lost();
        since_ack_jiffies: now.wrapping_sub(sock.rcv_tstamp());
        since_sent_jiffies: now.wrapping_sub(sock.lsndtime());
        sk_err: sock.sk_err();
        state: moment.state;
        old_state: moment.old_state;
        direction: conn.direction;
        flags: conn.flags;
        ca_state: sock.ca_state();
        backoff: sock.icsk_backoff();
        cause: moment.cause;
        cgroup: conn.cgroup;
        owner_uid: conn.owner_uid;
        owner_kind: conn.owner_kind;
        owner_flags: if sock.is_orphan() { owner::flag::ORPHAN } else { 0 };
        owner_reserved: 0;
        probes_out: sock.icsk_probes_out();
        ecn_flags: sock.ecn_flags();
        application: busy | rate;
        reserved: 0;
        nodelay: u8::from(sock.nodelay());
        history: conn.history;
        state_since_ms: conn.state_since_ms;
    }
}

/// Writes everything known of a listener; `periodic` when an iterator reads it and nothing has happened.
///
/// # Safety
/// `r` points to memory for a record.
#[inline(always)]
pub unsafe fn write_listener(r: *mut ListenerRecord, sock: TcpSock, up: bool, periodic: bool) {
    // SAFETY: fields of the record.
    unsafe {
        sock.write_key(&raw mut (*r).key);
        (&raw mut (*r).header).write(header::<ListenerRecord>(Kind::Listener));
        (*r).cookie = sock.cookie();
        (*r).backlog = sock.sk_max_ack_backlog();
        (*r).queue = sock.sk_ack_backlog();
        (*r).drops = sock.sk_drops();
        (*r).half_open = sock.icsk_accept_qlen();
        (*r).periodic = u32::from(periodic);
        (*r).up = u32::from(up);
    }
    // Of a listener without state nobody knows the owner.
    let conn = sock.state();
    let (pid, cgroup, uid, kind) = match &conn {
        Some(conn) => (conn.pid, conn.cgroup, conn.owner_uid, conn.owner_kind),
        None => (0, 0, 0, 0),
    };
    // SAFETY: fields of the record, and of a map value.
    unsafe {
        (*r).pid = pid;
        (*r).cgroup = cgroup;
        (*r).owner_uid = uid;
        (*r).owner_kind = u32::from(kind);
        match conn {
            Some(conn) => copy_words::<u64, _>(&raw mut (*r).comm, &raw const conn.comm),
            None => (&raw mut (*r).comm).cast::<[u64; 2]>().write([0; 2]),
        }
    }
}

/// The jiffy from which the next periodic record may be made.
#[inline(always)]
pub fn next_sample(now: u64) -> u64 {
    now + sample_jiffies()
}

/// Any jiffy of the interval that begins now.
#[inline(always)]
pub fn some_sample(now: u64) -> u64 {
    // SAFETY: no arguments.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    now + 1 + ((random * (sample_jiffies() & u64::from(u32::MAX))) >> 32)
}

#[inline(always)]
fn sample_jiffies() -> u64 {
    match SETTINGS.get(setting::SAMPLE_JIFFIES) {
        Some(&interval) => interval,
        None => u64::from(frozen(&HZ)),
    }
}
