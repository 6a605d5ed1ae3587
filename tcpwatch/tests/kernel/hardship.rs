//! What goes wrong around the daemon: a full disk, namespaces by the thousand, no descriptors, hostile clients, a restart
//! under `top`, the bounds that the unit sets. Nothing that was counted is lost, and nothing is left behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::{End, Family, Netns, Path, Traffic};

use crate::daemon::{Daemon, Metrics, PROGRAM, equal};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_full_disk_ends_a_recording_and_leaves_what_was_seen", full_disk),
        trial("namespaces_that_come_and_go_leave_nothing_behind", namespaces),
        trial("without_descriptors_it_says_so_and_recovers", descriptors),
        trial("slow_and_hostile_clients_keep_nobody_out", hostile),
        trial("top_goes_on_when_the_daemon_is_upgraded", top),
        trial("from_another_host_nobody_reads_an_address", elsewhere),
    ]
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn full_disk() -> Result<()> {
    let ns = Netns::new()?;
    let folder = tempfile::tempdir()?;
    let (disk, config) = (folder.path().join("disk"), folder.path().join("tcpwatch.toml"));
    fs::create_dir(&disk)?;
    fs::write(&config, format!("netns = [\"/proc/{}/fd/{}\"]\n", std::process::id(), ns.fd().as_raw_fd()))?;
    // A disk of 16 pages that nobody else sees, and that goes with the recorder: what is on it is taken off in time.
    let script = "mount -t tmpfs -o size=64k none \"$1\" || exit 99
        \"$0\" --config \"$2\" record \"$1/a.twr\" --metrics; status=$?
        cp \"$1/a.twr\" \"$3\" || exit 98
        exit $status";
    let saved = folder.path().join("saved.twr");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, PROGRAM]).arg(&disk).arg(&config);
    let mut recorder =
        command.arg(&saved).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + PATIENCE;
    let traffic = Traffic::loopback(&ns, Family::V4).timeout(Duration::from_secs(10));
    while recorder.try_wait()?.is_none() {
        ensure!(Instant::now() < until, "64 KiB are not filled");
        traffic.connect()?.close(End::Client)?;
    }
    let done = recorder.wait_with_output()?;
    let said = text(&done.stderr);
    ensure!(done.status.code() == Some(1), "{}: {said}", done.status);
    let last = said.trim().lines().last().unwrap_or_default();
    ensure!(last.contains("a.twr: cannot write to it") && last.contains("No space left"), "{said}");
    ensure!(done.stdout.is_empty(), "it prints a result that it does not have: {}", text(&done.stdout));
    // What is on the disk is whole frames and one that breaks off: all that they tell is true.
    let replayed = Command::new(PROGRAM).arg("replay").arg(&saved).output()?;
    let said = text(&replayed.stderr);
    ensure!(replayed.status.code() == Some(1) && said.contains("it breaks off in frame "), "{said}");
    let metrics = Metrics::parse(&text(&replayed.stdout));
    let counters = ns.counters()?;
    let kernels = counters.get("Tcp", "ActiveOpens")? + counters.get("Tcp", "PassiveOpens")?;
    let opened = metrics.count("tcpwatch_connections_opened_total", &[]);
    ensure!(opened > 0 && opened <= kernels, "{opened} of {kernels} opened\n{metrics}");
    let closed = metrics.count("tcpwatch_connections_closed_total", &[]);
    ensure!(closed > 0 && closed <= opened, "{closed} of {opened} closed\n{metrics}");
    println!("{} bytes tell of {opened} connections of {kernels}", fs::metadata(&saved)?.len());
    Ok(())
}

