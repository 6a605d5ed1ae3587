//! `/api/v1/events`: what happens, as server-sent events.
//!
//! A task for each client takes events from the broadcast, asks the filter, and writes those that it selects. When the
//! client does not keep up, the task waits, the broadcast overwrites what it has not taken, and the client is told how
//! many there were. It is also told what the kernel could not deliver meanwhile.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::Uri;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::Pages;
use super::api::STOPPING;
use super::params::{Params, Refusal};
use crate::aggregate::snapshot::Snapshot;
use crate::api::event::Event;
use crate::api::interest::{Interest, Kinds};
use crate::api::status::losses;
use crate::api::{Moment, line, storm};
use crate::filter::{Filter, kinds};
use crate::storm::Change;
use crate::{config, sys};

/// What beginnings and ends of storms are called.
const STORM: &str = "storm";
/// Events that are written and not yet sent.
const AHEAD: usize = 64;

/// What is told beside events: what this client does not see.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Notice {
    /// The client was too slow for so many events, of whatever kind somebody follows.
    Missed {
        /// How many.
        missed: u64,
    },
    /// The kernel could not deliver so many, since the last such notice.
    Lost {
        /// By place, as in `tcpwatch_events_lost_total`.
        lost: BTreeMap<String, u64>,
    },
    /// The time that was asked for is over.
    End,
}

impl Notice {
    const fn name(&self) -> &'static str {
        match self {
            Self::Missed { .. } => "missed",
            Self::Lost { .. } => "lost",
            Self::End => "end",
        }
    }

    fn sse(&self) -> sse::Event {
        sse::Event::default().event(self.name()).data(line(self).trim_end())
    }
}

/// What a client wants to hear of.
pub(super) struct Wanted {
    kinds: Kinds,
    filter: Option<Filter>,
    until: Option<Instant>,
    /// Beginnings and ends of storms too. A filter selects connections, of which a storm is none.
    storms: bool,
}

impl Wanted {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let params = Params::of(uri, &["kind", "filter", "for"])?;
        let none = |name: String| {
            format!("there is no kind {name:?}; there are {}, {STORM}, with commas between them", kinds().join(", "))
        };
        let time = |text: &str| config::duration(text).ok_or("for must be a time such as 500ms, 90s or 10m");
        let kinds = params.get("kind", |list| named(list).map_err(none))?;
        let (kinds, storms) = kinds.unwrap_or((Kinds::ALL, true));
        let filter = params.get("filter", str::parse::<Filter>)?;
        Ok(Self {
            kinds,
            storms: storms && filter.is_none(),
            filter,
            until: params.get("for", time)?.and_then(|time: Duration| Instant::now().checked_add(time)),
        })
    }
}

/// Kinds of records in a list, and whether storms are in it too.
fn named(list: &str) -> Result<(Kinds, bool), String> {
    let records: Vec<_> = list.split(',').filter(|name| *name != STORM).collect();
    let storms = records.len() < list.split(',').count();
    let kinds = if records.is_empty() { Kinds::of(&[]) } else { Kinds::named(&records.join(","))? };
    Ok((kinds, storms))
}

pub(super) async fn events(State(pages): State<Pages>, uri: Uri) -> Result<Response, Refusal> {
    let wanted = Wanted::of(&uri)?;
    let Some(events) = pages.feed.events.upgrade() else { return Ok(STOPPING.into_response()) };
    let Some(storms) = pages.feed.storms.upgrade() else { return Ok(STOPPING.into_response()) };
    let receivers = (events.subscribe(), storms.subscribe());
    // Followers do not keep the daemon from ending.
    drop((events, storms));
    let (to, told) = mpsc::channel(AHEAD);
    // Before the answer begins, so that its reader may rely on it.
    let interest = pages.feed.interests.follow(wanted.kinds);
    tokio::spawn(tell(pages, wanted, interest, receivers, to));
    Ok(Sse::new(ReceiverStream::new(told)).keep_alive(KeepAlive::new()).into_response())
}

type To = mpsc::Sender<Result<sse::Event, Infallible>>;

type Receivers = (broadcast::Receiver<Arc<Event>>, broadcast::Receiver<Change>);

