//! What happens, as `/api/v1/events` tells it.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use tcpwatch_common::close::CloseCause;
use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::{ConnRecord, Kind, Record, ResetRecord};
use tcpwatch_common::reset::{ResetCause, ResetOrigin};
use tcpwatch_common::retransmit::RetransmitCause;
use tcpwatch_common::state::ca_state;

use super::connection::Connection;
use super::owner::Owner;
use super::resets::Seen;
use super::{Moment, ends, line, state_name};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;
use crate::filter::{ConnFacts, Fact, Subject, Value, of_key};
use crate::meaning::{Around, Meaning};

/// Something that happened. Cheap to make; words are made of it for those who listen.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    record: Record,
    service: Service,
    /// Who owns its socket; of one without a socket, who listens where it came to.
    owner: Option<Owner>,
    /// The connection that it happened to, where the record does not have it.
    connection: Option<Arc<ConnRecord>>,
    /// What explains it, when it is a reset.
    around: Around,
}

/// The beginning of each event.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Ends {
    cookie: u64,
    netns: u32,
    local_address: IpAddr,
    local_port: u16,
    remote_address: IpAddr,
    remote_port: u16,
}

/// Who owns the socket that it happened to.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Owned<'a> {
    /// Process that owns it, as in `owner`; null when it is not known.
    pid: Option<u32>,
    /// Its name, made printable.
    comm: &'a str,
    /// Who owns the socket; of a reset without one, who listens where it came to. Null when there is nobody.
    owner: Option<&'a Owner>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Life {
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    connection: Connection,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Retransmit<'a> {
    #[serde(flatten)]
    ends: Ends,
    #[serde(flatten)]
    owned: Owned<'a>,
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Reset<'a> {
    #[serde(flatten)]
    ends: Ends,
    #[serde(flatten)]
    owned: Owned<'a>,
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
    /// What it means.
    #[serde(flatten)]
    meaning: Meaning,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Listener<'a> {
    cookie: u64,
    netns: u32,
    local_address: IpAddr,
    local_port: u16,
    listening: bool,
    backlog: u32,
    #[serde(flatten)]
    owned: Owned<'a>,
}

/// What an event is told with, where that is not in its record.
pub(crate) trait Surroundings {
    /// What a slot is shown as.
    fn service(&self, slot: u32) -> Service;
    /// The newest record of a connection.
    fn connection(&self, cookie: u64) -> Option<Arc<ConnRecord>>;
    /// Who owns a socket; without one, who listens at the local end of `key`.
    fn owner(&self, cookie: u64, key: &ConnKey) -> Option<Owner>;
}

impl Event {
    /// The event of a record; none for a periodic reading.
    pub(crate) fn of(record: &Record, around: &impl Surroundings) -> Option<Self> {
        let (cookie, key) = match record {
            Record::Conn(_, record) => (record.cookie, &record.key),
            Record::Retransmit(record) => (record.cookie, &record.key),
            Record::Reset(_, record) => (record.cookie, &record.key),
            Record::Listener(record) => (record.cookie, &record.key),
        };
        let apart = matches!(record, Record::Retransmit(_) | Record::Reset(..));
        let connection = if apart && cookie != 0 { around.connection(cookie) } else { None };
        let slot = match record {
            Record::Conn(Kind::Sample, _) => return None,
            Record::Conn(_, conn) => Some(conn.slot),
            Record::Reset(_, reset) => Some(reset.slot),
            Record::Listener(listener) if listener.periodic != 0 => return None,
            Record::Retransmit(_) => connection.as_ref().map(|conn| conn.slot),
            Record::Listener(_) => None,
        };
        let told = || {
            let owner = match record {
                Record::Conn(_, record) => owners::Owner::of(record),
                Record::Listener(record) if record.pid != 0 => owners::Owner::of_listener(record),
                _ => return None,
            };
            Some(Owner::new(&owner, &Names::default()))
        };
        let owner = around.owner(cookie, key).or_else(told);
        let service = slot.map_or(Service::None, |slot| around.service(slot));
        Some(Self { record: *record, service, owner, connection, around: Around::default() })
    }

    /// The kind of a record.
    pub(crate) const fn kind_of(record: &Record) -> Kind {
        match record {
            Record::Conn(kind, _) | Record::Reset(kind, _) => *kind,
            Record::Retransmit(_) => Kind::Retransmit,
            Record::Listener(_) => Kind::Listener,
        }
    }

    /// The same with what was around it.
    pub(crate) fn among(self, around: Around) -> Self {
        Self { around, ..self }
    }

    /// What kind of event it is.
    pub(crate) fn kind(&self) -> Kind {
        Self::kind_of(&self.record)
    }

