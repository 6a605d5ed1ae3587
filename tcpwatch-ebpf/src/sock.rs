//! The only reader of the kernel's sockets: typed loads, see [`crate::kernel`].

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_jiffies64, bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use core::ptr::{self, NonNull};
use tcpwatch_common::conn::{Conn, ConnKey};
use tcpwatch_common::layout::ABSENT;
use tcpwatch_common::state::Direction;

use crate::config::{LAYOUT, frozen, offset};
use crate::kernel::{self, typed};
use crate::maps::{LISTENERS, SOCKETS};

/// `AF_INET6`.
pub const AF_INET6: u16 = 10;
/// Bit number of `SOCK_DONE` in `sk_flags`: `enum sock_flags`, include/net/sock.h.
const SOCK_DONE: u32 = 1;
/// Bit number of `SOCK_DEAD`, likewise: set by `sock_orphan`.
const SOCK_DEAD: u32 = 0;
/// Bit number of `SOCK_LINGER`.
const SOCK_LINGER: u32 = 4;
/// `BPF_SK_STORAGE_GET_F_CREATE`.
const CREATE: u64 = 1;

/// A `struct tcp_sock` that the verifier has seen cast.
#[derive(Clone, Copy)]
pub struct TcpSock {
    /// For reading; of a type that helpers may refuse.
    fields: NonNull<u8>,
    /// For helpers.
    socket: *const u8,
}

/// A field of the socket itself.
macro_rules! own {
    ($sock:expr, $($field:tt)+) => {
        typed!($sock.fields.as_ptr().cast_const(), $($field)+)
    };
}

/// The same of a field that is a bit field on some kernels, and a byte on others.
macro_rules! bits {
    ($sock:expr, $field:ident) => {{
        let (shift, bits) = (frozen(&LAYOUT.$field.shift), frozen(&LAYOUT.$field.bits));
        let byte: u8 = own!($sock, $field);
        (byte >> (shift & 7)) & ((1_u16 << (bits & 15)) - 1) as u8
    }};
}

/// Declares readers of whole-integer fields.
macro_rules! readers {
    ($($name:ident: $t:ty;)+) => {$(
        #[doc = concat!("`", stringify!($name), "`; 0 when this kernel does not have it.")]
        #[inline(always)]
        pub fn $name(self) -> $t {
            own!(self, $name)
        }
    )+};
}

impl TcpSock {
    /// The socket as a `struct tcp_sock`; `None` for a minisock, or a socket that is not TCP.
    #[inline(always)]
    pub fn cast(sk: *const u8) -> Option<Self> {
        // SAFETY: the helper checks the socket's type; the verifier checks that `sk` is one.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) };
        let fields = NonNull::new(tcp.cast::<u8>())?;
        Some(Self { fields, socket: fields.as_ptr() })
    }

    /// The same of what the kernel guarantees to be one, as the hooks in its TCP code do: without the helper's call where the
    /// kernel is new enough.
    #[inline(always)]
    pub fn known(sk: *const u8) -> Option<Self> {
        let fields = NonNull::new(kernel::cast_known(sk))?;
        Some(Self { fields, socket: sk })
    }

