//! THE TABLES of columns: what is shown of a connection, a service and a reset, how wide, and by what it is sorted. `top`,
//! `top --once`, its JSON and CSV, and the `sort` of the API have it from here.

mod connections;
mod resets;
mod services;

pub(in crate::top) use self::connections::shares;

use std::cmp::Reverse;
use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;
use tcpwatch_common::conn::COMM_LEN;

use crate::filter::Subject;

/// Something that has a table.
pub(crate) trait Row: Clone + Serialize + Subject + Sized + 'static {
    /// A function that tells by what a column is sorted. Connections are sorted before a word is made of them.
    type Key: Copy;
    /// What makes a row the same one in the next picture.
    type Id: Clone + fmt::Debug + PartialEq;
    /// The columns, from left to right.
    const COLUMNS: &'static [Column<Self>];
    /// The column that is sorted by when nothing else is asked for.
    const DEFAULT: &'static str;

    /// Which it is.
    fn id(&self) -> Self::Id;
}

/// What a column has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Flush left. Its end is what is kept of it, and it is given the room that is left.
    Address,
    /// Flush left.
    Text,
    /// Flush right.
    Number,
}

/// A column.
pub(crate) struct Column<T: Row> {
    /// Its name on the command line and in the API.
    pub(crate) name: &'static str,
    /// Its title.
    pub(crate) title: &'static str,
    /// Width on a terminal.
    pub(crate) width: u16,
    /// Those with the highest number go first where the terminal is narrow; 0 stays.
    pub(crate) rank: u8,
    /// What is in it.
    pub(crate) kind: Kind,
    /// The fields of the API's object that it shows: columns of the CSV.
    pub(crate) fields: &'static [&'static str],
    /// What it shows.
    pub(crate) help: &'static str,
    /// The words that it shows.
    pub(crate) text: fn(&T) -> String,
    /// By what it is sorted.
    pub(crate) key: T::Key,
}

impl<T: Row> fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Lines of a table of columns: name, title, width, rank, kind, fields, help, words and key.
macro_rules! table {
    ($($name:literal $title:literal $width:literal $rank:literal $kind:ident [$($field:literal),*] $help:literal,
        $text:expr, $key:expr;)+) => {
        &[$(Column {
            name: $name, title: $title, width: $width, rank: $rank, kind: Kind::$kind, fields: &[$($field),*],
            help: $help, text: $text, key: $key,
        },)+]
    };
}
use table;

/// By what rows are sorted: numbers from the largest, everything else from the smallest, and nothing last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key<'a> {
    Number(Reverse<u64>),
    Text(&'a str),
    /// A name and a number.
    Name([u8; COMM_LEN], u32),
    Address(SocketAddr),
    Nothing,
}

impl<'a> Key<'a> {
    fn text(text: Option<&'a str>) -> Self {
        text.map_or(Self::Nothing, Self::Text)
    }
}

/// As much of a name as a process can have.
fn start_of(name: &str) -> [u8; COMM_LEN] {
    let mut start = [0; COMM_LEN];
    start.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    start
}

fn number<'a>(value: impl Into<u64>) -> Key<'a> {
    Key::Number(Reverse(value.into()))
}

/// A name that is none of a column.
#[derive(Debug, thiserror::Error)]
#[error("there is no column {name:?}; there are {names}")]
pub(crate) struct NoColumn {
    name: String,
    names: String,
}

/// The names of the columns of all tables.
pub(crate) fn names() -> Vec<&'static str> {
    use crate::api::{connection::Connection, resets::Reset, service::ServiceTotals};
    let mut names = names_of::<Connection>();
    for name in names_of::<ServiceTotals>().into_iter().chain(names_of::<Reset>()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn names_of<T: Row>() -> Vec<&'static str> {
    T::COLUMNS.iter().map(|column| column.name).collect()
}

/// The column of this name.
pub(crate) fn find<T: Row>(name: &str) -> Result<&'static Column<T>, NoColumn> {
    let found = T::COLUMNS.iter().find(|column| column.name == name);
    found.ok_or_else(|| NoColumn { name: name.to_owned(), names: names_of::<T>().join(", ") })
}

/// Whether a column shows `text`, which is in lower case.
pub(crate) fn contains<T: Row>(row: &T, text: &str) -> bool {
    T::COLUMNS.iter().any(|column| (column.text)(row).to_lowercase().contains(text))
}

/// Sorts rows that know their keys; equals stay in their order.
pub(crate) fn sort<T>(rows: &mut [T], column: &Column<T>, reversed: bool)
where
    T: Row<Key = for<'a> fn(&'a T) -> Key<'a>>,
{
    rows.sort_by(|a, b| {
        let order = (column.key)(a).cmp(&(column.key)(b));
        if reversed { order.reverse() } else { order }
    });
}

