//! What the value of a setting may be: reading it, saying what is allowed, and writing it as TOML.
//!
//! Rules know neither keys nor files. A rule never gives a default for a value that it does not understand.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A value as somebody gave it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    /// An integer of the file.
    Integer(u64),
    /// A boolean of the file.
    Boolean(bool),
    /// A string of the file.
    String(String),
    /// A list of the file.
    List(Vec<Raw>),
    /// Anything else of the file: a float, a date, a table, a number too large.
    Other,
    /// Text of the environment or of a flag. It has no type of its own; lists are separated by commas.
    Text(String),
}

impl Raw {
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Text(text) => Some(text.trim()),
            _ => None,
        }
    }

    fn as_integer(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// What a setting may be.
pub(crate) trait Rule {
    /// The type of the setting.
    type Value: Clone + std::fmt::Debug + PartialEq;
    /// The end of the sentence "it must be …".
    fn allowed() -> String;
    /// The value, `None` when it is not allowed.
    fn parse(raw: &Raw) -> Option<Self::Value>;
    /// The value as TOML.
    fn show(value: &Self::Value) -> String;
}

/// An address and a port.
#[derive(Debug)]
pub(crate) struct Address;

impl Rule for Address {
    type Value = SocketAddr;

    fn allowed() -> String {
        "an IP address and a port, such as \"127.0.0.1:10793\" or \"[::1]:10793\"".to_owned()
    }

    fn parse(raw: &Raw) -> Option<SocketAddr> {
        raw.as_str()?.parse().ok()
    }

    fn show(value: &SocketAddr) -> String {
        quoted(&value.to_string())
    }
}

/// A whole number in a range.
#[derive(Debug)]
pub(crate) struct Integer<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Rule for Integer<MIN, MAX> {
    type Value = u32;

    fn allowed() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn parse(raw: &Raw) -> Option<u32> {
        let number = u32::try_from(raw.as_integer()?).ok()?;
        (MIN..=MAX).contains(&number).then_some(number)
    }

    fn show(value: &u32) -> String {
        value.to_string()
    }
}

/// A share of a whole, in thousandths.
#[derive(Debug)]
pub(crate) struct Share<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Rule for Share<MIN, MAX> {
    type Value = u32;

    fn allowed() -> String {
        format!("a share from {} to {}, such as \"5%\" or \"0.5%\"", in_percent(MIN), in_percent(MAX))
    }

    fn parse(raw: &Raw) -> Option<u32> {
        let (whole, tenths) = {
            let number = raw.as_str()?.strip_suffix('%')?.trim_end();
            number.split_once('.').unwrap_or((number, "0"))
        };
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        if !digits(whole) || !digits(tenths) || tenths.len() > 1 {
            return None;
        }
        let share = whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenths.parse().ok()?)?;
        (MIN..=MAX).contains(&share).then_some(share)
    }

    fn show(value: &u32) -> String {
        quoted(&in_percent(*value))
    }
}

fn in_percent(thousandths: u32) -> String {
    match thousandths % 10 {
        0 => format!("{}%", thousandths / 10),
        tenths => format!("{}.{tenths}%", thousandths / 10),
    }
}

/// Yes or no.
#[derive(Debug)]
pub(crate) struct Switch;

impl Rule for Switch {
    type Value = bool;

    fn allowed() -> String {
        "true or false".to_owned()
    }

    fn parse(raw: &Raw) -> Option<bool> {
        match raw {
            Raw::Boolean(on) => Some(*on),
            Raw::Text(text) => match text.trim() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    fn show(value: &bool) -> String {
        value.to_string()
    }
}

/// A time in a range of milliseconds.
#[derive(Debug)]
pub(crate) struct Span<const MIN_MS: u64, const MAX_MS: u64>;

/// Units of time, the largest first, in milliseconds.
const TIMES: [(&str, u64); 3] = [("m", 60_000), ("s", 1000), ("ms", 1)];

/// A time of a flag, written as in the file, of a millisecond at least.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    from_units(text, &TIMES).filter(|ms| *ms > 0).map(Duration::from_millis)
}

impl<const MIN_MS: u64, const MAX_MS: u64> Rule for Span<MIN_MS, MAX_MS> {
    type Value = Duration;

    fn allowed() -> String {
        let (min, max) = (in_units(MIN_MS, &TIMES), in_units(MAX_MS, &TIMES));
        format!("a time from {min} to {max}, such as \"500ms\" or \"2s\"")
    }

    fn parse(raw: &Raw) -> Option<Duration> {
        let ms = from_units(raw.as_str()?, &TIMES)?;
        (MIN_MS..=MAX_MS).contains(&ms).then(|| Duration::from_millis(ms))
    }

