//! Where the kernel's fields lie: resolved in the running kernel's BTF by the daemon, put into the loads of the programs, and
//! frozen as read-only globals for what is not a simple load. The verifier knows them as constants.

/// Place of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Field {
    /// Byte offset, [`ABSENT`] when this kernel does not have the field.
    pub offset: u16,
    /// First bit within the byte, for bit fields.
    pub shift: u8,
    /// Bits, for bit fields; 0 for whole integers.
    pub bits: u8,
}

/// Offset of a field that the running kernel does not have.
pub const ABSENT: u16 = u16::MAX;

/// In the objects, the offset of a load from the first field of [`Layout`]; that of the next one is [`PLACE_STEP`] more. The
/// loader puts the field's own offset into the instruction. No structure and no map value is so large that another load could
/// be meant.
pub const PLACE: u16 = 0x6000;
/// Bytes of a field that can be told apart.
pub const PLACE_STEP: u16 = 16;

/// What stands in the objects for the byte `within` of the field at this position, in bytes, of [`Layout`].
pub const fn place(position: usize, within: usize) -> i32 {
    assert!(within < PLACE_STEP as usize, "no field has so many bytes");
    PLACE as i32 + (position / size_of::<Field>() * PLACE_STEP as usize + within) as i32
}

/// What stands in the objects before a call of [`SKC_TO_TCP_SOCK`] that may be a mere cast.
pub const CAST: i32 = 0x7463_7077;
/// `BPF_FUNC_skc_to_tcp_sock`, include/uapi/linux/bpf.h.
pub const SKC_TO_TCP_SOCK: i32 = 137;

/// What the daemon must find for a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// Name within [`Layout`].
    pub name: &'static str,
    /// Structure to start from.
    pub root: &'static str,
    /// Members, separated by dots; anonymous unions and structures are looked through.
    pub path: &'static str,
    /// Bytes that the program reads, at most what the field has.
    pub size: u8,
    /// Without it the programs are of no use.
    pub required: bool,
}

macro_rules! layout {
    ($($name:ident: $need:ident $root:literal $path:literal $size:literal;)+) => {
        /// One [`Field`] for everything that the programs read from the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        #[expect(missing_docs, reason = "named after the kernel's fields, see FIELDS")]
        pub struct Layout { $(pub $name: Field,)+ }

        impl Layout {
            /// Nothing is known.
            pub const ABSENT: Self = Self { $($name: Field { offset: ABSENT, shift: 0, bits: 0 },)+ };

            /// The layout that `find` gives; `find` sees the specifications in order.
            pub fn resolve<E>(mut find: impl FnMut(&FieldSpec) -> Result<Field, E>) -> Result<Self, E> {
                let mut specs = FIELDS.iter();
                Ok(Self { $($name: match specs.next() { Some(spec) => find(spec)?, None => Self::ABSENT.$name },)+ })
            }

            /// Every field with its specification.
            pub fn fields(&self) -> impl Iterator<Item = (&'static FieldSpec, Field)> {
                FIELDS.iter().zip([$(self.$name),+])
            }
        }

        /// The specifications, in the order of [`Layout`].
        pub const FIELDS: &[FieldSpec] = &[$(FieldSpec {
            name: stringify!($name), root: $root, path: $path, size: $size, required: layout!(@ $need),
        },)+];
    };
    (@ required) => { true };
    (@ optional) => { false };
}

