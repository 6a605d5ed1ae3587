//! The web configuration: TLS and authentication of the TCP address, in the file format of Prometheus' exporter-toolkit.
//!
//! Everything is checked when the file is read, the certificates too: what is wrong is told with its line and a remedy,
//! and a reload that fails changes nothing. `bearer_tokens` is ours; the toolkit has no such key.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;

use super::tls;

/// Longest file that is read, bytes.
const LONGEST: u64 = 1 << 20;
/// bcrypt doubles its time with each step; this one takes about three seconds.
const MOST_COST: u32 = 16;
/// Headers that may be added to answers: those of the toolkit.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
];

/// Why a web configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebConfigError {
    /// It cannot be read.
    #[error("cannot read the web configuration {}: {reason}; `web_config` names it, and tcpwatch's user must be able to read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 when the parser does not know it.
        line: u64,
        /// What, and what to do.
        what: String,
    },
}

/// A mistake at a place of the file.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) at: Location,
    pub(super) what: String,
}

impl Mistake {
    pub(super) fn new(at: Location, what: impl Display) -> Self {
        Self { at, what: what.to_string() }
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    tls_server_config: Option<Spanned<tls::Written>>,
    http_server_config: Option<HttpServer>,
    basic_auth_users: Option<BTreeMap<String, Spanned<String>>>,
    bearer_tokens: Option<BTreeMap<String, Spanned<String>>>,
    rate_limit: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HttpServer {
    /// Taken for the toolkit's sake: tcpwatch speaks HTTP/1.1, to which clients agree by themselves.
    http2: Option<bool>,
    headers: Option<BTreeMap<String, Spanned<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RateLimit {
    interval: Option<Spanned<String>>,
    burst: Option<Spanned<u32>>,
}

/// Who may read what, and how; all of it checked.
#[derive(Debug)]
pub(crate) struct WebConfig {
    /// None: plain HTTP.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Clients need a certificate of the configured authority.
    pub(super) certificates: bool,
    /// bcrypt hashes of passwords, by user.
    pub(super) users: BTreeMap<String, String>,
    /// SHA-256 of tokens.
    pub(super) tokens: Vec<[u8; 32]>,
    /// Added to every answer.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    limit: Option<Bucket>,
}

impl WebConfig {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self, WebConfigError> {
        let unreadable = |reason| WebConfigError::Unreadable { path: path.to_owned(), reason };
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
        if read.map_err(unreadable)? as u64 > LONGEST {
            return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB")));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, folder).map_err(|mistake| WebConfigError::Wrong {
            path: path.to_owned(),
            line: mistake.at.line(),
            what: mistake.what,
        })
    }

    /// Checks the text of a file in `folder`; the error is what is wrong.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn of_text(text: &str, folder: &Path) -> Result<Self, String> {
        Self::parse(text, folder).map_err(|mistake| mistake.what)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, Mistake> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Self::checked(Written::default(), folder);
        }
        let written: Written = serde_saphyr::from_str(text).map_err(|error| {
            let error = error.without_snippet();
            let words = error.to_string();
            // The line is told in front of it.
            let words = words.rsplit_once(" at line ").map_or(&*words, |(words, _)| words);
            Mistake::new(error.location().unwrap_or(Location::UNKNOWN), words)
        })?;
        Self::checked(written, folder)
    }

    fn checked(written: Written, folder: &Path) -> Result<Self, Mistake> {
        let tls = written.tls_server_config.map(|tls| tls::build(&tls, folder)).transpose()?;
        let certificates = tls.as_ref().is_some_and(|tls| tls.certificates);
        let mut users = BTreeMap::new();
        for (user, hash) in written.basic_auth_users.unwrap_or_default() {
            check_user(&user, &hash)?;
            users.insert(user, hash.value);
        }
        let tokens = written.bearer_tokens.unwrap_or_default();
        let tokens = tokens.iter().map(|(name, token)| digest(name, token)).collect::<Result<_, _>>()?;
        let headers = written.http_server_config.and_then(|http| http.headers).unwrap_or_default();
        let headers = headers.iter().map(|(name, value)| header(name, value)).collect::<Result<_, _>>()?;
        let limit = written.rate_limit.map_or(Ok(None), |limit| Bucket::new(&limit))?;
        Ok(Self { tls: tls.map(|tls| tls.config), certificates, users, tokens, headers, limit })
    }

    /// Whether only those come in who prove who they are.
    pub(super) fn authenticates(&self) -> bool {
        self.certificates || self.asks_for_credentials()
    }

    /// Whether a request must bring a password or a token.
    pub(super) fn asks_for_credentials(&self) -> bool {
        !self.users.is_empty() || !self.tokens.is_empty()
    }

    /// Whether another request is within `rate_limit`.
    pub(super) fn within_limit(&self) -> bool {
        self.limit.as_ref().is_none_or(Bucket::take)
    }

    /// Whether passwords and tokens cross the wire as they are.
    pub(crate) fn in_the_clear(&self) -> bool {
        self.tls.is_none() && self.asks_for_credentials()
    }
}

fn check_user(user: &str, hash: &Spanned<String>) -> Result<(), Mistake> {
    let wrong = |what: &str| Err(Mistake::new(hash.referenced, format!("`basic_auth_users`: {user:?}: {what}")));
    if user.is_empty() || user.contains(':') {
        return wrong("a user name has at least one character, and no colon");
    }
    match hash.value.parse::<bcrypt::HashParts>() {
        Ok(parts) if parts.get_cost() > MOST_COST => {
            wrong("the cost of the hash is more than 16; make it anew with 10")
        }
        Ok(_) => Ok(()),
        Err(_) => wrong("this is no bcrypt hash; `htpasswd -nBC 10 \"\" | tr -d ':\\n'` makes one from a password"),
    }
}

