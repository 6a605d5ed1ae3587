//! Listening sockets that were there before the daemon, from /proc/net/tcp and tcp6 of its own network namespace.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The state LISTEN in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Ports that something listens on, with a repeat for each socket; `net` is `/proc/net`.
pub(crate) fn ports(net: &Path) -> io::Result<Vec<u16>> {
    let mut ports = Vec::new();
    for name in ["tcp", "tcp6"] {
        match fs::read_to_string(net.join(name)) {
            Ok(text) => ports.extend(parse(&text)),
            // Without IPv6 there is no tcp6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}

/// The inode number of a network namespace, as `ls -l /proc/PID/ns/net` shows it.
pub(crate) fn netns_inode(path: &Path) -> io::Result<u32> {
    let inode = fs::metadata(path)?.ino();
    u32::try_from(inode).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not a network namespace"))
}

fn parse(text: &str) -> impl Iterator<Item = u16> {
    text.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let local = columns.next()?;
        let state = columns.nth(1)?;
        if state != LISTEN {
            return None;
        }
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_are_taken() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             \x20 0: 0100007F:2A29 00000000:0000 0A 00000000:00000000\n\
             \x20 1: 0100007F:2A29 0100007F:D431 01 00000000:00000000\n\
             \x20 2: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0\n\
             garbage\n";
        assert_eq!(parse(text).collect::<Vec<_>>(), [10793, 22]);
    }

    #[test]
    fn a_missing_tcp6_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tcp"), "head\n 0: 00000000:0050 00000000:0000 0A 0\n").unwrap();
        assert_eq!(ports(dir.path()).unwrap(), [80]);
    }
}
