//! Properties of recordings: what goes in comes out, what was changed is noticed, and nothing panics.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use tcpwatch_common::counters::{GAUGE_WORDS, Loss, dist, group, reason};
use tcpwatch_common::record::{ABI, ConnRecord, Header, Kind, ListenerRecord, encode};

use super::*;
use crate::aggregate::owners::Named;
use crate::aggregate::snapshot::{Compared, Governed, NamespaceStats, ProbeState, ProbeStatus, ProgramStats};
use crate::kernel::maps::SlotCounters;
use crate::metrics::Recorded;

const PATH: &str = "/some/where.twr";

/// An input that owns what it holds.
#[derive(Clone, Debug, PartialEq)]
enum Owned {
    Record(Vec<u8>),
    Listening(u16),
    Name(Named, u64, Vec<u8>),
    Gone(u64),
    Stack(ResetStack),
    Settings(u32, Option<Arc<Limits>>),
    Governed(Governed),
    Reading(Box<(Counters, Reading)>),
}

impl Owned {
    fn of(input: Input<'_>) -> Self {
        match input {
            Input::Record(bytes) => Self::Record(bytes.to_vec()),
            Input::Listening(port) => Self::Listening(port),
            Input::Name(what, number, name) => Self::Name(what, number, name.to_vec()),
            Input::Gone(cookie) => Self::Gone(cookie),
            Input::Stack(stack) => Self::Stack(stack.clone()),
            Input::Settings(netns, limits) => Self::Settings(netns, limits.cloned()),
            Input::Governed(governed) => Self::Governed(governed),
            Input::Reading(counters, reading) => Self::Reading(Box::new((counters.clone(), reading.clone()))),
        }
    }

    fn input(&self) -> Input<'_> {
        match self {
            Self::Record(bytes) => Input::Record(bytes),
            Self::Listening(port) => Input::Listening(*port),
            Self::Name(what, number, name) => Input::Name(*what, *number, name),
            Self::Gone(cookie) => Input::Gone(*cookie),
            Self::Stack(stack) => Input::Stack(stack),
            Self::Settings(netns, limits) => Input::Settings(*netns, limits.as_ref()),
            Self::Governed(governed) => Input::Governed(*governed),
            Self::Reading(both) => Input::Reading(&both.0, &both.1),
        }
    }
}

fn beginning() -> Beginning {
    let probe = |state| ProbeStatus {
        probe: "tcp_probe".to_owned(),
        hook: "tp_btf".into(),
        required: true,
        state,
        loses: "RTT".into(),
    };
    Beginning {
        facts: Facts {
            kernel_release: "6.18.0-test".to_owned(),
            ticks_per_second: 250,
            sampling_mode: "tick".into(),
            reasons: vec!["none".to_owned(), "no_socket".to_owned()],
            probes: vec![probe(ProbeState::Attached), probe(ProbeState::Broken("EPERM\nand more".to_owned()))],
            no_symbols: Some("no CAP_SYSLOG".to_owned()),
        },
        services: 3,
        service_ports: vec![443],
        table_capacity: 5,
        ktime_ns: 7,
        storms: Rules::default(),
    }
}

fn reading() -> impl Strategy<Value = Owned> {
    let word = prop_oneof![Just(0_u64), 0..1000_u64, any::<u64>()];
    let changes = vec((any::<prop::sample::Index>(), word), 0..30);
    let program = (0..3_u8, any::<Option<u64>>(), any::<u64>()).prop_map(|(name, runs, recursion_misses)| {
        // Nothing has run 2^64 - 1 times.
        let runs = runs.map(|runs| runs >> 1);
        let mean_run_seconds = runs.map(|runs| runs as f64 / 3.0);
        ProgramStats { name: format!("program_{name}"), runs, mean_run_seconds, recursion_misses }
    });
    (0..=40_usize, changes, vec(program, 0..3), any::<[u32; 4]>(), 0.0..60.0_f64).prop_map(
        |(slots, changes, programs, numbers, sample_interval_seconds)| {
            let mut slots = vec![SlotCounters::ZERO; slots];
            let mut counters = Counters {
                slots: Vec::new(),
                reasons: vec![0; reason::WORDS],
                losses: [0; Loss::ALL.len()],
                gauges: [0; GAUGE_WORDS],
                stacks: changes.iter().zip(1..).map(|((_, word), key)| (key, *word)).collect(),
            };
            let places = slots.iter_mut().flat_map(|slot| slot.words.iter_mut().chain(&mut slot.dist));
            let more = counters.reasons.iter_mut().chain(&mut counters.losses).chain(&mut counters.gauges);
            let mut places: Vec<_> = places.chain(more).collect();
            for (place, word) in changes {
                let place = place.index(places.len());
                *places[place] = word;
            }
            counters.slots = slots;
            let [ktime, ring, used, maps] = numbers.map(u64::from);
            let namespaces = (0..used % 3)
                .map(|i| NamespaceStats {
                    netns: ring as u32,
                    time_wait: maps + i,
                    listen_overflows: ktime,
                    port_range: [ring as u32, u32::MAX],
                    compared: Compared { kernel_resets_sent: used, resets_sent: maps, ..Compared::default() },
                })
                .collect();
            let reading = Reading {
                ktime_ns: ktime * 1_000_003,
                programs,
                ring_bytes: ring,
                ring_used_bytes: used,
                map_bytes: maps,
                sample_interval_seconds,
                namespaces,
                compared: Compared { retransmitted_segments: ring, kernel_aborts_failed: maps, ..Compared::default() },
                unreadable_namespaces: used,
            };
            Owned::Reading(Box::new((counters, reading)))
        },
    )
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let right = (prop::sample::select(&Kind::ALL[..]), vec(any::<u8>(), size_of::<ConnRecord>()), any::<u64>())
        .prop_map(|(kind, mut bytes, ktime_ns)| {
            let len = match kind {
                Kind::Open | Kind::Sample | Kind::Close => size_of::<ConnRecord>(),
                Kind::Listener => size_of::<ListenerRecord>(),
                _ => 104,
            };
            bytes.truncate(len);
            let header = Header { kind: kind as u16, abi: ABI, len: len as u32, ktime_ns };
            encode(&header, &mut bytes).unwrap();
            bytes
        });
    prop_oneof![4 => right, 1 => vec(any::<u8>(), 0..600)]
}

