//! Who wants to hear of which kinds of events: what nobody wants is not made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tcpwatch_common::record::Kind;

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u16);

impl Kinds {
    /// All of them.
    pub(crate) const ALL: Self = Self(u16::MAX);

    /// These.
    pub(crate) fn of(kinds: &[Kind]) -> Self {
        Self(kinds.iter().fold(0, |bits, kind| bits | bit(*kind)))
    }

    /// Those named in a list with commas between them; else the name that is none.
    pub(crate) fn named(list: &str) -> Result<Self, String> {
        list.split(',').try_fold(Self(0), |kinds, name| {
            let kind = Kind::ALL.into_iter().find(|kind| *kind != Kind::Sample && kind.name() == name);
            kind.map(|kind| Self(kinds.0 | bit(kind))).ok_or_else(|| name.to_owned())
        })
    }

    /// The list that [`Self::named`] reads.
    pub(crate) fn list(self) -> String {
        let names: Vec<_> = Kind::ALL
            .iter()
            .filter(|kind| **kind != Kind::Sample && self.has(**kind))
            .map(|kind| kind.name())
            .collect();
        names.join(",")
    }

    /// Whether this kind is one of them.
    pub(crate) fn has(self, kind: Kind) -> bool {
        self.0 & bit(kind) != 0
    }
}

const fn bit(kind: Kind) -> u16 {
    1 << (kind as u16 & 15)
}

/// How many follow each kind.
#[derive(Debug, Default)]
pub(crate) struct Interests([AtomicUsize; Kind::ALL.len()]);

impl Interests {
    /// Whether anybody follows events of this kind.
    pub(crate) fn wanted(&self, kind: Kind) -> bool {
        self.0.get(kind as usize - 1).is_some_and(|count| count.load(Ordering::Relaxed) > 0)
    }

    /// Says that somebody follows these kinds, until the value is dropped.
    pub(crate) fn follow(self: &Arc<Self>, kinds: Kinds) -> Interest {
        Interest::change(self, kinds, |count| count.fetch_add(1, Ordering::Relaxed));
        Interest { interests: Arc::clone(self), kinds }
    }
}

/// Somebody follows these kinds as long as it lives.
#[derive(Debug)]
pub(crate) struct Interest {
    interests: Arc<Interests>,
    kinds: Kinds,
}

impl Interest {
    fn change(interests: &Interests, kinds: Kinds, change: impl Fn(&AtomicUsize) -> usize) {
        for (kind, count) in Kind::ALL.iter().zip(&interests.0) {
            if kinds.has(*kind) {
                change(count);
            }
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        Self::change(&self.interests, self.kinds, |count| count.fetch_sub(1, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_wanted_as_long_as_somebody_follows() {
        let interests = Arc::new(Interests::default());
        let one = interests.follow(Kinds::named("close,reset_sent").unwrap());
        let all = interests.follow(Kinds::ALL);
        drop(one);
        assert!(Kind::ALL.iter().all(|kind| interests.wanted(*kind)));
        let one = interests.follow(Kinds::of(&[Kind::Close]));
        drop(all);
        assert!(interests.wanted(Kind::Close) && !interests.wanted(Kind::Reset));
        drop(one);
        assert!(Kind::ALL.iter().all(|kind| !interests.wanted(*kind)));
    }

    #[test]
    fn lists_of_kinds_are_read_and_written() {
        assert_eq!(Kinds::named("close,opem"), Err("opem".to_owned()));
        assert_eq!(Kinds::named("sample"), Err("sample".to_owned()));
        let all = "open,close,retransmit,reset_sent,reset_received,listener";
        assert_eq!((Kinds::ALL.list(), Kinds::named("close,open").unwrap().list()), (all.into(), "open,close".into()));
    }
}
