//! Owners of connections and listeners: processes, users and control groups that the test knows.

use std::fs;
use std::io::BufRead as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{Netns, harness, sockopt};

use crate::actor::Actor;
use crate::daemon::Daemon;
use crate::{obstacle, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("owner_of_a_prefork_server_is_the_worker", prefork),
        trial("owner_of_a_passed_descriptor_is_who_got_it", passed),
        trial("owner_is_known_after_a_rest_in_which_reads_cost_nothing", rest),
        trial("owner_of_an_inherited_descriptor_is_who_holds_it", inherited),
        trial("owner_stays_when_it_runs_another_program", another_program),
        trial("owner_of_an_orphan_is_the_process_that_ended", orphan),
        trial("owner_of_a_listener_is_who_listens", listeners),
        trial("owner_has_the_user_of_the_process", user),
        trial("owner_with_a_hostile_name_is_harmless", hostile),
        harness::trial_unless("owner_has_the_control_group_of_the_process", no_cgroups, cgroups),
    ]
}

/// Two passes over all files come within this, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOCAL: &str = "127.0.0.1:0";

/// The connection with this cookie once `done`; `always` must hold all the while.
fn wait(
    daemon: &Daemon,
    cookie: u64,
    what: &str,
    always: impl Fn(&Value) -> bool,
    done: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = daemon.ask("/api/v1/connections")?.into_iter().find(|c| c["cookie"] == cookie);
        if let Some(found) = &found {
            ensure!(always(found), "{what}: {}", found["owner"]);
            ensure!(found["pid"] == found["owner"]["pid"] && found["comm"] == found["owner"]["comm"], "{found}");
            if done(found) {
                return Ok(found.clone());
            }
        }
        let found = found.map(|found| found["owner"].clone());
        ensure!(Instant::now() < deadline, "waited in vain for {what}: {found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn owned_by(pid: u32, known_by: &str) -> impl Fn(&Value) -> bool {
    move |found| found["owner"]["pid"] == pid && found["owner"]["known_by"] == known_by
}

fn cookie(said: &str) -> Result<u64> {
    said.parse().with_context(|| format!("{said:?} is no cookie"))
}

fn listen(netns: &Netns) -> Result<(TcpListener, SocketAddr)> {
    let listener = netns.run(|| TcpListener::bind(LOCAL))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn prefork() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (listener, address) = listen(&netns)?;
    let workers = [
        Actor::start(&netns, Some(listener.try_clone()?.into()))?,
        Actor::start(&netns, Some(listener.try_clone()?.into()))?,
    ];
    // Over loopback the server's end is made in softirq, while the client is on the CPU.
    let client = Actor::start(&netns, None)?;
    let not_the_client = |found: &Value| found["owner"]["pid"] != client.pid();
    let mut served = Vec::new();
    for worker in &workers {
        let at_client = cookie(&client.tell(&format!("connect {address}"))?)?;
        let at_server = cookie(&worker.tell("accept")?)?;
        wait(&daemon, at_client, "the client", |_| true, owned_by(client.pid(), "connect"))?;
        wait(&daemon, at_server, "an owner", not_the_client, |found| !found["owner"]["pid"].is_null())?;
        client.tell("write")?;
        served.push(at_server);
    }
    // The first has read; the second only holds it, which a pass over files finds.
    workers[0].tell("read")?;
    wait(&daemon, served[0], "the worker that read", not_the_client, owned_by(workers[0].pid(), "read"))?;
    wait(&daemon, served[1], "the worker that accepted", not_the_client, owned_by(workers[1].pid(), "descriptor"))?;
    Ok(())
}

/// A connection that this process accepted, and its client's end.
fn accepted(netns: &Netns) -> Result<(TcpStream, TcpStream, u64)> {
    let (listener, address) = listen(netns)?;
    let client = netns.run(|| TcpStream::connect(address))?;
    let server = listener.accept()?.0;
    let cookie = sockopt::cookie(&server)?;
    Ok((server, client, cookie))
}

fn passed() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (server, mut client, cookie) = accepted(&netns)?;
    let me = std::process::id();
    std::io::Write::write_all(&mut client, b"xyz")?;
    std::io::Read::read_exact(&mut &server, &mut [0])?;
    wait(&daemon, cookie, "this process, which read", |_| true, owned_by(me, "read"))?;
    let (first, second) = (Actor::start(&netns, None)?, Actor::start(&netns, None)?);
    first.give("take", Some(&server))?;
    first.tell("read")?;
    wait(&daemon, cookie, "who got it and read", |_| true, owned_by(first.pid(), "read"))?;
    // It is gone here and there without a read by who has it in the end.
    second.give("take", Some(&server))?;
    drop(server);
    first.end()?;
    wait(&daemon, cookie, "who holds it", |_| true, owned_by(second.pid(), "descriptor"))?;
    // Reads are watched again when somebody else is accepted.
    let _another = accepted(&netns)?;
    let deadline = Instant::now() + PATIENCE;
    let read = owned_by(second.pid(), "read");
    while !daemon.ask("/api/v1/connections")?.iter().any(|found| found["cookie"] == cookie && read(found)) {
        ensure!(Instant::now() < deadline, "no read was seen");
        std::io::Write::write_all(&mut client, b"x")?;
        second.tell("read")?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Nobody is accepted any more: a read costs nothing until the next one is, and whose that was is known even if it was
/// faster than us.
fn rest() -> Result<()> {
    let _counted = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let mut events = daemon.follow("/api/v1/events?kind=close")?;
    let (mut server, mut client, _) = accepted(&netns)?;
    let deadline = Instant::now() + PATIENCE;
    let mut seen = u64::MAX;
    loop {
        for _ in 0..100 {
            std::io::Write::write_all(&mut client, b"x")?;
            std::io::Read::read_exact(&mut server, &mut [0])?;
        }
        let metrics = daemon.metrics()?;
        let runs = metrics.count("tcpwatch_program_runs_total", &["program=\"tcp_rcv_space_adjust\""]) as u64;
        if runs == seen {
            break;
        }
        ensure!(Instant::now() < deadline, "reads are watched for ever");
        seen = runs;
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(seen >= 100, "only {seen} reads were seen");
    let (listener, address) = listen(&netns)?;
    let worker = Actor::start(&netns, Some(listener.try_clone()?.into()))?;
    let mut client = netns.run(|| TcpStream::connect(address))?;
    std::io::Write::write_all(&mut client, b"x")?;
    let served = cookie(&worker.tell("serve")?)?;
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(events.read_line(&mut line)? > 0, "the events ended");
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data)?;
        let connection = &event["connection"];
        // Whose it is when it ends after its process has let go of it is as it was.
        if connection["cookie"] == served {
            let by = ["read", "descriptor"].into_iter().any(|by| owned_by(worker.pid(), by)(connection));
            ensure!(by, "{}", connection["owner"]);
            return Ok(());
        }
    }
}

fn inherited() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (_server, client, _) = accepted(&netns)?;
    let cookie = sockopt::cookie(&client)?;
    wait(&daemon, cookie, "this process, which connected", |_| true, owned_by(std::process::id(), "connect"))?;
    let heir = Actor::start(&netns, Some(client.into()))?;
    wait(&daemon, cookie, "the heir", |_| true, owned_by(heir.pid(), "descriptor"))?;
    Ok(())
}

