//! Tells of storms: the log, the journal's own fields, and the hooks. Nothing here waits for anybody.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::Change;
use super::hook::{Hook, HookError, Job};
use crate::api::storm::Storm;
use crate::config::Config;

/// What each fact is called in the environment and in the journal, before its name.
const PREFIX: &str = "TCPWATCH_STORM_";
/// So that `journalctl MESSAGE_ID=…` finds them.
const STARTED_ID: &str = "5b0b2c5e51e94d6fb3f6a9f1a6d0c7e1";
const ENDED_ID: &str = "c2f1d6a7b98e4c02a1de0f7765d2b8f4";
/// `LOG_WARNING` and `LOG_NOTICE`, syslog(3).
const WARNING: u8 = 4;
const NOTICE: u8 = 5;

/// Where storms are told of.
pub(crate) struct Teller {
    journal: Option<UnixDatagram>,
    hook: Option<Hook>,
}

impl Teller {
    /// As the configuration wants it.
    pub(crate) fn new(config: &Config) -> Result<Self, HookError> {
        Ok(Self { journal: journal(), hook: Hook::new(config)? })
    }

    /// Tells of one, at `unix_ns` of the wall clock and `ktime_ns` of CLOCK_MONOTONIC.
    pub(crate) fn tell(&mut self, change: &Change, ktime_ns: u64, unix_ns: u64) {
        let storm = Storm::new(&change.storm, ktime_ns, unix_ns);
        let facts = facts(&storm, change.phase());
        let text = text(&facts);
        let level = if change.storm.over { log::Level::Info } else { log::Level::Warn };
        if log::log_enabled!(level) && !self.journal.as_ref().is_some_and(|to| native(to, &facts, &text, level)) {
            log::log!(level, "{text}");
        }
        if let Some(hook) = &mut self.hook {
            hook.run(Job { facts: environment(&facts), body: crate::api::storm::event(change, ktime_ns, unix_ns) });
        }
    }
}