    fn show(value: &Duration) -> String {
        quoted(&in_units(u64::try_from(value.as_millis()).unwrap_or(u64::MAX), &TIMES))
    }
}

/// The size of a ring buffer: the kernel wants a power of two, and whole pages.
#[derive(Debug)]
pub(crate) struct RingSize<const MAX: u32>;

/// Units of size, the largest first, in bytes.
const SIZES: [(&str, u64); 3] = [("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl<const MAX: u32> Rule for RingSize<MAX> {
    type Value = u32;

    fn allowed() -> String {
        let max = in_units(MAX.into(), &SIZES);
        format!("a power of two from a page (4KiB on most machines) to {max}, such as \"1MiB\" or 1048576")
    }

    fn parse(raw: &Raw) -> Option<u32> {
        let bytes = raw.as_integer().or_else(|| from_units(raw.as_str()?, &SIZES))?;
        let fits = bytes.is_power_of_two() && (page_size()..=u64::from(MAX)).contains(&bytes);
        if fits { u32::try_from(bytes).ok() } else { None }
    }

    fn show(value: &u32) -> String {
        quoted(&in_units((*value).into(), &SIZES))
    }
}

fn page_size() -> u64 {
    // Smaller pages than these exist on no machine that runs Linux with BPF.
    crate::sys::page_size().max(4096)
}

/// A path from the root.
#[derive(Debug)]
pub(crate) struct AbsolutePath;

impl Rule for AbsolutePath {
    type Value = PathBuf;

    fn allowed() -> String {
        "an absolute path".to_owned()
    }

    fn parse(raw: &Raw) -> Option<PathBuf> {
        let path = PathBuf::from(raw.as_str()?);
        path.is_absolute().then_some(path)
    }

    fn show(value: &PathBuf) -> String {
        quoted(&value.to_string_lossy())
    }
}

/// Something, or nothing: the empty string.
#[derive(Debug)]
pub(crate) struct Optional<R>(PhantomData<R>);

impl<R: Rule> Rule for Optional<R> {
    type Value = Option<R::Value>;

    fn allowed() -> String {
        format!("{}, or \"\" for none", R::allowed())
    }

    fn parse(raw: &Raw) -> Option<Self::Value> {
        if raw.as_str() == Some("") { Some(None) } else { R::parse(raw).map(Some) }
    }

    fn show(value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| quoted(""), R::show)
    }
}

/// A TCP port.
#[derive(Debug)]
pub(crate) struct Port;

impl Rule for Port {
    type Value = u16;

    fn allowed() -> String {
        "a port from 1 to 65535".to_owned()
    }

    fn parse(raw: &Raw) -> Option<u16> {
        u16::try_from(raw.as_integer()?).ok().filter(|&port| port > 0)
    }

    fn show(value: &u16) -> String {
        value.to_string()
    }
}

/// The name of a host, as it stands in a URL.
#[derive(Debug)]
pub(crate) struct HostName;

impl Rule for HostName {
    type Value = String;

    fn allowed() -> String {
        "a host name without port".to_owned()
    }

    fn parse(raw: &Raw) -> Option<String> {
        let name = raw.as_str()?.to_ascii_lowercase();
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        (!name.is_empty() && name.len() <= 253 && name.bytes().all(legal)).then_some(name)
    }

    fn show(value: &String) -> String {
        quoted(value)
    }
}

/// A list of at most `MOST` different values.
#[derive(Debug)]
pub(crate) struct List<R, const MOST: usize>(PhantomData<R>);

impl<R: Rule, const MOST: usize> Rule for List<R, MOST> {
    type Value = Vec<R::Value>;

    fn allowed() -> String {
        format!("a list of at most {MOST} different values, each {}", R::allowed())
    }

    fn parse(raw: &Raw) -> Option<Self::Value> {
        let values: Vec<_> = match raw {
            Raw::List(items) => items.iter().map(R::parse).collect::<Option<_>>()?,
            Raw::Text(text) if text.trim().is_empty() => Vec::new(),
            Raw::Text(text) => {
                text.split(',').map(|item| R::parse(&Raw::Text(item.to_owned()))).collect::<Option<_>>()?
            }
            _ => return None,
        };
        let repeated = values.iter().enumerate().any(|(i, value)| values.iter().take(i).any(|other| other == value));
        (values.len() <= MOST && !repeated).then_some(values)
    }

    fn show(value: &Self::Value) -> String {
        format!("[{}]", value.iter().map(R::show).collect::<Vec<_>>().join(", "))
    }
}

/// A value of a closed set, by name.
pub(crate) trait Named: Copy + PartialEq + std::fmt::Debug + 'static {
    /// Every value and its name.
    const ALL: &'static [(Self, &'static str)];
}

/// One of the names of `T`.
#[derive(Debug)]
pub(crate) struct OneOf<T>(PhantomData<T>);

impl<T: Named> Rule for OneOf<T> {
    type Value = T;

    fn allowed() -> String {
        let names: Vec<_> = T::ALL.iter().map(|(_, name)| quoted(name)).collect();
        format!("one of {}", names.join(", "))
    }

    fn parse(raw: &Raw) -> Option<T> {
        let text = raw.as_str()?;
        T::ALL.iter().find(|(_, name)| *name == text).map(|(value, _)| *value)
    }

