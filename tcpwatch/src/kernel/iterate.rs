//! Runs the iterators and hands their records on: what was there before the daemon, and, once an interval, what the
//! tracepoints are silent about.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use aya::Ebpf;
use aya::maps::Map;
use aya::programs::Iter;
use aya::programs::iter::IterLink;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tcpwatch_common::counters::pass;

use super::maps::Maps;
use crate::sys;

/// Sockets of one network namespace, those without a descriptor among them.
const SOCKETS: &str = "adopt_sockets";
/// Files of all processes.
const FILES: &str = "adopt_files";
/// Sockets with state of ours.
const READ: &str = "read_sockets";
/// The map that the last one walks.
const STATE: &str = "SOCKETS";
/// All of them.
pub(crate) const PROGRAMS: [&str; 3] = [SOCKETS, FILES, READ];
/// Where a record has its length (`tcpwatch_common::record::Header`).
const LENGTH_AT: usize = 4;

/// Walks the open files of every process, in all network namespaces.
pub(crate) fn files(ebpf: &mut Ebpf) -> io::Result<Vec<u8>> {
    read(link(ebpf, FILES)?.into_file().map_err(io::Error::other)?)
}

/// Walks the TCP sockets of the namespace at `path`. The kernel takes the namespace of who opens the iterator, so a
/// thread goes there; the daemon itself never does.
pub(crate) fn sockets(ebpf: &mut Ebpf, path: &Path) -> io::Result<Vec<u8>> {
    let link = link(ebpf, SOCKETS)?;
    within(path, move || read(link.into_file().map_err(io::Error::other)?))
}

/// Walks every socket that has state of ours, in all namespaces.
pub(crate) fn tracked(ebpf: &Ebpf) -> io::Result<Vec<u8>> {
    let Some(Map::SkStorage(map)) = ebpf.map(STATE) else { return Err(missing(STATE)) };
    let Some(aya::programs::Program::Iter(program)) = ebpf.program(READ) else { return Err(missing(READ)) };
    let program = program.fd().map_err(io::Error::other)?;
    read(sys::iterate_map(program.as_fd().as_raw_fd(), map.fd().as_fd().as_raw_fd())?)
}

/// Walks the same sockets for something else than to read them: `pass` is one of `counters::pass`.
pub(crate) fn tracked_for(pass: u64, maps: &mut Maps, ebpf: &Ebpf) -> io::Result<Vec<u8>> {
    let output = maps.set_pass(pass).map_err(io::Error::other).and_then(|()| tracked(ebpf));
    // Whatever came of it, the next pass is to read.
    maps.set_pass(pass::READ).map_err(io::Error::other)?;
    output
}

/// Runs `task` in the network namespace at `path`, on a thread that ends with it.
pub(crate) fn within<T: Send>(path: &Path, task: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    let own = File::open("/proc/thread-self/ns/net")?;
    if namespace.metadata()?.ino() == own.metadata()?.ino() {
        // Going where one is takes a privilege too.
        return task();
    }
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            drop(namespace);
            task()
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// Cuts the output of an iterator into records.
pub(crate) fn records(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = output;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.get(LENGTH_AT..)?.first_chunk()?) as usize;
        // A length that cannot be is left to the decoder to refuse, as the last record.
        let (record, more) = rest.split_at_checked(len.max(LENGTH_AT)).unwrap_or((rest, &[]));
        rest = more;
        Some(record)
    })
}

fn link(ebpf: &mut Ebpf, name: &str) -> io::Result<IterLink> {
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    let program: &mut Iter = program.try_into().map_err(io::Error::other)?;
    let id = program.attach().map_err(io::Error::other)?;
    program.take_link(id).map_err(io::Error::other)
}

fn missing(name: &str) -> io::Error {
    io::Error::other(format!("{name} is not loaded"))
}

fn read(mut file: File) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(output),
            Ok(n) => output.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The kernel asks to be called again after it has looked at many objects in vain.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_by_the_lengths_in_it() {
        let record = |len: u32, fill: u8| {
            let mut bytes = vec![fill; len as usize];
            bytes[4..8].copy_from_slice(&len.to_ne_bytes());
            bytes
        };
        let output = [record(16, 1), record(24, 2)].concat();
        assert_eq!(records(&output).map(<[u8]>::len).collect::<Vec<_>>(), [16, 24]);
        assert_eq!(records(&output[..30]).map(<[u8]>::len).collect::<Vec<_>>(), [16, 14]);
        assert_eq!(records(&[]).count(), 0);
        let endless = [0_u8; 64];
        assert!(records(&endless).count() <= 16);
    }
}
