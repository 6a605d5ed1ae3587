//! Who a socket belongs to. Never whoever is on the CPU: in softirq that is anybody.

/// How the owner of a socket became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum OwnerKind {
    /// It is not known.
    Unknown = 0,
    /// Of the listener that the connection came to: preliminary, as another process may accept it.
    Listener = 1,
    /// It holds a descriptor.
    Descriptor = 2,
    /// It called connect().
    Connect = 3,
    /// It called listen().
    Listen = 4,
    /// It has read from the socket.
    Read = 5,
}

impl OwnerKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Unknown, Self::Listener, Self::Descriptor, Self::Connect, Self::Listen, Self::Read];

    /// The kind with this number.
    pub fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Unknown)
    }

    /// As the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Listener => "listener",
            Self::Descriptor => "descriptor",
            Self::Connect => "connect",
            Self::Listen => "listen",
            Self::Read => "read",
        }
    }
}

/// Bits of `owner_flags` in records.
pub mod flag {
    /// No process has a descriptor of the socket any more (`SOCK_DEAD`).
    pub const ORPHAN: u8 = 1;
}

/// What a pass over the files of all processes makes of one that holds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another one owns it.
    Keep,
    /// It is the owner that is known, and still holds it.
    Seen,
    /// It is the owner from now on.
    Take,
}

/// Whether `holder` becomes the owner of a socket. `known` is the owner so far, 0 when there is none, and `seen` the
/// pass in which it was last found to hold the socket; `pass` is the number of this one.
///
/// A pass meets processes by rising numbers, so that of several holders the first stays. One that gave the socket away is
/// noticed when a whole pass did not find it. The first process gives way to any other: with socket activation it listens
/// for services, and keeps a descriptor.
#[inline(always)]
pub const fn on_file(known: u32, seen: u16, holder: u32, pass: u16) -> Step {
    if known == holder && known != 0 {
        return Step::Seen;
    }
    if known <= 1 || pass.wrapping_sub(seen) > 1 { Step::Take } else { Step::Keep }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The owner after passes that find these holders.
    fn after(passes: &[&[u32]]) -> u32 {
        let (mut known, mut seen) = (0, u16::MAX - 1);
        for (number, holders) in passes.iter().enumerate() {
            let pass = (u16::MAX - 1).wrapping_add(number as u16 + 1);
            for holder in *holders {
                match on_file(known, seen, *holder, pass) {
                    Step::Keep => {}
                    Step::Seen => seen = pass,
                    Step::Take => (known, seen) = (*holder, pass),
                }
            }
        }
        known
    }

    #[test]
    fn the_lowest_holder_owns_it_as_long_as_it_holds_it() {
        for (passes, owner) in [
            (&[&[7][..]][..], 7),
            (&[&[7, 9], &[7, 9], &[7, 9]], 7),
            // 5 got it later: who has it stays.
            (&[&[7, 9], &[5, 7, 9], &[5, 7, 9]], 7),
            // 7 gave it away: noticed after one pass without it.
            (&[&[7], &[9]], 7),
            (&[&[7], &[9], &[9]], 9),
            (&[&[7], &[3], &[3]], 3),
            // Nobody holds it: the last owner stays.
            (&[&[7], &[], &[]], 7),
            (&[&[], &[], &[4]], 4),
            // Socket activation.
            (&[&[1, 80], &[1, 80]], 80),
            (&[&[1], &[1]], 1),
        ] {
            assert_eq!(after(passes), owner, "{passes:?}");
        }
    }

    #[test]
    fn kinds_have_their_numbers() {
        for (number, kind) in OwnerKind::ALL.into_iter().enumerate() {
            assert_eq!((kind as usize, OwnerKind::from_u8(number as u8)), (number, kind));
        }
        assert_eq!(OwnerKind::from_u8(200), OwnerKind::Unknown);
    }
}
