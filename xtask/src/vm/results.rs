//! What became of each test on each kernel, read from what the guest says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Of one kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The series that was asked for.
    pub(crate) series: String,
    /// `uname -r` of what was booted; empty when nothing was.
    pub(crate) release: String,
    /// What `tcpwatch doctor --json` printed there; null where it refused to run.
    pub(crate) doctor: Value,
    /// What it said where it refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) refusal: String,
    /// Its exit status.
    pub(crate) doctor_status: Option<i32>,
    /// Tests by name.
    pub(crate) tests: BTreeMap<String, Verdict>,
    /// Those of them that had failed before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) second_try: Vec<String>,
    /// Why this kernel was not booted, or not to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    /// From start to end, s.
    pub(crate) seconds: u64,
}

/// Of one test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Passed,
    /// Not so.
    Failed,
    /// Not run, as the list of what is expected says, and why.
    Skipped(String),
}

/// Reads the lines of a guest.
#[derive(Default)]
pub(crate) struct Listener {
    outcome: Outcome,
    /// Appended to the names of tests while they run in other circumstances than usual.
    circumstances: String,
    /// These tests have failed once.
    again: bool,
    /// Verdicts heard since the test program last began.
    heard: u64,
}

impl Listener {
    /// For a series.
    pub(crate) fn new(series: &str) -> Self {
        Self { outcome: Outcome { series: series.to_owned(), ..Outcome::default() }, ..Self::default() }
    }

    /// Takes one line; some of it is for the user to see.
    pub(crate) fn hear(&mut self, line: &str) -> Option<String> {
        if let Some(words) = line.strip_prefix("@@") {
            let (what, rest) = words.split_once(' ').unwrap_or((words, ""));
            match what {
                "booted" => rest.clone_into(&mut self.outcome.release),
                "doctor" => self.outcome.doctor = serde_json::from_str(rest).unwrap_or(Value::Null),
                "refusal" => rest.clone_into(&mut self.outcome.refusal),
                "doctor-status" => self.outcome.doctor_status = rest.parse().ok(),
                "in" => rest.clone_into(&mut self.circumstances),
                "suite-died" => self.outcome.trouble = Some("the test program did not come to its summary".to_owned()),
                "again" => self.again = true,
                "again-over" => self.again = false,
                _ => {}
            }
            return Some(words.to_owned());
        }
        if line.starts_with("running ") {
            self.heard = 0;
        }
        // A test that writes among the harness's lines makes its verdict unreadable: it must not go missing.
        if let Some(ran) = summary(line).filter(|ran| *ran != self.heard) {
            self.outcome.trouble =
                Some(format!("{ran} tests were run, the verdicts of {} were understood", self.heard));
        }
        let (name, verdict) = parse(line)?;
        self.heard += 1;
        let name = if self.circumstances.is_empty() { name } else { format!("{name} ({})", self.circumstances) };
        if self.again && verdict == Verdict::Passed {
            self.outcome.second_try.push(name.clone());
        }
        self.outcome.tests.insert(name, verdict);
        Some(line.trim_end().to_owned())
    }

    /// All that was heard.
    pub(crate) fn finish(self) -> Outcome {
        self.outcome
    }
}

/// How many tests were run, by `test result: ok. 7 passed; 1 failed; 2 ignored; …`.
fn summary(line: &str) -> Option<u64> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |part: &str| part.trim().split(' ').next()?.parse::<u64>().ok();
    counts.split(';').take(3).map(count).sum()
}

/// `test NAME ... ok`, as the test harness prints it.
fn parse(line: &str) -> Option<(String, Verdict)> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once("... ")?;
    let verdict = match verdict.trim() {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed,
        other => {
            let why = other.strip_prefix("ignored")?.trim_start_matches([',', ' ']);
            Verdict::Skipped(if why.is_empty() { "no reason given".to_owned() } else { why.to_owned() })
        }
    };
    Some((name.trim().to_owned(), verdict))
}

impl Outcome {
    /// How many passed, failed, and were skipped.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for verdict in self.tests.values() {
            counts[match verdict {
                Verdict::Passed => 0,
                Verdict::Failed => 1,
                Verdict::Skipped(_) => 2,
            }] += 1;
        }
        counts
    }

    /// Those that were not run, and why.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tests.iter().filter_map(|(name, verdict)| match verdict {
            Verdict::Skipped(why) => Some((name.as_str(), why.as_str())),
            _ => None,
        })
    }

    /// Names of those that failed.
    pub(crate) fn failed(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter(|(_, verdict)| **verdict == Verdict::Failed).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_understood() {
        let mut listener = Listener::new("6.1");
        for line in [
            "Booting from ROM...",
            "@@booted 6.1.0-56-cloud-amd64",
            "@@doctor {\"probes\":[]}",
            "@@doctor-status 0",
            "test a                ... ok",
            "test b ... FAILED",
            "test c ... ignored, no bbr",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured",
            "@@again",
            "test b ... ok",
            "@@again-over",
            "@@in kprobe",
            "test a ... ok",
            "@@in",
            "test d ... FAILED",
        ] {
            listener.hear(line);
        }
        let outcome = listener.finish();
        assert_eq!(outcome.release, "6.1.0-56-cloud-amd64");
        assert_eq!(outcome.doctor_status, Some(0));
        assert_eq!(outcome.counts(), [3, 1, 1]);
        assert_eq!(outcome.failed().collect::<Vec<_>>(), ["d"]);
        assert_eq!(outcome.second_try, ["b"]);
        assert_eq!(outcome.tests.get("a (kprobe)"), Some(&Verdict::Passed));
        assert_eq!(outcome.tests.get("c"), Some(&Verdict::Skipped("no bbr".to_owned())));
        assert_eq!(outcome.trouble, None);
    }

    #[test]
    fn a_verdict_that_is_not_understood_is_trouble() {
        let mut listener = Listener::new("6.1");
        for line in [
            "running 2 tests",
            "test a ... ok",
            "test b ... 7 seconds",
            "ok",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
        ] {
            listener.hear(line);
        }
        let trouble = listener.finish().trouble.expect("trouble");
        assert!(trouble.contains("2 tests") && trouble.contains("of 1"), "{trouble}");
    }

    #[test]
    fn a_test_program_that_dies_is_trouble() {
        let mut listener = Listener::new("6.1");
        listener.hear("@@suite-died");
        assert!(listener.finish().trouble.is_some());
    }
}
