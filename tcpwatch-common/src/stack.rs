//! Kernel stacks of resets: what the programs keep of them, and the address ranges that the daemon gives them.

use crate::wire::wire;

/// Frames that are kept of a stack, those of the tracer itself included.
pub const FRAMES: usize = 20;
/// Different stacks that are kept; those beyond are counted as lost.
pub const STACKS: u32 = 512;
/// Functions at which a stack ends: what is below is how a packet or a timer came to run, whoever it interrupted.
pub const CUTS: [&str; 8] = [
    "ip_local_deliver_finish",
    "ip6_input_finish",
    "handle_softirqs",
    "__do_softirq",
    "do_softirq",
    "net_rx_action",
    "run_timer_softirq",
    "__netif_receive_skb_core",
];
/// Frames that make the key where the addresses of [`CUTS`] are not known: few enough to end above the softirq.
pub const FRAMES_UNCUT: u32 = 6;

/// What a stack went through: bits that tell resets apart to which the kernel gives one reason, or none.
pub mod path {
    /// `tcp_send_active_reset`: the stack was read, and the addresses are known.
    pub const KNOWN: u64 = 1;
    /// `tcp_abort`: `ss -K`, sock_diag, BPF.
    pub const ABORT: u64 = 1 << 1;
    /// `__tcp_close`.
    pub const CLOSE: u64 = 1 << 2;
    /// `tcp_disconnect`.
    pub const DISCONNECT: u64 = 1 << 3;
    /// `inet_csk_listen_stop`.
    pub const LISTEN_STOP: u64 = 1 << 4;
    /// `tcp_keepalive_timer`.
    pub const KEEPALIVE: u64 = 1 << 5;
    /// `tcp_out_of_resources`.
    pub const MEMORY: u64 = 1 << 6;

    /// The functions, in the order of the bits, with the names of older kernels, and whether the rest of the bits says
    /// nothing without it: a compiler may inline the others.
    pub const FUNCTIONS: [(&[&str], bool); 7] = [
        (&["tcp_send_active_reset"], true),
        (&["tcp_abort"], true),
        (&["__tcp_close", "tcp_close"], true),
        (&["tcp_disconnect"], true),
        (&["inet_csk_listen_stop"], true),
        (&["tcp_keepalive_timer"], false),
        (&["tcp_out_of_resources"], false),
    ];
}

wire! {
    /// Where a function lies; all zero when that is not known.
    pub struct Range {
        /// Address of its first byte.
        pub start: u64,
        /// Its length, bytes.
        pub len: u64,
    }
}

impl Range {
    /// Not known.
    pub const NONE: Self = Self { start: 0, len: 0 };

    /// 1 when `ip`, an address that a call returns to, lies in it, else 0. Without a branch: the verifier would follow
    /// both ways at every frame.
    #[inline(always)]
    pub const fn holds(self, ip: u64) -> u64 {
        let into = ip.wrapping_sub(self.start).wrapping_sub(1);
        (!into & into.wrapping_sub(self.len)) >> 63
    }
}

wire! {
    /// One stack, and how many resets had it.
    pub struct StackCount {
        /// Resets.
        pub count: u64,
        /// Where each call returns to, the innermost first; 0 fills up.
        pub ips: [u64; FRAMES],
        /// [`crate::reset::ResetOrigin`].
        pub origin: u8,
        /// [`crate::reset::ResetCause`].
        pub cause: u8,
        /// Padding.
        pub reserved: [u8; 6],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_calls_within_it_return_to() {
        let range = Range { start: 0xffff_ffff_8136_2070, len: 0x100 };
        for (ip, holds) in [
            (range.start, 0),
            (range.start + 1, 1),
            (range.start + 0x100, 1),
            (range.start + 0x101, 0),
            (range.start - 1, 0),
            (0, 0),
            (u64::MAX, 0),
        ] {
            assert_eq!(range.holds(ip), holds, "{ip:x}");
        }
        assert_eq!([0, 1, u64::MAX, range.start].map(|ip| Range::NONE.holds(ip)), [0; 4]);
    }
}
