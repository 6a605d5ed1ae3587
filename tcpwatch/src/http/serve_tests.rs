//! Clients that are slow, silent, too many or gone, against the server of `serve.rs`.

use super::*;
use crate::http::tls::Door;
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
    let exporter = Arc::new(Exporter::new(watch::channel(None).1));
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Door { listener, access: watch::channel(Arc::default()).1 };
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

async fn hello_text() -> &'static str {
    "hello"
}

fn hello() -> Router {
    Router::new().route("/", get(hello_text))
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
async fn who_comes_when_all_places_are_taken_gets_that_of_the_longest_idle() {
    let server = start(hello(), Limits { connections: 2, idle: Duration::from_millis(50), ..Limits::default() }).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    for _ in 0..10 {
        greeting(&mut request(server.address).await).await;
    }
    for cut in [&mut silent, &mut slow] {
        assert!(timeout(DEADLINE, cut.read(&mut [0; 8])).await.unwrap().is_ok_and(|length| length == 0));
    }
}

#[tokio::test]
async fn a_connection_whose_answer_is_under_way_keeps_its_place() {
    let (begun, mut beginnings) = mpsc::channel(1);
    let (go, gone) = watch::channel(false);
    let page = get(move || {
        let (begun, mut gone) = (begun.clone(), gone.clone());
        async move {
            begun.send(()).await.unwrap();
            gone.wait_for(|gone| *gone).await.unwrap();
            "hello"
        }
    });
    let router = Router::new().route("/", page);
    let server = start(router, Limits { connections: 1, ..Limits::default() }).await;
    let mut first = request(server.address).await;
    beginnings.recv().await.unwrap();
    let mut second = request(server.address).await;
    sleep(BETWEEN_LOOKS * 3).await;
    assert_eq!(second.try_read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    go.send_replace(true);
    greeting(&mut first).await;
    greeting(&mut second).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let endless = || async {
        Body::from_stream(tokio_stream::iter(std::iter::repeat_with(|| Ok::<_, io::Error>(vec![0_u8; 1 << 16]))))
    };
    let limits = Limits { connections: 1, read: Duration::from_millis(50), ..Limits::default() };
    let server = start(Router::new().route("/", get(hello_text)).route("/endless", get(endless)), limits).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    greeting(&mut request(server.address).await).await;
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
        while !server.exporter.text().contains("\ntcpwatch_http_disconnects_total 1\n") {
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
    assert!(server.exporter.text().contains("\ntcpwatch_http_disconnects_total 0\n"));
}

#[tokio::test]
async fn a_connection_ends_when_its_time_is_over() {
    let server = start(hello(), Limits { connection: Duration::from_millis(20), ..Limits::default() }).await;
    let mut client = request(server.address).await;
    greeting(&mut client).await;
    assert_eq!(timeout(DEADLINE, client.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
}
