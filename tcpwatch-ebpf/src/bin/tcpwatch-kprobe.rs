//! The object for older kernels that have kprobes and no fentry.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(unreachable_pub, missing_docs, reason = "entry points are found by section, not by path")]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand the context over")]

include!("../entry.rs");

use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use core::ptr;
use probes::reset::{Call, NO_REASON, Program};
use tcpwatch_common::reset::ResetOrigin;

// function: tcp_send_active_reset(struct sock *sk, gfp_t priority, enum sk_rst_reason reason); reason 6.10; net/ipv4/tcp_output.c
#[kprobe(function = "tcp_send_active_reset")]
pub fn tcp_send_active_reset(ctx: ProbeContext) -> u32 {
    let sk = ctx.arg(0).unwrap_or(ptr::null());
    probes::reset::handle(
        &ctx,
        &Call { program: Program::Active, sk, skb: ptr::null(), reason: NO_REASON, origin: ResetOrigin::Active },
    );
    0
}

// function: tcp_v4_send_reset(const struct sock *sk, struct sk_buff *skb, enum sk_rst_reason reason); reason 6.10; net/ipv4/tcp_ipv4.c
#[kprobe(function = "tcp_v4_send_reset")]
pub fn tcp_v4_send_reset(ctx: ProbeContext) -> u32 {
    passive(&ctx, Program::PassiveV4);
    0
}

// function: tcp_v6_send_reset(const struct sock *sk, struct sk_buff *skb, enum sk_rst_reason reason); reason 6.10; net/ipv6/tcp_ipv6.c
#[kprobe(function = "tcp_v6_send_reset")]
pub fn tcp_v6_send_reset(ctx: ProbeContext) -> u32 {
    passive(&ctx, Program::PassiveV6);
    0
}

#[inline(always)]
fn passive(ctx: &ProbeContext, program: Program) {
    let call = Call {
        program,
        sk: ctx.arg(0).unwrap_or(ptr::null()),
        skb: ctx.arg(1).unwrap_or(ptr::null()),
        reason: NO_REASON,
        origin: ResetOrigin::Passive,
    };
    if probes::reset::will_be_sent(&call) {
        probes::reset::handle(ctx, &call);
    }
}
