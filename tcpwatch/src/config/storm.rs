//! What the settings of storms may be.

use hyper::Uri;

use super::rules::{Raw, Rule, quoted};
use crate::storm;
use crate::storm::mute::Prefix;

/// A cause of storms.
#[derive(Debug)]
pub(crate) struct StormCause;

impl Rule for StormCause {
    type Value = String;

    fn allowed() -> String {
        format!("one of {}", storm::CAUSES.map(quoted).join(", "))
    }

    fn parse(raw: &Raw) -> Option<String> {
        let name = raw.as_str()?;
        storm::CAUSES.contains(&name).then(|| name.to_owned())
    }

    fn show(value: &String) -> String {
        quoted(value)
    }
}

/// A range of addresses.
#[derive(Debug)]
pub(crate) struct Network;

impl Rule for Network {
    type Value = Prefix;

    fn allowed() -> String {
        "an IP address or the beginning of addresses, such as \"10.0.0.0/8\" or \"2001:db8::/32\"".to_owned()
    }

    fn parse(raw: &Raw) -> Option<Prefix> {
        Prefix::parse(raw.as_str()?)
    }

    fn show(value: &Prefix) -> String {
        quoted(&value.show())
    }
}

/// A program and its arguments, which may repeat.
#[derive(Debug)]
pub(crate) struct Words<const MOST: usize>;

impl<const MOST: usize> Rule for Words<MOST> {
    type Value = Vec<String>;

    fn allowed() -> String {
        format!("a list of at most {MOST} words, the first of them the absolute path of a program")
    }

    fn parse(raw: &Raw) -> Option<Vec<String>> {
        let words: Vec<_> = match raw {
            Raw::List(items) => items
                .iter()
                .map(|item| match item {
                    // As it stands there: an argument may begin with a space.
                    Raw::String(word) => Some(word.clone()),
                    _ => None,
                })
                .collect::<Option<_>>()?,
            Raw::Text(text) if text.trim().is_empty() => Vec::new(),
            Raw::Text(text) => text.split(',').map(|word| word.trim().to_owned()).collect(),
            _ => return None,
        };
        let program = words.first().is_none_or(|program| program.starts_with('/'));
        let legal = words.iter().all(|word| !word.contains('\0'));
        (words.len() <= MOST && program && legal).then_some(words)
    }

    fn show(value: &Vec<String>) -> String {
        format!("[{}]", value.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
    }
}

/// The name of a user, or the numbers of a user and a group.
#[derive(Debug)]
pub(crate) struct UserName;

impl Rule for UserName {
    type Value = String;

    fn allowed() -> String {
        "the name of a user, or UID:GID, and not root".to_owned()
    }

    fn parse(raw: &Raw) -> Option<String> {
        let name = raw.as_str()?;
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let numbers = name.split_once(':').map(|(uid, gid)| (uid.parse::<u32>(), gid.parse::<u32>()));
        let allowed = match numbers {
            Some((Ok(uid), Ok(gid))) => uid > 0 && gid > 0 && uid < u32::MAX && gid < u32::MAX,
            Some(_) => false,
            None => name != "root" && !name.is_empty() && name.len() <= 32 && name.bytes().all(legal),
        };
        allowed.then(|| name.to_owned())
    }

    fn show(value: &String) -> String {
        quoted(value)
    }
}

/// An address to post to.
#[derive(Debug)]
pub(crate) struct Webhook;

impl Rule for Webhook {
    type Value = Option<Uri>;

    fn allowed() -> String {
        "empty, or an address such as \"http://127.0.0.1:9000/storm\"; for https put a proxy in between, there is no TLS \
         client here"
            .to_owned()
    }

    fn parse(raw: &Raw) -> Option<Option<Uri>> {
        let text = raw.as_str()?;
        if text.is_empty() {
            return Some(None);
        }
        let uri: Uri = text.parse().ok()?;
        // A name and password would have to be turned into a header, and would stand in the log.
        let legal = uri.scheme_str() == Some("http") && uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        legal.then_some(Some(uri))
    }

    fn show(value: &Option<Uri>) -> String {
        quoted(&value.as_ref().map_or_else(String::new, ToString::to_string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Raw {
        Raw::String(text.to_owned())
    }

    #[test]
    fn commands_are_words_and_no_lines_of_a_shell() {
        let list = |words: &[&str]| Raw::List(words.iter().map(|word| string(word)).collect());
        let parsed = Words::<3>::parse(&list(&["/bin/x", "-v", "-v"])).unwrap();
        assert_eq!((parsed.len(), Words::<3>::show(&parsed)), (3, "[\"/bin/x\", \"-v\", \"-v\"]".to_owned()));
        assert_eq!(Words::<3>::parse(&Raw::Text("/bin/x, a".to_owned())).unwrap(), ["/bin/x", "a"]);
        assert_eq!(Words::<3>::parse(&list(&[])), Some(vec![]));
        assert_eq!(Words::<3>::parse(&list(&["x"])), None, "where it is found depends on the path");
        assert_eq!(Words::<3>::parse(&string("/bin/x a")), None);
        assert_eq!(Words::<3>::parse(&list(&["/a", "b", "c", "d"])), None);
    }

    #[test]
    fn root_is_nobody_to_run_commands_as() {
        assert_eq!(UserName::parse(&string("alerts")), Some("alerts".to_owned()));
        assert_eq!(UserName::parse(&string("65534:65534")), Some("65534:65534".to_owned()));
        for wrong in ["root", "", "0:1", "1:0", "1:", "a:b", "a b", "1:4294967295"] {
            assert_eq!(UserName::parse(&string(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn webhooks_are_plain_http() {
        let shown = |text: &str| Webhook::parse(&string(text)).map(|uri| Webhook::show(&uri));
        assert_eq!(shown("http://a.example:9/x?y=1"), Some("\"http://a.example:9/x?y=1\"".to_owned()));
        assert_eq!(shown(""), Some("\"\"".to_owned()));
        for wrong in ["https://a.example/", "a.example", "/x", "http://u:p@a.example/", "ftp://a/"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }
}