    /// The pointer itself.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u8 {
        self.socket.cast_mut()
    }

    readers! {
        skc_family: u16;
        skc_state: u8;
        sk_lock_owned: u32;
        sk_err: i32;
        sk_shutdown: u8;
        sk_uid: u32;
        sk_ack_backlog: u32;
        sk_drops: u32;
        sk_max_ack_backlog: u32;
        icsk_accept_qlen: u32;
        icsk_retransmits: u8;
        icsk_pending: u8;
        icsk_backoff: u8;
        icsk_rto: u32;
        srtt_us: u32;
        mdev_us: u32;
        snd_cwnd: u32;
        snd_ssthresh: u32;
        snd_wnd: u32;
        rcv_wnd: u32;
        snd_una: u32;
        snd_nxt: u32;
        write_seq: u32;
        rcv_nxt: u32;
        copied_seq: u32;
        packets_out: u32;
        sacked_out: u32;
        lost_out: u32;
        retrans_out: u32;
        total_retrans: u32;
        dsack_dups: u32;
        bytes_sent: u64;
        bytes_retrans: u64;
        bytes_acked: u64;
        bytes_received: u64;
        segs_in: u32;
        segs_out: u32;
        data_segs_in: u32;
        data_segs_out: u32;
        delivered: u32;
        mss_cache: u32;
        advmss: u16;
        rack_rtt_us: u32;
        lsndtime: u32;
        rcv_tstamp: u32;
        chrono_start: u32;
        app_limited: u32;
        rate_delivered: u32;
        rate_interval_us: u32;
        ecn_flags: u8;
        delivered_ce: u32;
        rcv_rtt_us: u32;
        rcv_space: u32;
        reordering: u32;
        reord_seen: u32;
        lost: u32;
        undo_marker: u32;
        undo_retrans: i32;
        sk_pacing_rate: u64;
        sk_sndbuf: u32;
        sk_wmem_queued: u32;
        icsk_probes_out: u8;
        icsk_lrcvtime: u32;
    }

    /// `chrono_type`: which chronograph runs, 0 for none.
    #[inline(always)]
    pub fn chrono_type(self) -> u8 {
        bits!(self, chrono_type)
    }

    /// `chrono_stat`, jiffies, without the running interval.
    #[inline(always)]
    pub fn chrono_stat(self) -> [u32; 3] {
        [own!(self, chrono_stat), own!(self, chrono_stat, 4), own!(self, chrono_stat, 8)]
    }

    /// `rate_app_limited`.
    #[inline(always)]
    pub fn rate_app_limited(self) -> bool {
        bits!(self, rate_app_limited) != 0
    }

    /// Whether both ends agreed on SACK.
    #[inline(always)]
    pub fn sack_ok(self) -> bool {
        bits!(self, sack_ok) != 0
    }

    /// Whether the application switched Nagle's algorithm off (`TCP_NAGLE_OFF`, include/net/tcp.h).
    #[inline(always)]
    pub fn nodelay(self) -> bool {
        bits!(self, nonagle) & 1 != 0
    }

    /// The operations of its congestion control; `None` where they cannot be read.
    #[inline(always)]
    fn congestion_ops(self) -> Option<*const u8> {
        let ops: *const u8 = own!(self, icsk_ca_ops);
        if ops.is_null() { None } else { Some(ops) }
    }

    /// The name of its congestion control.
    #[inline(always)]
    pub fn congestion(self) -> [u64; 2] {
        match self.congestion_ops() {
            Some(ops) => [typed!(ops, ca_name), typed!(ops, ca_name, 8)],
            None => [0; 2],
        }
    }

    /// Whether its congestion control decides about the window itself, as bbr does (`cong_control`).
    #[inline(always)]
    pub fn has_own_control(self) -> bool {
        self.congestion_ops().is_some_and(|ops| {
            let control: u64 = typed!(ops, ca_cong_control);
            control != 0
        })
    }

    /// `icsk_ca_state`, a bit field.
    #[inline(always)]
    pub fn ca_state(self) -> u8 {
        bits!(self, icsk_ca_state)
    }

    /// Payload bytes received in order. The kernel's `bytes_received` counts a FIN as a byte, and `SOCK_DONE` is set by
    /// the FIN alone (`tcp_fin`, net/ipv4/tcp_input.c).
    #[inline(always)]
    pub fn payload_received(self) -> u64 {
        let flags: u64 = own!(self, skc_flags);
        self.bytes_received() - ((flags >> SOCK_DONE) & 1)
    }

    /// Received bytes that the application has not read; a FIN is none.
    #[inline(always)]
    pub fn unread_payload(self) -> u32 {
        let flags: u64 = own!(self, skc_flags);
        self.rcv_nxt().wrapping_sub(self.copied_seq()).saturating_sub((flags >> SOCK_DONE) as u32 & 1)
    }

    /// Whether SO_LINGER is on.
    #[inline(always)]
    pub fn lingers(self) -> bool {
        let flags: u64 = own!(self, skc_flags);
        flags >> SOCK_LINGER & 1 != 0
    }

    /// Its time, jiffies.
    #[inline(always)]
    pub fn linger_jiffies(self) -> u64 {
        own!(self, sk_lingertime)
    }

    /// No process holds it: any more, or yet, when it waits to be accepted.
    #[inline(always)]
    pub fn is_unheld(self) -> bool {
        let socket: u64 = own!(self, sk_socket);
        offset(&LAYOUT.sk_socket) != ABSENT && socket == 0
    }

    /// Smallest RTT of the kernel's window, µs: `rtt_min.s[0].v`.
    #[inline(always)]
    pub fn min_rtt_us(self) -> u32 {
        // `v` follows the 4 bytes of `t` in struct minmax_sample.
        own!(self, rtt_min, 4)
    }

    /// Our port, host byte order. `skc_num` is 0 at SYN_SENT and CLOSE, `inet_sport` is not.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        u16::from_be(own!(self, inet_sport))
    }

    /// The peer's port, host byte order.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(own!(self, skc_dport))
    }

    /// Inode number of the network namespace.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        let net: *const u8 = own!(self, skc_net);
        typed!(net, netns_inum)
    }

    /// Id of the control group of who made the socket, or the listener it came from; 0 when it is not known.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        if offset(&LAYOUT.sk_cgroup) == ABSENT {
            return 0;
        }
        kernel::cgroup_id(own!(self, sk_cgroup))
    }

    /// No process has a descriptor of it any more.
    #[inline(always)]
    pub fn is_orphan(self) -> bool {
        let flags: u64 = own!(self, skc_flags);
        (flags >> SOCK_DEAD) & 1 != 0
    }

    /// The kernel's cookie of the socket.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        // SAFETY: the helper takes any full socket.
        unsafe { bpf_get_socket_cookie(self.as_ptr().cast()) }
    }

    /// Both ends.
    #[inline(always)]
    pub fn key(self) -> ConnKey {
        #[repr(align(8))]
        struct Place(ConnKey);
        let mut place = Place(ConnKey::EMPTY);
        // SAFETY: aligned as it is declared.
        unsafe { self.write_key(&raw mut place.0) };
        place.0
    }

    /// Writes both ends to `key`, address by address.
    ///
    /// # Safety
    /// `key` points to memory for one, aligned to 8 bytes.
    #[inline(always)]
    pub unsafe fn write_key(self, key: *mut ConnKey) {
        let (local, remote);
        if self.skc_family() == AF_INET6 && offset(&LAYOUT.skc_v6_daddr) != ABSENT {
            (local, remote) = (
                [own!(self, skc_v6_rcv_saddr), own!(self, skc_v6_rcv_saddr, 8)],
                [own!(self, skc_v6_daddr), own!(self, skc_v6_daddr, 8)],
            );
        } else {
            (local, remote) = (mapped_words(own!(self, skc_rcv_saddr)), mapped_words(own!(self, skc_daddr)));
        }
        // SAFETY: fields of the key.
        unsafe {
            (&raw mut (*key).local).cast::<[u64; 2]>().write(local);
            (&raw mut (*key).remote).cast::<[u64; 2]>().write(remote);
            (*key).local_port = self.local_port();
            (*key).remote_port = self.remote_port();
            (*key).ip_version = if is_mapped_words(remote) { 4 } else { 6 };
            (*key).reserved = 0;
            (*key).netns = self.netns();
        }
    }

    /// The state of this socket, if it has any.
    #[inline(always)]
    pub fn state(self) -> Option<&'static mut Conn> {
        self.storage(0)
    }

    /// The state of this socket, all zero when it is new; `None` when the kernel has no memory for it.
    #[inline(always)]
    pub fn state_or_new(self) -> Option<&'static mut Conn> {
        self.storage(CREATE)
    }

    #[inline(always)]
    fn storage(self, flags: u64) -> Option<&'static mut Conn> {
        let map = ptr::addr_of!(SOCKETS).cast_mut();
        // SAFETY: the helper returns a value of the map's type, which lives as long as the socket, or null.
        unsafe { bpf_sk_storage_get(map.cast(), self.as_ptr().cast(), ptr::null_mut(), flags).cast::<Conn>().as_mut() }
    }
}