/// The columns that fit into `width`, and how wide each is; the addresses share what is left.
pub(crate) fn fitting<T: Row>(width: u16) -> Vec<(&'static Column<T>, u16)> {
    let total = |shown: &[&Column<T>]| shown.iter().map(|column| column.width + 1).sum::<u16>().saturating_sub(1);
    let mut shown: Vec<&'static Column<T>> = T::COLUMNS.iter().collect();
    while total(&shown) > width {
        let Some(last) = shown.iter().map(|column| column.rank).max().filter(|rank| *rank > 0) else { break };
        shown.retain(|column| column.rank != last);
    }
    let addresses = shown.iter().filter(|column| column.kind == Kind::Address).count() as u16;
    let spare = (width.saturating_sub(total(&shown)) / addresses.max(1)).min(32);
    let wide = |column: &Column<T>| column.width + if column.kind == Kind::Address { spare } else { 0 };
    shown.into_iter().map(|column| (column, wide(column))).collect()
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// An id of a container, as far as people read it.
fn container(id: Option<&str>) -> String {
    or_dash(id.map(|id| id.get(..12).unwrap_or(id)))
}

/// What was sent again, by cause: `2f 1p` is two fast ones and a tail loss probe.
fn causes(counts: [u64; 6]) -> String {
    let shown: Vec<_> = counts
        .into_iter()
        .zip(["f", "t", "p", "s", "a", "o"])
        .filter(|(count, _)| *count > 0)
        .map(|(count, letter)| format!("{}{letter}", self::count(count)))
        .collect();
    if shown.is_empty() { "-".to_owned() } else { shown.join(" ") }
}

/// A count in at most five characters.
pub(crate) fn count(count: u64) -> String {
    if count < 10_000 { count.to_string() } else { bytes(count) }
}

/// A time in µs, in at most seven characters.
pub(crate) fn duration(us: Option<u32>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us @ ..1_000) => format!("{us}us"),
        Some(us @ ..10_000) => format!("{:.2}ms", f64::from(us) / 1e3),
        Some(us @ ..100_000) => format!("{:.1}ms", f64::from(us) / 1e3),
        Some(us @ ..1_000_000) => format!("{:.0}ms", f64::from(us) / 1e3),
        Some(us) => format!("{:.2}s", f64::from(us) / 1e6),
    }
}

/// A number of bytes in at most six characters.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::Connection;
    use crate::api::connection::tests::{busy, shown};

    fn check<T: Row>(rows: &[T]) {
        for (i, column) in T::COLUMNS.iter().enumerate() {
            assert!(T::COLUMNS[..i].iter().all(|other| other.name != column.name), "{}", column.name);
            assert!(column.title.len() <= usize::from(column.width), "{}", column.name);
            for row in rows {
                let text = (column.text)(row);
                let fits = text.chars().count() <= usize::from(column.width) + 1;
                assert!(fits || column.kind != Kind::Number, "{}: {text}", column.name);
            }
        }
        assert!(find::<T>(T::DEFAULT).is_ok());
    }

    #[test]
    fn names_are_unique_and_titles_and_numbers_fit() {
        check(&[shown(&busy(1))]);
        check(&crate::api::service::tests::busy());
        check(&crate::resets::view::tests::resets().newest);
        assert!(find::<Connection>("x").unwrap_err().to_string().contains("there are local, remote, state"));
        assert!(names().contains(&"rst_sent") && names().contains(&"ago"));
    }

    #[test]
    fn what_fits_is_shown_and_the_addresses_get_the_rest() {
        for width in [80, 120, 200, 260] {
            let shown = fitting::<Connection>(width);
            let total: u16 = shown.iter().map(|(_, width)| width + 1).sum();
            assert!(total - 1 <= width, "{width}");
            assert!(
                ["local", "remote", "state", "rtt", "cwnd", "retrans", "limit", "owner"]
                    .iter()
                    .all(|n| shown.iter().any(|(c, _)| c.name == *n))
            );
        }
        assert_eq!(fitting::<Connection>(260).len(), Connection::COLUMNS.len());
        assert_eq!(fitting::<Connection>(1).len(), 2);
    }

    #[test]
    fn numbers_come_from_the_largest_and_names_from_the_smallest_and_nothing_last() {
        let mut all = crate::api::service::tests::busy();
        let mut order = |name, reversed| {
            sort(&mut all, find(name).unwrap(), reversed);
            all.iter().map(|s| s.service.clone()).collect::<Vec<_>>()
        };
        let mut turned = order("service", true);
        turned.reverse();
        assert_eq!(order("service", false), turned);
        let opened = order("connections", false);
        assert!(opened.len() > 2);
        let keys = [number(9_u32), number(3_u32), Key::Text("a"), Key::Text("b"), Key::Nothing];
        assert!(keys.is_sorted());
    }

    #[test]
    fn values_keep_their_width() {
        for us in [0, 999, 1_000, 9_999, 10_000, 99_999, 100_000, 999_999, 1_000_000, 99_000_000] {
            assert!(duration(Some(us)).len() <= 7, "{us}: {}", duration(Some(us)));
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1.0K"), (999_499, "999K"), (1_500_000, "1.5M")] {
            assert_eq!(bytes(count), text);
        }
        assert!(bytes(u64::MAX).len() <= 6);
    }
}