    fn show(value: &T) -> String {
        quoted(T::ALL.iter().find(|(other, _)| other == value).map_or("", |(_, name)| name))
    }
}

/// A basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                out.push_str("\\u");
                let code = u32::from(c);
                out.extend([12, 8, 4, 0].iter().filter_map(|shift| char::from_digit(code >> shift & 15, 16)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `12s` in the units given: a whole number and one of the units.
fn from_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, size) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

/// The shortest exact way to write `value` in these units.
fn in_units(value: u64, units: &[(&str, u64)]) -> String {
    let exact = units.iter().find(|(_, size)| value >= *size && value.is_multiple_of(*size));
    exact.map_or_else(|| value.to_string(), |(name, size)| format!("{}{name}", value / size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: &str) -> Raw {
        Raw::Text(value.to_owned())
    }

    fn string(value: &str) -> Raw {
        Raw::String(value.to_owned())
    }

    #[test]
    fn times_need_a_unit_and_keep_to_the_range() {
        type Rule100 = Span<100, 60_000>;
        let ms = |value: &str| Rule100::parse(&string(value)).map(|time| time.as_millis());
        assert_eq!(ms("100ms"), Some(100));
        assert_eq!(ms("1s"), Some(1000));
        assert_eq!(ms("1m"), Some(60_000));
        assert_eq!(ms(" 2 s"), Some(2000));
        for wrong in ["99ms", "61s", "2m", "1", "s", "", "1.5s", "-1s", "1 h", "999999999999999999999s"] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
        assert_eq!(Rule100::parse(&Raw::Integer(1)), None);
    }

    #[test]
    fn ring_sizes_are_powers_of_two_of_at_least_a_page() {
        type Ring = RingSize<{ 64 << 20 }>;
        assert_eq!(Ring::parse(&string("1MiB")), Some(1 << 20));
        assert_eq!(Ring::parse(&text("512KiB")), Some(512 << 10));
        assert_eq!(Ring::parse(&Raw::Integer(1 << 26)), Some(1 << 26));
        assert_eq!(Ring::parse(&text("1048576")), Some(1 << 20));
        for wrong in ["3MiB", "128MiB", "2KiB", "1MB", "0", "99999999999999999999MiB"] {
            assert_eq!(Ring::parse(&text(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn lists_are_bounded_and_without_repetition() {
        type Ports = List<Port, 3>;
        assert_eq!(Ports::parse(&text("443, 80")), Some(vec![443, 80]));
        assert_eq!(Ports::parse(&text("")), Some(vec![]));
        assert_eq!(Ports::parse(&Raw::List(vec![Raw::Integer(22)])), Some(vec![22]));
        assert_eq!(Ports::parse(&text("1,2,3,4")), None);
        assert_eq!(Ports::parse(&text("1,1")), None);
        assert_eq!(Ports::parse(&text("0")), None);
        assert_eq!(Ports::parse(&text("1,")), None);
        assert_eq!(Ports::parse(&Raw::List(vec![string("443")])), None, "the file has types");
    }

    #[test]
    fn only_text_without_a_type_of_its_own_is_converted() {
        assert_eq!(Switch::parse(&text("1")), Some(true));
        assert_eq!(Switch::parse(&string("true")), None);
        assert_eq!(Integer::<1, 9>::parse(&text("9")), Some(9));
        assert_eq!(Integer::<1, 9>::parse(&string("9")), None);
        assert_eq!(Integer::<1, 9>::parse(&Raw::Integer(10)), None);
    }

    #[test]
    fn names_of_hosts_and_paths_are_checked() {
        assert_eq!(HostName::parse(&string("Web-1.example")), Some("web-1.example".to_owned()));
        assert_eq!(HostName::parse(&string("web:80")), None);
        assert_eq!(HostName::parse(&string("")), None);
        assert_eq!(AbsolutePath::parse(&string("run/x.sock")), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_rule_panic(value in ".{0,40}") {
            let raw = text(&value);
            let _address = Address::parse(&raw);
            let _time = Span::<1, 1000>::parse(&raw);
            let _size = RingSize::<4096>::parse(&raw);
            let _list = List::<HostName, 4>::parse(&raw);
        }

        #[test]
        fn what_is_shown_is_read_back(ms in 1_u64..100_000, exponent in 12_u32..26, on in any::<bool>()) {
            type Ring = RingSize<{ 1 << 26 }>;
            let inside = |toml: String| string(toml.trim_matches('"'));
            let time = Duration::from_millis(ms);
            prop_assert_eq!(Span::<1, 100_000>::parse(&inside(Span::<1, 100_000>::show(&time))), Some(time));
            prop_assume!(1_u64 << exponent >= page_size());
            prop_assert_eq!(Ring::parse(&inside(Ring::show(&(1 << exponent)))), Some(1 << exponent));
            prop_assert_eq!(Switch::parse(&text(&Switch::show(&on))), Some(on));
        }
    }
}
