//! The pages of the Unix socket beyond those of the TCP address.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::params::{Params, Refusal};
use super::{Ask, Pages, REFRESH_WAIT, details, events};
use crate::aggregate::snapshot::Snapshot;
use crate::api::resets::Resets;
use crate::api::service::services;
use crate::api::status::Status;
use crate::api::storm::Storms;
use crate::api::{Listing, Selection, line};
use crate::config;
use crate::explain::Sight;
use crate::filter::Filter;
use crate::metrics::process::Process;
use crate::sys;
use crate::top::columns;

/// The pages of the API.
pub(super) fn pages() -> Router<Pages> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/connections", get(connections))
        .route("/api/v1/listeners", get(listeners))
        .route("/api/v1/services", get(by_service))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/resets", get(resets))
        .route("/api/v1/storms", get(storms))
        .route("/api/v1/events", get(events::events))
        .route("/metrics/connections", get(details::connections))
}

pub(super) const STOPPING: (StatusCode, &str) =
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: tcpwatch is starting or stopping\n");
const FAILED: (StatusCode, &str) = (StatusCode::INTERNAL_SERVER_ERROR, "it failed; see the log\n");
const LINES: (HeaderName, &str) = (header::CONTENT_TYPE, "application/x-ndjson");
/// How many connections a filter selects, of which a page may show fewer.
pub(crate) const TOTAL: HeaderName = HeaderName::from_static("x-total-count");

impl Pages {
    /// The newest snapshot, of this moment if the daemon has the time.
    async fn snapshot(&self) -> Result<Arc<Snapshot>, Response> {
        self.refresh().await;
        self.feed.snapshots.borrow().clone().ok_or_else(|| STOPPING.into_response())
    }

    /// The connection table of this moment.
    pub(super) async fn listing(&self) -> Result<Listing, Response> {
        self.answer(Ask::Connections).await
    }

    /// What the daemon answers; it is never waited for long.
    async fn answer<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Response> {
        let (to, answer) = oneshot::channel();
        let asked = self.feed.ask.try_send(ask(to)).is_ok();
        let answer = if asked { timeout(REFRESH_WAIT, answer).await.ok().and_then(Result::ok) } else { None };
        answer.ok_or_else(|| {
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "the daemon is busy; ask again\n")
                .into_response()
        })
    }

    /// Makes a long answer: one at a time, off the thread that has the ring buffer to drain.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Response> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let made = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            make()
        });
        made.await.map_err(|_| FAILED.into_response())
    }
}

async fn status(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    Params::of(&uri, &[]).map_err(Refusal::into_response)?;
    let snapshot = pages.snapshot().await?;
    let status = Status::new(&snapshot, Process::read(Path::new("/proc")), unix_ns_at(&snapshot));
    Ok(([(header::CONTENT_TYPE, "application/json")], line(&status)).into_response())
}

async fn storms(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    Params::of(&uri, &[]).map_err(Refusal::into_response)?;
    let snapshot = pages.snapshot().await?;
    let storms = Storms::new(&snapshot.storms, snapshot.ktime_ns, unix_ns_at(&snapshot));
    Ok(([(header::CONTENT_TYPE, "application/json")], line(&storms)).into_response())
}

/// The wall clock at the moment of a snapshot.
fn unix_ns_at(snapshot: &Snapshot) -> u64 {
    sys::unix_ns().saturating_sub(sys::monotonic_ns().saturating_sub(snapshot.ktime_ns))
}

async fn by_service(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    Params::of(&uri, &[]).map_err(Refusal::into_response)?;
    let (snapshot, before) = (pages.snapshot().await?, pages.past.before());
    let text: String = services(&snapshot, before.as_deref()).iter().map(line).collect();
    Ok(([LINES], text).into_response())
}

/// How long the window of an explanation may be, s: the daemon keeps the table of its beginning.
const LONGEST_WINDOW: Duration = Duration::from_secs(600);

async fn explain(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    let (filter, time, all) = asked(&uri).map_err(Refusal::into_response)?;
    let before = match time {
        Some(time) => {
            let before = pages.answer(Ask::Explain).await?;
            tokio::time::sleep(time).await;
            Some(before)
        }
        None => None,
    };
    let now = pages.answer(Ask::Explain).await?;
    let sight = Sight { now, before, ticks_per_second: sys::ticks_per_second() };
    let text = pages.in_turn(move || sight.lines(filter.as_ref(), all)).await?;
    Ok(([LINES], text).into_response())
}

