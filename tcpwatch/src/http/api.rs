//! The pages of the Unix socket beyond those of the TCP address.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};

use super::{Ask, Pages, REFRESH_WAIT};
use crate::api::event::Event;
use crate::api::status::Status;
use crate::api::{Listing, Moment, line};
use crate::metrics::process::Process;
use crate::sys;
use crate::top::columns;

/// The pages of the API.
pub(super) fn pages() -> Router<Pages> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/connections", get(connections))
        .route("/api/v1/listeners", get(listeners))
        .route("/api/v1/events", get(events))
}

const STOPPING: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "not ready: tcpwatch is starting or stopping\n");

async fn status(State(pages): State<Pages>) -> Response {
    pages.refresh().await;
    let Some(snapshot) = pages.feed.snapshots.borrow().clone() else { return STOPPING.into_response() };
    let status = Status::new(&snapshot, Process::read(Path::new("/proc")));
    ([(header::CONTENT_TYPE, "application/json")], line(&status)).into_response()
}

/// What of the connections is wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selection {
    /// At most so many.
    limit: Option<usize>,
    /// By this column, those that matter most first.
    sort: Option<String>,
}

async fn connections(
    State(pages): State<Pages>,
    selection: Result<Query<Selection>, QueryRejection>,
) -> Result<Response, Response> {
    let refuse = |why: String| (StatusCode::BAD_REQUEST, why).into_response();
    let Query(selection) = selection.map_err(|error| refuse(format!("{error}; there are limit and sort\n")))?;
    let column = match &selection.sort {
        Some(name) => Some(columns::find(name).map_err(|error| refuse(format!("{error}\n")))?),
        None => None,
    };
    let listing = answer(&pages, Ask::Connections).await?;
    // One list at a time is turned into text, off the thread that has the ring buffer to drain.
    let turn = pages.turn.acquire_owned().await;
    let text = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        text(&listing, column, selection.limit)
    });
    let text =
        text.await.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "it failed; see the log\n").into_response())?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from(text)).into_response())
}

async fn listeners(State(pages): State<Pages>) -> Result<Response, Response> {
    let listeners = answer(&pages, Ask::Listeners).await?;
    let text: String = listeners.iter().map(line).collect();
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}

/// What the daemon answers; it is never waited for long.
async fn answer<T>(pages: &Pages, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
    let (to, answer) = oneshot::channel();
    let asked = pages.feed.ask.try_send(ask(to)).is_ok();
    let answer = if asked { timeout(REFRESH_WAIT, answer).await.ok().and_then(Result::ok) } else { None };
    answer.ok_or_else(|| {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "the daemon is busy; ask again\n")
            .into_response()
    })
}

fn text(listing: &Listing, column: Option<&columns::Column>, limit: Option<usize>) -> String {
    let mut connections = listing.connections(sys::ticks_per_second());
    if let Some(column) = column {
        columns::sort(&mut connections, column, false);
    }
    connections.truncate(limit.unwrap_or(usize::MAX));
    connections.iter().map(line).collect()
}

async fn events(State(pages): State<Pages>) -> Response {
    let Some(events) = pages.feed.events.upgrade() else { return STOPPING.into_response() };
    let snapshots = pages.feed.snapshots.clone();
    let told = told(events.subscribe(), move |event| {
        let moment = Moment { ktime_ns: sys::monotonic_ns(), ticks_per_second: sys::ticks_per_second() };
        let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let snapshot = snapshots.borrow().clone();
        let reasons = snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.facts.reasons);
        event.to_json(moment, unix_ns, reasons)
    });
    Sse::new(told).keep_alive(KeepAlive::new()).into_response()
}

/// Events as they are sent; who is too slow is told how many there were in between.
fn told(
    events: tokio::sync::broadcast::Receiver<Arc<Event>>,
    json: impl Fn(&Event) -> String,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    BroadcastStream::new(events).map(move |event| {
        Ok(match event {
            Ok(event) => sse::Event::default().event(event.name()).data(json(&event)),
            Err(BroadcastStreamRecvError::Lagged(missed)) => {
                sse::Event::default().event("missed").data(format!("{{\"event\":\"missed\",\"missed\":{missed}}}"))
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use tcpwatch_common::record::{Kind, Record};
    use tokio::sync::broadcast;

    use super::*;
    use crate::aggregate::snapshot::Service;
    use crate::api::connection::tests::busy;

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_it_missed() {
        let (sender, receiver) = broadcast::channel(2);
        for cookie in 0..5 {
            let event = Event::of(&Record::Conn(Kind::Open, busy(cookie)), |_| Service::Other).unwrap();
            sender.send(Arc::new(event)).unwrap();
        }
        drop(sender);
        let response = Sse::new(told(receiver, |_| "{}".to_owned())).into_response();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let missed = "event: missed\ndata: {\"event\":\"missed\",\"missed\":3}\n\n";
        assert_eq!(text, format!("{missed}{}", "event: open\ndata: {}\n\n".repeat(2)));
    }

    #[test]
    fn the_list_is_sorted_and_limited() {
        let mut records = Vec::new();
        for (cookie, srtt_us) in [(1, 10), (2, 30), (3, 20)] {
            let mut record = busy(cookie);
            record.srtt_us = srtt_us;
            records.push(Arc::new(record));
        }
        let listing = Listing { records, ..Listing::default() };
        let text = text(&listing, Some(columns::find("rtt").unwrap()), Some(2));
        let cookies: Vec<_> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
        assert_eq!(cookies, ["{\"cookie\":2", "{\"cookie\":3"]);
    }
}
