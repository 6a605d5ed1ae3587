//! Who may read what: the settings of the moment, and whether a request's credentials are good.
//!
//! bcrypt is slow on purpose. It runs off the task that drains the ring buffer, one password at a time and, when
//! passwords are wrong, for a tenth of one CPU at most. What was found out is kept under a keyed hash, so that a scraper
//! waits once, and a flood of wrong passwords does not delay it.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lru::LruCache;
use ring::rand::SystemRandom;
use ring::{digest, hmac};
use subtle::ConstantTimeEq as _;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::host;
use super::serve::Peer;
use super::web_config::WebConfig;

/// What may change while the daemon runs.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// Names under which clients may ask for this host.
    pub(crate) names: Vec<String>,
    /// TLS and authentication of the TCP address.
    pub(crate) web: Option<WebConfig>,
    /// Whether there are addresses to be had at all.
    pub(crate) connection_data: bool,
}

/// Pages without addresses, which the TCP address has for everybody when it asks nobody who they are.
const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];
/// The page of the API that has no addresses.
const WITHOUT_ADDRESSES: &str = "/api/v1/status";

/// Requests with a password that is not known yet that may wait for their turn.
const MOST_WAITING: usize = 8;
/// Passwords that are remembered, good and bad.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// After a wrong password the next is looked at when this many times its duration has passed.
const REST: u32 = 9;
/// But not later than that.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Stands before the pages.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    access: watch::Receiver<Arc<Access>>,
    verifier: Arc<Verifier>,
}

impl Gate {
    pub(super) fn new(access: watch::Receiver<Arc<Access>>) -> Result<Self, NoRandomness> {
        Ok(Self { access, verifier: Arc::new(Verifier::new()?) })
    }
}

#[expect(clippy::unnecessary_box_returns, reason = "an error in a Result should be small")]
fn refuse(status: StatusCode, words: &str) -> Box<Response> {
    Box::new((status, format!("{words}\n")).into_response())
}

/// Before the pages of the TCP address.
pub(super) async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let access = Arc::clone(&gate.access.borrow());
    let named = host::check(&request, &access.names);
    let (parts, body) = request.into_parts();
    let judged = match named {
        Ok(()) => judge(&gate.verifier, &access, &parts).await,
        Err(refusal) => Err(refuse(refusal.status(), &refusal.to_string())),
    };
    let mut answer = match judged {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => *refusal,
    };
    let headers = answer.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(web) = &access.web {
        headers.extend(web.headers.iter().cloned());
    }
    answer
}

async fn judge(verifier: &Verifier, access: &Access, request: &Parts) -> Result<(), Box<Response>> {
    let peer = request.extensions.get::<Peer>().copied().unwrap_or_default();
    let path = request.uri.path();
    let web = access.web.as_ref();
    if let Some(web) = web {
        if !web.within_limit() {
            return Err(refuse(StatusCode::TOO_MANY_REQUESTS, "more requests than `rate_limit` allows"));
        }
        if web.certificates && !peer.certified {
            return Err(refuse(StatusCode::FORBIDDEN, "the settings have changed: connect again"));
        }
        if web.asks_for_credentials() {
            verifier
                .check(web, request.headers.get(header::AUTHORIZATION))
                .await
                .map_err(|denied| Box::new(denied.into_response()))?;
        }
    }
    if OPEN.contains(&path) {
        return Ok(());
    }
    if !web.is_some_and(WebConfig::authenticates) {
        let words = "not found; there are /metrics, /healthz and /readyz; the API is at the Unix socket, and here when \
                     `web_config` has authentication";
        return Err(refuse(StatusCode::NOT_FOUND, words));
    }
    // A page of another site can make a browser send the password that it remembers. It could not read the answer, for
    // want of CORS headers, but there is no reason to make one.
    let site = request.headers.get(HeaderName::from_static("sec-fetch-site")).map(HeaderValue::as_bytes);
    let foreign = site.is_some_and(|site| site != b"same-origin" && site != b"none");
    if foreign || request.headers.contains_key(header::ORIGIN) {
        return Err(refuse(StatusCode::FORBIDDEN, "the API is not for the pages of other sites"));
    }
    with_addresses(access, path)
}

/// Before the pages of the Unix socket: whoever can open it may read what there is.
pub(super) async fn admit_local(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let access = Arc::clone(&gate.access.borrow());
    match with_addresses(&access, request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => *refusal,
    }
}

