//! An expression: what it decides, and how it is written.

use std::fmt;
use std::net::IpAddr;

use super::facts::{Fact, Takes, entry};
use super::parse::joins;
use super::{Subject, Value};

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// A question of one fact.
    Term(Term),
    /// The contrary.
    Not(Box<Expr>),
    /// All of them, two at least.
    And(Vec<Expr>),
    /// Any of them, two at least.
    Or(Vec<Expr>),
}

/// A question of one fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// A comparison with a number.
    Number(Fact, Op, u64),
    /// A name; `*` stands for any characters.
    Text(Fact, String),
    /// An address in a network.
    Address(Fact, Network),
    /// IPv6, or else IPv4.
    Family(bool),
    /// Whether it is known.
    Known(Fact),
}

/// How numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Equal,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Op {
    fn compare(self, found: u64, wanted: u64) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::Less => found < wanted,
            Self::AtMost => found <= wanted,
            Self::More => found > wanted,
            Self::AtLeast => found >= wanted,
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// Addresses with the same beginning; the bits after it are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    first: IpAddr,
    len: u8,
}

impl Network {
    /// The network of `address` with a prefix of `len` bits; `None` when an address has not so many.
    pub(crate) fn new(address: IpAddr, len: u8) -> Option<Self> {
        let first = match address {
            IpAddr::V4(v4) if len <= 32 => {
                IpAddr::V4((v4.to_bits() & !u32::MAX.checked_shr(len.into()).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) if len <= 128 => {
                IpAddr::V6((v6.to_bits() & !u128::MAX.checked_shr(len.into()).unwrap_or(0)).into())
            }
            _ => return None,
        };
        Some(Self { first, len })
    }

    /// The network of this address alone.
    pub(crate) fn host(address: IpAddr) -> Self {
        Self { first: address, len: whole(address) }
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && Self::new(address, self.len) == Some(self)
    }
}

/// Bits of an address of this family.
const fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Expr {
    /// What it says about `subject`; `None` when that is not known (Kleene's logic).
    pub(super) fn about(&self, subject: &impl Subject) -> Option<bool> {
        match self {
            Self::Term(term) => term.about(subject),
            Self::Not(expr) => expr.about(subject).map(|is| !is),
            Self::And(all) => decide(all, subject, false),
            Self::Or(any) => decide(any, subject, true),
        }
    }
}

/// The first that is `enough` decides; what is unknown leaves the rest undecided.
fn decide(exprs: &[Expr], subject: &impl Subject, enough: bool) -> Option<bool> {
    let mut all = Some(!enough);
    for expr in exprs {
        match expr.about(subject) {
            Some(is) if is == enough => return Some(enough),
            Some(_) => {}
            None => all = None,
        }
    }
    all
}

impl Term {
    fn about(&self, subject: &impl Subject) -> Option<bool> {
        let asked = |fact: Fact, is: &dyn Fn(Value<'_>) -> Option<bool>| {
            let ends = match fact {
                Fact::Port => [Fact::LocalPort, Fact::PeerPort],
                Fact::Host => [Fact::Local, Fact::Peer],
                one => return subject.fact(one).and_then(is),
            };
            let [ours, peers] = ends.map(|end| subject.fact(end).and_then(is));
            match (ours, peers) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            }
        };
        match self {
            Self::Number(fact, op, wanted) => asked(*fact, &|found| match found {
                Value::Number(found) => Some(op.compare(found, *wanted)),
                _ => None,
            }),
            Self::Text(fact, wanted) => asked(*fact, &|found| match found {
                Value::Text(found) => Some(named(*fact, &found, wanted)),
                _ => None,
            }),
            Self::Address(fact, network) => asked(*fact, &|found| match found {
                Value::Address(found) => Some(network.has(found)),
                _ => None,
            }),
            Self::Family(v6) => match subject.fact(Fact::Local)? {
                Value::Address(address) => Some(address.is_ipv6() == *v6),
                _ => None,
            },
            Self::Known(fact) => asked(*fact, &|_| Some(true)).or(Some(false)),
        }
    }
}

fn named(fact: Fact, found: &str, wanted: &str) -> bool {
    if !matches!(entry(fact).map(|entry| entry.takes), Some(Takes::Path)) {
        return like(found, wanted);
    }
    // A path is named by itself, and by names that follow each other in it.
    let names: Vec<_> = found.split('/').filter(|name| !name.is_empty()).collect();
    let wanted: Vec<_> = wanted.split('/').filter(|name| !name.is_empty()).collect();
    if wanted.is_empty() {
        return names.is_empty();
    }
    names.windows(wanted.len()).any(|run| run.iter().zip(&wanted).all(|(name, wanted)| like(name, wanted)))
}

/// Whether `text` is `pattern`, in which `*` stands for any characters.
fn like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Term(term) => term.fmt(f),
            Self::Not(expr) => {
                f.write_str("not ")?;
                expr.within(f, |inner| matches!(inner, Self::And(_) | Self::Or(_)))
            }
            Self::And(all) => joined(f, all, " and ", |inner| matches!(inner, Self::And(_) | Self::Or(_))),
            Self::Or(any) => joined(f, any, " or ", |inner| matches!(inner, Self::Or(_))),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, exprs: &[Expr], joint: &str, parted: fn(&Expr) -> bool) -> fmt::Result {
    for (i, expr) in exprs.iter().enumerate() {
        if i > 0 {
            f.write_str(joint)?;
        }
        expr.within(f, parted)?;
    }
    Ok(())
}