fn digest(name: &str, token: &Spanned<String>) -> Result<[u8; 32], Mistake> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; 32];
    let parsed = token.value.strip_prefix("sha256:").filter(|hex| hex.len() == 64).and_then(|hex| {
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let [high, low] = *digits else { return None };
            *byte = nibble(high)? << 4 | nibble(low)?;
        }
        Some(bytes)
    });
    parsed.ok_or_else(|| {
        let remedy = "it must be \"sha256:\" and 64 hexadecimal digits; `printf %s \"$TOKEN\" | sha256sum` tells them";
        Mistake::new(token.referenced, format!("`bearer_tokens`: {name:?}: {remedy}"))
    })
}

fn header(name: &str, value: &Spanned<String>) -> Result<(HeaderName, HeaderValue), Mistake> {
    let wrong = |what: String| Mistake::new(value.referenced, format!("`headers`: {name:?}: {what}"));
    if !HEADERS.contains(&name) {
        return Err(wrong(format!("only {} can be set", HEADERS.join(", "))));
    }
    let parsed = (name.parse::<HeaderName>().ok(), HeaderValue::from_str(&value.value).ok());
    let (Some(name), Some(value)) = parsed else { return Err(wrong("this cannot be the value of a header".into())) };
    Ok((name, value))
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    burst: u32,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(limit: &RateLimit) -> Result<Option<Self>, Mistake> {
        let Some(interval) = &limit.interval else { return Ok(None) };
        if interval.value.trim_start_matches('0').trim_start_matches(['s', 'm']).is_empty() {
            return Ok(None);
        }
        let time = crate::config::duration(&interval.value).ok_or_else(|| {
            Mistake::new(
                interval.referenced,
                "`interval` must be a time such as \"500ms\" or \"1s\", or \"0s\" for no limit",
            )
        })?;
        let burst = match &limit.burst {
            Some(burst) if burst.value == 0 => {
                return Err(Mistake::new(burst.referenced, "`burst` must be 1 or more, or every request is refused"));
            }
            Some(burst) => burst.value,
            None => 1,
        };
        Ok(Some(Self { interval: time, burst, state: Mutex::new((f64::from(burst), Instant::now())) }))
    }

    fn take(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let grown = now.duration_since(state.1).as_secs_f64() / self.interval.as_secs_f64();
        let tokens = (state.0 + grown).min(self.burst.into());
        let taken = tokens >= 1.0;
        *state = (if taken { tokens - 1.0 } else { tokens }, now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The line and the words of the complaint.
    fn complaint(text: &str) -> (u64, String) {
        let mistake = WebConfig::parse(text, Path::new("/nowhere")).expect_err(text);
        (mistake.at.line(), mistake.what)
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_a_remedy() {
        for (text, line, words) in [
            ("\nbasic_auth_user:\n  a: b\n", 2, "basic_auth_user"),
            ("basic_auth_users:\n  alice: secret\n", 2, "htpasswd"),
            ("basic_auth_users:\n  \"a:b\": x\n", 2, "no colon"),
            ("basic_auth_users:\n  a: $2y$20$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze\n", 2, "cost"),
            ("bearer_tokens:\n  ci: abc\n", 2, "sha256sum"),
            ("http_server_config:\n  headers:\n    X-Other: a\n", 3, "only Content-Security-Policy"),
            ("rate_limit:\n  interval: fast\n", 2, "such as"),
            ("rate_limit:\n  interval: 1s\n  burst: 0\n", 3, "1 or more"),
            ("tls_server_config:\n  cert_file: a.crt\n  key_file: a.key\n", 2, "/nowhere/a.crt"),
            ("tls_server_config:\n  cert_file: a.crt\n  keyfile: a.key\n", 3, "keyfile"),
            ("rate_limit: [\n", 1, ""),
            ("- a\n", 1, ""),
        ] {
            let (at, what) = complaint(text);
            assert!(at == line && what.contains(words), "{text}: line {at}: {what}");
        }
    }

    #[test]
    fn an_empty_file_asks_for_nothing() {
        for text in ["", "# nothing\n", "basic_auth_users:\n", "rate_limit:\n  interval: 0s\n"] {
            let web = WebConfig::parse(text, Path::new("/")).unwrap();
            assert!(!web.authenticates() && web.tls.is_none() && web.limit.is_none(), "{text}");
        }
    }

    #[test]
    fn the_example_of_the_toolkit_is_understood() {
        let text = "basic_auth_users:\n  alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze\n\
                    rate_limit:\n  interval: \"1s\" # time\n  burst: 20\n\
                    http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n";
        let web = WebConfig::parse(text, Path::new("/")).unwrap();
        assert!(web.authenticates() && web.in_the_clear());
        assert_eq!((web.users.len(), web.headers.len()), (1, 1));
        assert_eq!((0..30).filter(|_| web.within_limit()).count(), 20);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "((basic_auth_users|bearer_tokens|tls_server_config|rate_limit|a):( [a-z0-9$\\[{&*\"'|>-]{0,9})?\n|  [a-z_]{1,9}: .{0,9}\n){0,6}") {
            let _outcome = WebConfig::parse(&text, Path::new("/nowhere"));
        }
    }
}
