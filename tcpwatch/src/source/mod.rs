//! Where events come from: the ring buffer of the running kernel, what was there before it, and what things are called.

pub(crate) mod adopt;
pub(crate) mod kernel_counters;
pub(crate) mod listeners;
pub(crate) mod names;
pub(crate) mod namespaces;
pub(crate) mod reads;
pub(crate) mod ringbuf;
pub(crate) mod roll_call;
pub(crate) mod stacks;