fn namespaces() -> Result<()> {
    let count = 5_000;
    let folder = tempfile::tempdir()?;
    // All namespaces of the host.
    let daemon = Daemon::through(&[PROGRAM.to_owned()], folder, &[], "", |_| {})?;
    let before = daemon.metrics()?;
    let resets = |metrics: &Metrics| metrics.count("tcpwatch_resets_sent_total", &["cause=\"linger_zero\""]);
    let visit = || {
        let ns = Netns::new()?;
        let mut pair = Traffic::loopback(&ns, Family::V4).connect()?;
        pair.ping_pong(1, 100)?;
        pair.abort(End::Client)
    };
    // Tables, caches and the memory that the allocator keeps fill in the first round, which needs as much as the second.
    let rounds = [count / 2, count].map(|goal| {
        let began = Instant::now();
        for _ in 0..count / 2 {
            visit()?;
        }
        let took = began.elapsed();
        daemon.wait("every reset", |metrics| resets(metrics) - resets(&before) >= goal)?;
        // What ended is looked for every ten seconds, and forgotten at the second look.
        let left = |metrics: &Metrics| metrics.count("tcpwatch_unreadable_namespaces", &[]);
        let until = Instant::now() + PATIENCE;
        while left(&daemon.metrics()?) > left(&before) {
            ensure!(Instant::now() < until, "namespaces are left behind\n{}", daemon.metrics()?);
            thread::sleep(Duration::from_millis(100));
        }
        let metrics = daemon.metrics()?;
        let resident = daemon.resident_bytes()?;
        println!(
            "{} namespaces in {:.1} s; not compared for want of room: {}; {:.1} MB resident",
            count / 2,
            took.as_secs_f64(),
            metrics.count("tcpwatch_events_lost_total", &["where=\"map\""]),
            resident as f64 / 1e6,
        );
        Ok::<_, anyhow::Error>((resident, daemon.open_files()?, metrics))
    });
    let [warm, after] = rounds;
    let (warm, after) = (warm?, after?);
    ensure!(after.0 < warm.0 + (4 << 20), "memory grew from {} to {} bytes", warm.0, after.0);
    ensure!(after.1 <= warm.1 + 1, "descriptors grew from {} to {}", warm.1, after.1);
    let memory = |metrics: &Metrics| metrics.count("tcpwatch_map_memory_bytes", &[]);
    equal("memory of maps", memory(&after.2), memory(&warm.2), &after.2)?;
    let (status, said) = daemon.stop()?;
    ensure!(status.success() && !said.contains("panicked"), "{status}: {said}");
    Ok(())
}

/// The most descriptors that a process may have from now on.
fn limit_files(pid: u32, most: usize) -> Result<()> {
    let done = Command::new("prlimit").args([format!("--pid={pid}"), format!("--nofile={most}:4096")]).output()?;
    ensure!(done.status.success(), "prlimit: {}", text(&done.stderr));
    Ok(())
}

fn descriptors() -> Result<()> {
    let path = Path::builder().build()?;
    let mut daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    traffic.connect()?.close(End::Client)?;
    daemon.wait("the first", |metrics| metrics.count("tcpwatch_connections_closed_total", &[]) == 2)?;
    limit_files(daemon.pid(), daemon.open_files()? + 3)?;
    let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(daemon.address)).collect::<Result<_, _>>()?;
    let said = daemon.said_until("cannot take a connection")?;
    ensure!(said.contains("LimitNOFILE"), "{said}");
    // Counting goes on meanwhile, for it needs none.
    for _ in 0..10 {
        traffic.connect()?.close(End::Client)?;
    }
    drop(clients);
    // Who asks again is answered, with the limit as it is and later without.
    for most in [None, Some(4096)] {
        if let Some(most) = most {
            limit_files(daemon.pid(), most)?;
        }
        let metrics =
            daemon.wait("the rest", |metrics| metrics.count("tcpwatch_connections_closed_total", &[]) == 22)?;
        equal("opened", metrics.count("tcpwatch_connections_opened_total", &[]), 22, &metrics)?;
    }
    let (status, said) = daemon.stop()?;
    // Refusals come ten a second at most.
    ensure!(status.success() && said.matches("cannot take a connection").count() < 600, "{status}: {said}");
    Ok(())
}

fn hostile() -> Result<()> {
    let ns = Netns::new()?;
    let daemon = Daemon::watching(&[&ns])?;
    let (memory, files) = (daemon.resident_bytes()?, daemon.open_files()?);
    let mut clients = Vec::new();
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        for n in 0..100 {
            let mut client = TcpStream::connect(daemon.address)?;
            client.set_write_timeout(Some(Duration::from_secs(1)))?;
            // Who is cut off already sees it here, and is meant to.
            let _cut = match n % 5 {
                0 => Ok(()),
                1 => client.write_all(b"GET /metr"),
                2 => client.write_all(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(64 << 10)).as_bytes()),
                3 => client.write_all(&[0xff; 4096]),
                _ => client
                    .write_all(b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\nx"),
            };
            clients.push(client);
        }
        // Those that wait send a byte now and then.
        for client in &mut clients {
            let _cut = client.write_all(b"i");
        }
        let began = Instant::now();
        let metrics = daemon.metrics().with_context(|| format!("round {round}"))?;
        ensure!(metrics.has("tcpwatch_build_info"), "{metrics}");
        slowest = slowest.max(began.elapsed());
    }
    let held = daemon.open_files()?;
    println!(
        "400 hostile clients: a scrape takes {:.2} s at most, {} descriptors more, {:.1} MB more",
        slowest.as_secs_f64(),
        held.saturating_sub(files),
        daemon.resident_bytes()?.saturating_sub(memory) as f64 / 1e6
    );
    // 64 places, and one that waits for its own.
    ensure!(held <= files + 66, "{held} descriptors, {files} before");
    ensure!(daemon.resident_bytes()? < memory + (8 << 20), "memory grew from {memory} bytes");
    drop(clients);
    let until = Instant::now() + PATIENCE;
    while daemon.open_files()? > files + 1 {
        ensure!(Instant::now() < until, "{} descriptors are left", daemon.open_files()?);
        thread::sleep(Duration::from_millis(50));
    }
    let (status, said) = daemon.stop()?;
    ensure!(status.success() && !said.contains("panicked"), "{status}: {said}");
    Ok(())
}

