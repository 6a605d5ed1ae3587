//! Taking connections: so many at a time, each for a limited time, and none that disturbs another.
//!
//! Clients that send nothing, or slowly, or do not read their answers, cannot keep others out: when all places are
//! taken, the connection that has asked for nothing for longest is cut.

use std::collections::VecDeque;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::watched::Watched;
use crate::metrics::Exporter;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}; {remedy}")]
pub(crate) struct HttpError {
    address: SocketAddr,
    reason: io::Error,
    remedy: &'static str,
}

/// Binds the address, so that a mistake shows before anything is loaded into the kernel.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|reason| {
        let remedy = match reason.kind() {
            io::ErrorKind::AddrInUse => {
                "another process has it, perhaps a tcpwatch that runs already (`ss -ltnp` tells): stop that one or \
                 choose another port with --listen"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one with --listen"
            }
            io::ErrorKind::AddrNotAvailable => "this host does not have that address: choose another with --listen",
            _ => "choose another address with --listen",
        };
        HttpError { address, reason, remedy }
    })
}

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time; more take the place of the one idle for longest, or wait in the kernel's queue.
    pub(super) connections: usize,
    /// Time for the handshake of TLS, for the head of a request, and between two requests.
    pub(super) head: Duration,
    /// Time for which a connection without a request keeps its place when others want it.
    pub(super) idle: Duration,
    /// Time in which a client must read a piece of its answer.
    pub(super) read: Duration,
    /// Time of a connection. Then it ends after the answer that is under way.
    pub(super) connection: Duration,
    /// Time for that answer, also when the daemon stops.
    pub(super) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            // Not a usual interval between scrapes, at which both ends would act at the same time.
            head: Duration::from_secs(20),
            idle: Duration::from_secs(1),
            read: Duration::from_secs(20),
            connection: Duration::from_secs(600),
            grace: Duration::from_secs(5),
        }
    }
}

/// Bytes of a request that are kept before it is understood.
const MOST_BUFFERED: usize = 16 << 10;
/// How long to wait when no connection can be taken, mostly for want of file descriptors.
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);
/// How often to look for an idle connection while all are busy.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// What is known of a client before it asks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    /// It has a certificate of the configured authority.
    pub(super) certified: bool,
}

/// A connection that is open.
struct Place {
    activity: Arc<Activity>,
    task: AbortHandle,
}

/// Whether a connection has anything to do.
#[derive(Debug)]
pub(super) struct Activity {
    born: Instant,
    /// Milliseconds of its life at which it had nothing to do any more; `BUSY` while it has.
    idle_from: AtomicU64,
}

const BUSY: u64 = u64::MAX;

impl Default for Activity {
    fn default() -> Self {
        Self { born: Instant::now(), idle_from: AtomicU64::new(0) }
    }
}

impl Activity {
    fn age_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    fn idle_for(&self, least: Duration) -> bool {
        let from = self.idle_from.load(Ordering::Relaxed);
        from != BUSY && u128::from(self.age_ms().saturating_sub(from)) >= least.as_millis()
    }
}

/// Takes connections until `shutdown`. Clients that leave early are counted by `counter`.
pub(super) async fn accept(
    listener: impl Listen,
    router: Router,
    counter: Option<Arc<Exporter>>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut places = VecDeque::new();
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let opening = tokio::select! {
            () = &mut shutdown => break,
            // What ended is taken out, or the set would grow for ever.
            Some(_) = connections.join_next() => continue,
            accepted = listener.next() => match accepted {
                Ok(opening) => opening,
                Err(error) => {
                    log::warn!("cannot take a connection: {error}; the most there can be is set by LimitNOFILE");
                    sleep(AFTER_A_FAILURE).await;
                    continue;
                }
            },
        };
        let slot = tokio::select! {
            () = &mut shutdown => break,
            slot = slot(&slots, &mut places, limits.idle) => slot,
        };
        let (router, counter, stopping) = (router.clone(), counter.clone(), stopping.clone());
        let activity = Arc::new(Activity::default());
        let state = Arc::clone(&activity);
        let task = connections.spawn(async move {
            let _slot = slot;
            match timeout(limits.head, opening).await {
                Ok(Ok((stream, peer))) => {
                    converse(stream, peer, router, counter.as_deref(), limits, stopping, state).await;
                }
                Ok(Err(error)) => log::debug!("a connection was not opened: {error}"),
                Err(_) => log::debug!("a connection was not opened: its client takes too long"),
            }
        });
        places.push_back(Place { activity, task });
    }
    drop(listener);
    stop.send_replace(true);
    // Each has its own limit; this one is for those that do not keep it.
    let _in_time = timeout(limits.grace * 2, async { while connections.join_next().await.is_some() {} }).await;
}

