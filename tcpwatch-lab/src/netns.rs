//! Anonymous network namespaces: made, entered and configured without leaving a name anywhere.
//!
//! A namespace made here has no entry below `/run/netns`: only descriptors, sockets and processes hold it, so
//! it is gone when the last of them is, also after a panic or `SIGKILL`. Used by [`crate::relay`] for the two
//! ends of a path and by tests and demonstrations directly.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::interface;

/// Where the calling thread's own network namespace shows; `/proc/self` would be the main thread's.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A network namespace. Clones are the same namespace; it lives until the last clone, socket and process in
/// it are gone.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    inode: u32,
}

impl Netns {
    /// Makes a new namespace with its loopback interface up (127.0.0.1 and ::1).
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN` and `CAP_NET_ADMIN`, or when the kernel's limit on namespaces is reached.
    pub fn new() -> Result<Self> {
        // A thread of its own, because unsharing cannot be taken back without the old namespace's descriptor.
        let maker = thread::Builder::new()
            .name("netns-new".to_owned())
            .spawn(|| -> Result<Self> {
                // SAFETY: `CLONE_NEWNET` gives this thread another network namespace and unshares nothing else
                // (no descriptor table, no memory), so no other thread's view of anything changes.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context(
                    "cannot make a network namespace with unshare(CLONE_NEWNET): run as root (CAP_SYS_ADMIN), and \
                     check /proc/sys/user/max_net_namespaces",
                )?;
                interface::set_up("lo").context("cannot bring up the loopback interface of a new namespace")?;
                Self::current()
            })
            .context("cannot start the thread that makes a network namespace")?;
        maker.join().map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted or may not be read.
    pub fn current() -> Result<Self> {
        let file =
            File::open(OWN_NAMESPACE).with_context(|| format!("cannot open {OWN_NAMESPACE}: is /proc mounted?"))?;
        let fd = OwnedFd::from(file);
        let status = rustix::fs::fstat(&fd).with_context(|| format!("cannot stat {OWN_NAMESPACE}"))?;
        let inode = u32::try_from(status.st_ino).context("the inode number of a namespace exceeds 32 bits")?;
        Ok(Self { fd: Arc::new(fd), inode })
    }

    /// The number by which the kernel knows the namespace (`ns.inum` of `struct net`, `stat -Lc %i` of its file).
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// The descriptor that holds the namespace, as for `setns(2)`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Moves the calling thread into the namespace for good. For threads that live there; [`Netns::run`] is
    /// for a visit.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).with_context(|| {
            format!("cannot enter network namespace {} with setns: run as root (CAP_SYS_ADMIN)", self.inode)
        })
    }

    /// Runs `f` on a thread inside the namespace and returns what it returns.
    ///
    /// Sockets made by `f` belong to the namespace from then on, and can be used from any thread.
    ///
    /// # Panics
    /// When `f` panics, with the same payload; and when the thread cannot be started or may not enter the
    /// namespace, which the privileges that made the namespace allow.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match self.try_run(f) {
            Ok(answer) => answer,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// As [`Netns::run`], with an error when the thread cannot be started or may not enter the namespace.
    ///
    /// # Errors
    /// As above.
    ///
    /// # Panics
    /// When `f` panics, with the same payload.
    pub fn try_run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let visitor = thread::Builder::new()
                .name("netns-run".to_owned())
                .spawn_scoped(scope, || self.enter().map(|()| f()))
                .context("cannot start a thread to enter a network namespace")?;
            visitor.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        })
    }

    /// A command that will run inside the namespace. What it reads below `/proc/net` and `/proc/sys/net` is
    /// the namespace's own; `/sys/class/net` is still that of the mount it sees.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let fd = Arc::clone(&self.fd);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call on a descriptor that it owns; it
        // neither allocates nor takes a lock, and the conversion of the error is a plain integer.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
            });
        }
        command
    }

    /// Sets a network parameter of the namespace, named as for `sysctl(8)`: `net.ipv4.tcp_sack`. A name with
    /// slashes (`net/ipv4/conf/eth0.1/rp_filter`) is taken as it is, for interfaces with a dot.
    ///
    /// # Errors
    /// For a name outside `net.`, which would change the whole machine; when the parameter does not exist in a
    /// namespace of its own or refuses the value; and when it does not read back as it was set.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name)?;
        self.try_run(|| {
            fs::write(&path, value).with_context(|| {
                format!("cannot write '{value}' to {path}: does this kernel have it per network namespace?")
            })?;
            let now = read_words(&path)?;
            if now != words(value) {
                bail!("{path} reads '{now}' after '{value}' was written: the kernel did not take the value");
            }
            Ok(())
        })?
    }

    /// The value of a network parameter in the namespace, words separated by one space.
    ///
    /// # Errors
    /// As [`Netns::sysctl`].
    pub fn sysctl_get(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name)?;
        self.try_run(|| read_words(&path))?
    }

    /// Sets the congestion control that new connections of the namespace begin with, by the kernel's name. Namespaces may
    /// choose only among those that the machine allows to everyone; [`crate::Traffic::congestion`] is not bound by that.
    ///
    /// # Errors
    /// When the kernel does not have it or the machine does not allow it.
    pub fn congestion(&self, name: &str) -> Result<()> {
        self.sysctl("net.ipv4.tcp_congestion_control", name).with_context(|| {
            format!(
                "cannot make '{name}' the congestion control of a namespace: is it in \
                 net.ipv4.tcp_allowed_congestion_control of the machine?"
            )
        })
    }

    /// The text of a file below `/proc/net` as the namespace sees it: `read_proc("tcp6")`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read_proc(&self, file: &str) -> Result<String> {
        self.try_run(|| read_own_proc(file))?
    }
}

/// As [`Netns::read_proc`], for the namespace that the calling thread is in.
pub(crate) fn read_own_proc(file: &str) -> Result<String> {
    // Not /proc/net, which is /proc/self/net: the namespace of the main thread.
    let path = format!("/proc/thread-self/net/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The file of a parameter, for names with dots or with slashes.
fn sysctl_path(name: &str) -> Result<String> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    if !path.starts_with("net/") || path.split('/').any(|part| part == ".." || part.is_empty()) {
        bail!("'{name}' is not a parameter of a network namespace: only names that begin with 'net.' are");
    }
    Ok(format!("/proc/sys/{path}"))
}

fn read_words(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(words(&text))
}

/// The kernel separates the numbers of a parameter by tabs; people by spaces.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(sysctl_path("net.ipv4.tcp_sack").unwrap(), "/proc/sys/net/ipv4/tcp_sack");
        assert_eq!(sysctl_path("net/ipv4/conf/a.1/rp_filter").unwrap(), "/proc/sys/net/ipv4/conf/a.1/rp_filter");
    }

    #[test]
    fn parameters_of_the_machine_are_refused() {
        for name in ["vm.swappiness", "kernel.pid_max", "net/../vm/swappiness", "net..x"] {
            assert!(sysctl_path(name).is_err(), "{name}");
        }
    }

    #[test]
    fn values_compare_by_their_words() {
        assert_eq!(words("4096\t16384  65536\n"), "4096 16384 65536");
    }
}