/// The facts as variables of the environment.
fn environment(facts: &[(&'static str, String)]) -> Vec<(String, String)> {
    facts.iter().map(|(name, value)| (format!("{PREFIX}{}", name.to_ascii_uppercase()), value.clone())).collect()
}

/// What is told, by names that stay. No value has the end of a line in it, and only sentences have spaces.
fn facts(storm: &Storm, phase: &'static str) -> Vec<(&'static str, String)> {
    let rate = |rate: f64| format!("{rate:.1}");
    let list =
        |all: &[(String, u64)]| all.iter().map(|(what, count)| format!("{what}={count}")).collect::<Vec<_>>().join(",");
    let peers: Vec<_> = storm.peers.iter().map(|peer| (peer.address.to_string(), peer.resets)).collect();
    let ports: Vec<_> = storm.ports.iter().map(|port| (port.port.to_string(), port.resets)).collect();
    let owners = storm.owners.iter().map(|owner| {
        let unit = owner.unit.as_ref().or(owner.container.as_ref()).map_or_else(String::new, |unit| format!("@{unit}"));
        (format!("{}{unit}", owner.comm).replace(|c: char| c.is_whitespace() || c.is_control(), "_"), owner.resets)
    });
    let owners: Vec<_> = owners.collect();
    let stacks: Vec<_> = storm.stacks.iter().map(|stack| (stack.stack.clone(), stack.resets)).collect();
    let causes: Vec<_> = storm.resets_by_cause.iter().map(|(cause, count)| (cause.clone(), *count)).collect();
    vec![
        ("phase", phase.to_owned()),
        ("id", storm.id.clone()),
        ("direction", storm.direction.clone()),
        ("service", storm.service.clone()),
        ("cause", storm.cause.clone()),
        ("rate", rate(storm.rate_per_second)),
        ("usual_rate", rate(storm.usual_rate_per_second)),
        ("peak_rate", rate(storm.peak_rate_per_second)),
        ("resets", storm.resets.to_string()),
        ("start_unix_ms", storm.start_unix_ms.to_string()),
        ("duration_ms", storm.duration_ms.to_string()),
        ("by_cause", list(&causes)),
        ("peers", list(&peers)),
        ("ports", list(&ports)),
        ("owners", list(&owners)),
        ("by_stack", list(&stacks)),
        ("sentence", storm.sentence.clone()),
        ("example", storm.example.as_ref().map_or_else(String::new, |example| example.sentence.clone())),
        ("remedy", storm.remedy.clone().unwrap_or_default()),
    ]
}

/// A line of `key=value`, without what is empty.
fn text(facts: &[(&'static str, String)]) -> String {
    let told = facts.iter().filter(|(_, value)| !value.is_empty());
    let told: Vec<_> = told
        .map(|(name, value)| if value.contains(' ') { format!("{name}={value:?}") } else { format!("{name}={value}") })
        .collect();
    format!("reset storm: {}", told.join(" "))
}

/// The journal, when it is what reads our standard error: then fields are kept apart, and nothing is told twice.
fn journal() -> Option<UnixDatagram> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = rustix::fs::fstat(std::io::stderr().as_fd()).ok()?;
    let (device, inode) = stream.split_once(':')?;
    if device.parse() != Ok(stderr.st_dev) || inode.parse() != Ok(stderr.st_ino) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect("/run/systemd/journal/socket").ok()?;
    // A journal that is stuck must not hold up the daemon; then the line goes to standard error.
    socket.set_write_timeout(Some(Duration::from_millis(10))).ok()?;
    Some(socket)
}

/// Sends the native protocol of the journal, which for short values of one line is `NAME=value` and a line end: less
/// than any crate would need around it. False when it was not taken.
fn native(journal: &UnixDatagram, facts: &[(&'static str, String)], text: &str, level: log::Level) -> bool {
    journal.send(datagram(facts, text, level).as_bytes()).is_ok()
}

fn datagram(facts: &[(&'static str, String)], text: &str, level: log::Level) -> String {
    let (priority, id) = if level == log::Level::Warn { (WARNING, STARTED_ID) } else { (NOTICE, ENDED_ID) };
    let mut lines = format!("MESSAGE={text}\nPRIORITY={priority}\nMESSAGE_ID={id}\nSYSLOG_IDENTIFIER=tcpwatch\n");
    for (name, value) in environment(facts) {
        lines.extend([&name, "=", &value, "\n"]);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::tests::change;

    #[test]
    fn log_journal_and_environment_have_the_same_facts() {
        let storm = Storm::new(&change(false).storm, 10_000_000_000, 1_700_000_000_000_000_000);
        let facts = facts(&storm, "start");
        assert_eq!(
            text(&facts),
            "reset storm: phase=start id=inbound-443-linger_zero-2000 direction=inbound service=443 cause=linger_zero \
             rate=500.0 usual_rate=2.0 peak_rate=900.0 resets=4000 start_unix_ms=1699999992000 duration_ms=7000 \
             by_cause=linger_zero=4000,unread_data=3 peers=192.0.2.1=2,2001:db8::1=1 ports=443=3 \
             owners=a_proxy@proxy.service=3 by_stack=3610e821fdace9da=3 sentence=\"4000 resets sent, cause linger_zero, \
             of inbound service 443, in 7.0 s: 900 a second at most, where 2 were usual; 99 % of all resets of that \
             service meanwhile; most with 192.0.2.1 (66 %); 100 % from kernel stack 3610e821fdace9da in \
             tcp_send_active_reset.\" example=\"A proxy did it.\" remedy=\"Ask \\\"why\\\".\""
        );
        let sent = datagram(&facts, "m", log::Level::Warn);
        assert!(sent.starts_with("MESSAGE=m\nPRIORITY=4\nMESSAGE_ID=") && sent.ends_with('\n'), "{sent}");
        let variables = environment(&facts);
        for (name, value) in &variables {
            assert!(name.starts_with(PREFIX) && !value.contains('\n'), "{name}={value}");
            assert!(sent.contains(&format!("\n{name}={value}\n")), "{sent}");
        }
    }

    #[test]
    fn the_journal_gets_one_datagram_and_a_missing_one_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let reader = UnixDatagram::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        assert!(native(&sender, &[("id", "x".to_owned())], "text", log::Level::Info));
        let mut buffer = [0; 256];
        let len = reader.recv(&mut buffer).unwrap();
        assert!(buffer[..len].ends_with(b"\nTCPWATCH_STORM_ID=x\n"));
        drop(reader);
        assert!(!native(&sender, &[], "text", log::Level::Info));
    }
}
