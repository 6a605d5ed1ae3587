//! Measurements, not part of the daemon: built with the feature `bench` only.

pub mod explain;
pub mod flood;
pub mod kernel;
pub(crate) mod sample;
pub mod top;
