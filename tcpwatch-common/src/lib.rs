//! What the kernel programs and the daemon agree on: the records of the ring buffer, the state kept per socket, the
//! indices of the counter maps, the histogram buckets, the layout of the kernel's structures, and the rules that turn
//! kernel facts into causes.
//!
//! Everything with a branch in it is a plain function here, so that it is tested on the host and not in the kernel.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod close;
pub mod conn;
pub mod counters;
pub mod hist;
pub mod history;
pub mod layout;
pub mod limits;
pub mod owner;
pub mod record;
pub mod reset;
pub mod retransmit;
pub mod rtt;
pub mod stack;
pub mod state;
pub mod thinning;
mod wire;

pub use wire::Wire;
