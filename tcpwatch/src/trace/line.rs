//! An event in one line for people.

use serde_json::Value;

use crate::api::text::printable;
use crate::top::columns::{bytes, duration};

/// What is said of an event.
pub(super) fn line(event: &Value, colour: bool) -> String {
    let kind = text(event, "event");
    // An open or a close tells of its whole connection.
    let subject = event.get("connection").unwrap_or(event);
    let mut words = vec![time(number(event, "unix_ms")), painted(&format!("{kind:<14}"), &kind, colour)];
    words.push(format!("{:<44}", ends(subject)));
    words.push(format!("{:<16}", owner(subject)));
    words.extend(facts(&kind, event, subject));
    words.join(" ").trim_end().to_owned()
}

fn facts(kind: &str, event: &Value, subject: &Value) -> Vec<String> {
    let us = |name: &str| duration(subject.get(name).and_then(Value::as_u64).and_then(|us| u32::try_from(us).ok()));
    let size = |name: &str| bytes(number(subject, name));
    match kind {
        "open" => vec![text(subject, "direction"), format!("handshake {}", us("handshake_us"))],
        "close" => vec![
            text(event, "cause"),
            format!("after {}", seconds(number(subject, "age_ms"))),
            format!("sent {}", size("sent_bytes")),
            format!("received {}", size("received_bytes")),
            format!("srtt {}", us("srtt_us")),
            format!("retransmits {}", number(subject, "retransmits_total")),
        ],
        "retransmit" => vec![
            text(event, "cause"),
            text(event, "state"),
            format!("segments {}", number(event, "segments")),
            format!("bytes {}", number(event, "bytes")),
            format!("srtt {}", us("srtt_us")),
            format!("cwnd {}", number(event, "cwnd_segments")),
            format!("backoff {}", number(event, "rto_backoff")),
        ],
        "reset_sent" => vec![
            text(event, "cause"),
            text(event, "origin"),
            text(event, "state"),
            format!("reason {}", text(event, "reason")),
            format!("unread {}", size("unread_bytes")),
            format!("unacked {}", size("unacked_bytes")),
        ],
        "reset_received" => vec![
            text(event, "state"),
            format!("unread {}", size("unread_bytes")),
            format!("unacked {}", size("unacked_bytes")),
        ],
        "listener" => {
            let listens = event.get("listening").and_then(Value::as_bool) == Some(true);
            vec![if listens { format!("listens, backlog {}", number(event, "backlog")) } else { "ended".to_owned() }]
        }
        _ => Vec::new(),
    }
}

fn ends(subject: &Value) -> String {
    let end = |which: &str| {
        let address = text(subject, &format!("{which}_address"));
        let port = number(subject, &format!("{which}_port"));
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    if subject.get("remote_address").is_some() { format!("{} > {}", end("local"), end("remote")) } else { end("local") }
}

fn owner(subject: &Value) -> String {
    let comm = text(subject, "comm");
    match subject.get("pid").and_then(Value::as_u64) {
        Some(pid) if comm.is_empty() => format!("pid {pid}"),
        Some(pid) => format!("{comm}/{pid}"),
        None => "-".to_owned(),
    }
}

/// A text without what would move a cursor. The daemon has made names printable; what listens here may be another.
fn text(event: &Value, name: &str) -> String {
    let text = event.get(name).and_then(Value::as_str).unwrap_or_default();
    if text.chars().any(|c| c.is_control() || (!c.is_ascii() && c.escape_debug().len() > 1)) {
        return printable(text.as_bytes());
    }
    text.to_owned()
}

fn number(event: &Value, name: &str) -> u64 {
    event.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn seconds(ms: u64) -> String {
    if ms < 1000 { format!("{ms}ms") } else { format!("{:.1}s", ms as f64 / 1e3) }
}

/// The time of day in UTC.
fn time(unix_ms: u64) -> String {
    let (s, ms) = (unix_ms / 1000, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", s / 3600 % 24, s / 60 % 60, s % 60)
}

fn painted(shown: &str, kind: &str, colour: bool) -> String {
    let code = match kind {
        _ if !colour => return shown.to_owned(),
        "reset_sent" | "reset_received" => 31,
        "retransmit" => 33,
        "open" => 32,
        _ => return shown.to_owned(),
    };
    format!("\x1b[{code}m{shown}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the events that the API's golden file has.
    fn lines(colour: bool) -> String {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.jsonl");
        let events = std::fs::read_to_string(file).unwrap();
        events.lines().map(|event| line(&serde_json::from_str(event).unwrap(), colour) + "\n").collect()
    }

    #[test]
    fn lines_are_as_agreed() {
        crate::golden::check("tests/golden/trace.txt", &lines(false));
    }

    #[test]
    fn colour_changes_nothing_else() {
        let plain = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"]
            .iter()
            .fold(lines(true), |text, code| text.replace(code, ""));
        assert_eq!(plain, lines(false));
        assert!(lines(true).contains("\x1b[31mreset_sent"));
    }

    #[test]
    fn hostile_names_do_nothing() {
        let event = serde_json::json!({"event": "open", "unix_ms": 86_399_999_u64, "connection": {
            "local_address": "10.0.0.1\x1b[2J", "local_port": 1, "remote_address": "::1", "remote_port": 2,
            "comm": "a\nb\u{202e}", "pid": 3}});
        let said = line(&event, true);
        assert!(said.starts_with("23:59:59.999Z \x1b[32mopen          \x1b[0m 10.0.0.1\\x1b[2J:1 > [::1]:2"), "{said}");
        assert!(said.contains("a\\x0ab\\u{202e}/3"), "{said}");
    }
}