/// A place for another connection: a free one, else that of the one that is idle for longest.
async fn slot(slots: &Arc<Semaphore>, places: &mut VecDeque<Place>, least: Duration) -> Option<OwnedSemaphorePermit> {
    places.retain(|place| !place.task.is_finished());
    loop {
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            return Some(slot);
        }
        // The oldest comes first. One that is cut here was asked nothing, or its answers were all sent.
        if let Some(idle) = places.iter().position(|place| place.activity.idle_for(least))
            && let Some(place) = places.remove(idle)
        {
            log::debug!("all places for HTTP connections are taken: an idle one is cut");
            place.task.abort();
        }
        if let Ok(slot) = timeout(BETWEEN_LOOKS, Arc::clone(slots).acquire_owned()).await {
            return slot.ok();
        }
    }
}

/// Where connections come in.
pub(super) trait Listen: Send {
    /// What carries one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is still to be done before it can be used.
    type Opening: Future<Output = io::Result<(Self::Stream, Peer)>> + Send + 'static;
    /// Waits for the next.
    fn next(&self) -> impl Future<Output = io::Result<Self::Opening>> + Send;
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    type Opening = Ready<io::Result<(UnixStream, Peer)>>;

    async fn next(&self) -> io::Result<Ready<io::Result<(UnixStream, Peer)>>> {
        Ok(ready(Ok((self.accept().await?.0, Peer::default()))))
    }
}

/// Answers the requests of one connection, and counts it when its client did not wait for an answer.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    router: Router,
    counter: Option<&Exporter>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    activity: Arc<Activity>,
) {
    let lost = Arc::new(AtomicBool::new(false));
    answer(stream, peer, router, &lost, limits, stopping, activity).await;
    if let Some(counter) = counter
        && lost.load(Ordering::Relaxed)
    {
        counter.count_disconnect();
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    router: Router,
    lost: &Arc<AtomicBool>,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
    activity: Arc<Activity>,
) {
    let pages = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        let unanswered = Unanswered(Some(Arc::clone(lost)));
        let busy = Busy::new(Arc::clone(&activity));
        request.extensions_mut().insert(peer);
        let answer = pages.call(request);
        async move {
            let answer = answer.await;
            unanswered.answered();
            // Until the last of it is on its way.
            answer.map(|answer| answer.map(|body| Body::new(Guarded { body, _busy: busy })))
        }
    });
    let io = TokioIo::new(Watched::new(stream, Arc::clone(lost), limits.read));
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(MOST_BUFFERED);
    let mut connection = pin!(protocol.serve_connection(io, service));
    let over = async {
        tokio::select! {
            () = sleep(limits.connection) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = over => {
            connection.as_mut().graceful_shutdown();
            timeout(limits.grace, connection.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("an HTTP connection ended early: {error}"),
        Err(_) => log::debug!("an HTTP connection was cut: its client takes too long"),
    }
}

/// A request whose answer is being made. Dropped before it is there, the client has gone.
struct Unanswered(Option<Arc<AtomicBool>>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(lost) = &self.0 {
            lost.store(true, Ordering::Relaxed);
        }
    }
}

/// Marks a connection as one that must not be cut.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.idle_from.store(BUSY, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_from.store(self.0.age_ms(), Ordering::Relaxed);
    }
}

/// A body that keeps its connection busy.
struct Guarded {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for Guarded {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