fn settings() -> impl Strategy<Value = Owned> {
    // Nothing is as large as the largest number.
    let word = proptest::option::of(0..u64::MAX);
    (any::<u32>(), proptest::option::of(vec(word, crate::meaning::limits::WORDS))).prop_map(|(netns, words)| {
        let limits = words.map(|words| {
            let mut limits = Limits::default();
            limits.words().into_iter().zip(words).for_each(|(place, word)| *place = word);
            Arc::new(limits)
        });
        Owned::Settings(netns, limits)
    })
}

fn stack() -> impl Strategy<Value = ResetStack> {
    let name = prop_oneof![Just("tcp_v4_rcv".to_owned()), "[a-z_<>]{1,20}"];
    (0..40_u64, 0..3_u8, 0..15_u8, vec(name, 0..14)).prop_map(|(key, origin, cause, frames)| ResetStack {
        key,
        origin,
        cause,
        frames,
    })
}

fn inputs() -> impl Strategy<Value = Vec<Owned>> {
    let input = prop_oneof![
        4 => record().prop_map(Owned::Record),
        1 => any::<u16>().prop_map(Owned::Listening),
        1 => (prop::sample::select(&Named::ALL[..]), any::<u64>(), vec(any::<u8>(), 0..50))
            .prop_map(|(what, number, name)| Owned::Name(what, number, name)),
        1 => stack().prop_map(Owned::Stack),
        1 => settings(),
        1 => any::<[u64; 7]>().prop_map(|words| {
            let mut governed = Governed::default();
            governed.words().into_iter().zip(words).for_each(|(place, word)| *place = word);
            Owned::Governed(governed)
        }),
        2 => reading(),
    ];
    vec(input, 0..25)
}

/// The file of these inputs, with a frame for each reading.
fn file(inputs: &[Owned]) -> Vec<u8> {
    let mut recorder = Recorder::to(Vec::new(), Path::new(PATH), &beginning()).unwrap();
    for input in inputs {
        recorder.add(input.input());
        if matches!(input, Owned::Reading(_)) {
            recorder.flush().unwrap();
        }
    }
    recorder.end().unwrap();
    recorder.get_ref().clone()
}

