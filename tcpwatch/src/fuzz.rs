//! What the fuzz targets of `fuzz/` call: each takes any bytes, and panics where a property does not hold.
//!
//! The corpora in `fuzz/corpus` are run by the unit tests too, so that what was once found stays repaired.

use std::path::Path;

use tcpwatch_common::counters::{GAUGE_WORDS, Loss, reason};
use tcpwatch_common::record::{self, Record};

use crate::aggregate::Reading;
use crate::api::line;
use crate::filter::{Fact, Filter, Subject, Value};
use crate::http::WebConfig;
use crate::kernel::maps::{Counters, SlotCounters};
use crate::recording::{Beginning, Intake, Recording, wrapped};
use crate::{config, http, sys};

/// Any bytes.
pub type Target = fn(&[u8]);

/// The targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 6] = [
    ("decode", decode),
    ("recording", recording),
    ("filter", filter),
    ("config", config),
    ("web_config", web_config),
    ("query", query),
];

/// An aggregator with little room, so that it has to do without.
fn intake() -> Intake {
    let beginning = Beginning { services: 3, table_capacity: 4, ..Beginning::default() };
    Intake::new(&beginning, None).0
}

fn counters() -> Counters {
    Counters {
        slots: vec![SlotCounters::ZERO; 4],
        reasons: vec![0; reason::WORDS],
        losses: [0; Loss::ALL.len()],
        gauges: [0; GAUGE_WORDS],
        stacks: Vec::new(),
    }
}

/// All that is shown of an aggregator.
fn show(intake: &mut Intake, ktime_ns: u64) {
    let snapshot = intake.read(&counters(), &Reading { ktime_ns, ..Reading::default() });
    let listing = intake.aggregator().listing(snapshot.ktime_ns);
    for connection in listing.connections(sys::ticks_per_second(), None) {
        let text = line(&connection);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "no JSON: {text}");
        assert_eq!(text.find('\n'), Some(text.len() - 1), "more than a line: {text}");
    }
    let _ = intake.aggregator().resets();
}

/// Records of the ring buffer: a length of two bytes before each.
pub fn decode(mut bytes: &[u8]) {
    let mut intake = intake();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        let mut again = vec![0; piece.len()];
        let written = match record::decode(piece) {
            Ok(Record::Conn(_, conn)) => record::encode(&conn, &mut again),
            Ok(Record::Retransmit(retransmit)) => record::encode(&retransmit, &mut again),
            Ok(Record::Reset(_, reset)) => record::encode(&reset, &mut again),
            Ok(Record::Listener(listener)) => record::encode(&listener, &mut again),
            Err(_) => Some(0),
        };
        let written = written.unwrap_or(usize::MAX);
        assert_eq!(again.get(..written), piece.get(..written), "decoded and encoded it is another");
        intake.take(piece);
    }
    show(&mut intake, 1 << 40);
}

/// A recording: the file as it is, or, after an odd first byte, what is in its frames.
pub fn recording(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    let wrapped = (how & 1 == 1).then(|| wrapped(rest));
    let Ok(mut recording) = Recording::of(wrapped.as_deref().unwrap_or(rest), Path::new("/r.twr")) else { return };
    // Room is made at once; the file may ask for more than is of use here.
    let beginning =
        Beginning { table_capacity: recording.beginning().table_capacity.min(64), ..recording.beginning().clone() };
    let mut intake = Intake::new(&beginning, None).0;
    loop {
        match recording.next() {
            Ok(Some(input)) => drop(intake.replay(input)),
            Ok(None) => break,
            Err(error) => {
                let text = error.to_string();
                assert_eq!(text.lines().count(), 1, "{text}");
                break;
            }
        }
    }
    show(&mut intake, 1 << 40);
}

/// Knows nothing, or the same of every fact.
struct Fixed(Option<Value<'static>>);

impl Subject for Fixed {
    fn fact(&self, _: Fact) -> Option<Value<'_>> {
        self.0.clone()
    }
}

/// An expression.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match text.parse::<Filter>() {
        Ok(filter) => {
            let shown = filter.to_string();
            assert_eq!(shown.parse::<Filter>().as_ref(), Ok(&filter), "{shown} is shown of {text}");
            let address = std::net::Ipv4Addr::LOCALHOST.into();
            for value in [None, Some(Value::Number(443)), Some("x".into()), Some(Value::Address(address))] {
                filter.selects(&Fixed(value));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The configuration file.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match config::of_text(text) {
        Ok(resolved) => {
            let shown = resolved.to_toml();
            let again = config::of_text(&shown);
            assert_eq!(again.map(|again| again.config).ok(), Some(resolved.config), "shown as {shown}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The web configuration file.
pub fn web_config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    // It may name files, and no more than names are wanted here.
    if text.contains("file") {
        return;
    }
    if let Err(wrong) = WebConfig::of_text(text, Path::new("/nowhere")) {
        assert!(!wrong.is_empty());
    }
}

/// The target of a request, and on further lines the names of the host that it asks for.
pub fn query(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    http::fuzz(text);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::recording::Input;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
    }

    #[test]
    fn corpora_hold() {
        for (name, target) in TARGETS {
            let mut seeds: Vec<_> = fs::read_dir(corpus(name)).unwrap().map(|file| file.unwrap().path()).collect();
            seeds.sort();
            assert!(!seeds.is_empty(), "{name} has none");
            for seed in seeds {
                // The harness shows what is printed only when it panics.
                println!("{}", seed.display());
                target(&fs::read(&seed).unwrap());
            }
        }
    }

    #[test]
    fn what_a_corpus_is_for_is_not_refused() {
        let valid = |name: &str, valid: fn(&str) -> bool| {
            let all =
                fs::read_dir(corpus(name)).unwrap().filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
            assert!(all.filter(|text| valid(text)).count() >= 3, "{name}");
        };
        valid("filter", |text| text.parse::<Filter>().is_ok());
        valid("config", |text| config::of_text(text).is_ok());
        valid("web_config", |text| WebConfig::of_text(text, Path::new("/nowhere")).is_ok());
    }

    /// With TCPWATCH_BLESS the seeds of the binary corpora are made anew of the recordings, after a change of a layout.
    #[test]
    fn the_binary_seeds_are_of_the_layout_of_today() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay");
        for name in ["lossy_v4", "lossy_v6"] {
            let path = folder.join(name).with_extension("twr");
            let mut recording = Recording::open(&path).unwrap();
            let (mut seed, mut kinds) = (Vec::new(), BTreeSet::new());
            while let Some(input) = recording.next().unwrap() {
                let Input::Record(bytes) = input else { continue };
                let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
                if record::decode(bytes).is_ok() && kinds.insert(kind) {
                    seed.extend((bytes.len() as u16).to_le_bytes());
                    seed.extend(bytes);
                }
            }
            let file = corpus("decode").join(name);
            if std::env::var_os("TCPWATCH_BLESS").is_some() {
                fs::write(&file, &seed).unwrap();
            }
            assert_eq!(fs::read(&file).unwrap(), seed, "{}: make it anew with TCPWATCH_BLESS=1", file.display());
        }
    }
}