/// Writes events until the client leaves, the time is over or the daemon ends.
async fn tell(pages: Pages, wanted: Wanted, _interest: Interest, receivers: Receivers, to: To) {
    let (mut events, mut storms) = receivers;
    let mut snapshots = pages.feed.snapshots.clone();
    let mut lost = Lost::since(&mut snapshots);
    let over = async {
        match wanted.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    loop {
        let said = tokio::select! {
            biased;
            () = to.closed() => return,
            () = &mut over => break,
            event = events.recv() => match event {
                Ok(event) => written(&event, &wanted, &snapshots),
                Err(RecvError::Lagged(missed)) => Some(Notice::Missed { missed }.sse()),
                Err(RecvError::Closed) => return,
            },
            // There are so few that nobody is too slow for them.
            Ok(change) = storms.recv() => wanted.storms.then(|| of_storm(&change)),
            Ok(()) = snapshots.changed() => lost.more(&mut snapshots).map(|notice| notice.sse()),
        };
        if let Some(said) = said
            && to.send(Ok(said)).await.is_err()
        {
            return;
        }
    }
    // What happened until now may still be in the ring.
    pages.refresh().await;
    loop {
        let said = match events.try_recv() {
            Ok(event) => written(&event, &wanted, &snapshots),
            Err(broadcast::error::TryRecvError::Lagged(missed)) => Some(Notice::Missed { missed }.sse()),
            Err(_) => break,
        };
        if let Some(said) = said
            && to.send(Ok(said)).await.is_err()
        {
            return;
        }
    }
    for notice in lost.more(&mut snapshots).into_iter().chain([Notice::End]) {
        let _left = to.send(Ok(notice.sse())).await;
    }
}

type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;

/// The event as it is sent, if it is wanted.
fn written(event: &Event, wanted: &Wanted, snapshots: &Snapshots) -> Option<sse::Event> {
    if !wanted.kinds.has(event.kind()) {
        return None;
    }
    let snapshot = snapshots.borrow().clone();
    let reasons = snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.facts.reasons);
    let ticks_per_second = sys::ticks_per_second();
    if wanted.filter.as_ref().is_some_and(|filter| !filter.selects(&event.facts(ticks_per_second, reasons))) {
        return None;
    }
    let moment = Moment { ktime_ns: sys::monotonic_ns(), ticks_per_second };
    Some(sse::Event::default().event(event.name()).data(event.to_json(moment, sys::unix_ns(), reasons)))
}

/// The beginning or end of a storm as it is sent.
fn of_storm(change: &Change) -> sse::Event {
    sse::Event::default().event(STORM).data(storm::event(change, sys::monotonic_ns(), sys::unix_ns()))
}

/// What the kernel could not deliver so far, by place.
struct Lost(BTreeMap<String, u64>);

impl Lost {
    fn since(snapshots: &mut Snapshots) -> Self {
        Self(Self::now(snapshots))
    }

    fn now(snapshots: &mut Snapshots) -> BTreeMap<String, u64> {
        let mut places = BTreeMap::new();
        for lost in snapshots.borrow_and_update().iter().flat_map(|snapshot| losses(snapshot)) {
            // A connection that leaves the table is no event that is missing.
            if lost.place != "table" {
                *places.entry(lost.place).or_default() += lost.count;
            }
        }
        places
    }

    /// What is more now.
    fn more(&mut self, snapshots: &mut Snapshots) -> Option<Notice> {
        let now = Self::now(snapshots);
        let before = std::mem::replace(&mut self.0, now);
        let grown = self.0.iter().filter_map(|(place, count)| {
            let more = count.saturating_sub(before.get(place).copied().unwrap_or(0));
            (more > 0).then(|| (place.clone(), more))
        });
        let lost: BTreeMap<_, _> = grown.collect();
        (!lost.is_empty()).then_some(Notice::Lost { lost })
    }
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::conn::ConnKey;
    use tcpwatch_common::counters::Loss;
    use tcpwatch_common::record::{ConnRecord, Kind, Record};

    use super::*;
    use crate::aggregate::snapshot::Service;
    use crate::api::connection::tests::busy;
    use crate::api::event::Surroundings;
    use crate::api::owner::Owner;
    use crate::http::Feed;
    use crate::metrics::sample;

    /// Nothing is known but what is in the record.
    struct Nothing;

    impl Surroundings for Nothing {
        fn service(&self, _: u32) -> Service {
            Service::Other
        }