fn with_addresses(access: &Access, path: &str) -> Result<(), Box<Response>> {
    if access.connection_data || path == WITHOUT_ADDRESSES || OPEN.contains(&path) {
        return Ok(());
    }
    let words = "data about single connections is switched off by the setting `connection_data`";
    Err(refuse(StatusCode::FORBIDDEN, words))
}

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq)]
enum Denied {
    /// No credentials, or wrong ones.
    Unknown,
    /// Too many others are being looked at.
    Busy,
}

impl Denied {
    fn into_response(self) -> Response {
        match self {
            Self::Unknown => {
                let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"tcpwatch\"")];
                (StatusCode::UNAUTHORIZED, challenge, "a valid user and password, or token, is needed\n")
                    .into_response()
            }
            Self::Busy => {
                let later = [(header::RETRY_AFTER, "2")];
                (StatusCode::TOO_MANY_REQUESTS, later, "too many passwords to check; try again\n").into_response()
            }
        }
    }
}

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub(super) struct NoRandomness;

/// Checks credentials.
#[derive(Debug)]
struct Verifier {
    /// Of this process alone, so that what is remembered is of no use elsewhere.
    key: hmac::Key,
    known: Arc<Mutex<LruCache<[u8; 32], bool>>>,
    waiting: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

impl Verifier {
    fn new() -> Result<Self, NoRandomness> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| NoRandomness)?;
        Ok(Self {
            key,
            known: Arc::new(Mutex::new(LruCache::new(REMEMBERED))),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    async fn check(&self, web: &WebConfig, authorization: Option<&HeaderValue>) -> Result<(), Denied> {
        let (scheme, rest) =
            authorization.and_then(|value| value.to_str().ok()?.split_once(' ')).ok_or(Denied::Unknown)?;
        let good = if scheme.eq_ignore_ascii_case("bearer") {
            known_token(web, rest.trim())
        } else if scheme.eq_ignore_ascii_case("basic") {
            self.known_password(web, rest.trim()).await?
        } else {
            false
        };
        if good { Ok(()) } else { Err(Denied::Unknown) }
    }

    async fn known_password(&self, web: &WebConfig, encoded: &str) -> Result<bool, Denied> {
        let pair = STANDARD.decode(encoded).ok().and_then(|pair| String::from_utf8(pair).ok());
        let Some((user, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else { return Ok(false) };
        // An unknown user takes as long as a known one, or the time would tell which names there are.
        let found = web.users.get(user);
        let Some(hash) = found.or_else(|| web.users.values().next()).cloned() else { return Ok(false) };
        let exists = found.is_some();
        let tag = self.tag(&[user, &hash, password]);
        if let Some(good) = self.remembered(&tag) {
            return Ok(good);
        }
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| Denied::Busy)?;
        let (tell, told) = oneshot::channel();
        let (known, turn, password) = (Arc::clone(&self.known), Arc::clone(&self.turn), password.to_owned());
        // A task of its own: who leaves early must not get a free look at the next password.
        tokio::spawn(async move {
            let Ok(turn) = turn.acquire_owned().await else { return };
            let before = known.lock().unwrap_or_else(PoisonError::into_inner).get(&tag).copied();
            if let Some(good) = before {
                let _gone = tell.send(good);
                return;
            }
            let began = Instant::now();
            let verified = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
            let good = verified.await.unwrap_or(false) && exists;
            known.lock().unwrap_or_else(PoisonError::into_inner).put(tag, good);
            let _gone = tell.send(good);
            drop(place);
            if !good {
                sleep((began.elapsed() * REST).min(LONGEST_REST)).await;
            }
            drop(turn);
        });
        Ok(told.await.unwrap_or(false))
    }

    fn remembered(&self, tag: &[u8; 32]) -> Option<bool> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(tag).copied()
    }

    fn tag(&self, parts: &[&str]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }
}

/// Tokens are long and random, so that a fast hash is enough; every one is compared, in constant time.
fn known_token(web: &WebConfig, token: &str) -> bool {
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    let matches = |found, known: &[u8; 32]| found | known.as_slice().ct_eq(hash.as_ref());
    web.tokens.iter().fold(subtle::Choice::from(0), matches).into()
}
