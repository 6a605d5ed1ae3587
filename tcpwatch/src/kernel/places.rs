//! Puts what is known of the running kernel into the instructions of an object, before it is loaded.
//!
//! What the programs read of the kernel's structures is one instruction each, with a place in its offset that stands for the
//! field (`tcpwatch_common::layout::place`). Clang would leave CO-RE relocations there; rustc has none. And where the kernel
//! has a cast that its verifier takes for a move, the helper that does the same is not called.

use object::{Object as _, ObjectSection as _, SectionFlags, elf};
use tcpwatch_common::layout::{ABSENT, CAST, Field, FieldSpec, Layout, PLACE, PLACE_STEP, SKC_TO_TCP_SOCK};

use super::btf::Btf;

/// Bytes of an instruction (include/uapi/linux/bpf.h, `struct bpf_insn`).
const INSTRUCTION: usize = 8;
/// `BPF_LD | BPF_IMM | BPF_DW`: the only instruction that takes two places.
const LOAD_WIDE: u8 = 0x18;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE_CONSTANT: u8 = 0xb7;
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the upper half of the registers.
const OF_THE_KERNEL: u8 = 2 << 4;
/// `BPF_LDX | BPF_MEM` with each size, and the bytes it loads.
const LOADS: [(u8, u16); 4] = [(0x71, 1), (0x69, 2), (0x61, 4), (0x79, 8)];

/// What an object is not allowed to have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// It is no ELF file.
    #[error("not an object: {0}")]
    Object(#[from] object::read::Error),
    /// It was made for another daemon.
    #[error("it reads {bytes} bytes at {within} of kernel field {field}, which are not among those that are resolved")]
    Field {
        /// Number in the layout.
        field: u16,
        /// First byte.
        within: u16,
        /// How many.
        bytes: u16,
    },
}

/// `bpf_rdonly_cast` to `struct tcp_sock`, by their numbers in the kernel's BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cast {
    function: u32,
    to: u32,
}

impl Cast {
    /// `None` where the kernel has none: before 6.2.
    pub(crate) fn of(btf: &Btf) -> Option<Self> {
        Some(Self { function: btf.function("bpf_rdonly_cast")?, to: btf.structure("tcp_sock")? })
    }
}

/// The object with every place filled; a field that this kernel does not have reads as zero. Without a cast the helper stays.
pub(crate) fn fill(object: &[u8], layout: &Layout, cast: Option<Cast>) -> Result<Vec<u8>, PlaceError> {
    let mut filled = object.to_vec();
    let fields: Vec<_> = layout.fields().collect();
    for section in object::File::parse(object)?.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        let Some((start, length)) = section.file_range().filter(|_| sh_flags & u64::from(elf::SHF_EXECINSTR) != 0)
        else {
            continue;
        };
        let Some(code) = filled.get_mut(start as usize..(start + length) as usize) else { continue };
        let mut second_half = false;
        let mut before: Option<&mut [u8; INSTRUCTION]> = None;
        for instruction in code.as_chunks_mut::<INSTRUCTION>().0 {
            if second_half {
                (second_half, before) = (false, None);
                continue;
            }
            second_half = instruction[0] == LOAD_WIDE;
            fill_one(instruction, &fields)?;
            if let (Some(cast), Some(before)) = (cast, before) {
                fill_cast(before, instruction, cast);
            }
            before = Some(instruction);
        }
    }
    Ok(filled)
}

/// Where the first says to which type the second casts.
fn fill_cast(first: &mut [u8; INSTRUCTION], second: &mut [u8; INSTRUCTION], cast: Cast) {
    let helper = immediate(CALL, 0, SKC_TO_TCP_SOCK as u32);
    if *first == immediate(MOVE_CONSTANT, 2, CAST as u32) && *second == helper {
        *first = immediate(MOVE_CONSTANT, 2, cast.to);
        *second = immediate(CALL, OF_THE_KERNEL, cast.function);
    }
}

fn immediate(code: u8, registers: u8, value: u32) -> [u8; INSTRUCTION] {
    let [a, b, c, d] = value.to_le_bytes();
    [code, registers, 0, 0, a, b, c, d]
}

