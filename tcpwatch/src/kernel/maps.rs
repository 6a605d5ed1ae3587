//! The maps of the kernel programs, each with the type it has there. The one place that knows their names.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf};
use tcpwatch_common::Wire as _;
use tcpwatch_common::counters::{DIST_ENTRIES, GAUGE_WORDS, Loss, dist, group, netns, reason, setting, slot};
use tcpwatch_common::stack::StackCount;
use tcpwatch_common::thinning;

use super::load::Options;

/// Why a map cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapsError {
    /// The object does not have it.
    #[error("the object has no map {0}; the daemon and its kernel programs are not of one build")]
    Missing(&'static str),
    /// It is of another kind, or the kernel refused.
    #[error("map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What aya or the kernel said.
        source: MapError,
    },
}

/// Words of an entry of the map of stacks.
const STACK_WORDS: usize = size_of::<StackCount>() / size_of::<u64>();

/// Typed handles.
pub(crate) struct Maps {
    /// Records; taken by the source.
    pub(crate) events: Option<RingBuf<MapData>>,
    groups: PerCpuArray<MapData, [u64; group::WORDS]>,
    dists: PerCpuArray<MapData, [u64; dist::WORDS]>,
    reasons: PerCpuArray<MapData, [u64; reason::WORDS]>,
    losses: PerCpuArray<MapData, [u64; Loss::ALL.len()]>,
    gauges: PerCpuArray<MapData, [u64; GAUGE_WORDS]>,
    services: HashMap<MapData, u32, u32>,
    listeners: HashMap<MapData, u64, u64>,
    settings: Array<MapData, u64>,
    /// What is counted by network namespace.
    pub(crate) namespaces: ByNamespace,
    stacks: HashMap<MapData, u64, [u64; STACK_WORDS]>,
    /// Size of the ring buffer, bytes.
    pub(crate) ring_bytes: u32,
    /// Memory of all maps as the kernel accounts it, bytes.
    pub(crate) map_bytes: u64,
}

/// A sum over CPUs of every counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Counters and distributions by slot.
    pub(crate) slots: Vec<SlotCounters>,
    /// RSTs sent by origin, reason and IP version.
    pub(crate) reasons: Vec<u64>,
    /// What could not be kept.
    pub(crate) losses: [u64; Loss::ALL.len()],
    /// Connections by state.
    pub(crate) gauges: [u64; GAUGE_WORDS],
    /// Key and count of each stack of a reset sent, in the order in which they were told.
    pub(crate) stacks: Vec<(u64, u64)>,
}

/// The counters of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotCounters {
    /// By `counters::group`.
    pub(crate) words: [u64; group::WORDS],
    /// By `counters::dist`, both halves together.
    pub(crate) dist: [u64; dist::WORDS],
}

impl SlotCounters {
    /// Nothing counted.
    pub(crate) const ZERO: Self = Self { words: [0; group::WORDS], dist: [0; dist::WORDS] };
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf, options: &Options) -> Result<Self, MapsError> {
        // Kernels before 6.4 say nothing of the pages of a ring buffer.
        let least = |name| if name == "EVENTS" { u64::from(options.ring_bytes) } else { 0 };
        let map_bytes = ebpf.maps().filter_map(|(name, map)| Some(memlock(descriptor(map)?).max(least(name)))).sum();
        Ok(Self {
            events: Some(take(ebpf, "EVENTS")?),
            groups: take(ebpf, "GROUPS")?,
            dists: take(ebpf, "DISTS")?,
            reasons: take(ebpf, "REASONS")?,
            losses: take(ebpf, "LOSSES")?,
            gauges: take(ebpf, "GAUGES")?,
            services: take(ebpf, "SERVICES")?,
            listeners: take(ebpf, "LISTENERS")?,
            settings: take(ebpf, "SETTINGS")?,
            namespaces: ByNamespace(take(ebpf, "NAMESPACES")?),
            stacks: take(ebpf, "STACKS")?,
            ring_bytes: options.ring_bytes,
            map_bytes,
        })
    }

    /// Reads every counter. `used` tells how many slots have been given out.
    pub(crate) fn read(&self, used: u32) -> Result<Counters, MapsError> {
        let mut slots = Vec::with_capacity(used as usize);
        for index in 0..used.min(slot::COUNT as u32) {
            let mut all = SlotCounters::ZERO;
            add(&mut all.words, &self.groups, "GROUPS", index)?;
            add(&mut all.dist, &self.dists, "DISTS", index)?;
            add(&mut all.dist, &self.dists, "DISTS", index + slot::COUNT as u32)?;
            slots.push(all);
        }
        let mut reasons = [0; reason::WORDS];
        add(&mut reasons, &self.reasons, "REASONS", 0)?;
        let mut losses = [0; Loss::ALL.len()];
        add(&mut losses, &self.losses, "LOSSES", 0)?;
        let mut gauges = [0; GAUGE_WORDS];
        add(&mut gauges, &self.gauges, "GAUGES", 0)?;
        let reasons = reasons.to_vec();
        Ok(Counters { slots, reasons, losses, gauges, stacks: Vec::new() })
    }

    /// Reads the stacks of resets.
    pub(crate) fn read_stacks(&self) -> Result<Vec<(u64, StackCount)>, MapsError> {
        let mut all = Vec::new();
        for entry in &self.stacks {
            let (key, words) = entry.map_err(|source| MapsError::Map { name: "STACKS", source })?;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            all.extend(StackCount::read(&bytes).map(|count| (key, count)));
        }
        Ok(all)
    }

    /// Gives a slot to a service (`counters::service_key`).
    pub(crate) fn set_service(&mut self, key: u32, slot: u32) -> Result<(), MapsError> {
        self.services.insert(key, slot, 0).map_err(|source| MapsError::Map { name: "SERVICES", source })
    }

    /// Tells the programs of a listener that was there before them.
    pub(crate) fn add_listener(&mut self, netns: u32, port: u16) -> Result<(), MapsError> {
        let key = u64::from(netns) << 16 | u64::from(port);
        let known = self.listeners.get(&key, 0).unwrap_or(0);
        self.listeners.insert(key, known + 1, 0).map_err(|source| MapsError::Map { name: "LISTENERS", source })
    }

    /// Sets the interval of periodic records, jiffies.
    pub(crate) fn set_sample_interval(&mut self, jiffies: u64) -> Result<(), MapsError> {
        self.set(setting::SAMPLE_JIFFIES, jiffies)
    }

    /// Says whether the adopting iterators take connections, or listeners.
    pub(crate) fn adopt_connections(&mut self, connections: bool) -> Result<(), MapsError> {
        self.set(setting::ADOPT, u64::from(connections))
    }

    /// Numbers the pass over the files of all processes that comes next.
    pub(crate) fn set_files_pass(&mut self, number: u16) -> Result<(), MapsError> {
        self.set(setting::FILES_PASS, number.into())
    }

    /// Says what the reading iterator does: one of `counters::pass`.
    pub(crate) fn set_pass(&mut self, pass: u64) -> Result<(), MapsError> {
        self.set(setting::PASS, pass)
    }

    /// Says how thin the histograms are to be (`tcpwatch_common::thinning`).
    pub(crate) fn set_thinning(&mut self, shift: u32) -> Result<(), MapsError> {
        self.set(setting::THINNING, thinning::mask(shift).into())
    }

    /// Says whether a record is to wake the daemon.
    pub(crate) fn set_sleeps(&mut self, sleeps: bool) -> Result<(), MapsError> {
        self.set(setting::SLEEPS, sleeps.into())
    }

    fn set(&mut self, setting: u32, value: u64) -> Result<(), MapsError> {
        self.settings.set(setting, value, 0).map_err(|source| MapsError::Map { name: "SETTINGS", source })
    }
}

