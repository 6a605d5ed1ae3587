//! The configuration file: TOML in, keys and raw values with their lines out. It knows no rule for any value.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::rules::Raw;
use super::{ConfigError, Origin};

/// One `key = value` of the file.
pub(super) struct Entry {
    /// The key as it stands there.
    pub(super) key: String,
    /// Its value.
    pub(super) raw: Raw,
    /// The value as it stands there, with its type, for messages.
    pub(super) found: String,
    /// File and line.
    pub(super) origin: Origin,
}

/// Longest piece of the file that a message repeats, in characters.
const LONGEST_QUOTE: usize = 60;

/// All entries of the file in the order of their lines, and every syntax error.
pub(super) fn read(path: &Path, text: &str) -> (Vec<Entry>, Vec<ConfigError>) {
    let at = |offset: usize| Origin::File { path: path.to_owned(), line: line(text, offset) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let errors: Vec<_> = errors
        .iter()
        .map(|error| ConfigError::Syntax {
            origin: at(error.span().map_or(0, |span| span.start)),
            what: error.message().replace('\n', ", "),
        })
        .collect();
    if !errors.is_empty() {
        // What the parser made of the rest is a guess, and complaints about a guess mislead.
        return (Vec::new(), errors);
    }
    let mut entries: Vec<_> = table
        .get_ref()
        .iter()
        .map(|(key, value)| {
            let quote = text.get(value.span()).unwrap_or_default();
            let entry = Entry {
                key: key.get_ref().to_string(),
                raw: raw(value.get_ref()),
                found: format!("{} ({})", shortened(quote), kind(value.get_ref())),
                origin: at(key.span().start),
            };
            (key.span().start, entry)
        })
        .collect();
    entries.sort_by_key(|(offset, _)| *offset);
    (entries.into_iter().map(|(_, entry)| entry).collect(), errors)
}

/// The line, from 1, that holds the byte at `offset`.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.to_string()),
        DeValue::Integer(number) => {
            u64::from_str_radix(number.as_str(), number.radix()).map_or(Raw::Other, Raw::Integer)
        }
        DeValue::Boolean(on) => Raw::Boolean(*on),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Raw::Other,
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn shortened(quote: &str) -> String {
    let mut words = quote.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = words.char_indices().nth(LONGEST_QUOTE) {
        words.truncate(cut);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(entries: &[Entry]) -> Vec<(&str, &str, String)> {
        entries.iter().map(|e| (e.key.as_str(), e.found.as_str(), e.origin.to_string())).collect()
    }

    #[test]
    fn entries_know_their_lines_and_what_stands_there() {
        let text = "# comment\nb = [\n  1,\n  2]\n\na = \"x\"\n[t]\nk = 1\n";
        let (entries, errors) = read(Path::new("f.toml"), text);
        assert!(errors.is_empty());
        let expected = [
            ("b", "[ 1, 2] (a list)", "f.toml:2".to_owned()),
            ("a", "\"x\" (a string)", "f.toml:6".to_owned()),
            ("t", "[t] (a table)", "f.toml:7".to_owned()),
        ];
        assert_eq!(lines(&entries), expected);
        assert_eq!(entries[0].raw, Raw::List(vec![Raw::Integer(1), Raw::Integer(2)]));
    }

    #[test]
    fn every_syntax_error_is_told_with_its_line() {
        let (entries, errors) = read(Path::new("f.toml"), "a = \nb = 1\nb = 2\n");
        assert!(entries.is_empty());
        let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("f.toml:1: "), "{told:?}");
        assert!(told[1].starts_with("f.toml:3: "), "{told:?}");
    }

    #[test]
    fn long_values_are_cut() {
        let text = format!("a = \"{}\"", "é".repeat(100));
        let (entries, _) = read(Path::new("f.toml"), &text);
        assert!(entries[0].found.ends_with("… (a string)"));
        assert!(entries[0].found.chars().count() < 80);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z_=\\[\\]\"'.#\\n\\-0-9 {},é]{0,120}") {
            let (entries, errors) = read(Path::new("f"), &text);
            prop_assert!(entries.is_empty() || errors.is_empty());
        }
    }
}
