//! HTTP: what is served at the TCP address and at the Unix socket, to whom, and how long a client may take.
//!
//! This file has the pages of both; `api` those with addresses in them, `auth` decides who may read what, `host` by which
//! names this host may be asked for, `web_config` and `tls` are the settings of the TCP address, `serve` takes
//! connections, `socket` makes the file. The pages change nothing. Without authentication the TCP address has metrics and
//! health only; the Unix socket has its mode.

#[cfg(test)]
mod access_tests;
mod api;
mod auth;
mod details;
pub(crate) mod events;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod host;
pub(crate) mod params;
mod serve;
mod socket;
mod tls;
mod watched;
mod web_config;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::aggregate::resets::ResetReport;
use crate::aggregate::snapshot::Snapshot;
use crate::api::Listing;
use crate::api::event::Event;
use crate::api::interest::Interests;
use crate::api::listener::Listener;
use crate::explain::Picture;
use crate::metrics::{Exporter, Format};
use crate::storm::Change;

pub(crate) use api::TOTAL;
pub(crate) use auth::Access;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use fuzz::fuzz;
pub(crate) use serve::{HttpError, bind};
pub(crate) use socket::{SocketError, SocketFile};
pub(crate) use web_config::{WebConfig, WebConfigError};

use auth::Gate;
use hyper::body::Body as _;
use serve::Peer;
use tls::Door;

/// How many requests for a fresh snapshot may wait; whoever comes beyond gets the newest there is.
pub(crate) const REFRESHES: usize = 16;
/// How long a scrape waits for a fresh snapshot before it takes the newest there is.
const REFRESH_WAIT: Duration = Duration::from_secs(1);

/// What the daemon gives to its outputs, and where they ask it for more.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    /// The newest snapshot.
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Takes what only the daemon can answer.
    pub(crate) ask: mpsc::Sender<Ask>,
    /// What happens; it ends with the daemon.
    pub(crate) events: broadcast::WeakSender<Arc<Event>>,
    /// What of it somebody wants to hear of.
    pub(crate) interests: Arc<Interests>,
    /// Beginnings and ends of storms; it ends with the daemon.
    pub(crate) storms: broadcast::WeakSender<Change>,
}

/// What only the daemon can answer.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A snapshot of this moment, to be published.
    Snapshot(Refresh),
    /// The connection table of this moment.
    Connections(oneshot::Sender<Listing>),
    /// What an explanation is made of.
    Explain(oneshot::Sender<Picture>),
    /// The listeners of this moment.
    Listeners(oneshot::Sender<Vec<Listener>>),
    /// The resets of this moment, with the counters of the same.
    Resets(oneshot::Sender<(Arc<Snapshot>, ResetReport)>),
}

/// A request for a snapshot of this moment.
#[derive(Debug)]
pub(crate) struct Refresh(oneshot::Sender<()>);

impl Refresh {
    /// Tells who asked that it was published; false when nobody waits for it any more.
    pub(crate) fn done(self) -> bool {
        self.0.send(()).is_ok()
    }
}

/// What the pages are made of.
#[derive(Clone, Debug)]
struct Pages {
    exporter: Arc<Exporter>,
    feed: Feed,
    /// One long answer at a time is turned into text: however many ask, they cost one thread.
    turn: Arc<Semaphore>,
    /// Earlier pictures, for rates.
    past: Arc<Past>,
    /// Whether connections are shown as metrics.
    connection_metrics: bool,
}

impl Pages {
    fn new(feed: Feed, connection_metrics: bool) -> Self {
        let exporter = Arc::new(Exporter::new(feed.snapshots.clone()));
        Self { exporter, feed, turn: Arc::new(Semaphore::new(1)), past: Arc::default(), connection_metrics }
    }
}

/// Two earlier pictures, so that there is one that is from 10 to 20 s old.
#[derive(Debug, Default)]
struct Past(Mutex<[Option<Arc<Snapshot>>; 2]>);

impl Past {
    const WINDOW_NS: u64 = 10_000_000_000;

    /// Takes the picture of now.
    fn take(&self, now: Option<Arc<Snapshot>>) {
        let (Ok(mut kept), Some(now)) = (self.0.lock(), now) else { return };
        let [_, newer] = &*kept;
        if newer.as_ref().is_none_or(|newer| now.ktime_ns.saturating_sub(newer.ktime_ns) >= Self::WINDOW_NS) {
            kept.rotate_left(1);
            let [_, newest] = &mut *kept;
            *newest = Some(now);
        }
    }