/// Retransmissions and resets by network namespace, `counters::netns`.
pub(crate) struct ByNamespace(PerCpuHashMap<MapData, u32, [u64; netns::WORDS]>);

impl ByNamespace {
    /// What was counted in the namespace with this inode number; zeros before anything was.
    pub(crate) fn read(&self, inode: u32) -> Result<[u64; netns::WORDS], MapError> {
        let per_cpu = match self.0.get(&inode, 0) {
            Err(MapError::KeyNotFound) => return Ok([0; netns::WORDS]),
            found => found?,
        };
        let mut sum = [0_u64; netns::WORDS];
        for words in per_cpu.iter() {
            for (sum, word) in sum.iter_mut().zip(words) {
                *sum = sum.wrapping_add(*word);
            }
        }
        Ok(sum)
    }

    /// Inode numbers of the namespaces where something was counted.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = u32> {
        self.0.keys().filter_map(Result::ok)
    }

    /// Forgets a namespace that ended: its inode number may be given to another.
    pub(crate) fn forget(&mut self, inode: u32) {
        // Nothing was counted there, most of the time.
        let _absent = self.0.remove(&inode);
    }
}

const _: () = assert!(DIST_ENTRIES == 2 * slot::COUNT);

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|source| MapsError::Map { name, source })
}

fn add<const N: usize>(
    total: &mut [u64; N],
    map: &PerCpuArray<MapData, [u64; N]>,
    name: &'static str,
    index: u32,
) -> Result<(), MapsError> {
    let per_cpu = map.get(&index, 0).map_err(|source| MapsError::Map { name, source })?;
    for words in per_cpu.iter() {
        for (sum, word) in total.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    Ok(())
}

fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    Some(match map {
        Map::Array(m)
        | Map::PerCpuArray(m)
        | Map::HashMap(m)
        | Map::PerCpuHashMap(m)
        | Map::LruHashMap(m)
        | Map::RingBuf(m)
        | Map::SkStorage(m) => m.fd().as_fd(),
        _ => return None,
    })
}

/// Memory that the kernel says a map or program takes, bytes.
fn memlock(fd: BorrowedFd<'_>) -> u64 {
    fdinfo(fd).ok().and_then(|text| field(&text, "memlock")).unwrap_or(0)
}

/// What the kernel tells of a descriptor of ours.
pub(crate) fn fdinfo(fd: BorrowedFd<'_>) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
}

/// A number in fdinfo.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_fdinfo() {
        let text = "pos:\t0\nmemlock:\t4096\nrun_time_ns:\t12\nrecursion_misses:\t7\n";
        assert_eq!(field(text, "memlock"), Some(4096));
        assert_eq!(field(text, "recursion_misses"), Some(7));
        assert_eq!(field(text, "run_cnt"), None);
    }
}
