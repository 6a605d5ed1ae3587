//! Inputs as bytes and back. A reading is stored as its differences from the one before, which are few on an idle host.
//!
//! `Counters` and `Reading` are taken apart in one place each, for both directions; a field that is added to them is
//! missed by the compiler there, and nowhere else.

use std::sync::Arc;

use tcpwatch_common::counters::{GAUGE_WORDS, Loss, dist, group, reason, slot};
use tcpwatch_common::stack;

use super::{Input, ResetStack};
use crate::aggregate::Reading;
use crate::aggregate::owners::Named;
use crate::aggregate::snapshot::{Governed, NamespaceStats, ProgramStats};
use crate::kernel::maps::{Counters, SlotCounters};
use crate::meaning::Limits;

const RECORD: u8 = 1;
const LISTENING: u8 = 2;
const READING: u8 = 3;
/// A reading of which the number of slots or namespaces or the programs are others than in the one before.
const READING_ANEW: u8 = 4;
const NAME: u8 = 5;
const STACK: u8 = 6;
const GONE: u8 = 7;
const SETTINGS: u8 = 8;
const SETTINGS_END: u8 = 9;
const GOVERNED: u8 = 10;

/// The ring buffer has no larger records.
pub(super) const MOST_RECORD: usize = 1 << 16;
/// The longest path of a control group, PATH_MAX.
pub(super) const MOST_TEXT: usize = 4096;
/// Programs that a reading may tell of.
const MOST_PROGRAMS: usize = 64;
/// Network namespaces that a reading may tell of.
const MOST_NAMESPACES: usize = 4096;
const MOST_NAME: usize = 64;
/// Stacks that a reading may count.
const MOST_STACKS: usize = stack::STACKS as usize;
const WORDS_OF_A_SLOT: usize = group::WORDS + dist::WORDS;
const OTHER_WORDS: usize = reason::WORDS + Loss::ALL.len() + GAUGE_WORDS + 16;
/// No input is longer: a word takes at most ten bytes and its distance from the one before three.
pub(super) const MOST_INPUT: usize =
    (slot::COUNT * WORDS_OF_A_SLOT + OTHER_WORDS + MOST_PROGRAMS * 3 + MOST_NAMESPACES * 3 + MOST_STACKS * 2) * 13
        + MOST_PROGRAMS * (MOST_NAME + 2)
        + 64;

/// Numbers that change whenever counters lie elsewhere: what the recorder had must be what the reader has.
pub(super) const LAYOUT: [usize; 5] = [group::WORDS, dist::WORDS, reason::WORDS, Loss::ALL.len(), GAUGE_WORDS];

/// The reading before, which differences are taken from. Writer and reader each have one.
pub(super) struct Codec {
    counters: Counters,
    reading: Reading,
    words: Vec<u64>,
    stack: ResetStack,
    limits: Arc<Limits>,
}

impl Default for Codec {
    fn default() -> Self {
        Self {
            counters: zero(0),
            reading: Reading::default(),
            words: Vec::new(),
            stack: ResetStack::default(),
            limits: Arc::default(),
        }
    }
}

impl Codec {
    /// Appends an input.
    pub(super) fn encode(&mut self, input: Input<'_>, out: &mut Vec<u8>) {
        match input {
            Input::Record(bytes) => {
                out.push(RECORD);
                put(out, bytes.len() as u64);
                out.extend(bytes);
            }
            Input::Listening(port) => {
                out.push(LISTENING);
                out.extend(port.to_le_bytes());
            }
            Input::Name(what, number, name) => {
                out.extend([NAME, what as u8]);
                put(out, number);
                put(out, name.len() as u64);
                out.extend(name);
            }
            Input::Gone(cookie) => {
                out.push(GONE);
                put(out, cookie);
            }
            Input::Stack(stack) => {
                out.push(STACK);
                out.extend(stack.key.to_le_bytes());
                out.extend([stack.origin, stack.cause]);
                put(out, stack.frames.len() as u64);
                for frame in &stack.frames {
                    put_name(out, frame);
                }
            }
            Input::Settings(netns, None) => {
                out.push(SETTINGS_END);
                put(out, netns.into());
            }
            Input::Settings(netns, Some(limits)) => {
                out.push(SETTINGS);
                put(out, netns.into());
                let mut limits = Limits::clone(limits);
                // One more, so that none differs from 0.
                limits.words().into_iter().for_each(|word| put(out, word.map_or(0, |word| word.saturating_add(1))));
            }
            Input::Governed(mut governed) => {
                out.push(GOVERNED);
                governed.words().into_iter().for_each(|word| put(out, *word));
            }
            Input::Reading(counters, reading) => self.encode_reading(counters, reading, out),
        }
    }

