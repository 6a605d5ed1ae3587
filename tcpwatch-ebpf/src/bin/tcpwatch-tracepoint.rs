//! The object for kernels whose tcp_send_reset tracepoint is complete (6.10 and newer). It also serves, incomplete,
//! where nothing else can be attached.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(unreachable_pub, missing_docs, reason = "entry points are found by section, not by path")]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand the context over")]

include!("../entry.rs");

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use probes::reset::{Call, NO_REASON, Program};
use tcpwatch_common::reset::ResetOrigin;
use tcpwatch_ebpf::config::{RESET_HAS_REASON, frozen};

// hook: tcp_send_reset(const struct sock *sk, const struct sk_buff *skb, const enum sk_rst_reason reason); 4.16, reason 6.10; net/ipv4/tcp_ipv4.c
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    let skb: *const u8 = ctx.arg(1);
    let origin = if skb.is_null() { ResetOrigin::Active } else { ResetOrigin::Passive };
    let reason = if frozen(&RESET_HAS_REASON) != 0 { ctx.arg::<u32>(2) } else { NO_REASON };
    probes::reset::handle(&ctx, &Call { program: Program::Active, sk: ctx.arg(0), skb, reason, origin });
    0
}
