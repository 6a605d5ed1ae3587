//! The rows of a table for those who do not watch: as text, as CSV, as JSON.

use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

use crate::api::line;

use super::ask::Rows;
use super::columns::{Column, Kind, Row};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The columns, as wide as they need be.
    Text,
    /// The columns, each as the fields of the API that it shows.
    Csv,
    /// An object of the API a line.
    Json,
}

/// Writes to standard output. Nothing is cut off, but at the right edge of a terminal.
pub(crate) fn print(rows: &Rows, format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let width = if out.is_terminal() { ratatui::crossterm::terminal::size()?.0 } else { u16::MAX };
    match out.write_all(shown(rows, format, usize::from(width)).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// What is written; no line of text is longer than `most`.
pub(crate) fn shown(rows: &Rows, format: Format, most: usize) -> String {
    match rows {
        Rows::None => String::new(),
        Rows::Connections(page) => of(&page.rows, format, most),
        Rows::Services(page) => of(&page.rows, format, most),
        Rows::Resets(page) => of(&page.rows, format, most),
    }
}

fn of<T: Row>(rows: &[T], format: Format, most: usize) -> String {
    match format {
        Format::Text => text(rows, most),
        Format::Csv => csv(rows),
        Format::Json => rows.iter().map(line).collect(),
    }
}

fn text<T: Row>(rows: &[T], most: usize) -> String {
    let columns = T::COLUMNS;
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| (column.text)(row)).collect()).collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let widest = cells.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(column.title.len())
        })
        .collect();
    let line = |row: &mut dyn Iterator<Item = (&str, &Column<T>)>| {
        let padded = row.zip(&widths).map(|((cell, column), width)| {
            if column.kind == Kind::Number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line: String = padded.collect::<Vec<_>>().join(" ").trim_end().chars().take(most).collect();
        line + "\n"
    };
    let mut text = line(&mut columns.iter().map(|column| (column.title, column)));
    for row in &cells {
        text += &line(&mut row.iter().map(String::as_str).zip(columns));
    }
    text
}

/// A line of names, then one for each row (RFC 4180). The names have their units, as in the API.
fn csv<T: Row>(rows: &[T]) -> String {
    let fields: Vec<&str> = T::COLUMNS.iter().flat_map(|column| column.fields).copied().collect();
    let line = |cells: &mut dyn Iterator<Item = String>| cells.collect::<Vec<_>>().join(",") + "\n";
    let mut text = line(&mut fields.iter().map(|field| quoted(field)));
    for row in rows {
        let object = serde_json::to_value(row).unwrap_or_default();
        text += &line(&mut fields.iter().map(|field| match object.pointer(&format!("/{}", field.replace('.', "/"))) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => quoted(text),
            Some(other) => other.to_string(),
        }));
    }
    text
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::service;

    #[test]
    fn every_row_is_printed_in_full() {
        let mut record = busy(1);
        record.key.ip_version = 6;
        record.comm = *b"a \"long\", \x1bname!";
        let rows = [shown(&busy(2)), shown(&record)];
        crate::golden::check("tests/golden/top/once.txt", &text(&rows, usize::MAX));
        crate::golden::check("tests/golden/top/once.csv", &csv(&rows));
        assert!(text(&rows, 20).lines().all(|line| line.chars().count() <= 20));
        let services = service::tests::busy();
        crate::golden::check("tests/golden/top/services.txt", &text(&services, usize::MAX));
        crate::golden::check("tests/golden/top/services.csv", &csv(&services));
    }

    #[test]
    fn fields_of_the_csv_are_fields_of_the_api() {
        fn check<T: Row>(row: &T) {
            let object = serde_json::to_value(row).unwrap();
            for field in T::COLUMNS.iter().flat_map(|column| column.fields) {
                assert!(object.pointer(&format!("/{}", field.replace('.', "/"))).is_some(), "{field}");
            }
        }
        check(&shown(&busy(1)));
        check(&service::tests::busy().remove(0));
        check(
            &crate::resets::view::tests::resets()
                .newest
                .into_iter()
                .find(|r| r.socket.is_some() && r.owner.is_some())
                .unwrap(),
        );
    }
}
