//! `tcpwatch top` as people use it: in a terminal (tmux), on traffic of the lab; and what it prints for programs.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use tcpwatch_lab::{End, Family, Match, Path, Traffic};

use crate::daemon::{Daemon, PROGRAM};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("top_is_driven_by_keys_on_live_traffic", session),
        trial("top_gives_the_terminal_back_when_it_is_told_to_end", signals),
        trial("top_prints_each_table_for_programs", printed),
    ]
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with a shell that runs `top` and then tells how it ended; it ends with the value.
struct Terminal {
    server: String,
}

impl Terminal {
    fn with_top(daemon: &Daemon, more: &str) -> Result<Self> {
        // A server that ends would take a newer one of its name along.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { server: format!("tcpwatch-test-{}-{number}", std::process::id()) };
        let top = format!("{PROGRAM} top {more} --socket {}", daemon.socket().display());
        // The shell waits at the end, so that what the terminal is like can be looked at.
        let shell = format!("{top}; echo ended $?; stty -a; sleep 600");
        let said = terminal.tmux(&["new-session", "-d", "-x", "120", "-y", "40", &shell])?;
        ensure!(said.is_empty(), "{said}");
        terminal.wait_for("Enter detail")?;
        Ok(terminal)
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command
            .args(["-L", &self.server, "-f", "/dev/null"])
            .args(words)
            .env("TERM", "xterm-256color")
            .env_remove("TMUX");
        let output = command.output().context("cannot start tmux; `cargo xtask setup` installs it")?;
        let (said, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "tmux {words:?}: {errors}");
        Ok(said)
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-t", "0"])
    }

    /// The screen, once it has this text.
    fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_until(text, |screen| screen.contains(text))
    }

    fn wait_until(&self, what: &str, done: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            if done(&screen) {
                return Ok(screen);
            }
            ensure!(Instant::now() < deadline, "waited in vain for {what:?} on\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key, by the name that tmux has for it.
    fn key(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", "-t", "0", key]).map(drop)
    }

    fn type_in(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-t", "0", "-l", text]).map(drop)
    }

    /// After the end of `top`: the screen is the shell's, lines are edited and echoed again.
    fn is_left(&self) -> Result<()> {
        let screen = self.wait_until("the end", |screen| screen.contains("ended 0") && screen.contains("echoe"))?;
        let set = |mode: &str| screen.split_whitespace().any(|word| word.trim_end_matches(';') == mode);
        ensure!(set("icanon") && set("echo") && set("isig") && set("opost"), "{screen}");
        ensure!(!screen.contains("LOCAL"), "the screen was not left:\n{screen}");
        let state = self.tmux(&["display-message", "-p", "-t", "0", "#{alternate_on} #{cursor_flag}"])?;
        ensure!(state.trim() == "0 1", "alternate screen and cursor: {state}");
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _gone_already = self.tmux(&["kill-server"]);
    }
}

fn session() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::with(&[path.a(), path.b()], "sample_interval = \"100ms\"")?;
    let traffic = Traffic::over(&path, Family::V4);
    let (lossy, idle) = (traffic.listen()?, traffic.listen()?);
    let (mut busy, still) = (traffic.connect_to(&lossy)?, traffic.connect_to(&idle)?);
    let (port, other) = (busy.flow(End::Client).dst.port(), still.flow(End::Client).dst.port());
    path.forward().drop_when(Match::data().port(port).probability(0.05, 7));
    traffic.refused(3)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Acquire) {
                busy.send_while(End::Client, 100_000, || !stop.load(Ordering::Acquire))?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let seen = look(&daemon, port, other);
        stop.store(true, Ordering::Release);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        seen.and(sent)
    })
}