    fn encode_reading(&mut self, counters: &Counters, reading: &Reading, out: &mut Vec<u8>) {
        let (mut counters, mut reading) = (counters.clone(), reading.clone());
        let names = |reading: &Reading| reading.programs.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        let same = counters.slots.len() == self.counters.slots.len()
            && reading.namespaces.len() == self.reading.namespaces.len()
            && counters.stacks.len() == self.counters.stacks.len()
            && names(&reading) == names(&self.reading);
        if same {
            out.push(READING);
        } else {
            out.push(READING_ANEW);
            put(out, counters.slots.len() as u64);
            put(out, reading.namespaces.len() as u64);
            put(out, counters.stacks.len() as u64);
            put(out, reading.programs.len() as u64);
            for program in &reading.programs {
                put_name(out, &program.name);
            }
        }
        let mut words = Vec::with_capacity(self.words.len());
        each_word(&mut counters, &mut reading, |word| words.push(*word));
        self.words.resize(words.len(), 0);
        let mut distance = 1;
        for (word, before) in words.iter().zip(&self.words) {
            if word == before {
                distance += 1;
                continue;
            }
            put(out, distance);
            put(out, zigzag(word.wrapping_sub(*before) as i64));
            distance = 1;
        }
        put(out, 0);
        (self.counters, self.reading, self.words) = (counters, reading, words);
    }

    /// Takes one input off `bytes`; says what is wrong with it otherwise.
    pub(super) fn decode<'a>(&'a mut self, bytes: &mut &'a [u8]) -> Result<Input<'a>, &'static str> {
        let [tag] = array(bytes)?;
        match tag {
            RECORD => {
                let len = get(bytes)?;
                if len > MOST_RECORD as u64 {
                    return Err("the length of a record");
                }
                Ok(Input::Record(slice(bytes, len)?))
            }
            LISTENING => Ok(Input::Listening(u16::from_le_bytes(array(bytes)?))),
            NAME => {
                let [what] = array(bytes)?;
                let what = Named::ALL.get(usize::from(what)).copied().ok_or("what a name is for")?;
                let (number, len) = (get(bytes)?, get(bytes)?);
                if len > MOST_TEXT as u64 {
                    return Err("the length of a name");
                }
                Ok(Input::Name(what, number, slice(bytes, len)?))
            }
            GONE => Ok(Input::Gone(get(bytes)?)),
            STACK => {
                let key = u64::from_le_bytes(array(bytes)?);
                let [origin, cause] = array(bytes)?;
                let count = get(bytes)?;
                if count > stack::FRAMES as u64 {
                    return Err("the size of a stack");
                }
                let frames = (0..count).map(|_| name(bytes, "the name of a function").map(str::to_owned));
                self.stack = ResetStack { key, origin, cause, frames: frames.collect::<Result<_, _>>()? };
                Ok(Input::Stack(&self.stack))
            }
            SETTINGS | SETTINGS_END => {
                let netns = u32::try_from(get(bytes)?).map_err(|_| "the number of a namespace")?;
                if tag == SETTINGS_END {
                    return Ok(Input::Settings(netns, None));
                }
                let mut limits = Limits::default();
                for word in limits.words() {
                    *word = get(bytes)?.checked_sub(1);
                }
                self.limits = Arc::new(limits);
                Ok(Input::Settings(netns, Some(&self.limits)))
            }
            GOVERNED => {
                let mut governed = Governed::default();
                for word in governed.words() {
                    *word = get(bytes)?;
                }
                Ok(Input::Governed(governed))
            }
            READING | READING_ANEW => {
                if tag == READING_ANEW {
                    self.decode_shape(bytes)?;
                }
                self.decode_words(bytes)?;
                Ok(Input::Reading(&self.counters, &self.reading))
            }
            _ => Err("an input of no known kind"),
        }
    }

    fn decode_shape(&mut self, bytes: &mut &[u8]) -> Result<(), &'static str> {
        let (slots, namespaces, stacks, programs) = (get(bytes)?, get(bytes)?, get(bytes)?, get(bytes)?);
        let right = slots <= slot::COUNT as u64 && namespaces <= MOST_NAMESPACES as u64;
        if !right || stacks > MOST_STACKS as u64 || programs > MOST_PROGRAMS as u64 {
            return Err("the size of a reading");
        }
        self.counters = zero(slots as usize);
        self.counters.stacks = vec![(0, 0); stacks as usize];
        let nothing = NamespaceStats::default();
        self.reading.namespaces = vec![nothing; namespaces as usize];
        self.reading.programs.clear();
        for _ in 0..programs {
            let name = name(bytes, "the name of a program")?;
            self.reading.programs.push(ProgramStats { name: name.to_owned(), ..ProgramStats::default() });
        }
        Ok(())
    }

    fn decode_words(&mut self, bytes: &mut &[u8]) -> Result<(), &'static str> {
        let mut count = 0;
        each_word(&mut self.counters, &mut self.reading, |_| count += 1);
        self.words.resize(count, 0);
        let mut place = 0_usize;
        loop {
            let distance = get(bytes)?;
            if distance == 0 {
                break;
            }
            place = usize::try_from(distance).ok().and_then(|d| place.checked_add(d)).ok_or("the place of a word")?;
            let word = self.words.get_mut(place - 1).ok_or("the place of a word")?;
            *word = word.wrapping_add(unzigzag(get(bytes)?) as u64);
        }
        let mut words = self.words.iter();
        each_word(&mut self.counters, &mut self.reading, |word| *word = words.next().copied().unwrap_or_default());
        Ok(())
    }
}

