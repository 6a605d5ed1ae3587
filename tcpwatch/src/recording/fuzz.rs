//! What lets a fuzzer reach behind the checksums.

use super::Beginning;
use super::codec::LAYOUT;
use super::frames::{FrameWriter, Kind, MOST_BYTES};

/// A recording whose frames are right and hold `contents`, one after the other: the length of each is two bytes before it.
pub(crate) fn wrapped(mut contents: &[u8]) -> Vec<u8> {
    let beginning = Beginning { services: 3, table_capacity: 4, ..Beginning::default() };
    let write = || {
        let mut frames = FrameWriter::new(Vec::new())?;
        frames.write(Kind::Beginning, &serde_json::to_vec(&(LAYOUT, beginning))?)?;
        while let Some((length, rest)) = contents.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len()).min(MOST_BYTES);
            let (content, rest) = rest.split_at(length);
            contents = rest;
            frames.write(Kind::Inputs, content)?;
        }
        Ok::<_, std::io::Error>(frames.get_ref().clone())
    };
    // Memory takes whatever is written.
    write().unwrap_or_default()
}