/// The filter, the window, and whether those without trouble are wanted too.
pub(super) fn asked(uri: &Uri) -> Result<(Option<Filter>, Option<Duration>, bool), Refusal> {
    let params = Params::of(uri, &["filter", "for", "all"])?;
    let time = |text: &str| {
        let time = config::duration(text).filter(|time| *time <= LONGEST_WINDOW);
        time.ok_or("it must be a time such as 500ms, 10s or 5m, and at most 10m")
    };
    Ok((params.get("filter", str::parse)?, params.get("for", time)?, params.get("all", truth)?.unwrap_or(false)))
}

async fn listeners(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    Params::of(&uri, &[]).map_err(Refusal::into_response)?;
    let listeners = pages.answer(Ask::Listeners).await?;
    let text: String = listeners.iter().map(line).collect();
    Ok(([LINES], text).into_response())
}

async fn resets(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    Params::of(&uri, &[]).map_err(Refusal::into_response)?;
    let (snapshot, report) = pages.answer(Ask::Resets).await?;
    let text = pages.in_turn(move || line(&Resets::new(&snapshot, &report))).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Which connections a request wants.
pub(super) fn selection(uri: &Uri) -> Result<Selection, Refusal> {
    let params = Params::of(uri, &["filter", "contains", "sort", "reverse", "limit", "offset"])?;
    Ok(Selection {
        filter: params.get("filter", str::parse)?,
        contains: params.get("contains", |text| Ok::<_, String>(text.to_lowercase()))?,
        sort: params.get("sort", columns::find)?,
        reversed: params.get("reverse", truth)?.unwrap_or(false),
        offset: params.number("offset", usize::MAX)?.unwrap_or(0),
        limit: params.number("limit", usize::MAX)?.unwrap_or(usize::MAX),
    })
}

fn truth(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "it must be true or false")
}

async fn connections(State(pages): State<Pages>, uri: Uri) -> Result<Response, Response> {
    let selection = selection(&uri).map_err(Refusal::into_response)?;
    let listing = pages.listing().await?;
    let (text, total) = pages.in_turn(move || text(&listing, &selection)).await?;
    Ok(([LINES, (TOTAL, total.to_string().as_str())], Body::from(text)).into_response())
}

/// A page of the connections, and how many there are on all pages.
fn text(listing: &Listing, selection: &Selection) -> (String, usize) {
    let ticks = sys::ticks_per_second();
    let (page, total) = listing.page(ticks, selection);
    (page.into_iter().map(|kept| line(&listing.connection(&kept.record(), ticks))).collect(), total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::kept::Kept;
    use crate::api::connection::tests::busy;

    #[test]
    fn the_list_is_filtered_sorted_and_cut_into_pages() {
        let mut records = Vec::new();
        for (cookie, srtt_us) in [(3, 20), (1, 10), (2, 30)] {
            let mut record = busy(cookie);
            record.srtt_us = srtt_us;
            records.push(Kept::new(&record));
        }
        let listing = Listing { records, ..Listing::default() };
        for (query, cookies, total) in [
            ("sort=rtt&limit=2", vec!["2", "3"], 3),
            ("sort=rtt&limit=2&offset=2", vec!["1"], 3),
            ("offset=1", vec!["2", "3"], 3),
            ("offset=9", vec![], 3),
            ("filter=srtt+%3E+15us&limit=1&sort=rtt", vec!["2"], 2),
            ("filter=port+443+and+not+cookie+2", vec!["1", "3"], 2),
            ("sort=rtt&reverse=true&limit=2", vec!["1", "3"], 3),
            ("sort=state&reverse=false&limit=1", vec!["1"], 3),
            ("contains=NGINX&sort=rtt&limit=1", vec!["2"], 3),
            ("contains=20us&sort=rtt", vec!["3"], 1),
            ("", vec!["1", "2", "3"], 3),
        ] {
            let selection = selection(&format!("/?{query}").parse().unwrap()).unwrap_or_else(|e| panic!("{e:?}"));
            let (text, found) = text(&listing, &selection);
            let shown: Vec<_> = text.lines().map(|line| line.split([',', ':']).nth(1).unwrap()).collect();
            assert_eq!((shown, found), (cookies, total), "{query}");
        }
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for (query, parameter, error) in [
            ("sort=colour", "sort", "there are local, remote"),
            ("limit=-1", "limit", "it must be a whole number"),
            ("offset=x", "offset", "it must be a whole number"),
            ("filter=state+OPEN", "filter", "there is no state `OPEN`; there are ESTABLISHED"),
            ("reverse=yes", "reverse", "it must be true or false"),
            ("page=2", "page", "there are filter, contains, sort, reverse, limit, offset"),
        ] {
            let refusal = selection(&format!("/?{query}").parse().unwrap()).err().unwrap();
            assert!(refusal.parameter == parameter && refusal.error.contains(error), "{refusal:?}");
        }
    }
}