    /// The same by its name.
    pub(crate) fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// What filters are asked of; `reasons` are the kernel's.
    pub(crate) fn facts<'a>(&'a self, ticks_per_second: u32, reasons: &'a [String]) -> EventFacts<'a> {
        EventFacts { event: self, ticks_per_second, reasons }
    }

    fn cause(&self) -> Option<&'static str> {
        match &self.record {
            Record::Conn(Kind::Close, record) => {
                Some(CloseCause::from_u8(record.cause).map_or("unknown", CloseCause::name))
            }
            Record::Retransmit(record) => {
                Some(RetransmitCause::from_u8(record.cause).map_or("other", RetransmitCause::name))
            }
            Record::Reset(Kind::Reset, record) => {
                Some(ResetCause::from_u8(record.cause).map_or("unknown", ResetCause::name))
            }
            _ => None,
        }
    }

    fn owned(&self) -> Owned<'_> {
        let owner = self.owner.as_ref();
        let comm = owner.map_or("", |owner| &owner.comm);
        Owned { pid: owner.and_then(|owner| owner.pid), comm, owner }
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
                    cause: self.cause(),
                    errno: closed.then_some(record.sk_err),
                    connection: Connection { pid: owner.pid, comm: owner.comm.clone(), owner, ..connection },
                };
                told(when(record.header.ktime_ns), &life)
            }
            Record::Retransmit(record) => {
                let retransmit = Retransmit {
                    ends: Ends::of(record.cookie, &record.key),
                    owned: self.owned(),
                    cause: self.cause().unwrap_or_default(),
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
                    owned: self.owned(),
                    cause: self.cause(),
                    reason: sent.then(|| reason(record, reasons)),
                    state: socket_state(record.state),
                    unread_bytes: record.unread_bytes,
                    unacked_bytes: record.unacked_bytes,
                    meaning: self.meaning(*kind, record, moment, reasons),
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
                    owned: self.owned(),
                };
                told(when(record.header.ktime_ns), &listener)
            }
        }
    }
}

/// An event that a filter is asked about. Nothing is written for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventFacts<'a> {
    event: &'a Event,
    ticks_per_second: u32,
    reasons: &'a [String],
}

impl Subject for EventFacts<'_> {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        let number = |number: u32| Some(Value::Number(number.into()));
        match fact {
            owners if owners.is_of_owner() => return self.event.owner.as_ref()?.fact(fact),
            Fact::Kind => return Some(self.event.name().into()),
            Fact::Cause => return self.event.cause().map(Value::from),
            Fact::Origin | Fact::Reason if !matches!(self.event.record, Record::Reset(Kind::Reset, _)) => return None,
            _ => {}
        }
        let own = match (&self.event.record, fact) {
            (Record::Conn(_, record), _) => return self.connection(record).fact(fact).map(owned),
            (Record::Retransmit(record), Fact::State) => Some(state_name(record.state).into()),
            (Record::Retransmit(record), Fact::Srtt) => (record.srtt_us > 0).then_some(record.srtt_us).and_then(number),
            (Record::Retransmit(record), Fact::Cwnd) => number(record.snd_cwnd),
            (Record::Retransmit(record), Fact::Cookie) => Some(Value::Number(record.cookie)),
            (Record::Retransmit(record), _) => of_key(&record.key, fact),
            (Record::Reset(_, record), Fact::State) => Some(socket_state(record.state).into()),
            (Record::Reset(_, record), Fact::Origin) => {
                ResetOrigin::ALL.get(usize::from(record.origin)).map(|origin| origin.name().into())
            }
            (Record::Reset(_, record), Fact::Reason) => Some(Value::Text(reason(record, self.reasons).into())),
            (Record::Reset(..), Fact::Service) => Some(Value::Text(self.event.service.label().into())),
            (Record::Reset(_, record), Fact::Unread) => number(record.unread_bytes),
            (Record::Reset(_, record), Fact::Unacked) => number(record.unacked_bytes),
            (Record::Reset(_, record), Fact::Cookie) if record.cookie != 0 => Some(Value::Number(record.cookie)),
            (Record::Reset(_, record), _) => of_key(&record.key, fact),
            (Record::Listener(_), Fact::Peer | Fact::PeerPort) => None,
            (Record::Listener(record), Fact::Cookie) => Some(Value::Number(record.cookie)),
            (Record::Listener(record), _) => of_key(&record.key, fact),
        };
        own.or_else(|| self.connection(self.event.connection.as_deref()?).fact(fact).map(owned))
    }
}

impl<'a> EventFacts<'a> {
    /// The connection as it was at its record.
    fn connection(&self, record: &'a ConnRecord) -> ConnFacts<'a, 'a> {
        let moment = Moment { ktime_ns: record.header.ktime_ns, ticks_per_second: self.ticks_per_second };
        ConnFacts { record, service: self.event.service, moment, names: None }
    }
}

