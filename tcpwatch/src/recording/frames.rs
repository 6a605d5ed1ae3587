//! The outer form of a recording: a preamble, then frames with length and checksum. Both ends, and no meaning.
//!
//! A reader holds one frame at a time, and believes no length that is larger than the writer's own limit. Checksums are
//! chained: a frame that is missing, doubled or in another place is as wrong as one with another byte in it.

use std::io::{self, Read, Write};

use crc32fast::Hasher;
use tcpwatch_common::record::ABI;

use super::error::{Place, Problem};

/// The first bytes of every recording.
const MAGIC: [u8; 8] = *b"tcpwrec\n";
/// Version of this module, of `codec` and of the beginning.
pub(super) const FORMAT: u16 = 1;
/// No frame is larger, unpacked.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// Length of the version of tcpwatch in the preamble.
const VERSION_LEN: usize = 16;
const PREAMBLE_LEN: usize = MAGIC.len() + 2 + 2 + 1 + 3 + VERSION_LEN + 4;
/// Kind, packing, padding, stored and unpacked length; the checksum follows.
const HEAD_LEN: usize = 12;
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
const STORED: u8 = 0;
const LZ4: u8 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What the aggregator is made of.
    Beginning = 1,
    /// What it was given.
    Inputs = 2,
    /// How much that was. Nothing follows.
    End = 3,
}

/// Writes frames.
pub(super) struct FrameWriter<W> {
    out: W,
    chain: u32,
    /// Bytes written.
    pub(super) bytes: u64,
}

impl<W: Write> FrameWriter<W> {
    /// Writes the preamble.
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        let (preamble, chain) = preamble(FORMAT, ABI, BYTE_ORDER, env!("CARGO_PKG_VERSION"));
        out.write_all(&preamble)?;
        Ok(Self { out, chain, bytes: PREAMBLE_LEN as u64 })
    }

    /// Writes a frame, in one call, so that a crash rarely leaves half of one.
    pub(super) fn write(&mut self, kind: Kind, content: &[u8]) -> io::Result<()> {
        if content.len() > MOST_BYTES {
            return Err(io::Error::other(format!("a frame of {} bytes is too large", content.len())));
        }
        let packed = lz4_flex::block::compress(content);
        let (packing, body) = if packed.len() < content.len() { (LZ4, packed.as_slice()) } else { (STORED, content) };
        let mut frame = Vec::with_capacity(HEAD_LEN + 4 + body.len());
        frame.extend([kind as u8, packing, 0, 0]);
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend((content.len() as u32).to_le_bytes());
        self.chain = checksum(self.chain, &[&frame, body]);
        frame.extend(self.chain.to_le_bytes());
        frame.extend(body);
        self.out.write_all(&frame)?;
        self.bytes += frame.len() as u64;
        Ok(())
    }

    /// The file, to be synchronised.
    pub(super) fn get_ref(&self) -> &W {
        &self.out
    }
}

fn preamble(format: u16, abi: u16, byte_order: u8, version: &str) -> (Vec<u8>, u32) {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(format.to_le_bytes());
    bytes.extend(abi.to_le_bytes());
    bytes.extend([byte_order, 0, 0, 0]);
    bytes.extend(version.bytes().chain(std::iter::repeat(0)).take(VERSION_LEN));
    let chain = checksum(0, &[&bytes]);
    bytes.extend(chain.to_le_bytes());
    (bytes, chain)
}