fn another_program() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (_listener, address) = listen(&netns)?;
    let actor = Actor::start(&netns, None)?;
    actor.tell("name before")?;
    let cookie = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let by = owned_by(actor.pid(), "connect");
    wait(&daemon, cookie, "its name", &by, |found| found["comm"] == "before")?;
    // It answers no more as what it was, and again as what it is: the same process under the name of its file.
    actor.exec()?;
    let name = fs::read_to_string(format!("/proc/{}/comm", actor.pid()))?;
    ensure!(name.trim_end() != "before", "{name} was not renamed");
    wait(&daemon, cookie, "its new name", &by, |found| found["comm"] == name.trim_end())?;
    Ok(())
}

fn orphan() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (listener, address) = listen(&netns)?;
    let actor = Actor::start(&netns, None)?;
    let cookie = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let pid = actor.pid();
    // Nobody reads: what was written keeps the socket when its process is gone.
    let (_server, _) = listener.accept()?;
    actor.tell("fill")?;
    wait(&daemon, cookie, "the owner", owned_by(pid, "connect"), |found| found["owner"]["exited"] == false)?;
    actor.end()?;
    let by = owned_by(pid, "connect");
    let found = wait(&daemon, cookie, "its end", by, |found| found["owner"]["exited"] == true)?;
    ensure!(found["owner"]["orphan"] == true && found["state"] == "FIN_WAIT1", "{found}");
    Ok(())
}

