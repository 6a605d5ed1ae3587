//! A reader of the kernel's BTF (Documentation/bpf/btf.rst) that finds what the programs need to be told: where fields
//! lie, what arguments a tracepoint has, what an enum's values are called.
//!
//! aya reads BTF too but keeps members to itself, and holds every type as a value of its own: 20 MB that a daemon with
//! a memory budget would rather not see. This one keeps the raw bytes and an index of 4 bytes a type, and is dropped
//! after the programs are loaded. Any input is refused or read within its bounds.

#[cfg(test)]
pub(crate) mod prune;

use std::ops::Range;

use tcpwatch_common::layout::{ABSENT, Field, FieldSpec};

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u8 = 1;
const KIND_PTR: u8 = 2;
const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_ENUM: u8 = 6;
const KIND_TYPEDEF: u8 = 8;
#[cfg(test)]
const KIND_CONST: u8 = 10;
const KIND_FUNC: u8 = 12;
const KIND_FUNC_PROTO: u8 = 13;
const KIND_VAR: u8 = 14;
const KIND_DATASEC: u8 = 15;
const KIND_DECL_TAG: u8 = 17;
const KIND_ENUM64: u8 = 19;
/// volatile, const, restrict, type tag: names for the type behind them.
const QUALIFIERS: [u8; 4] = [9, 10, 11, 18];
/// Typedefs and qualifiers in a row, and anonymous members within members, end long before this.
const MAX_DEPTH: u32 = 32;

/// Why bytes are not BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BtfError {
    /// Not the magic number of this machine's byte order.
    #[error("it does not begin with the BTF magic number")]
    BadMagic,
    /// A section or type reaches beyond the end.
    #[error("it ends in the middle of a type")]
    Truncated,
    /// A kind that no kernel has written so far.
    #[error("it has a type of unknown kind {0}")]
    UnknownKind(u8),
}

/// Parsed BTF of a kernel.
pub(crate) struct Btf {
    data: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins in `data`; type 0 is void.
    types: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    /// The highest bit of `info`: bit-field encoding of members, signedness of enums.
    flag: bool,
    /// Members, values or arguments.
    count: usize,
    size_or_ref: u32,
    /// Where what follows the common part begins.
    body: usize,
}