fn owned(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Number(number) => Value::Number(number),
        Value::Address(address) => Value::Address(address),
        Value::Text(text) => Value::Text(text.into_owned().into()),
    }
}

fn reason<'a>(record: &ResetRecord, reasons: &'a [String]) -> &'a str {
    reasons.get(record.reason as usize).map_or("none", String::as_str)
}

fn socket_state(number: u8) -> &'static str {
    if number == 0 { "NONE" } else { state_name(number) }
}

impl Event {
    fn meaning(&self, kind: Kind, record: &ResetRecord, moment: Moment, reasons: &[String]) -> Meaning {
        let connection = self.connection.as_deref();
        let seen = Seen { kind, record, connection, owner: self.owner.clone(), around: &self.around };
        super::resets::Reset::of(seen, moment, reasons).meaning
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

/// The schema of every kind of event.
#[cfg(test)]
pub(super) fn schemas(of: &mut schemars::SchemaGenerator) -> Vec<schemars::Schema> {
    vec![
        of.subschema_for::<Told<'_, Life>>(),
        of.subschema_for::<Told<'_, Retransmit<'_>>>(),
        of.subschema_for::<Told<'_, Reset<'_>>>(),
        of.subschema_for::<Told<'_, Listener<'_>>>(),
        of.subschema_for::<crate::http::events::Notice>(),
    ]
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::record::{ABI, Header, ListenerRecord, RetransmitRecord, decode, encode};
    use tcpwatch_common::reset::known;

    use super::super::connection::tests::{busy, named};
    use super::*;

    /// Every connection is the busy one, and all belongs to one owner, but for listeners.
    struct Busy;

    impl Surroundings for Busy {
        fn service(&self, _: u32) -> Service {
            Service::Port(443)
        }

        fn connection(&self, _: u64) -> Option<Arc<ConnRecord>> {
            Some(Arc::new(busy(1)))
        }

        fn owner(&self, cookie: u64, _: &ConnKey) -> Option<Owner> {
            (cookie == 1).then(|| Owner::new(&owners::Owner::of(&busy(1)), &named()))
        }
    }

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
                Record::Retransmit(r) => {
                    (r.cookie, r.key, r.cause, r.state, r.segments, r.bytes) = (1, key, 2, 1, 1, 1448);
                }
                Record::Reset(_, r) => {
                    (r.cookie, r.key, r.cause, r.state, r.reason, r.unread_bytes) = (1, key, 2, 1, 1, 9);
                    r.known = known::SOCKET;
                }
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
        let events = life.into_iter().chain(details()).filter_map(|record| Event::of(&record, &Busy));
        let lines: Vec<_> =
            events.map(|event| event.to_json(moment, 1_700_000_000_000_000_000, &reasons) + "\n").collect();
        assert_eq!(lines.len(), 6, "a periodic reading is no event");
        crate::golden::check("tests/golden/events.jsonl", &lines.concat());
    }

    #[test]
    fn filters_are_asked_of_each_kind() {
        let life = [Record::Conn(Kind::Open, busy(1)), Record::Conn(Kind::Close, busy(1))];
        let events: Vec<_> =
            life.into_iter().chain(details()).map(|record| Event::of(&record, &Busy).unwrap()).collect();
        let reasons = ["none", "tcp_abort_on_close"].map(str::to_owned);
        for (filter, kinds) in [
            ("pid 812", vec!["open", "close", "retransmit", "reset_sent", "reset_received"]),
            ("pid 7", vec!["listener"]),
            ("kind close", vec!["close"]),
            ("cause tail_loss_probe or cause unread_data", vec!["retransmit", "reset_sent"]),
            ("cause fin_local", vec!["close"]),
            ("reason tcp_abort*", vec!["reset_sent"]),
            ("unread = 9B", vec!["reset_sent", "reset_received"]),
            ("origin active", vec!["reset_sent"]),
            (
                "comm nginx and direction inbound and port 51234 and service 443 and not kind open",
                vec!["close", "retransmit", "reset_sent", "reset_received"],
            ),
            ("not pid 812 and not pid 7", vec![]),
            ("unit nginx.service", vec!["open", "close", "retransmit", "reset_sent", "reset_received"]),
            ("not known unit", vec!["listener"]),
            ("cgroup system.slice/nginx.service and kind retransmit", vec!["retransmit"]),
        ] {
            let filter: crate::filter::Filter = filter.parse().unwrap();
            let found: Vec<_> =
                events.iter().filter(|event| filter.selects(&event.facts(250, &reasons))).map(Event::name).collect();
            assert_eq!(found, kinds, "{filter}");
        }
    }
}
