//! Who owns what: owners of connections, also for a while after these closed, and the names of users and control groups.
//!
//! The kernel tells numbers. Names come in as inputs; [`Owners::wanted`] says which are missing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tcpwatch_common::conn::COMM_LEN;
use tcpwatch_common::owner::OwnerKind;
use tcpwatch_common::record::{ConnRecord, ListenerRecord, ResetRecord};
use tcpwatch_common::reset::known;

use crate::api::text::printable;
use crate::cgroup::Cgroup;

/// Closed connections whose owner is remembered.
const CLOSED_KEPT: usize = 4096;
/// Names of each kind that are kept; the one learned first goes first.
const MOST: usize = 4096;
/// Names that may be missing at once.
const MOST_WANTED: usize = 1024;
/// How long the control group that was read for a process is good for: it has no id by which it would be known again.
const PROCESS_NS: u64 = 60_000_000_000;
/// Id of the root of the hierarchy; on hosts that do not use version 2, every process is there.
const ROOT: u64 = 1;

/// An owner, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Process; 0 when it is not known.
    pub(crate) pid: u32,
    /// Effective user, or that of the socket while no process is known.
    pub(crate) uid: u32,
    /// Id of the control group; 0 when it is not known.
    pub(crate) cgroup: u64,
    /// How it became known.
    pub(crate) kind: OwnerKind,
    /// Bits of `tcpwatch_common::owner::flag`.
    pub(crate) flags: u8,
    /// Name of the process.
    pub(crate) comm: [u8; COMM_LEN],
}

impl Owner {
    /// Of a connection.
    pub(crate) fn of(record: &ConnRecord) -> Self {
        Self {
            pid: record.pid,
            uid: if record.pid == 0 { record.uid } else { record.owner_uid },
            cgroup: record.cgroup,
            kind: OwnerKind::from_u8(record.owner_kind),
            flags: record.owner_flags,
            comm: record.comm,
        }
    }

    /// Of a socket of which nothing is known but what a reset of it says; none without a socket.
    pub(crate) fn of_socket(record: &ResetRecord) -> Option<Self> {
        (record.known & known::SOCKET != 0).then_some(Self {
            pid: 0,
            uid: record.uid,
            cgroup: 0,
            kind: OwnerKind::Unknown,
            flags: 0,
            comm: [0; COMM_LEN],
        })
    }

    /// Of a listener.
    pub(crate) fn of_listener(record: &ListenerRecord) -> Self {
        Self {
            pid: record.pid,
            uid: record.owner_uid,
            cgroup: record.cgroup,
            kind: OwnerKind::from_u8(record.owner_kind as u8),
            flags: 0,
            comm: record.comm,
        }
    }

    /// Makes it that of a connection of which no owner is known.
    pub(crate) fn inherit(&self, record: &mut ConnRecord, kind: OwnerKind) {
        record.pid = self.pid;
        record.owner_uid = self.uid;
        record.cgroup = self.cgroup;
        record.owner_kind = kind as u8;
        record.comm = self.comm;
    }
}

/// What a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Named {
    /// A control group, by id.
    Cgroup,
    /// A user.
    User,
    /// The control group of a process, where ids say nothing.
    Process,
    /// A process that has ended; it needs no name.
    Ended,
}

impl Named {
    /// Every kind, in the order of their numbers in recordings.
    pub(crate) const ALL: [Self; 4] = [Self::Cgroup, Self::User, Self::Process, Self::Ended];
}

/// A name that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    /// Of what.
    pub(crate) what: Named,
    /// Its number.
    pub(crate) number: u64,
    /// A process that is in the control group; 0 when none is known.
    pub(crate) pid: u32,
}

/// The names that are known. Shared with whoever makes words of a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    cgroups: Table<u64, Option<Arc<Cgroup>>>,
    users: Table<u32, Option<Arc<str>>>,
    processes: Table<u32, (u64, Option<Arc<Cgroup>>)>,
    ended: Table<u32, ()>,
}

