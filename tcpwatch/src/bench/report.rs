//! What a benchmark says: tables and goals, as text for people, and as one JSON object that BENCHMARKS.md is made from.
//! Whatever is printed is in the object too, as it was printed.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::machine;
use super::sample::Median;

/// How to run, and where the numbers go.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// One JSON object on standard output and nothing else.
    pub json: bool,
    /// The same object into this file.
    pub file: Option<PathBuf>,
    /// As little as shows that the benchmark works; its numbers mean nothing.
    pub smoke: bool,
}

impl Output {
    /// Tells how far it is, on standard error.
    pub fn progress(&self, what: &str) {
        if !self.json && std::io::stderr().is_terminal() {
            eprint!("\r{what:<70}");
        }
    }

    /// `much`, or `little` of it in a smoke run.
    pub fn count<T>(&self, much: T, little: T) -> T {
        if self.smoke { little } else { much }
    }
}

/// One figure of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    value: Option<Median>,
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None }
    }

    /// A number without an interval.
    pub fn number(value: f64) -> Self {
        Self { text: number(value), value: Some(Median { value, low: value, high: value }) }
    }

    /// A median with its interval; a dash where there is none.
    pub fn median(median: Option<Median>) -> Self {
        let Some(Median { value, low, high }) = median else { return Self::text("–") };
        Self { text: format!("{} [{}, {}]", number(value), number(low), number(high)), value: median }
    }

    /// Why there is no figure.
    pub fn skipped(reason: &str) -> Self {
        Self::text(format!("skipped: {reason}"))
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("text".to_owned(), json!(self.text));
        if let Some(Median { value, low, high }) = self.value {
            object.insert("value".to_owned(), json!(value));
            object.insert("ci95".to_owned(), json!([low, high]));
        }
        Value::Object(object)
    }
}

/// Three digits that count, and thousands apart.
fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        let digits = format!("{size:.0}");
        let mut text = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        return if value < 0.0 { format!("-{text}") } else { text };
    }
    match size {
        0.0 => "0".to_owned(),
        s if s >= 10.0 => format!("{value:.1}"),
        // A ratio near 1 is of interest to a part in a thousand.
        s if s >= 2.0 => format!("{value:.2}"),
        s if s >= 0.1 => format!("{value:.3}"),
        s if s >= 0.001 => format!("{value:.5}"),
        _ => format!("{value:.7}"),
    }
}

/// Rows with a name, under columns.
#[derive(Clone, Debug)]
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Cell>)>,
    notes: Vec<String>,
}

impl Table {
    /// Without rows; the first column, which has their names, is not among `columns`.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, name: impl Into<String>, cells: Vec<Cell>) {
        self.rows.push((name.into(), cells));
    }

    /// Adds a sentence below it.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(name, cells)| json!({"name": name, "cells": cells.iter().map(Cell::json).collect::<Vec<_>>()}))
            .collect();
        json!({"title": self.title, "columns": self.columns, "rows": rows, "notes": self.notes})
    }

    fn text(&self) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.chars().count()).collect();
        for (_, cells) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let names = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let line = |name: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("  {cell:>width$}")).collect();
            format!("{name:<names$}{}\n", cells.concat())
        };
        let mut text = format!("{}\n", self.title);
        text += &line("", &mut self.columns.iter().map(String::as_str));
        for (name, cells) in &self.rows {
            text += &line(name, &mut cells.iter().map(|cell| cell.text.as_str()));
        }
        let notes: Vec<_> = self.notes.iter().map(|note| format!("{note}\n")).collect();
        text + &notes.concat()
    }
}

/// What must be reached, and whether it was.
#[derive(Clone, Debug)]
pub struct Goal {
    what: String,
    limit: String,
    measured: Cell,
    verdict: String,
}

impl Goal {
    /// At most `limit`: the whole interval below it, above it, or the question stays open.
    pub fn at_most(what: &str, measured: Option<Median>, limit: f64) -> Self {
        Self::new(what, format!("at most {}", number(limit)), measured, |m| (m.high <= limit, m.low > limit))
    }

    /// At least `limit`, likewise.
    pub fn at_least(what: &str, measured: Option<Median>, limit: f64) -> Self {
        Self::new(what, format!("at least {}", number(limit)), measured, |m| (m.low >= limit, m.high < limit))
    }

    /// One that cannot be told here.
    pub fn unknown(what: &str, limit: &str, reason: &str) -> Self {
        let verdict = format!("not measured: {reason}");
        Self { what: what.to_owned(), limit: limit.to_owned(), measured: Cell::text("–"), verdict }
    }

    fn new(what: &str, limit: String, measured: Option<Median>, sides: impl Fn(&Median) -> (bool, bool)) -> Self {
        let verdict = match measured {
            None => "not measured".to_owned(),
            Some(m) => match sides(&m) {
                (true, _) => "reached".to_owned(),
                (_, true) => "not reached".to_owned(),
                _ => format!("unresolved, width {}", number(m.high - m.low)),
            },
        };
        Self { what: what.to_owned(), limit, measured: Cell::median(measured), verdict }
    }

