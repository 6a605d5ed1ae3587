//! Asks a daemon by its Unix socket: HTTP/1.1, one request after the other on one connection.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::connection::Connection;
use crate::api::status::Status;

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

    /// Connections by `sort`, at most `limit` of them.
    pub(crate) async fn connections(
        &mut self,
        sort: &str,
        limit: Option<usize>,
    ) -> Result<Vec<Connection>, ClientError> {
        let limit = limit.map_or_else(String::new, |limit| format!("&limit={limit}"));
        let path = format!("/api/v1/connections?sort={sort}{limit}");
        let body = self.get(&path).await?;
        body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| parse(&path, line)).collect()
    }

    async fn get(&mut self, path: &str) -> Result<Bytes, ClientError> {
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
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let said = String::from_utf8_lossy(&body).trim().to_owned();
        Err(ClientError::Refused { path: path.to_owned(), status, said })
    }
}

fn parse<T: DeserializeOwned>(path: &str, text: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(text).map_err(|reason| ClientError::Foreign { path: path.to_owned(), reason })
}
