//! A record of a connection as it is kept: most of its words are 0 or small, so that a fourth of its size holds it.
//!
//! Every word of 32 bits has a code of two bits, which says how many of its bytes follow: none, 1, 2 or all 4. The codes come
//! first, then the bytes. Nothing in it depends on what a word means.

use tcpwatch_common::Wire as _;
use tcpwatch_common::record::ConnRecord;

const WORD: usize = 4;
const WORDS: usize = size_of::<ConnRecord>() / WORD;
/// Words whose codes fill a byte.
const GROUP: usize = 4;
const CODES: usize = WORDS / GROUP;
/// Every word is read and written whole, and may reach so far past its own bytes.
const SPARE: usize = WORD;
const MOST: usize = CODES + WORDS * WORD + SPARE;
/// Sizes are multiples of it, so that a number that grows seldom takes another place.
const STEP: usize = 16;

const _: () = assert!(size_of::<ConnRecord>() == CODES * GROUP * WORD, "a record is groups of words");

/// Bytes that follow, by code.
const LENGTHS: [usize; 4] = [0, 1, 2, 4];
/// What of a word that was read whole belongs to it, by code.
const MASKS: [u32; 4] = [0, 0xff, 0xffff, u32::MAX];

/// Where records are packed, one after the other.
pub(crate) struct Packer([u8; MOST]);

impl Default for Packer {
    fn default() -> Self {
        Self([0; MOST])
    }
}

/// A record, packed. It is not shared with those who list connections, but copied: whether it is shared could only be asked
/// by an atomic operation, which would have every record wait for the memory of the one before it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The connection.
    pub(crate) cookie: u64,
    bytes: Box<[u8]>,
}

impl Kept {
    /// Packs a record.
    pub(crate) fn new(record: &ConnRecord) -> Self {
        let mut packed = [0; MOST];
        let len = pack(record, &mut packed);
        Self { cookie: record.cookie, bytes: roomy(&packed, len) }
    }

    /// Packs a newer record of the same connection, into the same place where it fits.
    pub(crate) fn update(&mut self, record: &ConnRecord, packer: &mut Packer) {
        let packed = &mut packer.0;
        let len = pack(record, packed);
        match (self.bytes.get_mut(..len), packed.get(..len)) {
            (Some(place), Some(packed)) => place.copy_from_slice(packed),
            _ => self.bytes = roomy(packed, len),
        }
    }

    /// The record.
    pub(crate) fn record(&self) -> ConnRecord {
        let mut record = [0; size_of::<ConnRecord>()];
        unpack(&self.bytes, &mut record);
        match ConnRecord::read(&record) {
            Some(record) => record,
            None => unreachable!("a record has as many bytes as it has"),
        }
    }
}

fn roomy(packed: &[u8; MOST], len: usize) -> Box<[u8]> {
    packed.get(..len.next_multiple_of(STEP).min(MOST)).unwrap_or(packed).into()
}

/// Returns how much of `packed` is taken; what was there before does not matter.
fn pack(record: &ConnRecord, packed: &mut [u8; MOST]) -> usize {
    let mut bytes = [0; size_of::<ConnRecord>()];
    let written = record.write(&mut bytes);
    debug_assert!(written.is_some(), "a record fits into as many bytes as it has");
    let (codes, words) = packed.split_at_mut(CODES);
    let mut at = 0;
    for (code, group) in codes.iter_mut().zip(bytes.as_chunks::<{ GROUP * WORD }>().0) {
        let mut kinds = 0;
        // Most groups of most records are zeros.
        if *group != [0; GROUP * WORD] {
            for (n, word) in group.as_chunks::<WORD>().0.iter().enumerate() {
                let word = u32::from_ne_bytes(*word);
                // Without a branch, as nothing foretells how large the next number is.
                let used = (u32::BITS - word.leading_zeros()).div_ceil(u8::BITS);
                let kind = used - used / 4;
                if let Some(place) = words.get_mut(at..at + WORD) {
                    place.copy_from_slice(&word.to_le_bytes());
                }
                at += (kind + kind / 3) as usize;
                kinds |= kind << (2 * n);
            }
        }
        *code = kinds as u8;
    }
    CODES + at + SPARE
}

fn unpack(packed: &[u8], record: &mut [u8; size_of::<ConnRecord>()]) {
    let (codes, words) = packed.split_at_checked(CODES).unwrap_or_default();
    let mut at = 0;
    for (code, group) in codes.iter().zip(record.as_chunks_mut::<{ GROUP * WORD }>().0) {
        if *code == 0 {
            continue;
        }
        for (n, place) in group.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
            let kind = usize::from(code >> (2 * n) & 3);
            let whole = words.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
            *place = (u32::from_le_bytes(whole) & MASKS.get(kind).copied().unwrap_or_default()).to_ne_bytes();
            at += LENGTHS.get(kind).copied().unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::tests::conn_record;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = u32> {
        prop_oneof![4 => Just(0_u32), 2 => 0..0x101_u32, 1 => 0xff00..0x1_0100_u32, 1 => 0xff_ff00..0x100_0100_u32, 1 => any::<u32>()]
    }

    fn record() -> impl Strategy<Value = ConnRecord> {
        proptest::collection::vec(word(), WORDS).prop_map(|words| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            ConnRecord::read(&bytes).unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(first in record(), then in proptest::collection::vec(record(), 0..4)) {
            let (mut kept, mut packer) = (Kept::new(&first), Packer::default());
            prop_assert_eq!(kept.record(), first);
            for newer in then {
                let listed = kept.clone();
                let before = listed.record();
                kept.update(&newer, &mut packer);
                prop_assert_eq!(kept.record(), newer);
                prop_assert_eq!(listed.record(), before);
            }
        }
    }

    #[test]
    fn a_record_of_large_numbers_fits_too() {
        let largest = ConnRecord::read(&[0xff; size_of::<ConnRecord>()]).unwrap();
        let kept = Kept::new(&largest);
        assert_eq!((kept.record(), kept.bytes.len()), (largest, MOST));
    }

    #[test]
    fn an_update_takes_the_same_place_while_it_fits() {
        let mut kept = Kept::new(&conn_record(7));
        let place = kept.bytes.as_ptr();
        let mut record = conn_record(7);
        record.srtt_us = 5;
        kept.update(&record, &mut Packer::default());
        assert_eq!((kept.bytes.as_ptr(), kept.record()), (place, record));
        let small = kept.bytes.len();
        record.sketch = [u32::MAX; tcpwatch_common::hist::SKETCH_BUCKETS];
        kept.update(&record, &mut Packer::default());
        assert_eq!(kept.record(), record);
        assert!(kept.bytes.len() > small + 150 && small < 100, "{small} and {}", kept.bytes.len());
    }
}
