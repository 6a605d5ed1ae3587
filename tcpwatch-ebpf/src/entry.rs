// Included by every object in `bin/`: the hooks that all of them have. The line above each hook is its prototype in
// the kernel, the first version that has it, and the file that fires it.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tcpwatch_ebpf::probes;

// hook: tcp_probe(struct sock *sk, const struct sk_buff *skb); 4.16; net/ipv4/tcp_input.c
#[btf_tracepoint(function = "tcp_probe")]
pub fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    probes::probe::handle(&ctx);
    0
}

// hook: tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb, int err); 4.16, err 6.13; net/ipv4/tcp_output.c
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    probes::retransmit::handle(&ctx);
    0
}

// hook: tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req); 4.16; net/ipv4/tcp_output.c
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    probes::retransmit::handle_synack(&ctx);
    0
}

// hook: tcp_receive_reset(struct sock *sk); 4.16; net/ipv4/tcp_input.c
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    probes::reset_received::handle(&ctx);
    0
}

// hook: inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate); 4.16; net/ipv4/af_inet.c
#[btf_tracepoint(function = "inet_sock_set_state")]
#[inline(always)]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    probes::state::handle(&ctx);
    0
}

// hook: tcp_destroy_sock(struct sock *sk); 4.16; net/ipv4/tcp_ipv4.c
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    probes::state::destroyed(&ctx);
    0
}

// hook: tcp_cong_state_set(struct sock *sk, const u8 ca_state); 5.19; net/ipv4/tcp_cong.c
#[btf_tracepoint(function = "tcp_cong_state_set")]
pub fn tcp_cong_state_set(ctx: BtfTracePointContext) -> i32 {
    probes::congestion::handle(&ctx);
    0
}

// hook: tcp_rcv_space_adjust(struct sock *sk); 4.16; net/ipv4/tcp_input.c
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn tcp_rcv_space_adjust(ctx: BtfTracePointContext) -> i32 {
    probes::read::handle(&ctx);
    0
}

// iterator: tcp; 5.9; net/ipv4/tcp_ipv4.c
/// # Safety
/// Called by the kernel alone, with the context of its section.
#[unsafe(no_mangle)]
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "iter/tcp"))]
pub unsafe extern "C" fn adopt_sockets(ctx: *const probes::iterate::TcpContext) -> i32 {
    // SAFETY: the kernel gives this context to a program of this section.
    unsafe { probes::iterate::tcp(ctx) };
    0
}

// iterator: task_file; 5.8, sockets 5.11; kernel/bpf/task_iter.c
/// # Safety
/// Called by the kernel alone, with the context of its section.
#[unsafe(no_mangle)]
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "iter/task_file"))]
pub unsafe extern "C" fn adopt_files(ctx: *const probes::iterate::TaskFileContext) -> i32 {
    // SAFETY: the kernel gives this context to a program of this section.
    unsafe { probes::iterate::task_file(ctx) };
    0
}

// iterator: bpf_sk_storage_map; 5.9; net/core/bpf_sk_storage.c
/// # Safety
/// Called by the kernel alone, with the context of its section.
#[unsafe(no_mangle)]
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "iter/bpf_sk_storage_map"))]
pub unsafe extern "C" fn read_sockets(ctx: *const probes::iterate::StorageContext) -> i32 {
    // SAFETY: the kernel gives this context to a program of this section.
    unsafe { probes::iterate::storage(ctx) };
    0
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // A reachable loop without end is refused by the verifier: no panic can be loaded.
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
