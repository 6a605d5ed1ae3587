//! What happens, as `/api/v1/events` tells it.

use std::net::IpAddr;

use serde::Serialize;
use tcpwatch_common::close::CloseCause;
use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::{Kind, Record};
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::ca_state;

use super::connection::Connection;
use super::owner::Owner;
use super::{Moment, ends, line, state_name};
use crate::aggregate::snapshot::Service;

/// Something that happened. Cheap to make; words are made of it for those who listen.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    record: Record,
    service: Service,
    owner: Option<Owner>,
}

/// The beginning of each event.
#[derive(Debug, Serialize)]
struct Told<'a, T> {
    event: &'static str,
    /// ns of CLOCK_MONOTONIC.
    ktime_ns: u64,
    /// When, by the wall clock.
    unix_ms: u64,
    #[serde(flatten)]
    what: &'a T,
}

/// An event of a socket that is told without its connection.
#[derive(Debug, Serialize)]
struct Ends {
    cookie: u64,
    netns: u32,
    local_address: IpAddr,
    local_port: u16,
    remote_address: IpAddr,
    remote_port: u16,
}

#[derive(Debug, Serialize)]
struct Life {
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    connection: Connection,
}

#[derive(Debug, Serialize)]
struct Retransmit {
    #[serde(flatten)]
    ends: Ends,
    cause: &'static str,
    state: &'static str,
    congestion_state: &'static str,
    segments: u32,
    bytes: u32,
    sequence: u32,
    srtt_us: u32,
    cwnd_segments: u32,
    unacked_segments: u32,
    send_window_bytes: u32,
    rto_backoff: u8,
    /// Negative errno when the kernel refused the transmit.
    errno: i32,
}

#[derive(Debug, Serialize)]
struct Reset<'a> {
    #[serde(flatten)]
    ends: Ends,
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    state: &'static str,
    unread_bytes: u32,
    unacked_bytes: u32,
    owner: Option<&'a Owner>,
}

#[derive(Debug, Serialize)]
struct Listener<'a> {
    cookie: u64,
    netns: u32,
    local_address: IpAddr,
    local_port: u16,
    listening: bool,
    backlog: u32,
    pid: Option<u32>,
    owner: Option<&'a Owner>,
}

impl Event {
    /// The event of a record; none for a periodic reading.
    pub(crate) fn of(record: &Record, service: impl FnOnce(u32) -> Service) -> Option<Self> {
        let slot = match record {
            Record::Conn(Kind::Sample, _) => return None,
            Record::Conn(_, conn) => Some(conn.slot),
            Record::Reset(_, reset) => Some(reset.slot),
            Record::Listener(listener) if listener.periodic != 0 => return None,
            Record::Retransmit(_) | Record::Listener(_) => None,
        };
        Some(Self { record: *record, service: slot.map_or(Service::None, service), owner: None })
    }

    /// The cookie and the ends by which its owner is found.
    pub(crate) fn socket(&self) -> (u64, &ConnKey) {
        match &self.record {
            Record::Conn(_, record) => (record.cookie, &record.key),
            Record::Retransmit(record) => (record.cookie, &record.key),
            Record::Reset(_, record) => (record.cookie, &record.key),
            Record::Listener(record) => (record.cookie, &record.key),
        }
    }

    /// The same with the owner of its socket.
    pub(crate) fn owned(self, owner: Option<Owner>) -> Self {
        Self { owner, ..self }
    }

