//! Recordings of real traffic, and what is to be said of each: the rules' tests that need no kernel, and the worked examples
//! of docs/EXPLAIN.md. `explain::recorded` of the real-kernel tests makes the recordings.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Explained, Id};
use crate::cli::{ExplainReader, Reader, Replay};

/// A situation: its recording, what it is, and the verdict that it is an example of. All verdicts of a row's recording are held
/// against what is expected when it is made; here they stay what they were.
const EXAMPLES: &[(&str, Id, &str)] = &[
    ("s4", Id::Loss, "uploads over 40 ms, cubic, and every twentieth packet is lost"),
    ("s5", Id::ReceiverWindow, "the server's application does not read for two seconds"),
    ("s8", Id::SendBuffer, "SO_SNDBUF is 40 KB on a path of 80 ms"),
    ("s7", Id::Application, "80 KB, then a pause of 140 ms, and so on"),
    (
        "w",
        Id::CongestionWindow,
        "reno over 120 ms: one segment was lost early, and the window grows by one a round trip since",
    ),
    ("s1", Id::NotReused, "five uploads of 50 KB over 100 ms, each on a connection of its own"),
    ("s2", Id::SlowStart, "an answer of 512 KB on a new connection over 8 ms"),
    ("s3", Id::IdleRestart, "512 KB, a pause of 1.2 s, 512 KB, and so on"),
    ("s9", Id::TinySegments, "single bytes with TCP_NODELAY"),
    ("s10", Id::NagleDelayedAck, "requests of two small writes, each answered"),
    ("s11", Id::Bufferbloat, "uploads through a queue of 200 ms on a path of 20 ms"),
    ("r1", Id::PeerVanished, "the path takes packets and gives none back"),
    ("r5", Id::SynLost, "every first SYN is lost"),
    ("r6", Id::SynLost, "nothing answers"),
    ("r4", Id::SpuriousRetransmits, "a fiftieth of the segments comes 15 ms late, and none is lost"),
    ("r7", Id::MtuBlackHole, "packets above 1200 bytes vanish"),
    ("l1", Id::CloseWaitLeak, "the client closed eleven seconds ago, the server's application has not noticed"),
    ("l1", Id::HalfClosed, "the other end of it"),
    ("queues", Id::TimeWaitPressure, "1200 connections that this host closed first"),
    ("queues", Id::ListenQueue, "six connections at a listener with a backlog of eight, and no accept()"),
    ("queues", Id::SynBacklog, "SYNs whose handshakes are never finished"),
    ("healthy", Id::Healthy, "one of thirty connections that nothing is wrong with"),
    ("healthy", Id::NotEnoughData, "an idle one"),
];

/// What the examples begin with in docs/EXPLAIN.md; all that follows is made here.
const MARK: &str =
    "<!-- What follows is made by the tests: TCPWATCH_BLESS=1 cargo test -p tcpwatch --lib explain -->\n";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/explain")
}

fn replayed(name: &str, json: bool) -> String {
    let reader = Reader::Explain(ExplainReader { json, all: true, ..ExplainReader::default() });
    let mut out = Vec::new();
    let file = folder().join(name).with_extension("twr");
    crate::replay::run(&Replay { file, reader: Some(reader) }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn explained(name: &str) -> Vec<Explained> {
    replayed(name, true).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(explained: &[Explained]) -> BTreeSet<Id> {
    explained.iter().flat_map(|one| one.verdicts.iter().map(|verdict| verdict.id)).collect()
}

fn recordings() -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "twr"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn recordings_of_real_traffic_are_explained_as_they_were() {
    let names = recordings();
    assert!(names.len() >= 22, "{names:?}");
    for name in names {
        crate::golden::check(&format!("tests/replay/explain/{name}.explain"), &replayed(&name, false));
    }
}

#[test]
fn healthy_connections_have_no_verdict() {
    let explained = explained("healthy");
    assert!(explained.len() >= 20, "{}", explained.len());
    assert_eq!(ids(&explained), [Id::Healthy, Id::NotEnoughData].into());
}

#[test]
fn every_verdict_is_given_for_a_situation_of_the_real_kernel() {
    let mut given = BTreeSet::new();
    for (name, id, _) in EXAMPLES {
        assert!(ids(&explained(name)).contains(id), "{name} is no example of {}", id.name());
        given.insert(*id);
    }
    assert_eq!(given, Id::ALL.iter().copied().collect());
}

#[test]
fn the_window_of_a_replay_is_its_last_part_and_is_told() {
    let over = |time| {
        let reader = ExplainReader { time: Some(std::time::Duration::from_millis(time)), ..ExplainReader::default() };
        let mut out = Vec::new();
        let file = folder().join("s4.twr");
        crate::replay::run(&Replay { file, reader: Some(Reader::Explain(reader)) }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(over(1000).contains("(over 1."), "{}", over(1000));
    // Longer than the recording: all of it, and how long that was.
    assert!(over(600_000).contains("(over ") && !over(600_000).contains("(over 600"), "{}", over(600_000));
}

#[test]
fn the_documentation_has_every_verdict_with_a_worked_example() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/EXPLAIN.md");
    let page = fs::read_to_string(path).unwrap();
    let (before, _) = page.split_once(MARK).expect("the mark of the examples");
    for id in Id::ALL {
        assert!(before.contains(&format!("| `{}` |", id.name())), "{} has no row", id.name());
    }
    let mut text = format!("{before}{MARK}");
    for (name, id, what) in EXAMPLES {
        let explained = explained(name);
        let one = explained.iter().find(|one| one.verdicts.iter().any(|verdict| verdict.id == *id)).unwrap();
        let verdict = one.verdicts.iter().find(|verdict| verdict.id == *id).unwrap();
        let evidence = serde_json::to_string(&verdict.evidence).unwrap();
        let said = super::command::shown(std::slice::from_ref(one), false);
        writeln!(text, "\n### `{}`: {what}\n\n```text\n{said}```\n\nEvidence: `{evidence}`", id.name()).unwrap();
    }
    crate::golden::check("../docs/EXPLAIN.md", &text);
}