/// What stands before the IPv4 address in the second word of its v4-mapped form.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// The v4-mapped form of an IPv4 address in network byte order.
#[inline(always)]
pub fn mapped(v4: u32) -> [u8; 16] {
    let b = v4.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]]
}

/// The same in two words.
#[inline(always)]
fn mapped_words(v4: u32) -> [u64; 2] {
    // BPF is compiled for the byte order of the machine: the first bytes are the lower half on a little-endian one.
    let words = if cfg!(target_endian = "little") { (MAPPED, v4) } else { (v4, MAPPED) };
    [0, u64::from(words.1) << 32 | u64::from(words.0)]
}

/// Whether an address is IPv4 in its v4-mapped form.
#[inline(always)]
pub fn is_mapped(a: &[u8; 16]) -> bool {
    let p = a.as_ptr().cast::<u64>();
    // SAFETY: two words within an array of 16 bytes.
    is_mapped_words(unsafe { [p.read_unaligned(), p.add(1).read_unaligned()] })
}

#[inline(always)]
fn is_mapped_words(words: [u64; 2]) -> bool {
    let second = if cfg!(target_endian = "little") { words[1] as u32 } else { (words[1] >> 32) as u32 };
    words[0] == 0 && second == MAPPED
}

/// Jiffies since boot.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
}

/// Key of a listening port.
#[inline(always)]
pub fn listener_key(netns: u32, port: u16) -> u64 {
    u64::from(netns) << 16 | u64::from(port)
}

/// The direction of a connection of which only the ports are known: inbound when something listens on ours.
#[inline(always)]
pub fn direction_by_port(netns: u32, local_port: u16) -> Direction {
    let key = listener_key(netns, local_port);
    // SAFETY: the value is copied at once.
    match unsafe { LISTENERS.get(key) } {
        Some(_) => Direction::Inbound,
        None => Direction::Unknown,
    }
}
