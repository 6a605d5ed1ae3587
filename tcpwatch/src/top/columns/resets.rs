//! The table of resets: those of which evidence is kept.

use std::net::{IpAddr, SocketAddr};

use super::{Column, Key, Kind, Row, bytes, container, duration, number, or_dash, start_of, table};
use crate::api::resets::{Reset, Socket};

impl Row for Reset {
    type Key = for<'a> fn(&'a Self) -> Key<'a>;
    type Id = (u64, Option<u64>, Option<u16>);
    const COLUMNS: &'static [Column<Self>] = table! {
        "ago" "AGO" 6 0 Number ["ktime_ns", "ago_ms"] "how long ago it was",
            |r| time(Some(r.ago_ms)), |r| number(r.ktime_ns);
        "direction" "DIR" 4 1 Text ["direction"] "sent, or recv: received",
            |r| if r.direction == "received" { "recv".to_owned() } else { r.direction.clone() },
            |r| Key::Text(&r.direction);
        "cause" "CAUSE" 15 1 Text ["origin", "cause"] "why it was sent",
            |r| or_dash(r.cause.as_deref()), |r| Key::text(r.cause.as_deref());
        "local" "LOCAL" 12 0 Address ["local_address", "local_port"] "our address and port",
            |r| shown(end(r.local_address, r.local_port)), |r| address(end(r.local_address, r.local_port));
        "remote" "REMOTE" 18 0 Address ["remote_address", "remote_port"] "the peer's address and port",
            |r| shown(end(r.remote_address, r.remote_port)), |r| address(end(r.remote_address, r.remote_port));
        "state" "STATE" 11 3 Text ["state"] "state of the connection before it",
            |r| or_dash(r.state.as_deref()), |r| Key::text(r.state.as_deref());
        "age" "AGE" 6 4 Number ["age_ms"] "how long the connection had lasted",
            |r| time(r.age_ms), |r| r.age_ms.map_or(Key::Nothing, number);
        "unread" "UNREAD" 6 5 Number ["socket.unread_bytes"] "received and not read by the application, bytes",
            |r| of_socket(r, |s| s.unread_bytes.into()), |r| by_socket(r, |s| s.unread_bytes.into());
        "sent" "SENT" 6 7 Number ["socket.sent_bytes"] "payload that the connection had sent, bytes",
            |r| of_socket(r, |s| s.sent_bytes), |r| by_socket(r, |s| s.sent_bytes);
        "received" "RECV" 6 7 Number ["socket.received_bytes"] "payload that it had received, bytes",
            |r| of_socket(r, |s| s.received_bytes), |r| by_socket(r, |s| s.received_bytes);
        "rtt" "RTT" 6 8 Number ["socket.srtt_us"] "its smoothed round-trip time",
            |r| duration(srtt(r)), |r| number(srtt(r).unwrap_or(0));
        "reason" "REASON" 20 9 Text ["reason"] "the kernel's reason",
            |r| or_dash(r.reason.as_deref()), |r| Key::text(r.reason.as_deref());
        "owner" "OWNER" 10 2 Text ["owner.comm", "owner.pid"] "the process that had the socket, or listens at the port",
            |r| owner(r).unwrap_or_else(|| "-".to_owned()),
            |r| r.owner.as_ref().map_or(Key::Nothing, |o| Key::Name(start_of(&o.comm), o.pid.unwrap_or(0)));
        "unit" "UNIT" 16 12 Text ["owner.unit"] "systemd unit of that process",
            |r| or_dash(r.owner.as_ref().and_then(|o| o.unit.as_deref())),
            |r| Key::text(r.owner.as_ref().and_then(|o| o.unit.as_deref()));
        "container" "CONTAINER" 12 13 Text ["owner.container"] "id of its container, 12 digits of it",
            |r| container(r.owner.as_ref().and_then(|o| o.container.as_deref())),
            |r| Key::text(r.owner.as_ref().and_then(|o| o.container.as_deref()));
        "stack" "STACK" 12 11 Text ["stack"] "fingerprint of the kernel stack",
            |r| or_dash(r.stack.as_deref()), |r| Key::text(r.stack.as_deref());
    };
    const DEFAULT: &'static str = "ago";

    fn id(&self) -> Self::Id {
        (self.ktime_ns, self.cookie, self.remote_port)
    }
}

fn end(address: Option<IpAddr>, port: Option<u16>) -> Option<SocketAddr> {
    Some(SocketAddr::new(address?, port?))
}

fn shown(end: Option<SocketAddr>) -> String {
    end.map_or_else(|| "-".to_owned(), |end| end.to_string())
}

fn address<'a>(end: Option<SocketAddr>) -> Key<'a> {
    end.map_or(Key::Nothing, Key::Address)
}

fn of_socket(reset: &Reset, of: fn(&Socket) -> u64) -> String {
    reset.socket.as_ref().map_or_else(|| "-".to_owned(), |socket| bytes(of(socket)))
}

fn by_socket<'a>(reset: &Reset, of: fn(&Socket) -> u64) -> Key<'a> {
    reset.socket.as_ref().map_or(Key::Nothing, |socket| number(of(socket)))
}

fn srtt(reset: &Reset) -> Option<u32> {
    reset.socket.as_ref().and_then(|socket| socket.srtt_us)
}

fn owner(reset: &Reset) -> Option<String> {
    let owner = reset.owner.as_ref()?;
    Some(format!("{}/{}", owner.comm, owner.pid?))
}

/// A time in at most six characters.
pub(in crate::top) fn time(ms: Option<u64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms @ ..1_000) => format!("{ms}ms"),
        Some(ms @ ..100_000) => format!("{:.1}s", ms as f64 / 1e3),
        Some(ms @ ..6_000_000) => format!("{}m", ms / 60_000),
        Some(ms @ ..360_000_000) => format!("{}h", ms / 3_600_000),
        Some(ms) => format!("{}d", ms / 86_400_000),
    }
}