/// `tcpwatch top` on a terminal of its own.
struct Screen {
    child: std::process::Child,
    keys: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn open(config: &std::path::Path) -> Result<Self> {
        let command = format!("stty rows 40 cols 200; exec {PROGRAM} --config {} top", config.display());
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &command, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start script")?;
        let keys = child.stdin.take().context("no standard input")?;
        let mut out = child.stdout.take().context("no standard output")?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let gathered = Arc::clone(&shown);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = out.read(&mut piece) {
                if let Ok(mut shown) = gathered.lock() {
                    shown.extend_from_slice(&piece[..length]);
                }
            }
        });
        Ok(Self { child, keys, shown })
    }

    fn top(&self) -> Result<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.split_whitespace().next().context("script has started nothing")?.parse()?)
    }

    /// Waits for words on the screen, which is drawn as a whole whenever its size changes.
    fn wait(&self, words: &[&str]) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        for round in 0_usize.. {
            let from = self.shown.lock().map_or(0, |shown| shown.len());
            let rows = if round % 2 == 0 { "41" } else { "40" };
            // There is none yet just after the start.
            if let Ok(top) = self.top() {
                Command::new("stty").args(["-F", &format!("/proc/{top}/fd/0"), "rows", rows]).output()?;
            }
            thread::sleep(Duration::from_millis(300));
            let screen = self.shown.lock().map_or_else(|_| String::new(), |shown| text(&shown[from..]));
            if words.iter().any(|words| screen.contains(words)) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "none of {words:?} is shown, but {screen}");
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn top() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::ALL[0]);
    let port = |pair: &tcpwatch_lab::Pair| -> Result<String> {
        Ok(format!(":{}", pair.stream(End::Client).local_addr()?.port()))
    };
    let first = traffic.connect()?;
    let mut screen = Screen::open(&daemon.folder.path().join("tcpwatch.toml"))?;
    screen.wait(&[&port(&first)?])?;
    daemon.signal_stop()?;
    let (status, said, folder) = daemon.ended()?;
    ensure!(status.success(), "{status}: {said}");
    screen.wait(&["cannot reach the daemon", "broke off"])?;
    let daemon = Daemon::through(&[PROGRAM.to_owned()], folder, &[path.a(), path.b()], "", |_| {})?;
    // What is new, and what was there before and is adopted.
    let second = traffic.connect()?;
    for pair in [&second, &first] {
        screen.wait(&[&port(pair)?])?;
    }
    screen.keys.write_all(b"q")?;
    let status = screen.child.wait()?;
    ensure!(status.success(), "top ended with {status}");
    let (status, said) = daemon.stop()?;
    ensure!(status.success(), "{status}: {said}");
    Ok(())
}

fn elsewhere() -> Result<()> {
    let path = Path::builder().build()?;
    let traffic = Traffic::over(&path, Family::V4);
    let pair = traffic.connect()?;
    let address = pair.stream(End::Server).local_addr()?.ip();
    let inside = format!("--net=/proc/{}/fd/{}", std::process::id(), path.b().fd().as_raw_fd());
    let words = ["nsenter", &inside, PROGRAM].map(str::to_owned);
    let daemon = Daemon::through(&words, tempfile::tempdir()?, &[path.a(), path.b()], "", |command| {
        command.env("TCPWATCH_LISTEN", format!("{address}:0"));
    })?;
    let ask = |page: &str| path.a().try_run(|| daemon.get(page))?;
    let (status, body) = ask("/metrics")?;
    ensure!(status.ends_with("200 OK") && body.contains("\ntcpwatch_connections{"), "{status}: {body}");
    let client = pair.stream(End::Client).local_addr()?;
    let tells = |body: &str| body.contains(&client.ip().to_string()) || body.contains(&client.port().to_string());
    ensure!(
        !body.lines().filter(|line| line.contains('{')).any(|line| line.contains(&client.ip().to_string())),
        "{body}"
    );
    for page in ["/api/v1/connections", "/api/v1/events", "/api/v1/status", "/api/v1/listeners", "/", "/nothing"] {
        let (status, body) = ask(page)?;
        ensure!(!status.contains(" 200 ") || page == "/", "{page}: {status}: {body}");
        ensure!(!tells(&body), "{page}: {body}");
    }
    ensure!(daemon.connection(&pair, End::Client)?.is_some(), "the socket does not tell of it either");
    Ok(())
}