impl Btf {
    /// Indexes `data`.
    pub(crate) fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let magic = data.first_chunk().map(|b| u16::from_ne_bytes(*b));
        if magic != Some(MAGIC) {
            return Err(BtfError::BadMagic);
        }
        let at = |offset| word(&data, offset).ok_or(BtfError::Truncated).map(|w| w as usize);
        let header = at(4)?;
        let section = |offset: usize, len: usize| {
            let from = header.checked_add(at(offset)?).ok_or(BtfError::Truncated)?;
            let to = from.checked_add(at(len)?).filter(|to| *to <= data.len()).ok_or(BtfError::Truncated)?;
            Ok::<_, BtfError>(from..to)
        };
        let (types_section, strings) = (section(8, 12)?, section(16, 20)?);
        let mut types = vec![0];
        let mut offset = types_section.start;
        while offset < types_section.end {
            let found = read_type(&data, offset).ok_or(BtfError::Truncated)?;
            types.push(offset as u32);
            offset = found.body + body_len(&found)?;
        }
        if offset != types_section.end {
            return Err(BtfError::Truncated);
        }
        types.shrink_to_fit();
        Ok(Self { data, strings, types })
    }

    /// The place of a field; `None` when this kernel does not have it, or not as wide as it is read.
    pub(crate) fn field(&self, spec: &FieldSpec) -> Option<Field> {
        let mut ty = self.find(KIND_STRUCT, spec.root)?;
        let mut bits = 0;
        let mut width = 0;
        for member in spec.path.split('.') {
            let (at, bit_size, member_type) = self.member(ty, member, 0)?;
            bits += at;
            width = bit_size;
            ty = member_type;
        }
        let offset = u16::try_from(bits / 8).ok().filter(|o| *o != ABSENT)?;
        if width != 0 {
            // A bit field is read as its byte: it must not cross into the next.
            let shift = (bits % 8) as u8;
            return (u32::from(shift) + width <= 8).then_some(Field { offset, shift, bits: width as u8 });
        }
        (self.size(ty, 0)? >= u64::from(spec.size)).then_some(Field { offset, shift: 0, bits: 0 })
    }

    /// How many arguments a tracepoint hands to a program; `None` when the kernel does not have it.
    pub(crate) fn tracepoint_args(&self, name: &str) -> Option<usize> {
        // The first is the tracepoint's own data.
        self.tracepoint(name)?.count.checked_sub(1)
    }

    fn tracepoint(&self, name: &str) -> Option<Type> {
        let typedef = self.get(self.find(KIND_TYPEDEF, &format!("btf_trace_{name}"))?)?;
        let pointer = self.get(typedef.size_or_ref).filter(|t| t.kind == KIND_PTR)?;
        self.get(pointer.size_or_ref).filter(|t| t.kind == KIND_FUNC_PROTO)
    }

    /// The types of all arguments of a tracepoint.
    #[cfg(test)]
    fn arguments(&self, name: &str) -> Option<Vec<u32>> {
        let proto = self.tracepoint(name)?;
        (0..proto.count).map(|i| word(&self.data, proto.body + 8 * i + 4)).collect()
    }

    /// The arguments that a tracepoint hands to a program, as C writes their types.
    #[cfg(test)]
    pub(crate) fn prototype(&self, name: &str) -> Option<Vec<String>> {
        Some(self.arguments(name)?.into_iter().skip(1).map(|id| self.written(id)).collect())
    }

    #[cfg(test)]
    fn written(&self, id: u32) -> String {
        let Some(ty) = self.get(id) else { return "void".to_owned() };
        let name = self.string(ty.name).unwrap_or_default();
        match ty.kind {
            KIND_PTR => {
                let to = self.written(ty.size_or_ref);
                if to.ends_with('*') { format!("{to}*") } else { format!("{to} *") }
            }
            KIND_CONST => format!("const {}", self.written(ty.size_or_ref)),
            KIND_STRUCT | 7 => format!("struct {name}"),
            KIND_ENUM => format!("enum {name}"),
            _ => name.to_owned(),
        }
    }

    /// Whether the kernel has a function of this name.
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// The number of a function.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        self.find(KIND_FUNC, name)
    }

    /// The number of a structure.
    pub(crate) fn structure(&self, name: &str) -> Option<u32> {
        self.find(KIND_STRUCT, name)
    }

    /// Names and values of an enum.
    pub(crate) fn enum_values(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let ty = self.get(self.find(KIND_ENUM, name)?)?;
        (0..ty.count)
            .map(|i| {
                let at = ty.body + 8 * i;
                Some((self.string(word(&self.data, at)?)?.to_owned(), word(&self.data, at + 4)?))
            })
            .collect()
    }

    fn get(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        read_type(&self.data, *self.types.get(id as usize)? as usize)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let strings = self.data.get(self.strings.clone())?;
        let from = strings.get(offset as usize..)?;
        let end = from.iter().position(|b| *b == 0)?;
        std::str::from_utf8(from.get(..end)?).ok()
    }

    /// The first type of this kind and name. A scan: asked a few dozen times at start, it is cheaper than an index.
    fn find(&self, kind: u8, name: &str) -> Option<u32> {
        (1..self.types.len() as u32)
            .find(|id| self.get(*id).is_some_and(|ty| ty.kind == kind && self.string(ty.name) == Some(name)))
    }

    fn resolve(&self, mut id: u32) -> Option<(u32, Type)> {
        for _ in 0..MAX_DEPTH {
            let ty = self.get(id)?;
            if ty.kind != KIND_TYPEDEF && !QUALIFIERS.contains(&ty.kind) {
                return Some((id, ty));
            }
            id = ty.size_or_ref;
        }
        None
    }

    /// Bit offset, bit size (0 unless a bit field) and type of a member, also of one within an anonymous member.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32, u32)> {
        let (_, ty) = self.resolve(id)?;
        if depth > MAX_DEPTH || (ty.kind != KIND_STRUCT && ty.kind != KIND_UNION) {
            return None;
        }
        (0..ty.count).find_map(|i| {
            let at = ty.body + 12 * i;
            let (name_at, member_type, raw) =
                (word(&self.data, at)?, word(&self.data, at + 4)?, word(&self.data, at + 8)?);
            let (offset, bits) = if ty.flag { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            let member_name = self.string(name_at)?;
            if member_name == name {
                return Some((offset, bits, member_type));
            }
            if !member_name.is_empty() {
                return None;
            }
            let (inner, bits, found) = self.member(member_type, name, depth + 1)?;
            Some((offset.checked_add(inner)?, bits, found))
        })
    }

    fn size(&self, id: u32, depth: u32) -> Option<u64> {
        let (_, ty) = self.resolve(id)?;
        match ty.kind {
            KIND_PTR => Some(8),
            KIND_ARRAY if depth < MAX_DEPTH => {
                let (element, count) = (word(&self.data, ty.body)?, word(&self.data, ty.body + 8)?);
                self.size(element, depth + 1)?.checked_mul(u64::from(count))
            }
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | 16 => Some(u64::from(ty.size_or_ref)),
            _ => None,
        }
    }
}

fn word(data: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(offset..)?.first_chunk()?))
}

fn read_type(data: &[u8], offset: usize) -> Option<Type> {
    let info = word(data, offset + 4)?;
    Some(Type {
        name: word(data, offset)?,
        kind: ((info >> 24) & 0x1f) as u8,
        flag: info >> 31 != 0,
        count: (info & 0xffff) as usize,
        size_or_ref: word(data, offset + 8)?,
        body: offset + 12,
    })
}