    /// The older of the two.
    fn before(&self) -> Option<Arc<Snapshot>> {
        let [older, newer] = self.0.lock().ok()?.clone();
        older.or(newer)
    }
}

/// Limits of the Unix socket: its clients are of this host and may follow events for as long as they like.
const LOCAL_LIMITS: serve::Limits = serve::Limits {
    connections: 64,
    head: Duration::from_secs(3600),
    idle: Duration::from_secs(5),
    read: Duration::from_secs(3600),
    connection: Duration::from_secs(86_400),
    grace: Duration::from_secs(5),
};

/// Serves at both places until there will be no more snapshots. Then requests under way get a moment.
pub(crate) async fn serve(
    tcp: TcpListener,
    unix: SocketFile,
    access: watch::Receiver<Arc<Access>>,
    feed: Feed,
    connection_metrics: bool,
) {
    let published = feed.snapshots.clone();
    let Some((pages, gate)) = prepare(feed, access.clone(), connection_metrics) else { return };
    let counter = Arc::clone(&pages.exporter);
    let (listener, _file) = unix.into_parts();
    let (local, past) = (local_router(pages.clone(), gate.clone()), Arc::clone(&pages.past));
    let door = Door { listener: tcp, access };
    tokio::join!(
        serve::accept(door, router(pages, gate), Some(counter), serve::Limits::default(), end(published.clone())),
        // Whoever follows events ends that by leaving.
        serve::accept(listener, local, None, LOCAL_LIMITS, end(published.clone())),
        remember(&past, published),
    );
}

fn prepare(feed: Feed, access: watch::Receiver<Arc<Access>>, connection_metrics: bool) -> Option<(Pages, Gate)> {
    let failed = |error: &dyn std::fmt::Display| log::error!("no HTTP: {error}");
    let pages = Pages::new(feed, connection_metrics);
    let gate = Gate::new(access).inspect_err(|error| failed(error)).ok()?;
    Some((pages, gate))
}

/// Serves the pages of the Unix socket to the one who has the other end of `stream`, until that is closed.
pub(crate) async fn serve_one(stream: UnixStream, access: watch::Receiver<Arc<Access>>, feed: Feed) {
    let published = feed.snapshots.clone();
    let Some((pages, gate)) = prepare(feed, access, true) else { return };
    let (stopping, past) = (watch::channel(false), Arc::clone(&pages.past));
    let router = local_router(pages, gate);
    tokio::select! {
        () = serve::converse(stream, Peer::default(), router, None, LOCAL_LIMITS, stopping.1, Arc::default()) => {}
        () = remember(&past, published) => {}
    }
}

/// Keeps pictures for rates, as long as there are more.
async fn remember(past: &Past, mut published: watch::Receiver<Option<Arc<Snapshot>>>) {
    loop {
        past.take(published.borrow_and_update().clone());
        if published.changed().await.is_err() {
            return;
        }
    }
}

/// When there will be no more snapshots.
async fn end(mut published: watch::Receiver<Option<Arc<Snapshot>>>) {
    while published.changed().await.is_ok() {}
}

/// The pages that both places have.
fn common() -> Router<Pages> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
}

const MISSING: &str = "not found; there are /api/v1/status, /api/v1/connections, /api/v1/listeners, /api/v1/services, \
                       /api/v1/explain, /api/v1/resets, /api/v1/storms, /api/v1/events, /metrics, /metrics/connections, \
                       /healthz and /readyz\n";

/// All pages; who may have which is for the gate to decide.
fn all(pages: Pages) -> Router {
    common()
        .merge(api::pages())
        .fallback(|| async { (StatusCode::NOT_FOUND, MISSING) })
        .layer(middleware::from_fn(only_look))
        .with_state(pages)
}

fn router(pages: Pages, gate: Gate) -> Router {
    all(pages).layer(middleware::from_fn_with_state(gate, auth::admit))
}

fn local_router(pages: Pages, gate: Gate) -> Router {
    all(pages).layer(middleware::from_fn_with_state(gate, auth::admit_local))
}

