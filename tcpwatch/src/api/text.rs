//! Words for people: names that processes gave themselves, made fit for a terminal and for JSON, and times.

use std::fmt::Write as _;

/// The name up to its first NUL. What is no text, or moves a cursor, is escaped: `\x1b`, `\u{202e}`; so is `\` itself.
pub(crate) fn printable(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut shown = String::new();
    for chunk in name.get(..end).unwrap_or_default().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\'' => shown.push(c),
                c if c.is_ascii_control() => escape_byte(&mut shown, c as u8),
                c => shown.extend(c.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            escape_byte(&mut shown, *byte);
        }
    }
    shown
}

/// A time as people say it.
pub(crate) fn time(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1e3),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

fn escape_byte(shown: &mut String, byte: u8) {
    let _to_memory = write!(shown, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names_are_shown_and_do_nothing() {
        for (name, shown) in [
            (&b"nginx\0\0\0garbage"[..], "nginx"),
            (b"\x1b[31mred\n\x7f", "\\x1b[31mred\\x0a\\x7f"),
            (b"\xff\xfe ok", "\\xff\\xfe ok"),
            ("a\u{202e}b".as_bytes(), "a\\u{202e}b"),
            ("caf\u{e9} \"q\" it's".as_bytes(), "caf\u{e9} \"q\" it's"),
            (b"back\\slash", "back\\\\slash"),
            (b"", ""),
            (b"sixteen bytes ab", "sixteen bytes ab"),
        ] {
            assert_eq!(printable(name), shown);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_printable(name in proptest::collection::vec(any::<u8>(), 0..16)) {
            prop_assert!(printable(&name).chars().all(|c| !c.is_control()));
        }
    }
}
