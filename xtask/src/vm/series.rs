//! Which kernels: series of versions, of which the newest that the archive has is booted.

use std::{fmt, str::FromStr};

/// A range of versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    /// As it is given on the command line and written in the results.
    pub(crate) name: String,
    /// The first version that belongs to it.
    from: [u32; 2],
    /// The first that does not any more.
    until: [u32; 2],
}

/// Of the matrix.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// tcpwatch does not run there, and says so.
    pub(crate) refused: bool,
    /// Part of the ordinary test run; all of them are part of the full one.
    pub(crate) ordinary: bool,
}

/// Oldest first. The ordinary ones are those between which most differs: the refusal, the oldest that works (fentry, no
/// reasons), and the newest.
pub(crate) const MATRIX: [Entry; 5] = [
    Entry { name: "5.10", refused: true, ordinary: true },
    Entry { name: "6.1", refused: false, ordinary: true },
    Entry { name: "6.12", refused: false, ordinary: false },
    Entry { name: "6.18+", refused: false, ordinary: false },
    Entry { name: "7.x", refused: false, ordinary: true },
];

/// Whether tcpwatch refuses to run on the series.
pub(crate) fn is_refused(series: &Series) -> bool {
    MATRIX.iter().any(|entry| entry.refused && entry.name == series.name)
}

impl FromStr for Series {
    type Err = String;

    /// `6.12` is that version, `6.18+` that or a newer 6, `7.x` any 7.
    fn from_str(name: &str) -> Result<Self, String> {
        let wrong = || format!("{name:?} is no series of kernels: say 6.12, 6.18+ or 7.x");
        let (numbers, later) = name.strip_suffix('+').map_or((name, false), |rest| (rest, true));
        let (major, minor) = numbers.split_once('.').ok_or_else(wrong)?;
        let major: u32 = major.parse().map_err(|_| wrong())?;
        let (from, until) = match minor {
            "x" if !later => ([major, 0], [major + 1, 0]),
            _ => {
                let minor: u32 = minor.parse().map_err(|_| wrong())?;
                ([major, minor], if later { [major + 1, 0] } else { [major, minor + 1] })
            }
        };
        Ok(Self { name: name.to_owned(), from, until })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Series {
    /// Those of these releases, such as `6.12.117+deb13`, that belong to it, newest first.
    pub(crate) fn newest_first<'a>(&self, releases: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let mut own: Vec<&str> = releases.filter(|release| self.has(release)).collect();
        own.sort_by_key(|release| std::cmp::Reverse(numbers(release)));
        own
    }

    fn has(&self, release: &str) -> bool {
        // A name of fewer numbers is that of a package that only leads to the newest.
        let version = numbers(release);
        let whole = release.split(['+', '-']).next().is_some_and(|version| version.split('.').count() == 3);
        whole && matches!(version.get(..2), Some(two) if *two >= self.from[..] && *two < self.until[..])
    }
}

/// The numbers of a version in their order: they sort as the versions do.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str) -> Series {
        name.parse().expect("a series")
    }

    const RELEASES: [&str; 11] = [
        "5.10.0-46",
        "6.1",
        "6.1.0-9",
        "6.1.0-56",
        "6.1.0-0.deb11.52",
        "6.12.107+deb13",
        "6.12.43+deb12",
        "6.18.15+deb13",
        "6.19.14+deb13",
        "7.2.12+deb13",
        "7.3.4+deb13",
    ];

    #[test]
    fn the_newest_of_a_series_is_by_numbers() {
        let newest = |name: &str| series(name).newest_first(RELEASES.into_iter()).first().copied();
        assert_eq!(newest("5.10"), Some("5.10.0-46"));
        assert_eq!(newest("6.1"), Some("6.1.0-56"));
        assert_eq!(newest("6.12"), Some("6.12.107+deb13"));
        assert_eq!(newest("6.18+"), Some("6.19.14+deb13"));
        assert_eq!(newest("7.x"), Some("7.3.4+deb13"));
        assert_eq!(newest("6.8"), None);
        assert_eq!(series("6.18+").newest_first(RELEASES.into_iter()), ["6.19.14+deb13", "6.18.15+deb13"]);
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for name in ["", "6", "x.1", "6.y", "7.x+", "six.one"] {
            assert!(name.parse::<Series>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_matrix_is_of_series() {
        for entry in MATRIX {
            assert_eq!(is_refused(&series(entry.name)), entry.refused);
        }
        assert_eq!(MATRIX.iter().filter(|entry| entry.ordinary).count(), 3);
    }
}
