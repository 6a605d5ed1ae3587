//! Names of users and control groups, and processes that have ended: looked up on a thread of their own, as a directory
//! service or a busy disk may take its time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::aggregate::owners::{Named, Wanted};
use crate::sys;

/// Requests that may wait; those beyond wait with who asks.
const WAITING: usize = 16;
/// Names that who asks keeps back at most.
const MOST_PENDING: usize = 4096;
/// A walk over all control groups may take this share of the time.
const WALK_SHARE: u64 = 100;
/// Folders that a walk looks at, and how deep they lie, at most.
const MOST_FOLDERS: usize = 50_000;
const MOST_DEPTH: usize = 32;
/// `PROC_PID_INIT_INO`, include/linux/proc_ns.h: the namespace in which the kernel programs see processes.
const INITIAL_PIDS: u64 = 0xEFFF_FFFC;

/// A name; empty when there is none.
struct Found {
    what: Named,
    number: u64,
    name: Vec<u8>,
}

/// The thread, as seen from the daemon. It ends with the value.
pub(crate) struct NameService {
    ask: SyncSender<Vec<Wanted>>,
    found: Receiver<Found>,
    pending: Vec<Wanted>,
}

impl NameService {
    /// Starts the thread; without one names stay unknown.
    pub(crate) fn start() -> Self {
        let (ask, asked) = mpsc::sync_channel::<Vec<Wanted>>(WAITING);
        let (tell, found) = mpsc::channel();
        let spawned = thread::Builder::new().name("names".to_owned()).spawn(move || {
            let mut host = Host::new(Path::new("/proc"));
            for wanted in asked {
                for one in wanted {
                    if let Some(name) = host.name(one)
                        && tell.send(Found { what: one.what, number: one.number, name }).is_err()
                    {
                        return;
                    }
                }
            }
        });
        if let Err(error) = spawned {
            log::warn!("users and control groups are shown by number: cannot start a thread: {error}");
        }
        Self { ask, found, pending: Vec::new() }
    }

    /// Asks for names; never blocks.
    pub(crate) fn ask(&mut self, wanted: Vec<Wanted>) {
        self.pending.extend(wanted);
        self.pending.truncate(MOST_PENDING);
        if self.pending.is_empty() {
            return;
        }
        match self.ask.try_send(std::mem::take(&mut self.pending)) {
            Err(TrySendError::Full(back)) => self.pending = back,
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Hands on the names that were found since.
    pub(crate) fn take(&self, mut each: impl FnMut(Named, u64, &[u8])) {
        for found in self.found.try_iter() {
            each(found.what, found.number, &found.name);
        }
    }
}

/// Where version 2 of the control groups is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// The mount point.
    pub(crate) mount: PathBuf,
    /// What of the hierarchy is there: `/`, but for bind mounts and namespaces.
    root: Vec<u8>,
}

impl Hierarchy {
    /// The first in the `mountinfo` of a process, one of all control groups before one of a part.
    pub(crate) fn find(proc: &Path) -> Option<Self> {
        let text = fs::read(proc.join("self/mountinfo")).ok()?;
        let all = text.split(|byte| *byte == b'\n').filter_map(mount);
        all.min_by_key(|found| found.root != b"/")
    }

    /// Where the group with this path lies; none when it is outside of what is mounted.
    fn folder(&self, path: &[u8]) -> Option<PathBuf> {
        let below = if self.root == b"/" { path } else { path.strip_prefix(self.root.as_slice())? };
        let below = below.strip_prefix(b"/").unwrap_or(below);
        Some(self.mount.join(std::ffi::OsStr::from_bytes(below)))
    }
}

/// `31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw`
fn mount(line: &[u8]) -> Option<Hierarchy> {
    let mut words = line.split(|byte| *byte == b' ');
    let (root, mount) = (words.nth(3)?, words.next()?);
    words.find(|word| *word == b"-")?;
    (words.next()? == b"cgroup2")
        .then(|| Hierarchy { mount: std::ffi::OsString::from_vec(unescape(mount)).into(), root: unescape(root) })
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let octal = more
            .first_chunk::<3>()
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { more.get(3..).unwrap_or_default() } else { more };
    }
    out
}

