//! The only reader of the kernel's structures: typed loads at the offsets of [`LAYOUT`].

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_jiffies64, bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use core::ptr::{self, NonNull};
use tcpwatch_common::conn::{Conn, ConnKey};
use tcpwatch_common::layout::{ABSENT, Field};
use tcpwatch_common::state::Direction;

use crate::config::{LAYOUT, offset};
use crate::kernel;
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
pub struct TcpSock(NonNull<u8>);

/// Declares readers of whole-integer fields.
macro_rules! readers {
    ($($name:ident: $t:ty;)+) => {$(
        #[doc = concat!("`", stringify!($name), "`; 0 when this kernel does not have it.")]
        #[inline(always)]
        pub fn $name(self) -> $t {
            self.read(&LAYOUT.$name)
        }
    )+};
}

impl TcpSock {
    /// The socket as a `struct tcp_sock`; `None` for a minisock, or a socket that is not TCP.
    #[inline(always)]
    pub fn cast(sk: *const u8) -> Option<Self> {
        // SAFETY: the helper checks the socket's type; the verifier checks that `sk` is one.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk.cast_mut().cast()) };
        NonNull::new(tcp.cast::<u8>()).map(Self)
    }

    /// The pointer itself.
    #[inline(always)]
    pub fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn read<T: Copy + Default>(self, field: &'static Field) -> T {
        let at = offset(field);
        if at == ABSENT {
            return T::default();
        }
        // SAFETY: the verifier knows the offset as a constant and checks the load against the kernel's own types.
        unsafe { ptr::read_volatile(self.as_ptr().add(usize::from(at)).cast::<T>()) }
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

    /// Reads a field that is a bit field on some kernels, and a byte on others.
    #[inline(always)]
    fn read_bits(self, field: &'static Field) -> u8 {
        let byte: u8 = self.read(field);
        let (shift, bits) = (crate::config::frozen(&field.shift), crate::config::frozen(&field.bits));
        if bits == 0 { byte } else { (byte >> (shift & 7)) & ((1_u16 << (bits & 15)) - 1) as u8 }
    }

    /// `chrono_type`: which chronograph runs, 0 for none.
    #[inline(always)]
    pub fn chrono_type(self) -> u8 {
        self.read_bits(&LAYOUT.chrono_type)
    }

    /// `chrono_stat[i]`, jiffies, without the running interval; `i` is below 3.
    #[inline(always)]
    pub fn chrono_stat(self, i: usize) -> u32 {
        let at = offset(&LAYOUT.chrono_stat);
        if at == ABSENT {
            return 0;
        }
        // SAFETY: as in `read`, within the array.
        unsafe { ptr::read_volatile(self.as_ptr().add(usize::from(at) + 4 * i).cast::<u32>()) }
    }

    /// `rate_app_limited`.
    #[inline(always)]
    pub fn rate_app_limited(self) -> bool {
        self.read_bits(&LAYOUT.rate_app_limited) != 0
    }

    /// Whether both ends agreed on SACK.
    #[inline(always)]
    pub fn sack_ok(self) -> bool {
        self.read_bits(&LAYOUT.sack_ok) != 0
    }

    /// Whether the application switched Nagle's algorithm off (`TCP_NAGLE_OFF`, include/net/tcp.h).
    #[inline(always)]
    pub fn nodelay(self) -> bool {
        self.read_bits(&LAYOUT.nonagle) & 1 != 0
    }

    /// The operations of its congestion control; `None` where they cannot be read.
    #[inline(always)]
    fn congestion_ops(self) -> Option<*const u8> {
        let at = offset(&LAYOUT.icsk_ca_ops);
        if at == ABSENT {
            return None;
        }
        // SAFETY: a typed load of a pointer, checked by the verifier.
        let ops = unsafe { ptr::read_volatile(self.as_ptr().add(usize::from(at)).cast::<*const u8>()) };
        if ops.is_null() { None } else { Some(ops) }
    }

    /// The name of its congestion control.
    #[inline(always)]
    pub fn congestion(self) -> [u64; 2] {
        let at = usize::from(offset(&LAYOUT.ca_name));
        match self.congestion_ops() {
            // SAFETY: two typed loads within the array of 16 bytes.
            Some(ops) if at != usize::from(ABSENT) => unsafe {
                let from = ops.add(at).cast::<u64>();
                [ptr::read_volatile(from), ptr::read_volatile(from.add(1))]
            },
            _ => [0; 2],
        }
    }

    /// Whether its congestion control decides about the window itself, as bbr does (`cong_control`).
    #[inline(always)]
    pub fn has_own_control(self) -> bool {
        let at = usize::from(offset(&LAYOUT.ca_cong_control));
        match self.congestion_ops() {
            // SAFETY: a typed load of a pointer.
            Some(ops) if at != usize::from(ABSENT) => unsafe {
                !ptr::read_volatile(ops.add(at).cast::<*const u8>()).is_null()
            },
            _ => false,
        }
    }

    /// `icsk_ca_state`, a bit field.
    #[inline(always)]
    pub fn ca_state(self) -> u8 {
        self.read_bits(&LAYOUT.icsk_ca_state)
    }

    /// Payload bytes received in order. The kernel's `bytes_received` counts a FIN as a byte, and `SOCK_DONE` is set by
    /// the FIN alone (`tcp_fin`, net/ipv4/tcp_input.c).
    #[inline(always)]
    pub fn payload_received(self) -> u64 {
        let flags: u64 = self.read(&LAYOUT.skc_flags);
        self.bytes_received() - ((flags >> SOCK_DONE) & 1)
    }

    /// Received bytes that the application has not read; a FIN is none.
    #[inline(always)]
    pub fn unread_payload(self) -> u32 {
        let flags: u64 = self.read(&LAYOUT.skc_flags);
        self.rcv_nxt().wrapping_sub(self.copied_seq()).saturating_sub((flags >> SOCK_DONE) as u32 & 1)
    }

    /// Whether SO_LINGER is on.
    #[inline(always)]
    pub fn lingers(self) -> bool {
        let flags: u64 = self.read(&LAYOUT.skc_flags);
        flags >> SOCK_LINGER & 1 != 0
    }

    /// Its time, jiffies.
    #[inline(always)]
    pub fn linger_jiffies(self) -> u64 {
        self.read(&LAYOUT.sk_lingertime)
    }

    /// No process holds it: any more, or yet, when it waits to be accepted.
    #[inline(always)]
    pub fn is_unheld(self) -> bool {
        offset(&LAYOUT.sk_socket) != ABSENT && self.read::<u64>(&LAYOUT.sk_socket) == 0
    }

    /// Smallest RTT of the kernel's window, µs: `rtt_min.s[0].v`.
    #[inline(always)]
    pub fn min_rtt_us(self) -> u32 {
        let at = offset(&LAYOUT.rtt_min);
        if at == ABSENT {
            return 0;
        }
        // SAFETY: as in `read`; `v` follows the 4 bytes of `t` in struct minmax_sample.
        unsafe { ptr::read_volatile(self.as_ptr().add(usize::from(at) + 4).cast::<u32>()) }
    }

    /// Our port, host byte order. `skc_num` is 0 at SYN_SENT and CLOSE, `inet_sport` is not.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        u16::from_be(self.read(&LAYOUT.inet_sport))
    }

