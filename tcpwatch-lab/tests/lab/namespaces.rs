//! Namespaces: apart from the machine's, configurable, and gone without a trace.

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::panic;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::harness::{self, trial, trial_unless};
use tcpwatch_lab::nft::{self, Share};
use tcpwatch_lab::{End, Family, Netns, Path, Traffic, clock};

use crate::ticket::Ticket;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_namespace_has_loopback_and_nothing_else", loopback),
        trial("a_namespace_has_an_inode_of_its_own", inode),
        trial("sysctls_are_the_namespaces_own", sysctls),
        trial("a_command_runs_inside_the_namespace", command),
        trial("counters_are_the_namespaces_own", counters),
        trial("nothing_is_left_of_a_path", nothing_is_left),
        trial("nothing_is_left_of_a_path_after_a_panic", nothing_is_left_after_a_panic),
        trial("nothing_is_left_of_a_path_after_a_kill", || nothing_is_left_of(Death::Kill)),
        trial("nothing_is_left_of_a_path_after_ctrl_c", || nothing_is_left_of(Death::Interrupt)),
        trial("nothing_is_left_of_a_path_when_its_process_panics", || nothing_is_left_of(Death::Panic)),
        trial("a_path_with_unfinished_connections_goes_too", unfinished_connections),
        trial_unless(
            "nft_drops_what_it_is_told_to",
            || harness::obstacle().map(str::to_owned).or_else(nft::obstacle),
            nft_drops,
        ),
    ]
}

fn loopback() -> Result<()> {
    let netns = Netns::new()?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        netns.run(|| -> Result<()> {
            let listener = TcpListener::bind(address)?;
            TcpStream::connect(listener.local_addr()?)?;
            Ok(())
        })?;
    }
    let devices = netns.read_proc("dev")?;
    ensure!(devices.lines().skip(2).count() == 1, "{devices}");
    Ok(())
}

fn inode() -> Result<()> {
    let [first, second] = [Netns::new()?, Netns::new()?];
    ensure!(first.inode() != second.inode());
    ensure!(first.inode() != Netns::current()?.inode());
    ensure!(first.run(Netns::current)?.inode() == first.inode());
    let link = first.run(|| fs::read_link("/proc/thread-self/ns/net"))?;
    ensure!(link.to_string_lossy() == format!("net:[{}]", first.inode()), "{}", link.display());
    Ok(())
}

fn sysctls() -> Result<()> {
    let here = Netns::current()?;
    let before = here.sysctl_get("net.ipv4.tcp_sack")?;
    let netns = Netns::new()?;
    netns.sysctl("net.ipv4.tcp_sack", "0")?;
    ensure!(netns.sysctl_get("net.ipv4.tcp_sack")? == "0");
    ensure!(here.sysctl_get("net.ipv4.tcp_sack")? == before, "the machine's own value has changed");
    netns.sysctl("net.ipv4.tcp_rmem", "4096 20000 30000")?;
    ensure!(netns.sysctl_get("net.ipv4.tcp_rmem")? == "4096 20000 30000");
    ensure!(netns.sysctl("net.ipv4.no_such_parameter", "1").is_err());
    Ok(())
}

fn command() -> Result<()> {
    let netns = Netns::new()?;
    let output = netns.command("readlink").arg("/proc/self/ns/net").output()?;
    let shown = String::from_utf8(output.stdout)?;
    ensure!(shown.trim() == format!("net:[{}]", netns.inode()), "{shown}");
    Ok(())
}

fn counters() -> Result<()> {
    let [busy, idle] = [Netns::new()?, Netns::new()?];
    Traffic::loopback(&busy, Family::V4).connect()?.close(End::Client)?;
    ensure!(busy.counters()?.get("Tcp", "ActiveOpens")? == 1);
    ensure!(busy.counters()?.get("Tcp", "PassiveOpens")? == 1);
    ensure!(idle.counters()?.get("Tcp", "ActiveOpens")? == 0);
    ensure!(busy.sockstat()?.get("TCP", "tw")? == 1);
    ensure!(busy.counters()?.get("TcpExt", "TCPTimeouts")? == 0);
    Ok(())
}

/// Whether a namespace is still there: the kernel has it, or a process, descriptor or mount refers to it.
fn is_there(inode: u32, ticket: &Ticket) -> Result<bool> {
    Ok(ticket.exists() == Some(true) || is_referred_to(inode)?)
}

