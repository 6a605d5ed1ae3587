//! By which names this host may be asked for.
//!
//! A web page in a browser on this host, or near it, can point a name of its own at our address and read the answer
//! (DNS rebinding). It cannot make the browser send another name than that one in the Host header.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::extract::Request;
use axum::http::{StatusCode, Version, header};

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// HTTP/1.1 wants exactly one Host header.
    #[error("the request must have one Host header")]
    Header,
    /// A name that nobody has allowed.
    #[error(
        "the Host header is {0:?}, which is neither `localhost` nor an IP address nor listed in the setting `allowed_hosts`"
    )]
    Name(String),
}

impl Refusal {
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Header => StatusCode::BAD_REQUEST,
            Self::Name(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// Whether the request asks for this host by an address, as `localhost`, or by one of `names`.
pub(super) fn check(request: &Request, names: &[String]) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    // Only HTTP/1.0 does without, and no browser speaks that.
    if hosts.next().is_some() || (host.is_none() && request.version() > Version::HTTP_10) {
        return Err(Refusal::Header);
    }
    let host = host.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    let target = request.uri().authority().map(ToString::to_string);
    match host.into_iter().chain(target).find(|host| !allowed(host, names)) {
        Some(host) => Err(Refusal::Name(host)),
        None => Ok(()),
    }
}

fn allowed(host: &str, names: &[String]) -> bool {
    let Some(name) = without_port(host) else { return false };
    if let Some(address) = name.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.parse::<Ipv4Addr>().is_ok() || names.contains(&name)
}

/// The part before the port; none when what should be the port is none.
fn without_port(host: &str) -> Option<&str> {
    let end_of_address = host.rfind(']').map_or(0, |end| end + 1);
    let (name, port) = match host.get(end_of_address..)?.find(':') {
        Some(colon) => host.split_at_checked(end_of_address + colon)?,
        None => (host, ":"),
    };
    port.strip_prefix(':')?.bytes().all(|c| c.is_ascii_digit()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use proptest::prelude::*;

    #[test]
    fn addresses_localhost_and_listed_names_are_allowed() {
        let names = ["web-1".to_owned()];
        for host in
            ["localhost", "LOCALHOST:10793", "127.0.0.1", "10.0.0.7:80", "[::1]", "[fe80::1]:10793", "web-1", "Web-1:9"]
        {
            assert!(allowed(host, &names), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:10793",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "web-1.evil",
            "localhost:x",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[evil]",
            "::1",
            "1.2.3",
            "user@localhost",
            "localhost:80:90",
        ] {
            assert!(!allowed(host, &names), "{host}");
        }
    }

    #[test]
    fn there_must_be_one_host_and_the_target_counts_too() {
        let request = |uri: &str, hosts: &[&str], version| {
            let mut request = Request::builder().uri(uri).version(version);
            for host in hosts {
                request = request.header("host", *host);
            }
            request.body(Body::empty()).unwrap()
        };
        let names = [];
        assert_eq!(check(&request("/", &["localhost"], Version::HTTP_11), &names), Ok(()));
        assert_eq!(check(&request("/", &[], Version::HTTP_10), &names), Ok(()));
        assert_eq!(check(&request("/", &[], Version::HTTP_11), &names), Err(Refusal::Header));
        assert_eq!(check(&request("/", &["localhost", "localhost"], Version::HTTP_11), &names), Err(Refusal::Header));
        let evil = Err(Refusal::Name("evil.example".to_owned()));
        assert_eq!(check(&request("http://evil.example/", &["localhost"], Version::HTTP_11), &names), evil);
        assert_eq!(check(&request("http://localhost/", &["evil.example"], Version::HTTP_11), &names), evil);
    }

    proptest! {
        #[test]
        fn any_host_is_judged(host in "[\\[\\]:a-z0-9.é@-]{0,30}") {
            let _verdict = allowed(&host, &[]);
        }
    }
}