/// What can be read of a file, and the error at its end.
fn read(bytes: &[u8]) -> (Vec<Owned>, Option<RecordingError>) {
    let mut recording = match Recording::of(bytes, Path::new(PATH)) {
        Ok(recording) => recording,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut all = Vec::new();
    loop {
        match recording.next() {
            Ok(Some(input)) => all.push(Owned::of(input)),
            Ok(None) => return (all, None),
            Err(error) => return (all, Some(error)),
        }
    }
}

/// All that an aggregator says to these inputs.
fn outputs(inputs: &[Owned]) -> Vec<(Arc<Snapshot>, String)> {
    let (mut intake, _) = Intake::new(&beginning(), None);
    let mut shown = Recorded::default();
    let snapshots = inputs.iter().filter_map(|input| intake.replay(input.input()));
    snapshots
        .map(|snapshot| {
            shown.take(&snapshot);
            (snapshot, shown.text().unwrap())
        })
        .collect()
}

#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, prop::sample::Index),
    Double(prop::sample::Index, prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let place = any::<prop::sample::Index>;
        prop_oneof![
            (place(), 1..=u8::MAX).prop_map(|(at, bits)| Self::Flip(at, bits)),
            place().prop_map(Self::Cut),
            (place(), place()).prop_map(|(a, b)| Self::Remove(a, b)),
            (place(), place()).prop_map(|(a, b)| Self::Double(a, b)),
            (place(), vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
        ]
    }

    fn apply(&self, file: &mut Vec<u8>) {
        let range = |a: &prop::sample::Index, b: &prop::sample::Index| {
            let (a, b) = (a.index(file.len()), b.index(file.len()));
            a.min(b)..a.max(b)
        };
        match self {
            Self::Flip(at, bits) => {
                let at = at.index(file.len());
                file[at] ^= bits;
            }
            Self::Cut(at) => file.truncate(at.index(file.len())),
            Self::Remove(a, b) => {
                let range = range(a, b);
                file.drain(range);
            }
            Self::Double(a, b) => {
                let range = range(a, b);
                let part = file[range.clone()].to_vec();
                file.splice(range.end..range.end, part);
            }
            Self::Insert(at, bytes) => {
                let at = at.index(file.len());
                file.splice(at..at, bytes.iter().copied());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_recorded_comes_back_in_order(inputs in inputs()) {
        let bytes = file(&inputs);
        let (again, error) = read(&bytes);
        prop_assert!(error.is_none(), "{:?}", error);
        prop_assert_eq!(&again, &inputs);
        let recording = Recording::of(bytes.as_slice(), Path::new(PATH)).unwrap();
        prop_assert_eq!(recording.beginning(), &beginning());
    }

    #[test]
    fn a_replay_says_what_was_said_live(inputs in inputs()) {
        prop_assert_eq!(outputs(&read(&file(&inputs)).0), outputs(&inputs));
    }

    #[test]
    fn a_change_is_noticed_or_changes_nothing(
        inputs in inputs(),
        changes in vec(Change::any(), 1..4),
    ) {
        let whole = file(&inputs);
        let mut bytes = whole.clone();
        for change in changes {
            if !bytes.is_empty() {
                change.apply(&mut bytes);
            }
        }
        let (again, error) = read(&bytes);
        // What is before the break is what was recorded.
        prop_assert!(inputs.starts_with(&again), "other inputs");
        match error {
            None => prop_assert_eq!(again, inputs),
            Some(error) => {
                let text = error.to_string();
                prop_assert!(text.starts_with(PATH) && text.lines().count() == 1, "{}", text);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..2000)) {
        let (inputs, error) = read(&bytes);
        prop_assert!(inputs.is_empty() && error.is_some());
    }

    #[test]
    fn any_content_of_a_right_frame_is_read_or_refused(contents in vec(vec(0..6_u8, 0..300), 0..4), begin in any::<bool>()) {
        let mut frames = frames::FrameWriter::new(Vec::new()).unwrap();
        if begin {
            let text = serde_json::to_vec(&(codec::LAYOUT, beginning())).unwrap();
            frames.write(frames::Kind::Beginning, &text).unwrap();
        }
        for content in contents {
            frames.write(frames::Kind::Inputs, &content).unwrap();
        }
        let (inputs, error) = read(frames.get_ref());
        prop_assert!(error.is_some());
        outputs(&inputs);
    }
}

#[test]
fn every_cut_of_a_file_is_a_break_that_is_named() {
    let reading = |ktime_ns| {
        let counters = Counters {
            slots: vec![SlotCounters { words: [3; group::WORDS], dist: [4; dist::WORDS] }; 4],
            reasons: vec![0; reason::WORDS],
            losses: [1; Loss::ALL.len()],
            gauges: [0; GAUGE_WORDS],
            stacks: vec![(7, 8)],
        };
        Owned::Reading(Box::new((counters, Reading { ktime_ns, ..Reading::default() })))
    };
    let inputs: Vec<_> = (1..5).flat_map(|i| [Owned::Record(vec![i; 90]), reading(u64::from(i))]).collect();
    let whole = file(&inputs);
    let mut most = 0;
    for len in 0..whole.len() {
        let (again, error) = read(&whole[..len]);
        assert!(inputs.starts_with(&again) && again.len() >= most, "{len}");
        most = again.len();
        let error = error.unwrap();
        let expected = matches!(error.problem(), error::Problem::Truncated(_) | error::Problem::NotARecording);
        assert!(expected, "{len}: {error}");
    }
    assert_eq!(most, inputs.len());
}

#[test]
fn a_beginning_of_other_sizes_is_refused() {
    let refused = |layout: [usize; 5], beginning: &Beginning| {
        let mut frames = frames::FrameWriter::new(Vec::new()).unwrap();
        frames.write(frames::Kind::Beginning, &serde_json::to_vec(&(layout, beginning)).unwrap()).unwrap();
        read(frames.get_ref()).1.map(|error| error.to_string()).unwrap_or_default()
    };
    let mut layout = codec::LAYOUT;
    layout[0] += 1;
    assert!(refused(layout, &beginning()).contains("counters lie elsewhere"));
    for hostile in
        [Beginning { table_capacity: usize::MAX, ..beginning() }, Beginning { services: usize::MAX, ..beginning() }]
    {
        assert!(refused(codec::LAYOUT, &hostile).contains("a size of the beginning"));
    }
    let mut hostile = beginning();
    hostile.facts.kernel_release = "\x1b]0;mine\x07".to_owned();
    assert!(refused(codec::LAYOUT, &hostile).contains("a text of the beginning"));
}
