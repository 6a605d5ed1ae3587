//! Who reads what: over real connections, with and without credentials, encrypted and not.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring as provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::auth::Gate;
use super::serve::Limits;
use super::tls::Door;
use super::*;
use crate::metrics::sample;

const DEADLINE: Duration = Duration::from_secs(30);
const ADDRESSES: [&str; 5] =
    ["/api/v1/listeners", "/api/v1/connections", "/api/v1/connections?limit=1", "/api/v1/storms", "/api/v1/events"];

struct Server {
    address: SocketAddr,
    access: watch::Sender<Arc<Access>>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    folder: tempfile::TempDir,
}

fn access(folder: &Path, web: Option<&str>, connection_data: bool) -> Arc<Access> {
    let web = web.map(|text| {
        let path = folder.join("web.yml");
        fs::write(&path, text).unwrap();
        WebConfig::read(&path).unwrap()
    });
    Arc::new(Access { names: Vec::new(), web, connection_data })
}

/// A server at a TCP address whose daemon answers nobody: a page that is let through is 503, not 200.
async fn start(web: Option<&str>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("s.crt"), certified.cert.pem()).unwrap();
    fs::write(folder.path().join("s.key"), certified.signing_key.serialize_pem()).unwrap();
    let access = watch::channel(access(folder.path(), web, true)).0;
    let (snapshots, newest) = watch::channel(Some(Arc::new(sample::empty())));
    let feed = Feed {
        snapshots: newest,
        ask: mpsc::channel(1).0,
        events: broadcast::channel(1).0.downgrade(),
        interests: Arc::default(),
        storms: broadcast::channel(1).0.downgrade(),
    };
    let pages = Pages::new(feed, false);
    let router = router(pages, Gate::new(access.subscribe()).unwrap());
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door { listener, access: access.subscribe() };
    tokio::spawn(serve::accept(door, router, None, Limits::default(), std::future::pending()));
    Server { address, access, snapshots, folder }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, headers: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // TLS without close_notify is an error after the answer.
    let _ended = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or("0").parse().unwrap();
    (status, answer)
}

impl Server {
    async fn get(&self, path: &str, headers: &str) -> (u16, String) {
        exchange(TcpStream::connect(self.address).await.unwrap(), path, headers).await
    }

    fn change(&self, web: Option<&str>, connection_data: bool) {
        self.access.send_replace(access(self.folder.path(), web, connection_data));
    }

