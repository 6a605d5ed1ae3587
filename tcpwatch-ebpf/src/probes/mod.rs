//! One file per question; `entry.rs` ties each to its hook.

pub mod congestion;
pub mod iterate;
pub mod probe;
pub mod read;
pub mod reset;
pub mod reset_received;
pub mod retransmit;
pub mod stack;
pub mod state;