    /// What kind of event it is.
    pub(crate) fn name(&self) -> &'static str {
        match &self.record {
            Record::Conn(kind, _) | Record::Reset(kind, _) => kind.name(),
            Record::Retransmit(_) => Kind::Retransmit.name(),
            Record::Listener(_) => Kind::Listener.name(),
        }
    }

    /// One object, without the end of its line. `unix_ns` is the wall clock at `moment`; `reasons` are the kernel's.
    pub(crate) fn to_json(&self, moment: Moment, unix_ns: u64, reasons: &[String]) -> String {
        let when = |ktime_ns: u64| {
            let ago_ns = moment.ktime_ns.saturating_sub(ktime_ns);
            (self.name(), ktime_ns, unix_ns.saturating_sub(ago_ns) / 1_000_000)
        };
        match &self.record {
            Record::Conn(kind, record) => {
                let closed = *kind == Kind::Close;
                let at = Moment { ktime_ns: record.header.ktime_ns, ..moment };
                let connection = Connection::new(record, self.service, at);
                let owner = self.owner.clone().unwrap_or_else(|| connection.owner.clone());
                let life = Life {
                    cause: closed.then(|| CloseCause::from_u8(record.cause).map_or("unknown", CloseCause::name)),
                    errno: closed.then_some(record.sk_err),
                    connection: Connection { pid: owner.pid, comm: owner.comm.clone(), owner, ..connection },
                };
                told(when(record.header.ktime_ns), &life)
            }
            Record::Retransmit(record) => {
                let retransmit = Retransmit {
                    ends: Ends::of(record.cookie, &record.key),
                    cause: RetransmitCause::from_u8(record.cause).map_or("other", RetransmitCause::name),
                    state: state_name(record.state),
                    congestion_state: ca_state::name(record.ca_state),
                    segments: record.segments,
                    bytes: record.bytes,
                    sequence: record.seq,
                    srtt_us: record.srtt_us,
                    cwnd_segments: record.snd_cwnd,
                    unacked_segments: record.packets_out,
                    send_window_bytes: record.snd_wnd,
                    rto_backoff: record.backoff,
                    errno: record.err,
                };
                told(when(record.header.ktime_ns), &retransmit)
            }
            Record::Reset(kind, record) => {
                let sent = *kind == Kind::Reset;
                let origin = ResetOrigin::ALL.get(usize::from(record.origin)).copied();
                let reset = Reset {
                    ends: Ends::of(record.cookie, &record.key),
                    service: self.service.label(),
                    origin: origin.filter(|_| sent).map(ResetOrigin::name),
                    cause: sent.then(|| ResetCause::from_u8(record.cause).map_or("unknown", ResetCause::name)),
                    reason: sent.then(|| reasons.get(record.reason as usize).map_or("none", String::as_str)),
                    state: if record.state == 0 { "NONE" } else { state_name(record.state) },
                    unread_bytes: record.unread_bytes,
                    unacked_bytes: record.unacked_bytes,
                    owner: self.owner.as_ref(),
                };
                told(when(record.header.ktime_ns), &reset)
            }
            Record::Listener(record) => {
                let local = ends(&record.key).0;
                let listener = Listener {
                    cookie: record.cookie,
                    netns: record.key.netns,
                    local_address: local.ip(),
                    local_port: local.port(),
                    listening: record.up == 1,
                    backlog: record.backlog,
                    pid: (record.pid != 0).then_some(record.pid),
                    owner: self.owner.as_ref(),
                };
                told(when(record.header.ktime_ns), &listener)
            }
        }
    }
}

impl Ends {
    fn of(cookie: u64, key: &ConnKey) -> Self {
        let (local, remote) = ends(key);
        Self {
            cookie,
            netns: key.netns,
            local_address: local.ip(),
            local_port: local.port(),
            remote_address: remote.ip(),
            remote_port: remote.port(),
        }
    }
}

fn told(when: (&'static str, u64, u64), what: &impl Serialize) -> String {
    let (event, ktime_ns, unix_ms) = when;
    let mut text = line(&Told { event, ktime_ns, unix_ms, what });
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::record::{ABI, Header, ListenerRecord, ResetRecord, RetransmitRecord, decode, encode};

    use super::super::connection::tests::busy;
    use super::*;

    /// A record of zeros but for its header.
    fn record(kind: Kind, len: usize) -> Record {
        let mut bytes = vec![0; len];
        encode(&Header { kind: kind as u16, abi: ABI, len: len as u32, ktime_ns: 9_000_000_000 }, &mut bytes).unwrap();
        decode(&bytes).unwrap()
    }

    /// A retransmission, a reset sent, one received and a listener.
    fn details() -> [Record; 4] {
        let key = busy(1).key;
        let mut details = [
            record(Kind::Retransmit, size_of::<RetransmitRecord>()),
            record(Kind::Reset, size_of::<ResetRecord>()),
            record(Kind::ResetReceived, size_of::<ResetRecord>()),
            record(Kind::Listener, size_of::<ListenerRecord>()),
        ];
        for detail in &mut details {
            match detail {
                Record::Retransmit(r) => (r.key, r.cause, r.state, r.segments, r.bytes) = (key, 2, 1, 1, 1448),
                Record::Reset(_, r) => (r.key, r.cause, r.state, r.reason, r.unread_bytes) = (key, 2, 1, 1, 9),
                Record::Listener(r) => (r.up, r.backlog, r.pid) = (1, 128, 7),
                Record::Conn(..) => {}
            }
        }
        details
    }

    #[test]
    fn events_are_as_agreed() {
        let mut close = busy(1);
        (close.cause, close.sk_err) = (CloseCause::Timeout as u8, 110);
        let life =
            [Record::Conn(Kind::Open, busy(1)), Record::Conn(Kind::Sample, busy(1)), Record::Conn(Kind::Close, close)];
        let reasons = ["none", "tcp_abort_on_close"].map(str::to_owned);
        let moment = Moment { ktime_ns: 10_000_000_000, ticks_per_second: 250 };
        let events = life.into_iter().chain(details()).filter_map(|record| Event::of(&record, |_| Service::Port(443)));
        let lines: Vec<_> =
            events.map(|event| event.to_json(moment, 1_700_000_000_000_000_000, &reasons) + "\n").collect();
        assert_eq!(lines.len(), 6, "a periodic reading is no event");
        crate::golden::check("tests/golden/events.jsonl", &lines.concat());
    }
}