impl Names {
    /// The control group of an owner.
    pub(crate) fn cgroup(&self, owner: &Owner) -> Option<&Cgroup> {
        let known = if owner.cgroup > ROOT {
            self.cgroups.get(&owner.cgroup)
        } else {
            self.processes.get(&owner.pid).map(|(_, group)| group)
        };
        known?.as_deref()
    }

    /// The name of a user; none when it has none.
    pub(crate) fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid)?.as_deref()
    }

    /// Whether a process has ended.
    pub(crate) fn ended(&self, pid: u32) -> bool {
        self.ended.get(&pid).is_some()
    }
}

/// Entries up to [`MOST`].
#[derive(Clone, Debug)]
struct Table<K, V> {
    known: BTreeMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Ord, V> Table<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key)
    }

    fn insert(&mut self, key: K, value: V) {
        if self.known.insert(key, value).is_none() {
            self.order.push_back(key);
            if self.order.len() > MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: &K) {
        if self.known.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }
}

/// Owners and names.
pub(crate) struct Owners {
    names: Arc<Names>,
    wanted: BTreeSet<Wanted>,
    closed: LruCache<u64, Owner>,
    now_ns: u64,
}

impl Default for Owners {
    fn default() -> Self {
        let kept = NonZeroUsize::new(CLOSED_KEPT).unwrap_or(NonZeroUsize::MIN);
        let mut closed = LruCache::unbounded();
        closed.resize(kept);
        Self { names: Arc::default(), wanted: BTreeSet::new(), closed, now_ns: 0 }
    }
}

impl Owners {
    /// An owner was told at `now_ns`: notes which of its names are missing.
    pub(crate) fn note(&mut self, owner: &Owner, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        let pid = owner.pid;
        if owner.cgroup > ROOT {
            if self.names.cgroups.get(&owner.cgroup).is_none() {
                self.want(Named::Cgroup, owner.cgroup, pid);
            }
        } else if pid != 0 {
            let read = self.names.processes.get(&pid).map(|(read_ns, _)| *read_ns);
            if read.is_none_or(|read_ns| self.now_ns.saturating_sub(read_ns) > PROCESS_NS) {
                self.want(Named::Process, pid.into(), pid);
            }
        }
        if self.names.users.get(&owner.uid).is_none() {
            self.want(Named::User, owner.uid.into(), 0);
        }
        // Another process has got the number of one that ended.
        if owner.flags & tcpwatch_common::owner::flag::ORPHAN == 0 && self.names.ended(pid) {
            Arc::make_mut(&mut self.names).ended.remove(&pid);
        }
    }

    fn want(&mut self, what: Named, number: u64, pid: u32) {
        if self.wanted.len() < MOST_WANTED && !self.wanted.iter().any(|w| (w.what, w.number) == (what, number)) {
            self.wanted.insert(Wanted { what, number, pid });
        }
    }

    /// Takes a name; an empty one says that there is none.
    pub(crate) fn named(&mut self, what: Named, number: u64, name: &[u8]) {
        let names = Arc::make_mut(&mut self.names);
        let text = || printable(name);
        let cgroup = || (!name.is_empty()).then(|| Arc::new(Cgroup::of(&text())));
        match what {
            Named::Cgroup => names.cgroups.insert(number, cgroup()),
            Named::User => names.users.insert(number as u32, (!name.is_empty()).then(|| text().into())),
            Named::Process => names.processes.insert(number as u32, (self.now_ns, cgroup())),
            Named::Ended => names.ended.insert(number as u32, ()),
        }
    }

