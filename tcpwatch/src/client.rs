//! Asks a daemon by its Unix socket: HTTP/1.1, one request after the other on one connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::Selection;
use crate::api::connection::Connection;
use crate::api::interest::Kinds;
use crate::api::resets::Resets;
use crate::api::service::ServiceTotals;
use crate::api::status::Status;
use crate::explain::Explained;
use crate::filter::Filter;
use crate::http::TOTAL;
use crate::http::params::Refusal;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The socket cannot be connected to.
    #[error("cannot reach the daemon at {}: {reason}; {}", path.display(), remedy(.reason))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The connection broke.
    #[error("the daemon broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// It answered with something else.
    #[error("the daemon refused {path}: {status}: {said}")]
    Refused {
        /// What was asked for.
        path: String,
        /// The status.
        status: StatusCode,
        /// The words.
        said: String,
    },
    /// It sends what no daemon sends.
    #[error("an event has no end; is it tcpwatch that listens there?")]
    Endless,
    /// It is of another version.
    #[error("the answer to {path} is not understood ({reason}); are daemon and command of the same version?")]
    Foreign {
        /// What was asked for.
        path: String,
        /// What the parser said.
        reason: serde_json::Error,
    },
}

fn remedy(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => "be a member of the group that owns the socket, or root",
        _ => "is `tcpwatch run` running there? --socket names another path",
    }
}

impl ClientError {
    /// Whether nobody listens there, so that there is no daemon.
    pub(crate) fn nobody(&self) -> bool {
        matches!(self, Self::Connect { reason, .. }
            if matches!(reason.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

/// A connection to a daemon.
pub(crate) struct Client {
    path: Option<PathBuf>,
    sender: SendRequest<Empty<Bytes>>,
}

impl Client {
    /// Connects to the socket at `path`.
    pub(crate) async fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(|reason| ClientError::Connect { path: path.to_owned(), reason })?;
        Ok(Self { path: Some(path.to_owned()), ..Self::over(stream).await? })
    }

    /// Talks over a stream that is connected already.
    pub(crate) async fn over(stream: UnixStream) -> Result<Self, ClientError> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("the connection to the daemon ended: {error}");
            }
        });
        Ok(Self { path: None, sender })
    }

    /// How the daemon is.
    pub(crate) async fn status(&mut self) -> Result<Status, ClientError> {
        let path = "/api/v1/status";
        parse(path, &self.get(path).await?)
    }

    /// Resets by cause, stack and evidence.
    pub(crate) async fn resets(&mut self) -> Result<Resets, ClientError> {
        let path = "/api/v1/resets";
        parse(path, &self.get(path).await?)
    }

    /// Services, with rates and quantiles.
    pub(crate) async fn services(&mut self) -> Result<Vec<ServiceTotals>, ClientError> {
        let path = "/api/v1/services";
        lines(path, &self.get(path).await?)
    }

    /// A page of the connections, and how many there are on all pages.
    pub(crate) async fn connections(&mut self, selection: &Selection) -> Result<(Vec<Connection>, usize), ClientError> {
        let number = |number: usize, none: usize| (number != none).then(|| number.to_string());
        let (limit, offset) = (number(selection.limit, usize::MAX), number(selection.offset, 0));
        let filter = selection.filter.as_ref().map(ToString::to_string);
        let path = path_with(
            "/api/v1/connections",
            &[
                ("sort", selection.sort.map(|column| column.name)),
                ("reverse", selection.reversed.then_some("true")),
                ("limit", limit.as_deref()),
                ("offset", offset.as_deref()),
                ("filter", filter.as_deref()),
                ("contains", selection.contains.as_deref()),
            ],
        );
        let answer = self.send(&path).await?;
        let total = answer.headers().get(TOTAL).and_then(|total| total.to_str().ok()?.parse().ok());
        let page: Vec<Connection> = lines(&path, &body(&path, answer).await?)?;
        let total = total.unwrap_or(page.len());
        Ok((page, total))
    }

    /// Verdicts, a line of JSON each: of everything in trouble, or of `all` that the filter selects.
    pub(crate) async fn explain(
        &mut self,
        filter: Option<&Filter>,
        window: Option<Duration>,
        all: bool,
    ) -> Result<Vec<Explained>, ClientError> {
        let filter = filter.map(ToString::to_string);
        let window = window.map(|time| format!("{}ms", time.as_millis()));
        let path = path_with(
            "/api/v1/explain",
            &[("filter", filter.as_deref()), ("for", window.as_deref()), ("all", all.then_some("true"))],
        );
        lines(&path, &self.get(&path).await?)
    }

    /// Follows events, until the daemon ends or the time `until` is over.
    pub(crate) async fn events(
        mut self,
        kinds: Kinds,
        filter: Option<&Filter>,
        until: Option<Duration>,
    ) -> Result<Events, ClientError> {
        let (kinds, filter) = (kinds.list(), filter.map(ToString::to_string));
        let until = until.map(|time| format!("{}ms", time.as_millis()));
        let path = path_with(
            "/api/v1/events",
            &[("kind", Some(kinds.as_str())), ("filter", filter.as_deref()), ("for", until.as_deref())],
        );
        let answer = self.send(&path).await?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(Events { body: answer.into_body(), text: Vec::new(), _client: self });
        }
        Err(refused(path, status, &answer.into_body().collect().await?.to_bytes()))
    }

    async fn get(&mut self, path: &str) -> Result<Bytes, ClientError> {
        body(path, self.send(path).await?).await
    }

    async fn send(&mut self, path: &str) -> Result<Response<Incoming>, ClientError> {
        if self.sender.ready().await.is_err()
            && let Some(socket) = &self.path
        {
            // The daemon was restarted, or ended a connection that was idle for long.
            *self = Self::connect(&socket.clone()).await?;
        }
        let mut request = Request::new(Empty::new());
        // Paths are made here and are valid; a mistake would be answered with "not found".
        *request.uri_mut() = path.parse().unwrap_or_default();
        request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
        Ok(self.sender.send_request(request).await?)
    }
}

/// The body of an answer that is one.
async fn body(path: &str, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if status == StatusCode::OK { Ok(body) } else { Err(refused(path.to_owned(), status, &body)) }
}

/// The objects of an answer that has one a line.
fn lines<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<Vec<T>, ClientError> {
    body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| parse(path, line)).collect()
}

fn refused(path: String, status: StatusCode, body: &[u8]) -> ClientError {
    let said = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.error,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    ClientError::Refused { path, status, said }
}

/// A path with those parameters that have a value.
fn path_with(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    format!("{path}?{}", query.finish())
}

/// A stream of events.
pub(crate) struct Events {
    body: Incoming,
    text: Vec<u8>,
    _client: Client,
}

/// Bytes of one event, at most: more is not from a daemon of ours.
const MOST_OF_AN_EVENT: usize = 1 << 20;

impl Events {
    /// The next event, one JSON object; `None` when there are no more. Nothing is lost when it is not awaited to the end.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                // Names of events are in the objects too; empty lines and comments keep the connection alive.
                if let Some(data) = line.strip_prefix(b"data: ") {
                    return Ok(Some(String::from_utf8_lossy(data).trim_end().to_owned()));
                }
            }
            if self.text.len() > MOST_OF_AN_EVENT {
                return Err(ClientError::Endless);
            }
            match self.body.frame().await {
                Some(frame) => self.text.extend_from_slice(&frame?.into_data().unwrap_or_default()),
                None => return Ok(None),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(path: &str, text: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(text).map_err(|reason| ClientError::Foreign { path: path.to_owned(), reason })
}
