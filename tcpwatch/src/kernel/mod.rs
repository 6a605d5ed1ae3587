//! The kernel side of the daemon, and the only place where kernels differ: what is there (`facts`, `btf`), what is
//! attached (`probes`, `load`), what the programs have counted (`maps`, `stats`).

pub(crate) mod btf;
#[cfg(test)]
mod captured;
pub(crate) mod facts;
pub(crate) mod iterate;
pub(crate) mod kernel_log;
pub(crate) mod load;
pub(crate) mod maps;
pub(crate) mod places;
pub(crate) mod probes;
pub(crate) mod stats;
pub(crate) mod symbols;
