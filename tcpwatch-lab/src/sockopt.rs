//! What a socket says of itself: `TCP_INFO`, its cookie, its congestion control. Used by [`crate::traffic`] and
//! by tests that compare the kernel's own view of a connection with tcpwatch's.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

/// The kernel's `struct tcp_info` (`include/uapi/linux/tcp.h`) with the kernel's names. Fields that the running
/// kernel does not have yet are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the kernel's fields; times are microseconds, except last_* and total_rto_time (ms)")]
pub struct TcpInfo {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    pub window_scales: u8,
    pub delivery_flags: u8,
    pub rto: u32,
    pub ato: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub last_data_sent: u32,
    pub last_ack_sent: u32,
    pub last_data_recv: u32,
    pub last_ack_recv: u32,
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt: u32,
    pub rttvar: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_time: u64,
    pub rwnd_limited: u64,
    pub sndbuf_limited: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rehash: u32,
    pub total_rto: u16,
    pub total_rto_recoveries: u16,
    pub total_rto_time: u32,
}

/// What the kernel knows of a TCP socket now.
///
/// # Errors
/// When it is not a TCP socket.
pub fn tcp_info(socket: &impl AsFd) -> Result<TcpInfo> {
    let mut info = TcpInfo::default();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, whose fields are plain integers without
    // padding, for which any bytes are values.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if status < 0 {
        return Err(io::Error::last_os_error()).context("cannot read TCP_INFO: is it a TCP socket?");
    }
    Ok(info)
}

/// The cookie of a socket, the number that `bpf_get_socket_cookie` gives a kernel program.
///
/// # Errors
/// When the kernel does not tell.
pub fn cookie(socket: &impl AsFd) -> Result<u64> {
    SockRef::from(socket).cookie().context("cannot read SO_COOKIE")
}

/// Bytes that were written and are not yet acknowledged.
///
/// # Errors
/// When the socket is not connected.
pub fn unacknowledged(socket: &impl AsFd) -> Result<u32> {
    queued(socket, libc::TIOCOUTQ, "SIOCOUTQ")
}

/// Bytes that were received and are not yet read.
///
/// # Errors
/// When the socket is not connected.
pub fn unread(socket: &impl AsFd) -> Result<u32> {
    queued(socket, libc::FIONREAD, "SIOCINQ")
}

fn queued(socket: &impl AsFd, request: libc::c_ulong, name: &str) -> Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one int, which lives until the call returns.
    let status = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request as _, &raw mut bytes) };
    if status < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot ask a socket's {name}"));
    }
    Ok(u32::try_from(bytes).unwrap_or(0))
}

/// Chooses the congestion control of a socket.
///
/// # Errors
/// When the kernel does not have it; `/proc/sys/net/ipv4/tcp_available_congestion_control` lists what it has.
pub fn set_congestion(socket: &impl AsFd, name: &str) -> Result<()> {
    SockRef::from(socket).set_tcp_congestion(name.as_bytes()).with_context(|| {
        format!(
            "cannot set the congestion control '{name}': is it in \
             /proc/sys/net/ipv4/tcp_available_congestion_control?"
        )
    })
}

/// The congestion control of a socket.
///
/// # Errors
/// When it is not a TCP socket.
pub fn congestion(socket: &impl AsFd) -> Result<String> {
    let name = SockRef::from(socket).tcp_congestion().context("cannot read TCP_CONGESTION")?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Limits the memory of what a socket has to send; the kernel doubles the number (`SO_SNDBUF`).
///
/// # Errors
/// When the socket is no socket any more.
pub fn set_send_buffer(socket: &impl AsFd, bytes: usize) -> Result<()> {
    SockRef::from(socket).set_send_buffer_size(bytes).context("cannot set SO_SNDBUF")
}

/// Makes the next close of a socket abort its connection with RST (`SO_LINGER` on, 0 seconds).
///
/// # Errors
/// When the socket is no socket any more.
pub fn abort_on_close(socket: &impl AsFd) -> Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO)).context("cannot set SO_LINGER")
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(mem::offset_of!(TcpInfo, total_retrans), 100);
        assert_eq!(mem::offset_of!(TcpInfo, bytes_acked), 120);
        assert_eq!(mem::offset_of!(TcpInfo, min_rtt), 148);
        assert_eq!(mem::offset_of!(TcpInfo, bytes_retrans), 208);
        assert_eq!(size_of::<TcpInfo>(), 248);
    }

    #[test]
    fn a_socket_tells_of_itself() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(tcp_info(&socket).unwrap().state, 10);
        assert_ne!(cookie(&socket).unwrap(), 0);
        assert!(!congestion(&socket).unwrap().is_empty());
    }
}