/// Bytes that follow the common part of a type.
fn body_len(ty: &Type) -> Result<usize, BtfError> {
    Ok(match ty.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * ty.count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * ty.count,
        KIND_PTR | 7..=12 | 16 | 18 => 0,
        other => return Err(BtfError::UnknownKind(other)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BTF with `struct s { int a; union { int b; struct { int c:3; int d:5; }; }; long e[4]; }`, the typedef of a
    /// tracepoint with two arguments, and an enum.
    pub(crate) fn sample() -> Vec<u8> {
        let mut strings = vec![0_u8];
        let mut name = |text: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut types: Vec<u8> = Vec::new();
        let mut push = |words: &[u32]| words.iter().for_each(|w| types.extend_from_slice(&w.to_ne_bytes()));
        let info = |kind: u32, count: u32, flag: u32| kind << 24 | count | flag << 31;
        push(&[name("int"), info(1, 0, 0), 4, 32]); // 1
        push(&[name("long"), info(1, 0, 0), 8, 64]); // 2
        push(&[0, info(3, 0, 0), 0, 2, 1, 4]); // 3: long[4]
        push(&[0, info(4, 2, 1), 4, name("c"), 1, 3 << 24, name("d"), 1, 5 << 24 | 3]); // 4
        push(&[0, info(5, 2, 0), 4, name("b"), 1, 0, 0, 4, 0]); // 5
        push(&[name("s"), info(4, 3, 0), 40, name("a"), 1, 0, 0, 5, 32, name("e"), 3, 64]); // 6
        push(&[0, info(13, 3, 0), 0, 0, 1, 0, 1, 0, 1]); // 7: three arguments
        push(&[0, info(2, 0, 0), 7]); // 8
        push(&[name("btf_trace_tcp_probe"), info(8, 0, 0), 8]); // 9
        push(&[name("reasons"), info(6, 2, 0), 4, name("A"), 0, name("B"), 5]); // 10
        push(&[name("tcp_v4_send_reset"), info(12, 0, 0), 7]); // 11
        let mut data = Vec::new();
        data.extend_from_slice(&MAGIC.to_ne_bytes());
        data.extend_from_slice(&[1, 0]);
        for w in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            data.extend_from_slice(&w.to_ne_bytes());
        }
        data.extend_from_slice(&types);
        data.extend_from_slice(&strings);
        data
    }

    fn spec(path: &'static str, size: u8) -> FieldSpec {
        FieldSpec { name: "x", root: "s", path, size, required: true }
    }

    #[test]
    fn fields_are_found_through_anonymous_members_and_bit_fields() {
        let btf = Btf::parse(sample()).unwrap();
        let at = |path, size| btf.field(&spec(path, size)).map(|f| (f.offset, f.shift, f.bits));
        assert_eq!(at("a", 4), Some((0, 0, 0)));
        assert_eq!(at("b", 4), Some((4, 0, 0)));
        assert_eq!(at("c", 1), Some((4, 0, 3)));
        assert_eq!(at("d", 1), Some((4, 3, 5)));
        assert_eq!(at("e", 32), Some((8, 0, 0)));
        assert_eq!(at("e", 33), None, "wider than the field");
        assert_eq!(at("nothing", 4), None);
        assert_eq!(at("a.b", 4), None, "a member of an integer");
    }

    #[test]
    fn arguments_functions_and_enums_are_found() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.tracepoint_args("tcp_probe"), Some(2));
        assert_eq!(btf.tracepoint_args("tcp_nothing"), None);
        assert!(btf.has_function("tcp_v4_send_reset"));
        assert!(!btf.has_function("tcp_v6_send_reset"));
        assert_eq!(btf.enum_values("reasons"), Some(vec![("A".to_owned(), 0), ("B".to_owned(), 5)]));
    }

    #[test]
    fn what_is_not_btf_is_refused() {
        assert_eq!(Btf::parse(vec![]).err(), Some(BtfError::BadMagic));
        assert_eq!(Btf::parse(b"ELF and more of it".to_vec()).err(), Some(BtfError::BadMagic));
        let whole = sample();
        for len in 2..whole.len() {
            assert!(Btf::parse(whole[..len].to_vec()).is_err(), "cut to {len}");
        }
    }

    proptest! {
        #[test]
        fn damaged_btf_never_panics(at in 0_usize..400, byte: u8) {
            let mut data = sample();
            let len = data.len();
            data[at % len] = byte;
            if let Ok(btf) = Btf::parse(data) {
                for path in ["a", "b", "c", "d", "e", "a.b"] {
                    let _found = btf.field(&spec(path, 4));
                }
                let _args = btf.tracepoint_args("tcp_probe");
                let _values = btf.enum_values("reasons");
            }
        }
    }
}