layout! {
    skc_family: required "sock_common" "skc_family" 2;
    skc_state: required "sock_common" "skc_state" 1;
    skc_daddr: required "sock_common" "skc_daddr" 4;
    skc_rcv_saddr: required "sock_common" "skc_rcv_saddr" 4;
    skc_hash: required "sock_common" "skc_hash" 4;
    skc_dport: required "sock_common" "skc_dport" 2;
    skc_num: required "sock_common" "skc_num" 2;
    skc_v6_daddr: optional "sock_common" "skc_v6_daddr" 16;
    skc_v6_rcv_saddr: optional "sock_common" "skc_v6_rcv_saddr" 16;
    skc_net: required "sock_common" "skc_net.net" 8;
    skc_flags: required "sock_common" "skc_flags" 8;
    skc_cookie: optional "sock_common" "skc_cookie" 8;
    sk_lock_owned: optional "sock" "sk_lock.owned" 4;
    sk_cgroup: optional "sock" "sk_cgrp_data.cgroup" 8;
    sk_err: required "sock" "sk_err" 4;
    sk_shutdown: required "sock" "sk_shutdown" 1;
    sk_socket: optional "sock" "sk_socket" 8;
    sk_uid: optional "sock" "sk_uid" 4;
    sk_lingertime: required "sock" "sk_lingertime" 8;
    sk_ack_backlog: optional "sock" "sk_ack_backlog" 4;
    sk_drops: optional "sock" "sk_drops" 4;
    sk_max_ack_backlog: optional "sock" "sk_max_ack_backlog" 4;
    sk_pacing_rate: optional "sock" "sk_pacing_rate" 8;
    sk_sndbuf: optional "sock" "sk_sndbuf" 4;
    sk_wmem_queued: optional "sock" "sk_wmem_queued" 4;
    inet_sport: required "inet_sock" "inet_sport" 2;
    icsk_accept_qlen: optional "inet_connection_sock" "icsk_accept_queue.qlen" 4;
    icsk_ca_state: required "inet_connection_sock" "icsk_ca_state" 1;
    icsk_retransmits: required "inet_connection_sock" "icsk_retransmits" 1;
    icsk_pending: required "inet_connection_sock" "icsk_pending" 1;
    icsk_backoff: optional "inet_connection_sock" "icsk_backoff" 1;
    icsk_rto: optional "inet_connection_sock" "icsk_rto" 4;
    icsk_probes_out: optional "inet_connection_sock" "icsk_probes_out" 1;
    icsk_lrcvtime: optional "inet_connection_sock" "icsk_ack.lrcvtime" 4;
    icsk_ca_ops: optional "inet_connection_sock" "icsk_ca_ops" 8;
    ca_name: optional "tcp_congestion_ops" "name" 16;
    ca_cong_control: optional "tcp_congestion_ops" "cong_control" 8;
    srtt_us: required "tcp_sock" "srtt_us" 4;
    mdev_us: optional "tcp_sock" "mdev_us" 4;
    rtt_min: optional "tcp_sock" "rtt_min.s" 12;
    snd_cwnd: required "tcp_sock" "snd_cwnd" 4;
    snd_ssthresh: required "tcp_sock" "snd_ssthresh" 4;
    snd_wnd: required "tcp_sock" "snd_wnd" 4;
    rcv_wnd: optional "tcp_sock" "rcv_wnd" 4;
    snd_una: required "tcp_sock" "snd_una" 4;
    snd_nxt: required "tcp_sock" "snd_nxt" 4;
    write_seq: required "tcp_sock" "write_seq" 4;
    rcv_nxt: required "tcp_sock" "rcv_nxt" 4;
    copied_seq: required "tcp_sock" "copied_seq" 4;
    packets_out: required "tcp_sock" "packets_out" 4;
    sacked_out: optional "tcp_sock" "sacked_out" 4;
    lost_out: optional "tcp_sock" "lost_out" 4;
    retrans_out: optional "tcp_sock" "retrans_out" 4;
    total_retrans: required "tcp_sock" "total_retrans" 4;
    dsack_dups: optional "tcp_sock" "dsack_dups" 4;
    bytes_sent: required "tcp_sock" "bytes_sent" 8;
    bytes_retrans: required "tcp_sock" "bytes_retrans" 8;
    bytes_acked: required "tcp_sock" "bytes_acked" 8;
    bytes_received: required "tcp_sock" "bytes_received" 8;
    segs_in: optional "tcp_sock" "segs_in" 4;
    segs_out: optional "tcp_sock" "segs_out" 4;
    data_segs_in: optional "tcp_sock" "data_segs_in" 4;
    data_segs_out: required "tcp_sock" "data_segs_out" 4;
    delivered: required "tcp_sock" "delivered" 4;
    mss_cache: optional "tcp_sock" "mss_cache" 4;
    advmss: optional "tcp_sock" "advmss" 2;
    rack_rtt_us: optional "tcp_sock" "rack.rtt_us" 4;
    lsndtime: optional "tcp_sock" "lsndtime" 4;
    rcv_tstamp: optional "tcp_sock" "rcv_tstamp" 4;
    chrono_type: optional "tcp_sock" "chrono_type" 1;
    chrono_start: optional "tcp_sock" "chrono_start" 4;
    chrono_stat: optional "tcp_sock" "chrono_stat" 12;
    app_limited: optional "tcp_sock" "app_limited" 4;
    rate_app_limited: optional "tcp_sock" "rate_app_limited" 1;
    rate_delivered: optional "tcp_sock" "rate_delivered" 4;
    rate_interval_us: optional "tcp_sock" "rate_interval_us" 4;
    ecn_flags: optional "tcp_sock" "ecn_flags" 1;
    delivered_ce: optional "tcp_sock" "delivered_ce" 4;
    rcv_rtt_us: optional "tcp_sock" "rcv_rtt_est.rtt_us" 4;
    rcv_space: optional "tcp_sock" "rcvq_space.space" 4;
    reordering: optional "tcp_sock" "reordering" 4;
    reord_seen: optional "tcp_sock" "reord_seen" 4;
    lost: optional "tcp_sock" "lost" 4;
    sack_ok: optional "tcp_sock" "rx_opt.sack_ok" 1;
    nonagle: optional "tcp_sock" "nonagle" 1;
    undo_marker: optional "tcp_sock" "undo_marker" 4;
    undo_retrans: optional "tcp_sock" "undo_retrans" 4;
    netns_inum: required "net" "ns.inum" 4;
    socket_sk: optional "socket" "sk" 8;
    task_tgid: optional "task_struct" "tgid" 4;
    task_comm: optional "task_struct" "comm" 16;
    task_leader: optional "task_struct" "group_leader" 8;
    task_flags: optional "task_struct" "flags" 4;
    task_cred: optional "task_struct" "cred" 8;
    cred_euid: optional "cred" "euid" 4;
    task_cgroups: optional "task_struct" "cgroups" 8;
    css_set_cgroup: optional "css_set" "dfl_cgrp" 8;
    cgroup_node: optional "cgroup" "kn" 8;
    cgroup_node_id: optional "kernfs_node" "id" 8;
    skb_cb: required "sk_buff" "cb" 48;
    skb_head: required "sk_buff" "head" 8;
    skb_network_header: required "sk_buff" "network_header" 2;
    skb_transport_header: required "sk_buff" "transport_header" 2;
    skb_dev: required "sk_buff" "dev" 8;
    skb_refdst: optional "sk_buff" "_skb_refdst" 8;
    rt_type: optional "rtable" "rt_type" 2;
    rt6i_flags: optional "rt6_info" "rt6i_flags" 4;
    dev_net: required "net_device" "nd_net.net" 8;
    cb_seq: required "tcp_skb_cb" "seq" 4;
    cb_end_seq: required "tcp_skb_cb" "end_seq" 4;
    cb_gso_segs: required "tcp_skb_cb" "tcp_gso_segs" 2;
    cb_tcp_flags: required "tcp_skb_cb" "tcp_flags" 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_gets_the_place_found_for_it() {
        let mut next = 0;
        let layout = Layout::resolve(|_| {
            next += 1;
            Ok::<_, ()>(Field { offset: next, shift: 0, bits: 0 })
        })
        .unwrap();
        assert_eq!(usize::from(next), FIELDS.len());
        assert_eq!(layout.skc_family.offset, 1);
        for (i, (spec, field)) in layout.fields().enumerate() {
            assert_eq!(usize::from(field.offset), i + 1, "{}", spec.name);
        }
        assert_eq!(size_of::<Layout>(), FIELDS.len() * size_of::<Field>());
    }
}