/// Whether processes have the numbers here that the kernel programs see.
pub(crate) fn sees_all_processes() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL_PIDS)
}

/// Looks things up.
struct Host {
    proc: PathBuf,
    same_pids: bool,
    hierarchy: Option<Hierarchy>,
    /// What the last walk found.
    walked: BTreeMap<u64, Vec<u8>>,
    next_walk_ns: u64,
}

impl Host {
    fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            same_pids: sees_all_processes(),
            hierarchy: None,
            walked: BTreeMap::new(),
            next_walk_ns: 0,
        }
    }

    /// A name, empty when there is none; nothing when that cannot be told.
    fn name(&mut self, wanted: Wanted) -> Option<Vec<u8>> {
        let pid = wanted.number as u32;
        match wanted.what {
            Named::User => {
                let user = uzers::get_user_by_uid(pid);
                Some(user.map_or_else(Vec::new, |user| user.name().as_bytes().to_vec()))
            }
            Named::Cgroup => Some(self.cgroup(wanted.number, wanted.pid).unwrap_or_default()),
            Named::Process => {
                let groups = self.groups_of(pid);
                Some(groups.as_deref().and_then(any_group).map(<[u8]>::to_vec).unwrap_or_default())
            }
            Named::Ended => (self.same_pids && ended(&self.proc, pid)).then(Vec::new),
        }
    }

    fn groups_of(&self, pid: u32) -> Option<Vec<u8>> {
        if !self.same_pids {
            return None;
        }
        fs::read(self.proc.join(format!("{pid}/cgroup"))).ok()
    }

    /// The path of the control group with this id, which is the inode of its folder. A process in it says where it is;
    /// if that is gone, or elsewhere by now, all folders are looked at.
    fn cgroup(&mut self, id: u64, pid: u32) -> Option<Vec<u8>> {
        // It may have been mounted since.
        self.hierarchy = Hierarchy::find(&self.proc);
        let said = (pid != 0).then(|| self.groups_of(pid)).flatten();
        let said = said.as_deref().and_then(unified);
        let Some(hierarchy) = &self.hierarchy else {
            // Nothing to compare with.
            return said.map(<[u8]>::to_vec);
        };
        if let Some(path) = said
            && hierarchy.folder(path).is_some_and(|folder| fs::metadata(folder).is_ok_and(|meta| meta.ino() == id))
        {
            return Some(path.to_vec());
        }
        if !self.walked.contains_key(&id) {
            self.walk();
        }
        self.walked.get(&id).cloned()
    }

    /// Looks at all folders, if that is affordable by now.
    fn walk(&mut self) {
        let began = sys::monotonic_ns();
        let Some(hierarchy) = self.hierarchy.as_ref().filter(|_| began >= self.next_walk_ns) else { return };
        self.walked.clear();
        let mut below = vec![(hierarchy.mount.clone(), hierarchy.root.clone(), 0)];
        while let Some((folder, path, depth)) = below.pop() {
            let Ok(meta) = fs::metadata(&folder) else { continue };
            self.walked.insert(meta.ino(), path.clone());
            if self.walked.len() >= MOST_FOLDERS || depth >= MOST_DEPTH {
                continue;
            }
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let name = entry.file_name();
                    let start = if path == b"/" { &[][..] } else { &path };
                    below.push((entry.path(), [start, b"/", name.as_bytes()].concat(), depth + 1));
                }
            }
        }
        self.next_walk_ns = began + (sys::monotonic_ns() - began) * WALK_SHARE;
    }
}

/// The path in version 2: `0::/system.slice/nginx.service`.
fn unified(groups: &[u8]) -> Option<&[u8]> {
    groups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))
}

