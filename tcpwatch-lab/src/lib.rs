//! The test lab of tcpwatch: everything a test or a demonstration needs to make TCP do a known thing
//! on a real kernel, and to know exactly what it did.
//!
//! * [`netns`]: anonymous network namespaces that vanish with their last user.
//! * [`relay`]: two namespaces joined by a user-space relay that delays, drops, holds, duplicates and
//!   rate-limits packets exactly as asked, and records every one of them.
//! * [`snmp`] and [`sockets`]: the kernel's own counters and socket table, to compare against.
//! * [`traffic`]: connections whose course is known, each returning when the kernel has got there.
//! * [`capture`]: packets with the times at which the kernel of one end saw them.
//! * [`scenario`]: situations that people meet, for demonstrations and tests.
//! * [`raw`]: hand-made TCP segments, for forged resets. [`nft`]: packet filter rules in a namespace.
//! * [`pty`]: programs on a terminal of their own.
//! * [`harness`]: tests that are reported as ignored, with the reason, where the lab cannot run.
//!
//! Everything but [`pty`] needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`; [`harness::obstacle`] says what is missing.
//! All times are nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.

pub mod capture;
pub mod clock;
pub mod harness;
pub mod interface;
pub mod netns;
pub mod nft;
pub mod pty;
pub mod raw;
pub mod relay;
pub mod scenario;
pub mod snmp;
pub mod sockets;
pub mod sockopt;
pub mod traffic;

pub use netns::Netns;
pub use pty::Pty;
pub use relay::{Direction, Impairment, Match, Path};
pub use snmp::Counters;
pub use traffic::{End, Family, Pair, Traffic};