fn is_referred_to(inode: u32) -> Result<bool> {
    let name = format!("net:[{inode}]");
    let is_it = |link: io::Result<PathBuf>| link.is_ok_and(|link| link.as_os_str() == name.as_str());
    if fs::read_to_string("/proc/self/mountinfo")?.contains(&name) {
        return Ok(true);
    }
    // Processes come and go while this looks: what cannot be read is gone.
    for process in fs::read_dir("/proc")?.flatten() {
        for thread in fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
            if is_it(fs::read_link(thread.path().join("ns/net"))) {
                return Ok(true);
            }
        }
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if is_it(fs::read_link(fd.path())) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Waits until a namespace is gone. The kernel takes it apart after its last user, so that takes a moment.
fn wait_gone(inode: u32, ticket: &Ticket) -> Result<()> {
    let what = format!("namespace {inode} to be gone");
    clock::wait_for(Duration::from_secs(10), &what, || Ok((!is_there(inode, ticket)?).then_some(())))
}

/// What could be left behind on the machine itself: devices, names of namespaces, open tun descriptors.
fn traces() -> Result<(Vec<String>, usize, usize)> {
    let table = Netns::current()?.read_proc("dev")?;
    let devices = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    // No directory: no name has ever been given on this machine.
    let names = fs::read_dir("/run/netns").map_or(0, Iterator::count);
    let links = fs::read_dir("/proc/self/fd")?.flatten().map(|fd| fs::read_link(fd.path()));
    let tuns = links.flatten().filter(|link| link.as_os_str() == "/dev/net/tun").count();
    Ok((devices.collect(), names, tuns))
}

fn nothing_is_left() -> Result<()> {
    let before = traces()?;
    let path = Path::builder().build()?;
    let ends = [path.a(), path.b()].map(|end| (end.inode(), Ticket::of(end)));
    ensure!(ends[0].1.exists() != Some(false) && is_referred_to(ends[0].0)?, "the search misses what is there");
    let during = traces()?;
    ensure!((&during.0, during.1) == (&before.0, before.1), "a device or a name has appeared: {during:?}");
    Traffic::over(&path, Family::V4).connect()?.close(End::Client)?;
    drop(path);
    for (inode, ticket) in &ends {
        wait_gone(*inode, ticket)?;
    }
    ensure!(before == traces()?);
    Ok(())
}

fn nothing_is_left_after_a_panic() -> Result<()> {
    let before = traces()?;
    let path = Path::builder().build()?;
    let (inode, ticket) = (path.a().inode(), Ticket::of(path.a()));
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(move || {
        let _path = path;
        panic!("as a failing assertion does");
    }));
    panic::set_hook(hook);
    ensure!(outcome.is_err());
    wait_gone(inode, &ticket)?;
    ensure!(before == traces()?);
    Ok(())
}

/// How the victim of [`nothing_is_left_of`] ends.
#[derive(Clone, Copy, Debug)]
enum Death {
    Kill,
    Interrupt,
    Panic,
}

/// What Ctrl-C sends.
pub(crate) fn interrupt(process: u32) -> Result<()> {
    // SAFETY: the call takes two numbers; the process is a child that was not waited for yet.
    match unsafe { libc::kill(process.cast_signed(), libc::SIGINT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("cannot send SIGINT"),
    }
}

/// The variable that makes this program a victim of [`nothing_is_left_of`].
const VICTIM: &str = "TCPWATCH_LAB_VICTIM";

/// In the program started as a victim: makes a path, says where, and waits to be killed. It has no connection open
/// then: its FIN would keep the namespace for as long as the kernel repeats it.
pub(crate) fn be_victim() -> Option<Result<()>> {
    env::var_os(VICTIM)?;
    // A shell that starts tests in the background has it ignored, which children inherit.
    // SAFETY: no handler is installed, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let wait = || -> Result<()> {
        let path = Path::builder().build()?;
        let traffic = Traffic::over(&path, Family::V4);
        let _server = traffic.listen()?;
        traffic.connect()?.close(End::Client)?;
        println!("{} {}", path.a().inode(), path.a().fd().as_raw_fd());
        // Whoever started this holds the other end; it closes should they die first.
        let mut order = String::new();
        io::stdin().read_to_string(&mut order)?;
        assert!(order.trim() != "panic", "as ordered");
        Ok(())
    };
    Some(wait())
}

fn nothing_is_left_of(death: Death) -> Result<()> {
    let before = traces()?;
    let mut command = Command::new(env::current_exe()?);
    command.env(VICTIM, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut victim = command.spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("no output")?).read_line(&mut line)?;
    let (inode, fd) = line.trim().split_once(' ').with_context(|| format!("'{line}' names no namespace"))?;
    let inode = inode.parse()?;
    let file = File::open(format!("/proc/{}/fd/{fd}", victim.id()))?;
    let ticket = Ticket::of_fd(file.as_fd());
    drop(file);
    ensure!(is_there(inode, &ticket)?, "the search misses what is there");
    match death {
        Death::Kill => victim.kill()?,
        Death::Interrupt => interrupt(victim.id())?,
        Death::Panic => victim.stdin.take().context("no input")?.write_all(b"panic")?,
    }
    let ended = victim.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    let as_ordered = match death {
        Death::Kill => ended.status.signal() == Some(libc::SIGKILL),
        Death::Interrupt => ended.status.signal() == Some(libc::SIGINT),
        Death::Panic => ended.status.code() == Some(101) && said.contains("as ordered"),
    };
    ensure!(as_ordered, "{death:?}: it ended with {}: {said}", ended.status);
    wait_gone(inode, &ticket)?;
    ensure!(before == traces()?);
    Ok(())
}

/// Sockets that were closed with data on their way keep a namespace while they retransmit; not for long here.
fn unfinished_connections() -> Result<()> {
    let path = Path::builder().build()?;
    let (inode, ticket) = (path.a().inode(), Ticket::of(path.a()));
    let mut pair = Traffic::over(&path, Family::V4).connect()?;
    pair.send(End::Client, 1000)?;
    let hole = path.forward().blackhole();
    pair.client.write_all(&[0; 1000])?;
    path.wait_record(Duration::from_secs(5), "data to be lost", |_| hole.hits() > 0)?;
    drop(pair);
    drop(path);
    wait_gone(inode, &ticket)
}

fn nft_drops() -> Result<()> {
    let netns = Netns::new()?;
    let traffic = Traffic::loopback(&netns, Family::V4);
    let server = traffic.listen()?;
    let rule = netns.drop_input("tcp flags & (syn|ack) == syn", Share::First(1))?;
    let before = netns.counters()?;
    let _pair = traffic.connect_to(&server)?;
    ensure!(rule.dropped()? == 1);
    ensure!(netns.counters()?.delta(&before).get("Tcp", "RetransSegs")? == 1);
    rule.remove()?;
    let error = netns.nft("no such thing").err().context("nonsense was accepted")?;
    ensure!(error.to_string().contains("syntax error"), "{error:#}");
    Ok(())
}