impl Expr {
    fn within(&self, f: &mut fmt::Formatter<'_>, parted: fn(&Self) -> bool) -> fmt::Result {
        if parted(self) { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |fact: &Fact| entry(*fact).map_or("", |entry| entry.word);
        match self {
            Self::Number(fact, op, value) => {
                let takes = entry(*fact).map_or(Takes::Number, |entry| entry.takes);
                match op {
                    Op::Equal => write!(f, "{} {}", word(fact), quantity(takes, *value)),
                    op => write!(f, "{} {} {}", word(fact), op.sign(), quantity(takes, *value)),
                }
            }
            Self::Text(fact, name) => write!(f, "{} {}", word(fact), quoted(name)),
            Self::Address(fact, Network { first, len }) if *len == whole(*first) => write!(f, "{} {first}", word(fact)),
            Self::Address(fact, Network { first, len }) => write!(f, "{} {first}/{len}", word(fact)),
            Self::Family(v6) => f.write_str(if *v6 { "ipv6" } else { "ipv4" }),
            Self::Known(fact) => write!(f, "known {}", word(fact)),
        }
    }
}

/// Units of time in µs, the largest first.
pub(super) const TIMES: &[(&str, u64)] =
    &[("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1000), ("us", 1)];
/// Units of size in bytes, the largest first.
pub(super) const SIZES: &[(&str, u64)] = &[
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

fn quantity(takes: Takes, value: u64) -> String {
    let units = match takes {
        Takes::Time => TIMES,
        Takes::Bytes => SIZES,
        _ => return value.to_string(),
    };
    let unit = units.iter().find(|(_, size)| value.is_multiple_of(*size) && value >= *size);
    unit.map_or_else(|| value.to_string(), |(unit, size)| format!("{}{unit}", value / size))
}

/// The name as it must be written.
fn quoted(name: &str) -> String {
    let plain =
        !name.is_empty() && !joins(name) && !name.contains(|c: char| c.is_whitespace() || "()<>=!&|\"\\".contains(c));
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (text, pattern, is) in [
            ("nginx", "nginx", true),
            ("nginx", "ngin", false),
            ("nginx", "ng*", true),
            ("nginx", "*nx", true),
            ("nginx", "*", true),
            ("", "*", true),
            ("abab", "a*b", true),
            ("ab", "ab*b", false),
            ("axbxc", "a*x*c", true),
            ("axbxd", "a*x*c", false),
        ] {
            assert_eq!(like(text, pattern), is, "{text} {pattern}");
        }
    }

    #[test]
    fn a_path_is_named_by_names_in_it() {
        let path = "/system.slice/nginx.service/worker";
        for (wanted, is) in [
            ("nginx.service", true),
            ("nginx", false),
            ("nginx*", true),
            ("/system.slice/nginx.service", true),
            ("nginx.service/worker", true),
            ("system.slice/worker", false),
            ("/", false),
            (path, true),
        ] {
            assert_eq!(named(Fact::Cgroup, path, wanted), is, "{wanted}");
        }
        assert!(named(Fact::Cgroup, "/", "/"));
    }

    #[test]
    fn networks_have_their_addresses_and_no_others() {
        for (network, len, address, is) in [
            ("10.1.2.3", 8, "10.200.0.1", true),
            ("10.1.2.3", 8, "11.0.0.1", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("0.0.0.0", 0, "255.1.1.1", true),
            ("0.0.0.0", 0, "::1", false),
            ("2001:db8::", 32, "2001:db8:ffff::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "::1", true),
            ("::1", 128, "::1", true),
        ] {
            let network = Network::new(network.parse().unwrap(), len).unwrap();
            assert_eq!(network.has(address.parse().unwrap()), is, "{network:?} {address}");
        }
        assert_eq!(Network::new("10.0.0.0".parse().unwrap(), 33), None);
    }
}