fn fill_one(instruction: &mut [u8; INSTRUCTION], fields: &[(&FieldSpec, Field)]) -> Result<(), PlaceError> {
    let [code, registers, low, high, ..] = *instruction;
    let Some((_, bytes)) = LOADS.iter().copied().find(|(load, _)| *load == code) else { return Ok(()) };
    // What is negative is the stack.
    let at = u16::try_from(i16::from_le_bytes([low, high])).ok();
    let Some(place) = at.and_then(|at| at.checked_sub(PLACE)) else { return Ok(()) };
    let (field, within) = (place / PLACE_STEP, place % PLACE_STEP);
    let found = fields.get(usize::from(field)).filter(|(spec, _)| within + bytes <= u16::from(spec.size));
    let Some((_, place)) = found else { return Err(PlaceError::Field { field, within, bytes }) };
    if place.offset == ABSENT {
        *instruction = immediate(MOVE_CONSTANT, registers & 0x0f, 0);
    } else {
        let [low, high] = (place.offset + within).to_le_bytes();
        *instruction = [code, registers, low, high, 0, 0, 0, 0];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::OBJECTS;

    /// Every field at an offset of its own.
    fn layout() -> Layout {
        let mut next = 0;
        let place = |_: &FieldSpec| {
            next += 16;
            Ok::<_, ()>(Field { offset: next, shift: 0, bits: 0 })
        };
        Layout::resolve(place).unwrap()
    }

    fn filled(instruction: [u8; INSTRUCTION], layout: &Layout) -> Result<[u8; INSTRUCTION], PlaceError> {
        let mut instruction = instruction;
        fill_one(&mut instruction, &layout.fields().collect::<Vec<_>>())?;
        Ok(instruction)
    }

    fn load(code: u8, offset: i32) -> [u8; INSTRUCTION] {
        let [low, high] = (offset as u16).to_le_bytes();
        [code, 0x21, low, high, 0, 0, 0, 0]
    }

    fn place(at: usize, within: usize) -> i32 {
        tcpwatch_common::layout::place(at, within)
    }

    #[test]
    fn a_load_gets_the_offset_of_its_field() {
        let layout = layout();
        let srtt = core::mem::offset_of!(Layout, srtt_us);
        assert_eq!(filled(load(0x61, place(srtt, 0)), &layout).unwrap(), load(0x61, layout.srtt_us.offset.into()));
        let chrono = core::mem::offset_of!(Layout, chrono_stat);
        let second = load(0x61, i32::from(layout.chrono_stat.offset) + 4);
        assert_eq!(filled(load(0x61, place(chrono, 4)), &layout).unwrap(), second);
    }

    #[test]
    fn a_field_that_is_absent_is_zero() {
        let srtt = core::mem::offset_of!(Layout, srtt_us);
        let zero = [MOVE_CONSTANT, 0x01, 0, 0, 0, 0, 0, 0];
        assert_eq!(filled(load(0x61, place(srtt, 0)), &Layout::ABSENT).unwrap(), zero);
    }

    #[test]
    fn other_instructions_stay_as_they_are() {
        let store = load(0x63, place(0, 0));
        for instruction in [load(0x61, 8), load(0x79, -8), load(0x61, 0x5fff), store] {
            assert_eq!(filled(instruction, &layout()).unwrap(), instruction);
        }
    }

    #[test]
    fn what_is_larger_than_its_field_or_of_none_is_refused() {
        let srtt = core::mem::offset_of!(Layout, srtt_us);
        for instruction in [load(0x79, place(srtt, 0)), load(0x61, place(srtt, 4)), load(0x61, 0x7fff)] {
            assert!(filled(instruction, &layout()).is_err(), "{instruction:?}");
        }
    }

    #[test]
    fn a_cast_is_one_only_after_its_type() {
        let cast = Cast { function: 7, to: 9 };
        let (marked, helper) = (immediate(MOVE_CONSTANT, 2, CAST as u32), immediate(CALL, 0, SKC_TO_TCP_SOCK as u32));
        let (mut first, mut second) = (marked, helper);
        fill_cast(&mut first, &mut second, cast);
        assert_eq!((first, second), (immediate(MOVE_CONSTANT, 2, 9), immediate(CALL, 0x20, 7)));
        for (before, after) in [(helper, helper), (marked, marked), (marked, immediate(CALL, 0, 5))] {
            let (mut first, mut second) = (before, after);
            fill_cast(&mut first, &mut second, cast);
            assert_eq!((first, second), (before, after));
        }
    }

    #[test]
    fn every_object_is_filled_and_keeps_its_length() {
        let (layout, cast) = (layout(), Cast { function: 7, to: 9 });
        let changed =
            |a: &[u8], b: &[u8]| a.chunks(INSTRUCTION).zip(b.chunks(INSTRUCTION)).filter(|(a, b)| a != b).count();
        for (name, object) in OBJECTS {
            let filled = fill(object, &layout, None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(filled.len(), object.len());
            assert!(*name == "tcpwatch-bench" || changed(object, &filled) > 100, "{name}");
            // What is filled has no place left.
            assert_eq!(fill(&filled, &layout, None).unwrap(), filled, "{name}");
            let cast = fill(&filled, &layout, Some(cast)).unwrap();
            assert!(*name == "tcpwatch-bench" || changed(&filled, &cast) >= 2, "{name}: nothing is cast");
        }
    }
}
