//! A packet capture of our own: what a namespace's kernel sends to and receives from its device, with the kernel's times.
//!
//! The record of the relay has the times of the relay, which waits for its turn on a busy machine. A capture has the times at
//! which the sender's kernel itself handed a packet to the device and got one from it, as tcpdump shows them. Used by tests
//! that compare round-trip times with what the sender saw.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail};

use crate::interface;
use crate::netns::Netns;
use crate::relay::{DEVICE, Direction, Fate, Origin, Packet, Record, Segment, Tracker};

/// Room for packets that were not read yet: all of a test's, as they are read at its end.
const ROOM_BYTES: libc::c_int = 128 << 20;

/// The largest packet of a device of the lab.
const MAX_PACKET: usize = 65_536;

/// A capture that runs from [`Capture::begin`] to [`Capture::end`].
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Begins to capture at an end of a path.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, or in a namespace that is no end of a path.
    pub fn begin(end: &Netns) -> Result<Self> {
        end.try_run(Self::begin_here)?
    }

    fn begin_here() -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes numbers only. Protocol 0 until it is bound, so that no other device's packets get in.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error())
                .context("cannot make a packet socket: root (CAP_NET_RAW) is needed");
        }
        // SAFETY: the call has just returned this descriptor, and no one else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&socket, libc::SO_RCVBUFFORCE, ROOM_BYTES).context("cannot make room for a capture")?;
        set_option(&socket, libc::SO_TIMESTAMPNS, 1).context("cannot ask for the times of packets")?;
        // SAFETY: `sockaddr_ll` is plain numbers, for which zeros are values.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = interface::index(DEVICE)?;
        // SAFETY: the kernel reads one `sockaddr_ll`, which lives until the call returns.
        let status = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if status < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot capture at the device {DEVICE}"));
        }
        Ok(Self { socket })
    }

    /// What was captured, as a record whose packets all arrive and depart when the kernel saw them: [`Record::rtt_samples`]
    /// of the flows that begin at this end are what this end could measure at best. Times are of the wall clock. What the
    /// end sent has the direction forward, also at the end B.
    ///
    /// # Errors
    /// When packets were lost for want of room.
    pub fn end(self) -> Result<Record> {
        let mut record = Record::default();
        let mut tracker = Tracker::default();
        let mut buffer = vec![0; MAX_PACKET];
        while let Some(seen) = self.next(&mut buffer)? {
            let mut segment = Segment::parse(&buffer[..seen.length]);
            if let Some(segment) = &mut segment {
                tracker.mark(segment);
            }
            record.packets.push(Packet {
                number: record.packets.len() as u64,
                direction: if seen.outgoing { Direction::Forward } else { Direction::Backward },
                arrived_ns: seen.at_ns,
                length: seen.length as u32,
                origin: Origin::Sender,
                held_ns: 0,
                fate: Fate::Delivered { departed_ns: seen.at_ns, processed_ns: seen.at_ns },
                segment,
            });
        }
        let dropped = self.dropped()?;
        if dropped > 0 {
            bail!("{dropped} of {} packets did not fit into the capture", record.packets.len());
        }
        Ok(record)
    }

    fn next(&self, buffer: &mut [u8]) -> Result<Option<Seen>> {
        let mut control = [0_u64; 16];
        // SAFETY: both are plain numbers and pointers, for which zeros are values.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to buffers of the lengths it says, which all live until the call returns.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error).context("cannot read a capture"),
            };
        };
        let at_ns = timestamp_ns(&message).context("a captured packet has no time")?;
        Ok(Some(Seen { at_ns, length, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING }))
    }

    fn dropped(&self) -> Result<u32> {
        let mut statistics = [0_u32; 2];
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, `struct tpacket_stats` of two numbers.
        let status = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if status < 0 {
            return Err(io::Error::last_os_error()).context("cannot ask a capture for its losses");
        }
        Ok(statistics[1])
    }
}

struct Seen {
    at_ns: u64,
    length: usize,
    outgoing: bool,
}

/// The time among the control messages of a packet.
fn timestamp_ns(message: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel has filled the control buffer of the message and set its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the macro gave a header that lies within the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_TIMESTAMPNS {
            // SAFETY: a message of this type has one `timespec`; its place may not be aligned for one.
            let time = unsafe { libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned() };
            return Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64);
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which lives until the call returns.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