fn checksum(chain: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = Hasher::new_with_initial(chain);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Reads frames.
pub(super) struct FrameReader<R> {
    input: R,
    chain: u32,
    place: Place,
    /// Where the next frame begins.
    next: u64,
}

impl<R: Read> FrameReader<R> {
    /// Checks the preamble.
    pub(super) fn new(mut input: R) -> Result<Self, Problem> {
        let mut bytes = [0; PREAMBLE_LEN];
        let got = fill(&mut input, &mut bytes).map_err(|source| Problem::Read { offset: 0, source })?;
        let mut rest = bytes.get(..got).unwrap_or_default();
        let truncated = || Problem::Truncated(Place::default());
        if take::<{ MAGIC.len() }>(&mut rest).ok_or(Problem::NotARecording)? != MAGIC {
            return Err(Problem::NotARecording);
        }
        let format = u16::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        // What follows may lie elsewhere in another format.
        if format > FORMAT {
            return Err(Problem::Newer { found: format, ours: FORMAT });
        }
        let abi = u16::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        let [byte_order, padding @ ..] = take::<4>(&mut rest).ok_or_else(truncated)?;
        let version = take::<VERSION_LEN>(&mut rest).ok_or_else(truncated)?;
        let stored = u32::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        let chain = checksum(0, &[bytes.get(..PREAMBLE_LEN - 4).unwrap_or_default()]);
        if stored != chain || format != FORMAT || padding != [0; 3] {
            return Err(Problem::Damaged { place: Place::default(), what: "the preamble" });
        }
        if byte_order != BYTE_ORDER {
            return Err(Problem::ByteOrder);
        }
        if abi != ABI {
            let by = version.iter().filter(|c| c.is_ascii_graphic()).map(|c| char::from(*c)).collect();
            return Err(Problem::OtherAbi { found: abi, ours: ABI, by });
        }
        let next = PREAMBLE_LEN as u64;
        Ok(Self { input, chain, place: Place { frame: 0, offset: next }, next })
    }

    /// Reads the next frame into `content`.
    pub(super) fn read(&mut self, content: &mut Vec<u8>) -> Result<Kind, Problem> {
        content.clear();
        self.place = Place { frame: self.place.frame + 1, offset: self.next };
        let head: [u8; HEAD_LEN] = self.array()?;
        let mut rest = head.as_slice();
        let chain = u32::from_le_bytes(self.array()?);
        let [kind, packing, padding @ ..] = take::<4>(&mut rest).unwrap_or_default();
        let mut length = || u32::from_le_bytes(take(&mut rest).unwrap_or_default()) as usize;
        let (stored, unpacked) = (length(), length());
        let kind = match kind {
            1 => Kind::Beginning,
            2 => Kind::Inputs,
            3 => Kind::End,
            _ => return Err(self.damaged("its kind")),
        };
        // A packed frame is smaller than what is in it, else it is stored as it is.
        if unpacked > MOST_BYTES || stored > unpacked || padding != [0; 2] {
            return Err(self.damaged("its length"));
        }
        let mut body = vec![0; stored];
        self.fill(&mut body)?;
        self.chain = checksum(self.chain, &[&head, &body]);
        if self.chain != chain {
            return Err(self.damaged("its checksum"));
        }
        match packing {
            STORED if stored == unpacked => *content = body,
            LZ4 => {
                content.resize(unpacked, 0);
                let size = lz4_flex::block::decompress_into(&body, content);
                if !matches!(size, Ok(size) if size == unpacked) {
                    return Err(self.damaged("its packing"));
                }
            }
            _ => return Err(self.damaged("its packing")),
        }
        Ok(kind)
    }

    /// Nothing may follow the last frame.
    pub(super) fn end(&mut self) -> Result<(), Problem> {
        let got = fill(&mut self.input, &mut [0]);
        match got.map_err(|source| Problem::Read { offset: self.next, source })? {
            0 => Ok(()),
            _ => Err(self.damaged("more follows the end")),
        }
    }

    /// The frame that was read last is not as it should be.
    pub(super) fn damaged(&self, what: &'static str) -> Problem {
        Problem::Damaged { place: self.place, what }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Problem> {
        let got = fill(&mut self.input, bytes).map_err(|source| Problem::Read { offset: self.next, source })?;
        self.next += got as u64;
        if got < bytes.len() { Err(Problem::Truncated(self.place)) } else { Ok(()) }
    }
}

/// Reads until `bytes` is full or the input ends; returns how many there were.
fn fill(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(room) = bytes.get_mut(got..).filter(|room| !room.is_empty()) {
        match input.read(room) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(preamble: &[u8]) -> String {
        FrameReader::new(preamble).err().map(|p| p.to_string()).unwrap_or_default()
    }

    #[test]
    fn files_of_others_are_told_apart() {
        assert_eq!(opened(&preamble(FORMAT, ABI, BYTE_ORDER, "0").0), "");
        assert!(opened(b"").contains("not those of a recording"));
        assert!(opened(&[0x7f; 1000]).contains("not those of a recording"));
        let newer = opened(&preamble(FORMAT + 1, 7, 9, "9.0.0").0);
        assert!(newer.contains("format 2") && newer.contains("newer tcpwatch"), "{newer}");
        let other = opened(&preamble(FORMAT, ABI + 6, BYTE_ORDER, "0.7.1\x1b[2J").0);
        assert!(other.contains("ABI") && other.ends_with("version 0.7.1[2J"), "{other:?}");
        assert!(opened(&preamble(FORMAT, ABI, 3 - BYTE_ORDER, "0").0).contains("byte order"));
        assert!(opened(&preamble(FORMAT, ABI, BYTE_ORDER, "0").0[..30]).contains("breaks off in frame 0 at byte 0"));
    }

    #[test]
    fn lengths_of_gigabytes_are_refused_before_memory_is_taken() {
        for (stored, unpacked) in [(u32::MAX, u32::MAX), (16, u32::MAX), (1 << 30, 10), (20, 1 + MOST_BYTES as u32)] {
            let (mut file, _) = preamble(FORMAT, ABI, BYTE_ORDER, "0");
            file.extend([2, LZ4, 0, 0]);
            file.extend(stored.to_le_bytes());
            file.extend(unpacked.to_le_bytes());
            file.extend([0; 100]);
            let error = FrameReader::new(file.as_slice()).unwrap().read(&mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains("frame 1 at byte 36 is damaged (its length)"), "{error}");
        }
    }

    #[test]
    fn a_bomb_that_unpacks_to_more_than_it_says_is_refused() {
        let bomb = lz4_flex::block::compress(&vec![0; 64 << 20]);
        let said = bomb.len() as u32 + 1;
        let (mut file, chain) = preamble(FORMAT, ABI, BYTE_ORDER, "0");
        let mut head = vec![2, LZ4, 0, 0];
        head.extend((bomb.len() as u32).to_le_bytes());
        head.extend(said.to_le_bytes());
        file.extend(&head);
        file.extend(checksum(chain, &[&head, &bomb]).to_le_bytes());
        file.extend(&bomb);
        let error = FrameReader::new(file.as_slice()).unwrap().read(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("(its packing)"), "{error}");
    }
}
