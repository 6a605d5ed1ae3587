//! What no tracepoint tells: sockets that are older than the daemon, once; those that tcp_probe is silent about, once an
//! interval.

use std::path::Path;
use std::time::Duration;

use tcpwatch_common::counters::pass;

use super::{listeners, namespaces};
use crate::config::Config;
use crate::daemon::{DaemonError, Inbox};
use crate::kernel::iterate;
use crate::kernel::maps::Maps;
use crate::sys;

/// What was there before the daemon: listeners first, because directions and services depend on them.
pub(crate) fn adopt(
    inbox: &mut Inbox,
    maps: &mut Maps,
    ebpf: &mut aya::Ebpf,
    config: &Config,
) -> Result<(), DaemonError> {
    let namespaces = namespaces::find(&config.netns);
    let mut walked = false;
    for (pass, connections) in (1..FIRST_PASS).zip([false, true]) {
        maps.adopt_connections(connections)?;
        maps.set_files_pass(pass)?;
        let files = iterate::files(ebpf);
        let passes = namespaces.values().map(|path| (path.display().to_string(), iterate::sockets(ebpf, path)));
        for (where_, output) in std::iter::once(("all processes".to_owned(), files)).chain(passes) {
            match output {
                Ok(output) => {
                    walked = true;
                    iterate::records(&output).for_each(|record| inbox.take(record));
                }
                // Its last process may have ended meanwhile, and with it the namespace.
                Err(error) => {
                    log::debug!("sockets of {where_} that are older than tcpwatch are not known yet: {error}");
                }
            }
        }
        inbox.apply_grants(maps)?;
    }
    if walked { Ok(()) } else { seed_listeners(inbox, maps) }
}

/// Without iterators: the ports of the own network namespace that something listens on already.
fn seed_listeners(inbox: &mut Inbox, maps: &mut Maps) -> Result<(), DaemonError> {
    let found = listeners::netns_inode(Path::new("/proc/self/ns/net"))
        .and_then(|netns| listeners::ports(Path::new("/proc/net")).map(|ports| (netns, ports)));
    match found {
        Ok((netns, ports)) => {
            for port in ports {
                maps.add_listener(netns, port)?;
                inbox.grants.extend(inbox.intake.listening(port));
            }
        }
        Err(error) => log::warn!("listeners that are older than tcpwatch are not known: {error}"),
    }
    Ok(())
}

/// The passes over files before it are those at the start.
const FIRST_PASS: u16 = 3;

/// Reads what the tracepoints are silent about, at most so often that each kind of pass takes a four-hundredth of a CPU.
pub(crate) struct Walker {
    next_ns: u64,
    works: bool,
    next_owners_ns: u64,
    pass: u16,
}

/// How often the owners of connections are looked for, ns.
const OWNERS_NS: u64 = 5_000_000_000;
/// A pass over sockets or files may take this share of the time: 10,000 idle connections shall cost less than a hundredth of
/// a CPU in all, and their readings are then a few seconds old.
const WALK_SHARE: u64 = 400;

/// What a pass tells is as large as there are connections with news; above this size it is given back to the kernel.
const LARGE: usize = 1 << 20;

fn take(output: Vec<u8>, inbox: &mut Inbox) {
    iterate::records(&output).for_each(|record| inbox.take(record));
    let large = output.capacity() > LARGE;
    drop(output);
    if large {
        sys::release_free_memory();
    }
}

impl Walker {
    /// Has not walked yet.
    pub(crate) fn new() -> Self {
        Self { next_ns: 0, works: true, next_owners_ns: sys::monotonic_ns() + OWNERS_NS, pass: FIRST_PASS }
    }

    /// Who holds the connections and listeners: those that nobody has read from yet, or whose holders changed.
    fn owners(&mut self, inbox: &mut Inbox, maps: &mut Maps, ebpf: &mut aya::Ebpf) {
        let began = sys::monotonic_ns();
        if began < self.next_owners_ns {
            return;
        }
        let numbered = maps.set_files_pass(self.pass).map_err(std::io::Error::other);
        match numbered.and_then(|()| iterate::files(ebpf)) {
            Ok(output) => {
                take(output, inbox);
                // One that broke off has not seen every holder, and does not count.
                self.pass = self.pass.wrapping_add(1);
            }
            Err(error) => log::debug!("owners of accepted connections are not known: {error}"),
        }
        let took = sys::monotonic_ns() - began;
        self.next_owners_ns = began + OWNERS_NS.max(took * WALK_SHARE);
    }

    /// Lets every connection follow an interval that holds from now on, wherever in the one before it is.
    pub(crate) fn spread(&mut self, maps: &mut Maps, ebpf: &aya::Ebpf, interval: Duration) {
        if !self.works {
            return;
        }
        if let Err(error) = iterate::tracked_for(pass::SPREAD, maps, ebpf) {
            log::debug!("connections follow the new interval of records after the one that they are in: {error}");
        }
        self.next_ns = self.next_ns.min(sys::monotonic_ns() + interval.as_nanos() as u64 * 9 / 10);
    }

    /// To be called once a tick.
    pub(crate) fn walk(&mut self, inbox: &mut Inbox, maps: &mut Maps, ebpf: &mut aya::Ebpf, interval: Duration) {
        self.owners(inbox, maps, ebpf);
        let began = sys::monotonic_ns();
        if !self.works || began < self.next_ns {
            return;
        }
        match iterate::tracked(ebpf) {
            Ok(output) => take(output, inbox),
            Err(error) => {
                log::warn!("half-closed connections are not read between their transitions: {error}");
                self.works = false;
            }
        }
        let took = sys::monotonic_ns() - began;
        // A little less than the interval, so that the tick it is checked at does not miss it.
        self.next_ns = began + (interval.as_nanos() as u64 * 9 / 10).max(took * WALK_SHARE);
    }
}