/// The path that says most where version 2 says nothing: systemd's own hierarchy, else the first that has groups.
fn any_group(groups: &[u8]) -> Option<&[u8]> {
    let lines = || {
        groups.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut parts = line.splitn(3, |byte| *byte == b':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            (path != b"/").then_some((controllers, path))
        })
    };
    let systemd = lines().find(|(controllers, _)| *controllers == b"name=systemd");
    systemd.or_else(|| lines().next()).map(|(_, path)| path).or_else(|| unified(groups))
}

/// Whether a process has ended; also one that nobody has waited for.
fn ended(proc: &Path, pid: u32) -> bool {
    let Some(process) = Pid::from_raw(pid as i32) else { return false };
    if test_kill_process(process) == Err(Errno::SRCH) {
        return true;
    }
    // What is not shown to us is not known to have ended.
    let stat = fs::read(proc.join(format!("{pid}/stat"))).unwrap_or_default();
    // The name may have brackets in it; nothing after it has.
    let after = stat.rsplit(|byte| *byte == b')').next().filter(|rest| rest.len() < stat.len());
    matches!(after.and_then(|rest| rest.get(1)), Some(b'Z' | b'X'))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn mounts_are_found_whatever_they_are_called() {
        let whole = b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:1 - cgroup2 cgroup2 rw";
        let found = mount(whole).unwrap();
        assert_eq!((found.mount.to_str(), found.root.as_slice()), (Some("/sys/fs/cgroup/unified"), &b"/"[..]));
        assert_eq!(found.folder(b"/a/b"), Some("/sys/fs/cgroup/unified/a/b".into()));
        assert_eq!(mount(b"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"), None);
        assert_eq!(mount(b""), None);
        let part = mount(b"41 31 0:38 /a\\040b /with\\040blank rw - cgroup2 none rw").unwrap();
        assert_eq!((part.mount.to_str(), part.root.as_slice()), (Some("/with blank"), &b"/a b"[..]));
        assert_eq!(part.folder(b"/a b/c"), Some("/with blank/c".into()));
        assert_eq!(part.folder(b"/other"), None);
        assert_eq!(unescape(b"\\9\\04"), b"\\9\\04");
    }

    #[test]
    fn the_group_that_says_most_is_taken() {
        for (text, path) in [
            ("0::/system.slice/a.service\n", "/system.slice/a.service"),
            ("9:name=systemd:/system.slice/b.service\n4:memory:/x\n0::/\n", "/system.slice/b.service"),
            ("9:name=systemd:/\n4:memory:/docker/1\n0::/\n", "/docker/1"),
            ("9:name=systemd:/with:colon\n", "/with:colon"),
            ("0::/\n", "/"),
        ] {
            assert_eq!(any_group(text.as_bytes()).map(String::from_utf8_lossy).as_deref(), Some(path));
        }
        assert_eq!(any_group(b"garbage\n1:2"), None);
    }

    #[test]
    fn users_have_names_or_none() {
        let mut host = Host::new(Path::new("/proc"));
        let mut name = |number| host.name(Wanted { what: Named::User, number, pid: 0 });
        assert_eq!(name(0).as_deref(), Some(&b"root"[..]));
        assert_eq!(name(3_999_999_999).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_process_that_nobody_waited_for_has_ended() {
        let proc = Path::new("/proc");
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(!ended(proc, child.id()));
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !ended(proc, child.id()) {
            assert!(std::time::Instant::now() < deadline);
            thread::yield_now();
        }
        child.wait().unwrap();
        assert!(ended(proc, child.id()));
    }

    #[test]
    fn answers_come_back_from_the_thread() {
        let mut names = NameService::start();
        names.ask(vec![Wanted { what: Named::User, number: 0, pid: 0 }]);
        let found = names.found.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!((found.what, found.number, found.name.as_slice()), (Named::User, 0, &b"root"[..]));
    }
}
