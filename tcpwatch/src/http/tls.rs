//! TLS of the TCP address: making rustls' configuration from what is written, and the stream of a connection.

use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{WebPkiClientVerifier, danger::ClientCertVerifier};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream;

use super::auth::Access;
use super::serve::{Listen, Peer};
use super::web_config::Mistake;

/// `tls_server_config` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    cert: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    cert_file: Option<Spanned<PathBuf>>,
    key_file: Option<Spanned<PathBuf>>,
    client_auth_type: Option<Spanned<String>>,
    client_ca: Option<Spanned<String>>,
    client_ca_file: Option<Spanned<PathBuf>>,
    client_allowed_sans: Option<Spanned<Vec<String>>>,
    min_version: Option<Spanned<String>>,
    max_version: Option<Spanned<String>>,
    cipher_suites: Option<Spanned<Vec<String>>>,
    prefer_server_cipher_suites: Option<bool>,
    curve_preferences: Option<Spanned<Vec<String>>>,
}

/// What becomes of it.
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    /// Clients need a certificate.
    pub(super) certificates: bool,
}

/// Which certificates clients need.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clients {
    Anybody,
    VerifiedIfGiven,
    Verified,
}

pub(super) fn build(written: &Spanned<Written>, folder: &Path) -> Result<Tls, Mistake> {
    let (at, written) = (written.referenced, &written.value);
    if let Some(sans) = &written.client_allowed_sans {
        let remedy = "tcpwatch does not look at names in client certificates: sign those that may come in with an \
                      authority of their own, and name that in `client_ca_file`";
        return Err(Mistake::new(sans.referenced, format!("`client_allowed_sans`: {remedy}")));
    }
    let certificate = Pem::of("cert", written.cert.as_ref(), written.cert_file.as_ref(), folder)?
        .ok_or_else(|| Mistake::new(at, "`tls_server_config` needs `cert_file` and `key_file`"))?;
    let key = Pem::of("key", written.key.as_ref(), written.key_file.as_ref(), folder)?
        .ok_or_else(|| Mistake::new(at, "`tls_server_config` needs `key_file` beside `cert_file`"))?;
    let provider = Arc::new(provider(written)?);
    let (clients, verifier) = clients(written, at, folder, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(written)?)
        .map_err(|error| Mistake::new(at, format!("`tls_server_config`: {error}; drop `cipher_suites`")))?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let (chain, secret) = (certificate.certificates()?, key.private_key()?);
    let mut config = builder
        .with_single_cert(chain, secret)
        .map_err(|error| key.wrong(format!("{error}; it must be the key of the certificate")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = written.prefer_server_cipher_suites.unwrap_or(true);
    Ok(Tls { config: Arc::new(config), certificates: clients == Clients::Verified })
}

/// PEM, and where it came from.
struct Pem {
    at: Location,
    source: String,
    text: Vec<u8>,
}

impl Pem {
    fn of(
        key: &str,
        inline: Option<&Spanned<String>>,
        file: Option<&Spanned<PathBuf>>,
        folder: &Path,
    ) -> Result<Option<Self>, Mistake> {
        match (inline, file) {
            (Some(_), Some(file)) => {
                Err(Mistake::new(file.referenced, format!("`{key}` and `{key}_file` are both set; keep one of them")))
            }
            (Some(inline), None) => {
                Ok(Some(Self { at: inline.referenced, source: format!("`{key}`"), text: inline.value.clone().into() }))
            }
            (None, Some(file)) => {
                let path = folder.join(&file.value);
                let source = format!("`{key}_file` {}", path.display());
                let text = fs::read(&path).map_err(|error| {
                    Mistake::new(file.referenced, format!("{source}: {error}; tcpwatch's user must be able to read it"))
                })?;
                Ok(Some(Self { at: file.referenced, source, text }))
            }
            (None, None) => Ok(None),
        }
    }

    fn wrong(&self, what: impl Display) -> Mistake {
        Mistake::new(self.at, format!("{}: {what}", self.source))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Mistake> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.text)
            .collect::<Result<_, _>>()
            .map_err(|error| self.wrong(format!("{error}; it must hold certificates in PEM")))?;
        if chain.is_empty() {
            Err(self.wrong("no certificate in it; it must hold certificates in PEM"))
        } else {
            Ok(chain)
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, Mistake> {
        PrivateKeyDer::from_pem_slice(&self.text)
            .map_err(|error| self.wrong(format!("{error}; it must hold a private key in PEM, not encrypted")))
    }
}

fn clients(
    written: &Written,
    at: Location,
    folder: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<(Clients, Option<Arc<dyn ClientCertVerifier>>), Mistake> {
    let authority = Pem::of("client_ca", written.client_ca.as_ref(), written.client_ca_file.as_ref(), folder)?;
    let wanted = written.client_auth_type.as_ref();
    let clients = match wanted.map(|wanted| wanted.value.as_str()) {
        None | Some("" | "NoClientCert") => Clients::Anybody,
        Some("VerifyClientCertIfGiven") => Clients::VerifiedIfGiven,
        Some("RequireAndVerifyClientCert") => Clients::Verified,
        Some(other) => {
            let at = wanted.map_or(at, |wanted| wanted.referenced);
            let remedy = "it must be \"NoClientCert\", \"VerifyClientCertIfGiven\" or \"RequireAndVerifyClientCert\"; \
                          a certificate that nobody verifies proves nothing";
            return Err(Mistake::new(at, format!("`client_auth_type` is {other:?}; {remedy}")));
        }
    };
    match (clients, authority) {
        (Clients::Anybody, None) => Ok((clients, None)),
        (Clients::Anybody, Some(authority)) => Err(authority
            .wrong("it is used by nobody; set `client_auth_type` to \"RequireAndVerifyClientCert\", or leave it out")),
        (_, None) => Err(Mistake::new(
            wanted.map_or(at, |wanted| wanted.referenced),
            "`client_auth_type` needs `client_ca_file`, the authority of the clients' certificates",
        )),
        (_, Some(authority)) => {
            let mut roots = RootCertStore::empty();
            for certificate in authority.certificates()? {
                roots.add(certificate).map_err(|error| authority.wrong(error))?;
            }
            let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            if clients == Clients::VerifiedIfGiven {
                builder = builder.allow_unauthenticated();
            }
            Ok((clients, Some(builder.build().map_err(|error| authority.wrong(error))?)))
        }
    }
}

fn versions(written: &Written) -> Result<Vec<&'static SupportedProtocolVersion>, Mistake> {
    const ALL: [(&str, &SupportedProtocolVersion); 2] = [("TLS12", &TLS12), ("TLS13", &TLS13)];
    let place = |key: &str, value: Option<&Spanned<String>>, default: usize| match value {
        None => Ok(default),
        Some(value) => ALL.iter().position(|(name, _)| *name == value.value).ok_or_else(|| {
            Mistake::new(value.referenced, format!("`{key}` is {:?}; it must be \"TLS12\" or \"TLS13\"", value.value))
        }),
    };
    let least = place("min_version", written.min_version.as_ref(), 0)?;
    let most = place("max_version", written.max_version.as_ref(), 1)?;
    match (ALL.get(least..=most), &written.max_version) {
        (None | Some([]), Some(most)) => {
            Err(Mistake::new(most.referenced, "`max_version` is below `min_version`; raise it"))
        }
        (range, _) => Ok(range.unwrap_or(&ALL).iter().map(|(_, version)| *version).collect()),
    }
}

/// The provider with the wanted suites and curves only, in the wanted order.
fn provider(written: &Written) -> Result<CryptoProvider, Mistake> {
    let mut provider = ring::default_provider();
    if let Some(names) = &written.cipher_suites {
        let all = std::mem::take(&mut provider.cipher_suites);
        // As in Go, the names choose among the suites of TLS 1.2; those of 1.3 are all good and always there.
        let (newest, older): (Vec<_>, Vec<_>) = all.into_iter().partition(|suite| suite.tls13().is_some());
        let chosen = choose("cipher_suites", names, &older, |suite| format!("{:?}", suite.suite()))?;
        provider.cipher_suites = newest.into_iter().chain(chosen).collect();
    }
    if let Some(names) = &written.curve_preferences {
        let all = std::mem::take(&mut provider.kx_groups);
        provider.kx_groups =
            choose("curve_preferences", names, &all, |group| match format!("{:?}", group.name()).as_str() {
                "secp256r1" => "CurveP256".to_owned(),
                "secp384r1" => "CurveP384".to_owned(),
                other => other.to_owned(),
            })?;
    }
    Ok(provider)
}

fn choose<T: Copy>(
    key: &str,
    names: &Spanned<Vec<String>>,
    all: &[T],
    name: impl Fn(T) -> String,
) -> Result<Vec<T>, Mistake> {
    let find = |wanted: &String| {
        all.iter().copied().find(|one| name(*one) == *wanted).ok_or_else(|| {
            let known = all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", ");
            Mistake::new(names.referenced, format!("`{key}` names {wanted:?}; there are {known}"))
        })
    };
    names.value.iter().map(find).collect()
}

/// The TCP address: each connection is opened as the settings of that moment say.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) access: watch::Receiver<Arc<Access>>,
}

impl Listen for Door {
    type Stream = Stream;
    type Opening = Pin<Box<dyn Future<Output = io::Result<(Stream, Peer)>> + Send>>;

    async fn next(&self) -> io::Result<Self::Opening> {
        let (stream, _) = self.listener.accept().await?;
        // Answers are written in one go; there is nothing to wait for.
        let _best_effort = stream.set_nodelay(true);
        let tls = self.access.borrow().web.as_ref().and_then(|web| Some((web.tls.clone()?, web.certificates)));
        Ok(Box::pin(async move {
            match tls {
                None => Ok((Stream::Plain(stream), Peer { certified: false })),
                Some((config, certified)) => Ok((shake_hands(config, stream).await?, Peer { certified })),
            }
        }))
    }
}

async fn shake_hands(config: Arc<ServerConfig>, mut stream: TcpStream) -> io::Result<Stream> {
    const HINT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n\
                          this address speaks HTTPS: ask for https://\n";
    let mut first = [0];
    // TLS begins with a byte that is no letter, a request of HTTP with one.
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        stream.write_all(HINT).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP at an address that speaks HTTPS"));
    }
    Ok(Stream::Tls(Box::new(TlsAcceptor::from(config).accept(stream).await?)))
}

/// A connection, encrypted or not.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