    /// What was found: reached, not reached, unresolved with a width, or not measured.
    pub fn verdict(&self) -> &str {
        &self.verdict
    }

    fn json(&self) -> Value {
        json!({"what": self.what, "limit": self.limit, "measured": self.measured.json(), "verdict": self.verdict})
    }

    fn text(&self) -> String {
        format!("{}: {} ({}): {}\n", self.what, self.measured.text, self.limit, self.verdict)
    }
}

/// All that a benchmark found.
#[derive(Clone, Debug)]
pub struct Report {
    name: &'static str,
    values: Map<String, Value>,
    tables: Vec<Table>,
    goals: Vec<Goal>,
    machine: Value,
}

impl Report {
    /// Of the benchmark `name`, with nothing in it. The machine is described as it is now: before the load.
    pub fn new(name: &'static str) -> Self {
        let machine = machine::describe();
        Self { name, values: Map::new(), tables: Vec::new(), goals: Vec::new(), machine }
    }

    /// Adds a number under a name of its own.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// Adds a median and its interval.
    pub fn median(&mut self, name: &str, median: Option<Median>) {
        Median::put(median, name, &mut self.values);
    }

    /// Adds a table.
    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds a goal.
    pub fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// The one object.
    pub fn json(&self, smoke: bool) -> Value {
        let mut object = self.values.clone();
        object.insert("benchmark".to_owned(), json!(self.name));
        object.insert("smoke".to_owned(), json!(smoke));
        object.insert("machine".to_owned(), self.machine.clone());
        object.insert("tables".to_owned(), self.tables.iter().map(Table::json).collect());
        object.insert("goals".to_owned(), self.goals.iter().map(Goal::json).collect());
        Value::Object(object)
    }

    /// As people read it.
    pub fn text(&self) -> String {
        let tables: Vec<_> = self.tables.iter().map(Table::text).collect();
        let goals: Vec<_> = self.goals.iter().map(Goal::text).collect();
        let goals = if goals.is_empty() { String::new() } else { format!("\nGoals\n{}", goals.concat()) };
        tables.join("\n") + &goals
    }

    /// Prints it, and writes it where that was asked for.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(&self, output: &Output) -> Result<()> {
        output.progress("\r");
        let object = self.json(output.smoke);
        if let Some(file) = &output.file {
            let text = serde_json::to_string_pretty(&object)? + "\n";
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut out = std::io::stdout().lock();
        if output.json {
            writeln!(out, "{object}")?;
        } else {
            write!(out, "{}", self.text())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as a goal takes it")]
    fn between(low: f64, high: f64) -> Option<Median> {
        Some(Median { value: f64::midpoint(low, high), low, high })
    }

    #[test]
    fn a_verdict_is_of_the_whole_interval() {
        assert_eq!(Goal::at_most("x", between(0.1, 0.5), 0.5).verdict(), "reached");
        assert_eq!(Goal::at_most("x", between(0.51, 0.6), 0.5).verdict(), "not reached");
        assert_eq!(Goal::at_most("x", between(0.4, 0.6), 0.5).verdict(), "unresolved, width 0.200");
        assert_eq!(Goal::at_least("x", between(0.98, 1.2), 0.98).verdict(), "reached");
        assert_eq!(Goal::at_least("x", between(0.9, 0.97), 0.98).verdict(), "not reached");
        assert_eq!(Goal::at_least("x", between(0.9, 1.1), 0.98).verdict(), "unresolved, width 0.200");
        assert_eq!(Goal::at_most("x", None, 0.5).verdict(), "not measured");
    }

    #[test]
    fn numbers_have_the_digits_that_count() {
        let all = [0.0, 0.0123, 0.5, 3.456, 12.34, 123.4, 1_234.0, 1_234_567.8, -1_500.0].map(number);
        assert_eq!(all, ["0", "0.01230", "0.500", "3.46", "12.3", "123", "1,234", "1,234,568", "-1,500"]);
    }

    #[test]
    fn what_is_printed_is_in_the_object() {
        let mut report = Report::new("test");
        let mut table = Table::new("A table", &["ns"]);
        table.row("one", vec![Cell::median(between(1.0, 3.0))]);
        table.row("another", vec![Cell::skipped("there is none")]);
        report.table(table);
        report.goal(Goal::at_most("one", between(1.0, 3.0), 4.0));
        report.set("rounds", 3);
        let (object, text) = (report.json(true), report.text());
        let rows = &object["tables"][0]["rows"];
        assert_eq!(rows[0]["cells"][0], json!({"text": "2.00 [1.000, 3.00]", "value": 2.0, "ci95": [1.0, 3.0]}));
        assert_eq!(rows[1]["cells"][0]["text"], "skipped: there is none");
        assert_eq!((&object["goals"][0]["verdict"], &object["rounds"]), (&json!("reached"), &json!(3)));
        assert_eq!((&object["benchmark"], &object["smoke"]), (&json!("test"), &json!(true)));
        assert!(object["machine"]["cpus"].as_u64().unwrap() > 0);
        for words in ["A table", "2.00 [1.000, 3.00]", "skipped: there is none", "at most 4.00", "reached"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