    /// A connection with TLS; `client` is a certificate with its key.
    async fn tls(
        &self,
        client: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>,
    ) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin> {
        let pem = fs::read(self.folder.path().join("s.crt")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(tokio_rustls::rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let chain: Vec<CertificateDer<'static>> = vec![client.cert.der().clone()];
                let key = PrivateKeyDer::try_from(client.signing_key.serialize_der()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn users() -> String {
    format!("basic_auth_users:\n  alice: {}\n", bcrypt::hash("secret", 4).unwrap())
}

fn tokens() -> String {
    let hash = digest::digest(&digest::SHA256, b"s3same");
    let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    format!("bearer_tokens:\n  ci: sha256:{hex}\n")
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn without_authentication_nobody_gets_at_addresses() {
    let server = start(None).await;
    for path in ADDRESSES.into_iter().chain(["/api/v1/status", "//api/v1/connections", "/API/v1/connections"]) {
        for headers in ["", &basic("alice", "secret"), "Authorization: Bearer s3same\r\n"] {
            assert_eq!(server.get(path, headers).await.0, 404, "{path}");
        }
    }
    assert_eq!(server.get("/metrics", "").await.0, 200);
}

#[tokio::test]
async fn only_who_has_the_password_or_a_token_comes_in() {
    let server = start(Some(&format!("{}{}", users(), tokens()))).await;
    let wrong = [
        String::new(),
        basic("alice", "Secret"),
        basic("alice", ""),
        basic("bob", "secret"),
        "Authorization: Basic !!!\r\n".into(),
        format!("Authorization: Basic {}\r\n", STANDARD.encode("alice")),
        "Authorization: Bearer\r\n".into(),
        "Authorization: Bearer s3sam\r\n".into(),
        "Authorization: Digest username=alice\r\n".into(),
    ];
    for path in ADDRESSES.into_iter().chain(["/api/v1/status", "/metrics", "/healthz", "/nothing"]) {
        for headers in &wrong {
            // The same wrong password again and again costs nothing.
            let (status, answer) = server.get(path, headers).await;
            assert_eq!(status, 401, "{path} {headers}: {answer}");
            assert!(answer.to_lowercase().contains("www-authenticate: basic"), "{answer}");
        }
    }
    for headers in
        [basic("alice", "secret"), "Authorization: Bearer s3same\r\n".into(), "authorization: bearer s3same\r\n".into()]
    {
        assert_eq!(server.get("/metrics", &headers).await.0, 200, "{headers}");
        assert_eq!(server.get("/api/v1/status", &headers).await.0, 200, "{headers}");
        assert_eq!(server.get("/api/v1/connections", &headers).await.0, 503, "let through, to a daemon that is busy");
    }
    // Another hash for the same user: what was remembered is worth nothing.
    server.change(Some(&format!("basic_auth_users:\n  alice: {}\n", bcrypt::hash("other", 4).unwrap())), true);
    assert_eq!(server.get("/metrics", &basic("alice", "secret")).await.0, 401);
    server.change(None, true);
    assert_eq!(server.get("/api/v1/status", &basic("alice", "other")).await.0, 404);
}

#[tokio::test]
async fn pages_of_other_sites_get_nothing_even_with_the_password_of_the_browser() {
    let server = start(Some(&users())).await;
    let known = basic("alice", "secret");
    for foreign in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        for path in ADDRESSES {
            let (status, answer) = server.get(path, &format!("{known}{foreign}")).await;
            assert_eq!(status, 403, "{foreign}");
            assert!(!answer.to_lowercase().contains("access-control-"), "{answer}");
        }
    }
    let (status, answer) = server.get("/api/v1/status", &format!("{known}Sec-Fetch-Site: same-origin\r\n")).await;
    assert!(status == 200 && answer.contains("cache-control: no-store"), "{answer}");
}

#[tokio::test]
async fn connection_data_can_be_switched_off_for_everybody() {
    let server = start(Some(&tokens())).await;
    server.change(Some(&tokens()), false);
    let known = "Authorization: Bearer s3same\r\n";
    for path in ADDRESSES {
        let (status, answer) = server.get(path, known).await;
        assert!(status == 403 && answer.contains("`connection_data`"), "{answer}");
    }
    assert_eq!(server.get("/api/v1/status", known).await.0, 200);
    // The same at the Unix socket, where nobody is asked who he is.
    let feed = Feed {
        interests: Arc::default(),
        storms: broadcast::channel(1).0.downgrade(),
        snapshots: server.snapshots.subscribe(),
        ask: mpsc::channel(1).0,
        events: broadcast::channel(1).0.downgrade(),
    };
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(serve_one(theirs, server.access.subscribe(), feed));
    let (status, answer) = exchange(ours, "/api/v1/events", "").await;
    assert!(status == 403 && answer.contains("`connection_data`"), "{answer}");
}

#[tokio::test]
async fn a_flood_of_wrong_passwords_neither_delays_who_is_known_nor_takes_the_cpu() {
    let hash = bcrypt::hash("secret", 9).unwrap();
    let server = Arc::new(start(Some(&format!("basic_auth_users:\n  alice: {hash}\n"))).await);
    let known = basic("alice", "secret");
    assert_eq!(server.get("/metrics", &known).await.0, 200);
    let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let flood: Vec<_> = (0..60)
        .map(|i| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.get("/metrics", &basic("alice", &format!("wrong{i}"))).await.0 })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let before = cpu();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(server.get("/metrics", &known).await.0, 200);
        slowest = slowest.max(began.elapsed());
    }
    let spent = cpu().tv_sec - before.tv_sec;
    let mut busy = 0;
    for answer in flood {
        match answer.await.unwrap() {
            401 => {}
            429 => busy += 1,
            other => panic!("{other}"),
        }
    }
    assert!(busy > 40, "only {busy} of 60 were sent away unseen");
    assert!(slowest < Duration::from_secs(5) && spent < 20, "{slowest:?}, {spent} s of CPU");
}

#[tokio::test]
async fn tls_answers_and_plain_http_is_told_so() {
    let server = start(None).await;
    server.change(Some("tls_server_config:\n  cert_file: s.crt\n  key_file: s.key\n  min_version: TLS13\n"), true);
    let (status, answer) = exchange(server.tls(None).await.unwrap(), "/metrics", "").await;
    assert!(status == 200 && answer.contains("tcpwatch_"), "{answer}");
    let (status, _) = exchange(server.tls(None).await.unwrap(), "/api/v1/connections", "").await;
    assert_eq!(status, 404, "encryption is no authentication");
    let (status, answer) = server.get("/metrics", "").await;
    assert!(status == 400 && answer.contains("https://"), "{answer}");
    // A new certificate holds for new connections, without a restart.
    let before = fs::read(server.folder.path().join("s.crt")).unwrap();
    let renewed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(server.folder.path().join("s.crt"), renewed.cert.pem()).unwrap();
    fs::write(server.folder.path().join("s.key"), renewed.signing_key.serialize_pem()).unwrap();
    assert!(server.tls(None).await.is_err(), "not read yet, and so not trusted");
    assert_ne!(before, fs::read(server.folder.path().join("s.crt")).unwrap());
    server.change(Some("tls_server_config:\n  cert_file: s.crt\n  key_file: s.key\n"), true);
    assert_eq!(exchange(server.tls(None).await.unwrap(), "/metrics", "").await.0, 200);
}

#[tokio::test]
async fn client_certificates_are_an_authentication_when_they_are_required() {
    let client = rcgen::generate_simple_self_signed(["scraper".to_owned()]).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["stranger".to_owned()]).unwrap();
    let server = start(None).await;
    fs::write(server.folder.path().join("ca.crt"), client.cert.pem()).unwrap();
    let text = |kind: &str| {
        format!(
            "tls_server_config:\n  cert_file: s.crt\n  key_file: s.key\n  client_ca_file: ca.crt\n  client_auth_type: {kind}\n"
        )
    };
    // A connection from before the change is not taken for one with a certificate.
    let mut old = TcpStream::connect(server.address).await.unwrap();
    old.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    old.read_exact(&mut [0; 12]).await.unwrap();
    server.change(Some(&text("RequireAndVerifyClientCert")), true);
    let mut rest = vec![0; 4096];
    let _headers = timeout(DEADLINE, old.read(&mut rest)).await.unwrap().unwrap();
    assert_eq!(exchange(old, "/api/v1/status", "").await.0, 403);
    let (status, answer) = exchange(server.tls(Some(&client)).await.unwrap(), "/api/v1/status", "").await;
    assert_eq!(status, 200, "{answer}");
    for other in [None, Some(&stranger)] {
        // With TLS 1.3 the client learns of its refusal when it reads.
        if let Ok(mut stream) = server.tls(other).await {
            let mut answer = Vec::new();
            let _refused = stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            let _refused = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
            assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        }
    }
    server.change(Some(&text("VerifyClientCertIfGiven")), true);
    assert_eq!(exchange(server.tls(Some(&client)).await.unwrap(), "/api/v1/status", "").await.0, 404);
}

#[tokio::test]
async fn bodies_and_too_many_requests_are_refused() {
    let server = start(Some("rate_limit:\n  interval: 60s\n  burst: 2\n")).await;
    let (status, _) = server.get("/healthz", "Content-Length: 5000000\r\n").await;
    assert_eq!(status, 413);
    let (status, _) = server.get("/healthz", "Transfer-Encoding: chunked\r\n").await;
    assert_eq!(status, 413);
    assert_eq!(server.get("/healthz", "").await.0, 429);
}