fn zero(slots: usize) -> Counters {
    Counters {
        slots: vec![SlotCounters::ZERO; slots],
        reasons: vec![0; reason::WORDS],
        losses: [0; Loss::ALL.len()],
        gauges: [0; GAUGE_WORDS],
        stacks: Vec::new(),
    }
}

/// Shows every word of a reading to `each`, in an order that stays while slots are added.
fn each_word(counters: &mut Counters, reading: &mut Reading, mut each: impl FnMut(&mut u64)) {
    let Reading {
        ktime_ns,
        programs,
        ring_bytes,
        ring_used_bytes,
        map_bytes,
        sample_interval_seconds,
        namespaces,
        compared,
        unreadable_namespaces,
    } = reading;
    [ktime_ns, ring_bytes, ring_used_bytes, map_bytes, unreadable_namespaces].into_iter().for_each(&mut each);
    compared.words().into_iter().for_each(&mut each);
    float(sample_interval_seconds, &mut each);
    for ProgramStats { name: _, runs, mean_run_seconds, recursion_misses } in programs {
        // One more, so that none differs from 0.
        let mut counted = runs.map_or(0, |runs| runs.wrapping_add(1));
        each(&mut counted);
        *runs = (counted > 0).then(|| counted - 1);
        let mut mean = mean_run_seconds.unwrap_or(0.0);
        float(&mut mean, &mut each);
        *mean_run_seconds = runs.map(|_| mean);
        each(recursion_misses);
    }
    for NamespaceStats { netns, time_wait, listen_overflows, compared, port_range } in namespaces {
        let mut inode = u64::from(*netns);
        each(&mut inode);
        *netns = inode as u32;
        each(time_wait);
        each(listen_overflows);
        compared.words().into_iter().for_each(&mut each);
        for port in port_range {
            let mut number = u64::from(*port);
            each(&mut number);
            *port = number as u32;
        }
    }
    let Counters { slots, reasons, losses, gauges, stacks } = counters;
    reasons.iter_mut().chain(losses).chain(gauges).for_each(&mut each);
    for SlotCounters { words, dist } in slots {
        words.iter_mut().chain(dist).for_each(&mut each);
    }
    // Last: they come while it runs.
    for (key, count) in stacks {
        each(key);
        each(count);
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    put(out, name.len() as u64);
    out.extend(name.as_bytes());
}

/// Takes a name off `bytes` that [`put_name`] wrote; `what` is told when it is none.
fn name<'a>(bytes: &mut &'a [u8], what: &'static str) -> Result<&'a str, &'static str> {
    let len = get(bytes)?;
    let name = std::str::from_utf8(slice(bytes, len)?).map_err(|_| what)?;
    if name.len() > MOST_NAME || name.contains(char::is_control) {
        return Err(what);
    }
    Ok(name)
}

fn float(number: &mut f64, each: &mut impl FnMut(&mut u64)) {
    let mut bits = number.to_bits();
    each(&mut bits);
    *number = f64::from_bits(bits);
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Seven bits a byte, the lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off `bytes` that [`put`] wrote.
pub(super) fn get(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = array(bytes)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number")
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (first, rest) = bytes.split_first_chunk().ok_or("its content ends early")?;
    *bytes = rest;
    Ok(*first)
}

fn slice<'a>(bytes: &mut &'a [u8], len: u64) -> Result<&'a [u8], &'static str> {
    let len = usize::try_from(len).map_err(|_| "a length")?;
    let (first, rest) = bytes.split_at_checked(len).ok_or("its content ends early")?;
    *bytes = rest;
    Ok(first)
}