/// Turns away whoever wants to change something.
async fn only_look(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "GET and HEAD only\n").into_response();
    }
    if !request.body().is_end_stream() {
        let close = [(header::CONNECTION, "close")];
        return (StatusCode::PAYLOAD_TOO_LARGE, close, "a request has no body here\n").into_response();
    }
    next.run(request).await
}

async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let format = Format::of(headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    pages.refresh().await;
    let turn = pages.turn.acquire_owned().await;
    let encode = move || {
        // Kept until the work is done, even if the client goes away meanwhile.
        let _turn = turn;
        pages.exporter.encode(format)
    };
    // Off this thread, which has the ring buffer to drain.
    match tokio::task::spawn_blocking(encode).await {
        Ok(Ok(body)) => {
            let head = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, header::ACCEPT.as_str())];
            (head, body).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed; see the log\n").into_response(),
    }
}

impl Pages {
    /// Waits for a snapshot of now, if one is to be had; `tcpwatch_snapshot_age_seconds` tells whether it was.
    async fn refresh(&self) {
        let (done, published) = oneshot::channel();
        if self.feed.ask.try_send(Ask::Snapshot(Refresh(done))).is_ok() {
            let _in_time = timeout(REFRESH_WAIT, published).await;
        }
    }
}

async fn readiness(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    if pages.feed.snapshots.has_changed().is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: tcpwatch is stopping\n");
    }
    if pages.feed.snapshots.borrow().is_none() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the kernel programs are being attached\n");
    }
    (StatusCode::OK, "ready\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::sample;
    use tcpwatch_common::counters::group;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    struct Running {
        address: std::net::SocketAddr,
        snapshots: watch::Sender<Option<Arc<Snapshot>>>,
        exporter: Arc<Exporter>,
        changes: watch::Sender<Arc<Access>>,
    }

    /// A server whose daemon gives no snapshots on request.
    async fn start() -> Running {
        start_with(mpsc::channel(1).0).await
    }

    fn feed(snapshots: watch::Receiver<Option<Arc<Snapshot>>>, ask: mpsc::Sender<Ask>) -> Feed {
        let (events, storms) = (broadcast::channel(1).0.downgrade(), broadcast::channel(1).0.downgrade());
        Feed { snapshots, ask, events, interests: Arc::default(), storms }
    }

    async fn start_with(ask: mpsc::Sender<Ask>) -> Running {
        let (snapshots, newest) = watch::channel(None);
        let pages = Pages::new(feed(newest, ask), false);
        let exporter = Arc::clone(&pages.exporter);
        let names = vec!["web-1".to_owned()];
        let (changes, access) = watch::channel(Arc::new(Access { names, web: None, connection_data: true }));
        let router = router(pages, Gate::new(access.clone()).unwrap());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Door { listener, access };
        let (counter, limits) = (Arc::clone(&exporter), serve::Limits::default());
        tokio::spawn(serve::accept(listener, router, Some(counter), limits, std::future::pending()));
        Running { address, snapshots, exporter, changes }
    }

    impl Running {
        /// Status, head and body of the answer to a request that ends the connection.
        async fn ask(&self, request: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            (status, head.to_ascii_lowercase(), body.to_owned())
        }

        async fn get(&self, path: &str) -> (u16, String, String) {
            self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
        }

        async fn status(&self, method: &str, host: &str) -> u16 {
            self.ask(&format!("{method} /healthz HTTP/1.1\r\n{host}Connection: close\r\n\r\n")).await.0
        }
    }

    #[tokio::test]
    async fn metrics_have_the_content_type_of_their_format() {
        let server = start().await;
        server.snapshots.send_replace(Some(Arc::new(sample::full(1))));
        let (status, head, body) = server.get("/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{head}");
        assert!(
            body.contains("\ntcpwatch_rtt_seconds_bucket{direction=\"inbound\",service=\"443\",le=\"0.000032\"} "),
            "{body}"
        );
    }

    #[tokio::test]
    async fn a_scrape_shows_a_snapshot_of_its_own_moment() {
        let (refresh, mut refreshes) = mpsc::channel::<Ask>(1);
        let server = Arc::new(start_with(refresh).await);
        let daemon = Arc::clone(&server);
        tokio::spawn(async move {
            for opened in 1.. {
                let Some(Ask::Snapshot(request)) = refreshes.recv().await else { break };
                let mut snapshot = sample::empty();
                snapshot.groups[0].words[group::OPENED] = opened;
                daemon.snapshots.send_replace(Some(Arc::new(snapshot)));
                assert!(request.done());
            }
        });
        for opened in 1..4 {
            let (_, _, body) = server.get("/metrics").await;
            let series = "tcpwatch_connections_opened_total{direction=\"unknown\",service=\"other\"}";
            assert!(body.contains(&format!("\n{series} {opened}\n")), "{body}");
        }
    }

    #[tokio::test]
    async fn a_daemon_too_busy_for_a_snapshot_does_not_stop_scrapes() {
        let (refresh, mut refreshes) = mpsc::channel::<Ask>(1);
        refresh.try_send(Ask::Snapshot(Refresh(oneshot::channel().0))).unwrap();
        let server = start_with(refresh).await;
        assert_eq!(server.get("/metrics").await.0, 200, "nobody takes what waits");
        refreshes.recv().await.unwrap();
        let page = server.get("/metrics");
        let ignored = async { drop(refreshes.recv().await.unwrap()) };
        assert_eq!(tokio::join!(page, ignored).0.0, 200, "who takes it gives nothing");
    }

    #[tokio::test]
    async fn many_scrapes_at_a_time_are_all_answered() {
        let server = Arc::new(start().await);
        server.snapshots.send_replace(Some(Arc::new(sample::full(4))));
        let ask = |_| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.get("/metrics").await })
        };
        for scrape in (0..100).map(ask).collect::<Vec<_>>() {
            let (status, _, body) = scrape.await.unwrap();
            assert_eq!((status, body.ends_with('\n')), (200, true));
        }
    }

    #[tokio::test]
    async fn readiness_says_why_not() {
        let server = start().await;
        assert_eq!(server.get("/healthz").await.0, 200);
        let (status, _, body) = server.get("/readyz").await;
        assert_eq!((status, body.as_str()), (503, "not ready: the kernel programs are being attached\n"));
        server.snapshots.send_replace(Some(Arc::new(sample::empty())));
        assert_eq!(server.get("/readyz").await.0, 200);
        let Running { address, exporter, snapshots, changes } = server;
        drop(snapshots);
        let server = Running { address, exporter, snapshots: watch::channel(None).0, changes };
        let (status, _, body) = server.get("/readyz").await;
        assert_eq!((status, body.as_str()), (503, "not ready: tcpwatch is stopping\n"));
        assert_eq!(server.get("/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn the_server_ends_when_there_will_be_no_more_snapshots() {
        let (snapshots, newest) = watch::channel(None);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let unix = SocketFile::bind(&folder.path().join("s")).unwrap();
        let server = tokio::spawn(serve(
            listener,
            unix,
            watch::channel(Arc::default()).1,
            feed(newest, mpsc::channel(1).0),
            false,
        ));
        snapshots.send_replace(Some(Arc::new(sample::empty())));
        drop(snapshots);
        timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn other_pages_and_other_methods_are_refused_with_a_hint() {
        let server = start().await;
        let (status, _, body) = server.get("/api/v1/connections").await;
        assert!(status == 404 && body.starts_with("not found; there are /metrics, /healthz and /readyz;"), "{body}");
        let (status, head, _) =
            server.ask("POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        assert_eq!(status, 405);
        assert!(head.contains("\r\nallow: get, head"), "{head}");
        let (status, head, body) =
            server.ask("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        assert_eq!((status, body.as_str()), (200, ""));
        assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{head}");
    }

    #[tokio::test]
    async fn names_that_a_web_page_may_have_made_up_are_refused() {
        let server = start().await;
        assert_eq!(server.status("GET", "Host: localhost:1\r\n").await, 200);
        assert_eq!(server.status("GET", "Host: web-1:10793\r\n").await, 200);
        assert_eq!(server.status("GET", "Host: evil.example\r\n").await, 403);
        assert_eq!(server.status("GET", "").await, 400);
        assert_eq!(server.status("POST", "Host: evil.example\r\n").await, 403);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_counted_and_disturbs_nobody() {
        let server = start().await;
        server.snapshots.send_replace(Some(Arc::new(sample::full(36))));
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        // Closed with unread data: the kernel tells the server by a RST.
        drop(stream);
        let counted = async {
            while !server.exporter.text().contains("\ntcpwatch_http_disconnects_total 1\n") {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), counted).await.unwrap();
        let (status, _, body) = server.get("/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("\ntcpwatch_http_disconnects_total 1\n"));
    }
}
