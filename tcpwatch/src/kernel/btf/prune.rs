//! Makes small BTF of a kernel's: the members, prototypes and values that are asked for, and nothing else.

use std::collections::{BTreeMap, HashMap};

use tcpwatch_common::layout::FieldSpec;

use super::*;
use crate::kernel::probes::Hook;

/// A forward declaration: a name, and nothing known of it.
const KIND_FWD: u8 = 7;

/// Members that are wanted, and what is wanted within them.
#[derive(Default)]
struct Wanted<'a>(BTreeMap<&'a str, Wanted<'a>>);

struct Out<'a> {
    btf: &'a Btf,
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
    names: HashMap<String, u32>,
}

/// The part of `btf` that these fields and hooks need, and the reasons of resets.
pub(crate) fn pruned(btf: &Btf, fields: &[FieldSpec], hooks: &[Hook]) -> Vec<u8> {
    let mut out = Out { btf, types: Vec::new(), count: 0, strings: vec![0], names: HashMap::new() };
    let mut roots: BTreeMap<&str, Wanted<'_>> = BTreeMap::new();
    for spec in fields.iter().filter(|spec| btf.field(spec).is_some()) {
        let root = roots.entry(spec.root).or_default();
        spec.path.split('.').fold(root, |within, member| within.0.entry(member).or_default());
    }
    // Before the arguments of that type, which are no more than its name.
    if let Some(values) = btf.enum_values("sk_rst_reason") {
        let words: Vec<_> = values.iter().flat_map(|(name, value)| [out.name(name), *value]).collect();
        out.push("sk_rst_reason", KIND_ENUM, false, values.len(), 4, &words);
    }
    for (name, wanted) in &roots {
        let id = btf.find(KIND_STRUCT, name).unwrap();
        out.structure(name, id, wanted);
    }
    for hook in hooks {
        match hook {
            Hook::BtfTracepoint(name) | Hook::RawTracepoint(name) => out.tracepoint(name),
            Hook::Fentry(name) | Hook::Kprobe(name) => out.function(name),
            Hook::Iterator(name) => out.function(&format!("bpf_iter_{name}")),
        }
    }
    out.finish()
}

impl Out<'_> {
    fn name(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        let (strings, names) = (&mut self.strings, &mut self.names);
        *names.entry(text.to_owned()).or_insert_with(|| {
            strings.extend(text.bytes().chain([0]));
            at
        })
    }

    fn push(&mut self, name: &str, kind: u8, flag: bool, count: usize, size_or_ref: u32, body: &[u32]) -> u32 {
        let info = u32::from(kind) << 24 | count as u32 | u32::from(flag) << 31;
        let head = [self.name(name), info, size_or_ref];
        head.iter().chain(body).for_each(|word| self.types.extend(word.to_ne_bytes()));
        self.count += 1;
        self.count
    }

    /// A structure or union with its wanted members. Only roots keep their names: they are looked up by them.
    fn structure(&mut self, name: &str, id: u32, wanted: &Wanted<'_>) -> u32 {
        let (_, ty) = self.btf.resolve(id).unwrap();
        let mut members = Vec::new();
        for i in 0..ty.count {
            let at = ty.body + 12 * i;
            let word = |at| word(&self.btf.data, at).unwrap();
            let (member, id, place) = (self.btf.string(word(at)).unwrap(), word(at + 4), word(at + 8));
            let new = match wanted.0.get(member) {
                Some(inner) if inner.0.is_empty() => self.plain(id),
                Some(inner) => self.structure("", id, inner),
                None if member.is_empty() && wanted.0.keys().any(|name| self.btf.member(id, name, 0).is_some()) => {
                    self.structure("", id, wanted)
                }
                None => continue,
            };
            members.extend([self.name(member), new, place]);
        }
        self.push(name, ty.kind, ty.flag, members.len() / 3, ty.size_or_ref, &members)
    }

    /// Something of the same size, without what is in it.
    fn plain(&mut self, id: u32) -> u32 {
        let size = self.btf.size(id, 0).unwrap();
        self.push("", KIND_INT, false, 0, size as u32, &[size as u32 * 8])
    }

    fn tracepoint(&mut self, name: &str) {
        let typedef = format!("btf_trace_{name}");
        let Some(arguments) = self.btf.arguments(name) else { return };
        let words: Vec<_> = arguments.into_iter().flat_map(|id| [0, self.argument(id)]).collect();
        let proto = self.push("", KIND_FUNC_PROTO, false, words.len() / 2, 0, &words);
        let pointer = self.push("", KIND_PTR, false, 0, proto, &[]);
        self.push(&typedef, KIND_TYPEDEF, false, 0, pointer, &[]);
    }

    /// The type of an argument: pointers, `const` and names.
    fn argument(&mut self, id: u32) -> u32 {
        let Some(ty) = self.btf.get(id) else { return 0 };
        let name = self.btf.string(ty.name).unwrap();
        match ty.kind {
            KIND_PTR | KIND_CONST => {
                let to = self.argument(ty.size_or_ref);
                self.push("", ty.kind, false, 0, to, &[])
            }
            KIND_STRUCT | KIND_UNION | KIND_FWD => self.push(name, KIND_FWD, ty.kind == KIND_UNION, 0, 0, &[]),
            KIND_ENUM => self.push(name, KIND_ENUM, false, 0, ty.size_or_ref, &[]),
            _ => {
                let size = self.btf.size(id, 0).unwrap();
                self.push(name, KIND_INT, false, 0, size as u32, &[size as u32 * 8])
            }
        }
    }

    fn function(&mut self, name: &str) {
        if self.btf.has_function(name) {
            let proto = self.push("", KIND_FUNC_PROTO, false, 0, 0, &[]);
            self.push(name, KIND_FUNC, false, 0, proto, &[]);
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            data.extend(word.to_ne_bytes());
        }
        data.extend(self.types);
        data.extend(self.strings);
        data
    }
}
