//! Where events come from: the ring buffer of the running kernel, and what was there before it.

pub(crate) mod adopt;
pub(crate) mod kernel_counters;
pub(crate) mod listeners;
pub(crate) mod namespaces;
pub(crate) mod ringbuf;