    /// The names that are missing; each is told once.
    pub(crate) fn wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted).into_iter().collect()
    }

    /// A connection has closed.
    pub(crate) fn closed(&mut self, cookie: u64, owner: Owner) {
        self.closed.push(cookie, owner);
    }

    /// The owner of a connection that closed not long ago.
    pub(crate) fn of_closed(&self, cookie: u64) -> Option<Owner> {
        self.closed.peek(&cookie).copied()
    }

    /// The names that are known.
    pub(crate) fn names(&self) -> &Arc<Names> {
        &self.names
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn owner(pid: u32, cgroup: u64) -> Owner {
        let mut comm = [0; COMM_LEN];
        comm[..5].copy_from_slice(b"nginx");
        Owner { pid, uid: 33, cgroup, kind: OwnerKind::Read, flags: 0, comm }
    }

    fn number(wanted: &[Wanted]) -> Vec<(Named, u64)> {
        wanted.iter().map(|wanted| (wanted.what, wanted.number)).collect()
    }

    #[test]
    fn what_is_missing_is_asked_for_once_and_then_known() {
        let mut owners = Owners::default();
        owners.note(&owner(7, 50), 1);
        owners.note(&owner(8, 50), 2);
        let wanted = owners.wanted();
        assert_eq!(number(&wanted), [(Named::Cgroup, 50), (Named::User, 33)]);
        assert_eq!(wanted[0].pid, 7);
        assert_eq!(owners.wanted(), []);
        owners.named(Named::Cgroup, 50, b"/system.slice/web.service");
        owners.named(Named::User, 33, b"www-data");
        owners.note(&owner(9, 50), 3);
        assert_eq!(owners.wanted(), []);
        let names = owners.names();
        assert_eq!(names.cgroup(&owner(1, 50)).unwrap().unit.as_deref(), Some("web.service"));
        assert_eq!((names.user(33), names.user(34)), (Some("www-data"), None));
    }

    #[test]
    fn what_has_no_name_is_not_asked_for_again() {
        let mut owners = Owners::default();
        owners.note(&owner(7, 50), 1);
        owners.wanted();
        owners.named(Named::Cgroup, 50, b"");
        owners.named(Named::User, 33, b"");
        owners.note(&owner(7, 50), 2);
        assert_eq!(owners.wanted(), []);
        assert_eq!((owners.names().cgroup(&owner(7, 50)), owners.names().user(33)), (None, None));
    }

    #[test]
    fn without_version_2_the_process_is_asked_and_asked_again() {
        let mut owners = Owners::default();
        owners.named(Named::User, 33, b"www-data");
        owners.note(&owner(7, ROOT), 1);
        assert_eq!(number(&owners.wanted()), [(Named::Process, 7)]);
        owners.named(Named::Process, 7, b"/docker/x");
        owners.note(&owner(7, 0), PROCESS_NS);
        assert_eq!(owners.wanted(), []);
        assert_eq!(owners.names().cgroup(&owner(7, 0)).unwrap().path, "/docker/x");
        owners.note(&owner(7, 0), PROCESS_NS + 2);
        assert_eq!(number(&owners.wanted()), [(Named::Process, 7)]);
    }

    #[test]
    fn everything_has_a_bound() {
        let mut owners = Owners::default();
        for i in 0..2 * MOST as u64 {
            owners.note(&owner(i as u32 + 1, i + 10), i);
            owners.named(Named::Cgroup, i + 10, b"/a");
            owners.named(Named::Ended, i, b"");
            owners.closed(i, owner(1, 1));
        }
        assert!(owners.wanted.len() <= MOST_WANTED);
        assert_eq!((owners.names.cgroups.known.len(), owners.names.cgroups.order.len()), (MOST, MOST));
        assert_eq!(owners.names.ended.known.len(), MOST);
        assert!(owners.of_closed(0).is_none() && owners.of_closed(2 * MOST as u64 - 1).is_some());
    }

    #[test]
    fn a_number_that_is_used_again_is_of_a_process_that_lives() {
        let mut owners = Owners::default();
        owners.named(Named::Ended, 7, b"");
        owners.note(&Owner { flags: tcpwatch_common::owner::flag::ORPHAN, ..owner(7, 50) }, 1);
        assert!(owners.names().ended(7));
        owners.note(&owner(7, 50), 2);
        assert!(!owners.names().ended(7));
    }
}