/// Opens, sorts, filters, looks closer, goes through the tables, and quits.
fn look(daemon: &Daemon, port: u16, other: u16) -> Result<()> {
    let (port, other) = (format!(":{port} "), format!(":{other} "));
    let terminal = Terminal::with_top(daemon, "")?;
    let screen = terminal.wait_until("both connections", |screen| screen.contains(&port) && screen.contains(&other))?;
    ensure!(screen.contains("connections (4)") && screen.contains("lost 0"), "{screen}");
    // Costs are known from the second picture on.
    terminal.wait_for(" % of a CPU")?;
    // By another column: the titles tell, and so does the last line.
    terminal.key("S")?;
    terminal.wait_for("by causes")?;
    terminal.key("S")?;
    terminal.wait_for("by retrans")?;
    let first = terminal.wait_until("retransmits", |screen| {
        let row = screen.lines().skip_while(|line| !line.starts_with("LOCAL")).nth(1);
        row.is_some_and(|row| row.contains(&port))
    })?;
    ensure!(first.contains("resent"), "{first}");
    terminal.type_in(&format!("/peer port {}", port.trim_matches([':', ' '])))?;
    terminal
        .wait_until("the filtered table", |screen| screen.contains("connections (1)") && !screen.contains(&other))?;
    terminal.key("Enter")?;
    terminal.wait_for("(Esc drops it)")?;
    terminal.key("Enter")?;
    let detail = terminal.wait_until("the detail with a verdict", |screen| {
        screen.contains("cwnd ") && screen.contains("state    ESTABLISHED") && screen.contains("  loss (sure to ")
    })?;
    ensure!(detail.contains("srtt ") && detail.contains("as tcpwatch explain has it"), "{detail}");
    // Curves take time: some dots of braille are there once two pictures are.
    terminal
        .wait_until("curves", |screen| screen.chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count() > 3)?;
    terminal.key("Escape")?;
    terminal.wait_for("(Esc drops it)")?;
    terminal.key("Escape")?;
    terminal.wait_for("connections (4)")?;
    terminal.key("2")?;
    terminal.wait_until("services", |screen| screen.contains("SERVICE") && screen.contains("inbound"))?;
    terminal.key("Tab")?;
    // Three sent and three received; keys before they are there find no row.
    terminal.wait_for("resets (6)")?;
    terminal.key("Enter")?;
    terminal.wait_until("its evidence", |screen| screen.contains(" ago  ") && screen.contains("Esc back"))?;
    terminal.key("Escape")?;
    terminal.key("1")?;
    terminal.key("p")?;
    terminal.wait_for("PAUSED")?;
    terminal.key("?")?;
    terminal.wait_for("keys, then columns")?;
    terminal.key("x")?;
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"])?;
    terminal
        .wait_until("the smaller screen", |screen| screen.lines().count() <= 24 && screen.contains("Enter detail"))?;
    terminal.key("q")?;
    terminal.is_left()
}

fn signals() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        let terminal = Terminal::with_top(&daemon, "--sort rtt")?;
        terminal.wait_for("no connections seen yet")?;
        let shell: i32 = terminal.tmux(&["display-message", "-p", "-t", "0", "#{pane_pid}"])?.trim().parse()?;
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let top = children.split_whitespace().next().context("the shell has started nothing")?.parse()?;
        let top = rustix::process::Pid::from_raw(top).context("no process")?;
        rustix::process::kill_process(top, signal)?;
        terminal.is_left().with_context(|| format!("{signal:?}"))?;
    }
    Ok(())
}

fn printed() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a(), path.b()])?;
    let traffic = Traffic::over(&path, Family::V6);
    let pair = traffic.connect()?;
    let flow = pair.flow(End::Client);
    traffic.refused(2)?;
    let top = |words: &[&str]| -> Result<String> {
        let output = Command::new(PROGRAM).arg("top").args(words).arg("--socket").arg(daemon.socket()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    };
    let text = top(&["--json", "direction", "outbound"])?;
    let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(
        rows.len() == 1 && rows[0]["remote_port"] == flow.dst.port() && rows[0]["states"][0] == "ESTABLISHED",
        "{text}"
    );
    ensure!(rows[0]["states"][1] == "SYN_SENT" && rows[0]["in_state_ms"].is_u64(), "{text}");
    let csv = top(&["--csv", "--sort", "local"])?;
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let names = lines.next().context("no names")?;
    let port = names.iter().position(|name| *name == "local_port").context("no local_port")?;
    let rows: Vec<_> = lines.collect();
    ensure!(rows.len() == 2 && rows.iter().all(|row| row.len() == names.len()), "{csv}");
    ensure!(rows.iter().any(|row| row[port] == flow.src.port().to_string()), "{csv}");
    let resets = top(&["--once", "--table", "resets", "cause", "no_listener"])?;
    ensure!(resets.lines().count() == 3 && resets.trim_start().starts_with("AGO DIR"), "{resets}");
    let services = top(&["--json", "--table", "services"])?;
    ensure!(services.lines().any(|line| line.contains("\"inbound\"")), "{services}");
    // Pages of the API: the same order from both ends, and how many there are.
    let page = |query: &str| daemon.answer(&format!("/api/v1/connections?sort=local&limit=1{query}"));
    let ((head, first), (_, last)) = (page("")?, page("&reverse=true")?);
    ensure!(head.contains("x-total-count: 2") && first != last, "{head}: {first} {last}");
    let (head, found) = page(&format!("&contains=:{}", flow.src.port()))?;
    ensure!(head.contains("x-total-count: 2") && found.lines().count() == 1, "{head}: {found}");
    let (head, _) = page("&contains=no-such-thing")?;
    ensure!(head.contains("x-total-count: 0"), "{head}");
    let refused = Command::new(PROGRAM).args(["top", "--once", "--table", "services", "--sort", "cwnd"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(2) && said.contains("no column \"cwnd\"; there are service"), "{said}");
    Ok(())
}
