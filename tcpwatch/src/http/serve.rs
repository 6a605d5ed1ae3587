//! Taking connections: so many at a time, each for a limited time, and none that disturbs another.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

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
    /// Connections at a time; more wait in the kernel's queue.
    pub(super) connections: usize,
    /// Time for the head of a request, and between two requests.
    pub(super) head: Duration,
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
            connection: Duration::from_secs(600),
            grace: Duration::from_secs(5),
        }
    }
}

/// Bytes of a request that are kept before it is understood.
const MOST_BUFFERED: usize = 16 << 10;
/// How long to wait when no connection can be taken, mostly for want of file descriptors.
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);

/// Takes connections until `shutdown`. Clients that leave early are counted by `counter`.
pub(super) async fn accept(
    listener: impl Listen,
    router: Router,
    counter: Option<Arc<Exporter>>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let (stop, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.next().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            // What ended is taken out, or the set would grow for ever.
            Some(_) = connections.join_next() => {}
            (slot, accepted) = next => match accepted {
                Ok(stream) => {
                    let (router, counter, stopping) = (router.clone(), counter.clone(), stopping.clone());
                    connections.spawn(async move {
                        let _slot = slot;
                        converse(stream, router, counter.as_deref(), limits, stopping).await;
                    });
                }
                Err(error) => {
                    log::warn!("cannot take a connection: {error}");
                    sleep(AFTER_A_FAILURE).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    // Each has its own limit; this one is for those that do not keep it.
    let _in_time = timeout(limits.grace * 2, async { while connections.join_next().await.is_some() {} }).await;
}

/// Where connections come in.
pub(super) trait Listen: Send {
    /// What carries one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Waits for the next.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Answers are written in one go; there is nothing to wait for.
        let _best_effort = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Answers the requests of one connection, and counts it when its client did not wait for an answer.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    counter: Option<&Exporter>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let lost = Arc::new(AtomicBool::new(false));
    answer(stream, router, &lost, limits, stopping).await;
    if let Some(counter) = counter
        && lost.load(Ordering::Relaxed)
    {
        counter.count_disconnect();
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    lost: &Arc<AtomicBool>,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let pages = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let unanswered = Unanswered(Some(Arc::clone(lost)));
        let answer = pages.call(request);
        async move {
            let answer = answer.await;
            unanswered.answered();
            answer
        }
    });
    let io = TokioIo::new(Watched { stream, lost: Arc::clone(lost) });
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

/// A stream that remembers whether the client broke it off. A RST after an answer was sent means that the client did
/// not read all of it.
struct Watched<S> {
    stream: S,
    lost: Arc<AtomicBool>,
}

impl<S> Watched<S> {
    fn watch<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        {
            self.lost.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::{mpsc, oneshot};
    use tokio::task::JoinHandle;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const DEADLINE: Duration = Duration::from_secs(20);

    struct Running {
        address: SocketAddr,
        exporter: Arc<Exporter>,
        task: JoinHandle<()>,
        stop: oneshot::Sender<()>,
    }

    async fn start(router: Router, limits: Limits) -> Running {
        let exporter = Arc::new(Exporter::new(watch::channel(None).1).unwrap());
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(accept(listener, router, Some(Arc::clone(&exporter)), limits, shutdown));
        Running { address, exporter, task, stop }
    }

    async fn request(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        stream
    }

    async fn greeting(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        while !text.ends_with("hello") {
            let byte = timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap();
            text.push(char::from(byte));
        }
        text
    }

    fn hello() -> Router {
        Router::new().route("/", get(|| async { "hello" }))
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let told = bind(address).await.unwrap_err().to_string();
        assert!(told.starts_with(&format!("cannot listen on {address}: ")) && told.contains("--listen"), "{told}");
        let told = bind("192.0.2.1:1".parse().unwrap()).await.unwrap_err().to_string();
        assert!(told.contains("does not have that address"), "{told}");
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_its_request_is_cut_off() {
        let server = start(hello(), Limits { head: Duration::from_millis(20), ..Limits::default() }).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let mut rest = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(greeting(&mut request(server.address).await).await.split(' ').nth(1), Some("200"));
    }

    #[tokio::test]
    async fn a_request_without_end_is_refused() {
        let server = start(hello(), Limits::default()).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(MOST_BUFFERED));
        stream.write_all(endless.as_bytes()).await.unwrap();
        let mut text = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut text)).await.unwrap().unwrap();
        assert_eq!(&text, b"HTTP/1.1 431");
    }

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_waits_for_one() {
        let server = start(hello(), Limits { connections: 1, ..Limits::default() }).await;
        let mut first = request(server.address).await;
        greeting(&mut first).await;
        let mut second = request(server.address).await;
        // The first is still connected and served again, the second is not.
        first.write_all(REQUEST).await.unwrap();
        greeting(&mut first).await;
        assert_eq!(second.try_read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        greeting(&mut second).await;
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_its_answer_is_made_is_counted() {
        let (begun, mut beginnings) = mpsc::channel(1);
        let page = get(move || {
            let begun = begun.clone();
            async move {
                begun.send(()).await.unwrap();
                std::future::pending::<&str>().await
            }
        });
        let server = start(Router::new().route("/", page), Limits::default()).await;
        let client = request(server.address).await;
        beginnings.recv().await.unwrap();
        drop(client);
        let counted = async {
            while !server.exporter.encode().unwrap().contains("\ntcpwatch_http_disconnects_total 1\n") {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, counted).await.unwrap();
    }

    #[tokio::test]
    async fn idle_connections_do_not_delay_the_end() {
        let server = start(hello(), Limits::default()).await;
        let mut client = request(server.address).await;
        greeting(&mut client).await;
        server.stop.send(()).unwrap();
        timeout(DEADLINE, server.task).await.unwrap().unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(server.exporter.encode().unwrap().contains("\ntcpwatch_http_disconnects_total 0\n"));
    }

    #[tokio::test]
    async fn a_connection_ends_when_its_time_is_over() {
        let server = start(hello(), Limits { connection: Duration::from_millis(20), ..Limits::default() }).await;
        let mut client = request(server.address).await;
        greeting(&mut client).await;
        assert_eq!(timeout(DEADLINE, client.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    }
}
