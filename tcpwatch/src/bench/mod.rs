//! Measurements, not part of the daemon: built with the feature `bench` only. What they say becomes BENCHMARKS.md.

pub mod bpftrace;
pub mod explain;
pub mod flood;
pub mod impact;
pub mod kernel;
mod machine;
mod records;
pub mod report;
pub mod sample;
pub mod scale;
pub mod top;
pub mod user;
