//! The kernel programs of tcpwatch, as a library: `src/bin` has one small crate per object, each with the same core of
//! BTF tracepoints and one kind of reset program, so that a kind that a kernel refuses costs that kind alone.
//!
//! Reading order: `entry.rs` (what is attached where), `probes/` (what happens there), `sock.rs` (the only reader of
//! the kernel's structures), `owner.rs`, `count.rs` (counters), `emit.rs` (the only writer of records), `maps.rs`.
#![no_std]
#![expect(clippy::cast_ptr_alignment, reason = "the offsets come from the kernel's BTF, where fields are aligned")]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod add;
pub mod config;
pub mod count;
pub mod emit;
pub mod kernel;
pub mod limits;
pub mod maps;
pub mod owner;
pub mod probes;
pub mod sock;