    /// The peer's port, host byte order.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(self.read(&LAYOUT.skc_dport))
    }

    /// Inode number of the network namespace.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        let net: *const u8 = {
            let at = usize::from(offset(&LAYOUT.skc_net));
            // SAFETY: a typed load of a pointer, checked by the verifier.
            unsafe { ptr::read_volatile(self.as_ptr().add(at).cast::<*const u8>()) }
        };
        // SAFETY: the verifier knows what `net` points to; a fault reads 0.
        unsafe { ptr::read_volatile(net.add(usize::from(offset(&LAYOUT.netns_inum))).cast::<u32>()) }
    }

    /// Id of the control group of who made the socket, or the listener it came from; 0 when it is not known.
    #[inline(always)]
    pub fn cgroup(self) -> u64 {
        if offset(&LAYOUT.sk_cgroup) == ABSENT {
            return 0;
        }
        kernel::cgroup_id(kernel::typed_pointer(self.as_ptr(), &LAYOUT.sk_cgroup))
    }

    /// No process has a descriptor of it any more.
    #[inline(always)]
    pub fn is_orphan(self) -> bool {
        let flags: u64 = self.read(&LAYOUT.skc_flags);
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
            (local, remote) = (self.address6(&LAYOUT.skc_v6_rcv_saddr), self.address6(&LAYOUT.skc_v6_daddr));
        } else {
            (local, remote) =
                (mapped_words(self.read(&LAYOUT.skc_rcv_saddr)), mapped_words(self.read(&LAYOUT.skc_daddr)));
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

    #[inline(always)]
    fn address6(self, field: &'static Field) -> [u64; 2] {
        let at = usize::from(offset(field));
        // SAFETY: two typed loads of 8 bytes within struct in6_addr.
        unsafe {
            let from = self.as_ptr().add(at).cast::<u64>();
            [ptr::read_volatile(from), ptr::read_volatile(from.add(1))]
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