        fn connection(&self, _: u64) -> Option<Arc<ConnRecord>> {
            None
        }

        fn owner(&self, _: u64, _: &ConnKey) -> Option<Owner> {
            None
        }
    }

    fn event(kind: Kind, cookie: u64) -> Arc<Event> {
        let event = Event::of(&Record::Conn(kind, busy(cookie)), &Nothing);
        Arc::new(event.unwrap())
    }

    async fn body(receiver: mpsc::Receiver<Result<sse::Event, Infallible>>) -> String {
        let response = Sse::new(ReceiverStream::new(receiver)).into_response();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    fn names(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
    }

    /// What a client with these parameters is told of `happened`, and of what the kernel lost meanwhile.
    async fn told(query: &str, room: usize, happened: &[Arc<Event>]) -> String {
        let (sender, receiver) = broadcast::channel(room);
        let (storms, of_storms) = broadcast::channel(1);
        storms.send(crate::storm::tests::change(false)).unwrap();
        let (publish, snapshots) = watch::channel(Some(Arc::new(sample::empty())));
        let (ask, mut asked) = mpsc::channel(1);
        let feed =
            Feed { snapshots, ask, events: sender.downgrade(), interests: Arc::default(), storms: storms.downgrade() };
        let interests = Arc::clone(&feed.interests);
        let wanted = Wanted::of(&format!("/?{query}").parse().unwrap()).unwrap_or_else(|error| panic!("{error:?}"));
        for event in happened {
            sender.send(Arc::clone(event)).unwrap();
        }
        let (to, written) = mpsc::channel(AHEAD);
        let interest = interests.follow(wanted.kinds);
        let teller = tokio::spawn(tell(Pages::new(feed, false), wanted, interest, (receiver, of_storms), to));
        let lossy = async {
            if let Some(crate::http::Ask::Snapshot(refresh)) = asked.recv().await {
                let mut snapshot = sample::empty();
                snapshot.own.losses[Loss::ALL.iter().position(|loss| loss.place() == "ring").unwrap()] = 7;
                publish.send_replace(Some(Arc::new(snapshot)));
                refresh.done();
            }
        };
        let (text, ()) = tokio::join!(body(written), lossy);
        teller.await.unwrap();
        assert!(Kind::ALL.iter().all(|kind| !interests.wanted(*kind)), "nobody follows any more");
        text
    }

    #[tokio::test]
    async fn a_slow_client_is_told_how_many_it_missed_and_what_the_kernel_lost() {
        let opened: Vec<_> = (0..5).map(|cookie| event(Kind::Open, cookie)).collect();
        let text = told("for=50ms", 2, &opened).await;
        assert_eq!(names(&text), ["missed", "open", "open", "storm", "lost", "end"], "{text}");
        assert!(text.contains("data: {\"event\":\"missed\",\"missed\":3}\n"), "{text}");
        assert!(text.contains("data: {\"event\":\"lost\",\"lost\":{\"ring\":7}}\n"), "{text}");
    }

    #[tokio::test]
    async fn a_client_gets_the_kinds_it_wants_and_what_its_filter_selects() {
        let happened = [event(Kind::Open, 1), event(Kind::Close, 1), event(Kind::Close, 2)];
        let text = told("for=50ms&kind=close,listener", 8, &happened).await;
        assert_eq!(names(&text), ["close", "close", "lost", "end"]);
        let text = told("for=50ms&filter=cookie+1", 8, &happened).await;
        assert_eq!(names(&text), ["open", "close", "lost", "end"]);
        let text = told("for=50ms&kind=storm", 8, &happened).await;
        assert_eq!(names(&text), ["storm", "lost", "end"]);
        assert!(text.contains("\"phase\":\"start\""), "{text}");
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for (query, parameter, error) in [
            ("kind=opem", "kind", "there is no kind \"opem\"; there are open, close"),
            ("for=5", "for", "for must be a time such as"),
            ("filter=prot%201", "filter", "did you mean `port`?"),
            ("colour=1", "colour", "there are kind, filter, for"),
        ] {
            let refusal = Wanted::of(&format!("/?{query}").parse().unwrap()).err().unwrap();
            assert!(refusal.parameter == parameter && refusal.error.contains(error), "{refusal:?}");
        }
    }
}