fn listeners() -> Result<()> {
    let netns = Netns::new()?;
    let older = Actor::start(&netns, None)?;
    let before = older.tell(&format!("listen {LOCAL}"))?;
    let daemon = Daemon::watching(&[&netns])?;
    let newer = Actor::start(&netns, None)?;
    newer.tell("name listening")?;
    let since = newer.tell("listen [::1]:0")?;
    let deadline = Instant::now() + PATIENCE;
    for (address, actor, known_by) in [(before, &older, "descriptor"), (since, &newer, "listen")] {
        let port = address.parse::<SocketAddr>()?.port();
        let at = |all: Vec<Value>| all.into_iter().find(|listener| listener["local_port"] == port);
        let found = loop {
            let found = at(daemon.ask("/api/v1/listeners")?).with_context(|| format!("{address} is not listed"))?;
            if !found["owner"]["user"].is_null() {
                break found["owner"].clone();
            }
            ensure!(Instant::now() < deadline, "no name of its user: {found}");
            std::thread::sleep(Duration::from_millis(50));
        };
        ensure!(found["pid"] == actor.pid() && found["known_by"] == known_by, "{found}");
        ensure!(found["uid"] == 0 && found["user"] == "root", "{found}");
        ensure!(known_by != "listen" || found["comm"] == "listening", "{found}");
    }
    Ok(())
}

fn user() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (_listener, address) = listen(&netns)?;
    let actor = Actor::start(&netns, None)?;
    let made = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let by = owned_by(actor.pid(), "connect");
    wait(&daemon, made, "root", &by, |found| found["owner"]["user"] == "root")?;
    // The socket stays root's; its owner is another user from now on.
    actor.tell("uid 65534")?;
    let found = wait(&daemon, made, "the user", &by, |found| found["owner"]["uid"] == 65534)?;
    ensure!(found["uid"] == 0, "{found}");
    let second = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let named = |found: &Value| found["owner"]["user"] == "nobody";
    let always = |found: &Value| by(found) && found["owner"]["uid"] == 65534 && found["uid"] == 65534;
    wait(&daemon, second, "the user's name", always, named)?;
    Ok(())
}

fn hostile() -> Result<()> {
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (_listener, address) = listen(&netns)?;
    let actor = Actor::start(&netns, None)?;
    actor.tell("name \u{1b}[2J\n\"<b>")?;
    let cookie = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let shown = "\\x1b[2J\\x0a\"<b>";
    wait(&daemon, cookie, "the owner", owned_by(actor.pid(), "connect"), |found| found["comm"] == shown)?;
    Ok(())
}

/// Where control groups of version 2 are mounted.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ") && line.split(' ').nth(3) == Some("/"))?;
    Some(line.split(' ').nth(4)?.into())
}

fn no_cgroups() -> Option<String> {
    obstacle().or_else(|| match hierarchy() {
        None => Some("control groups of version 2 are not mounted".to_owned()),
        Some(mount) => Group::new(&mount, "probe").err().map(|error| format!("cannot make a control group: {error}")),
    })
}

/// A control group that goes with the value.
struct Group(PathBuf);

impl Group {
    fn new(mount: &std::path::Path, name: &str) -> Result<Self> {
        let path = mount.join(format!("tcpwatch-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _its_processes_ended = fs::remove_dir(&self.0);
    }
}

fn cgroups() -> Result<()> {
    let mount = hierarchy().context("not mounted")?;
    let id = "0123456789abcdef".repeat(4);
    let (unit, container) = (Group::new(&mount, "web.service")?, Group::new(&mount, &format!("docker-{id}.scope"))?);
    let netns = Netns::new()?;
    let daemon = Daemon::watching(&[&netns])?;
    let (listener, address) = listen(&netns)?;
    let actor = Actor::start(&netns, None)?;
    actor.tell(&format!("cgroup {}", unit.0.display()))?;
    let made = cookie(&actor.tell(&format!("connect {address}"))?)?;
    let by = owned_by(actor.pid(), "connect");
    let found = wait(&daemon, made, "its unit", &by, |found| found["owner"]["unit"] == *unit.name())?;
    ensure!(found["owner"]["cgroup"] == format!("/{}", unit.name()), "{found}");
    ensure!(found["owner"]["container"].is_null(), "{found}");
    // Where the process goes, its connections go.
    actor.tell(&format!("cgroup {}", container.0.display()))?;
    let found = wait(&daemon, made, "its container", &by, |found| found["owner"]["container"] == *id)?;
    ensure!(found["owner"]["unit"] == *container.name(), "{found}");
    // The worker is in a group of its own, and the listener is not.
    let worker = Actor::start(&netns, Some(listener.into()))?;
    worker.tell(&format!("cgroup {}", unit.0.display()))?;
    let accepted = cookie(&worker.tell("accept")?)?;
    actor.tell("write")?;
    worker.tell("read")?;
    let of_worker = |found: &Value| found["owner"]["unit"] == *unit.name();
    wait(&daemon, accepted, "the unit of the worker", |_| true, of_worker)?;
    // A group that is gone keeps its name: nobody reads, so that the connection outlives its owner.
    worker.tell("fill")?;
    worker.end()?;
    fs::remove_dir(&unit.0)?;
    let ended = |found: &Value| found["owner"]["exited"] == true;
    wait(&daemon, accepted, "the end of the worker", of_worker, ended)?;
    Ok(())
}
