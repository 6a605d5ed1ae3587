//! The one list of settings. The structure that the daemon gets, its defaults, the names of the environment, the
//! example file, `tcpwatch config` and the messages about wrong values are all made from it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::rules::{
    AbsolutePath, Address, HostName, Integer, List, Named, OneOf, Optional, Port, Raw, RingSize, Rule, Share, Span,
    Switch,
};
use super::storm::{Network, StormCause, UserName, Webhook, Words};

use crate::reload::TAKEN_UP;

/// What begins the name of every variable of the environment.
pub(crate) const PREFIX: &str = "TCPWATCH_";

/// As many as the kernel programs can count apart.
const MOST_SERVICES: u32 = crate::metrics::MOST_SERVICES as u32;
/// As many as a recording holds.
const MOST_STACKS: u32 = tcpwatch_common::stack::STACKS;
/// A port is a service of each direction.
const MOST_PORTS: usize = crate::metrics::MOST_SERVICES / 2;

/// When tcp_probe looks at a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// At every acknowledgement: the RTT histogram weighs packets.
    EveryAck,
    /// At most once a tick of the kernel and connection: cheaper, and the histogram weighs connections.
    Tick,
}

impl Named for Sampling {
    const ALL: &'static [(Self, &'static str)] = &[(Self::EveryAck, "every-ack"), (Self::Tick, "tick")];
}

/// How resets that are sent are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetHook {
    /// The best way that works.
    Auto,
    /// The tracepoint tcp_send_reset.
    Tracepoint,
    /// Entry of the three functions, through a trampoline.
    Fentry,
    /// The same through a breakpoint.
    Kprobe,
}

impl Named for ResetHook {
    const ALL: &'static [(Self, &'static str)] =
        &[(Self::Auto, "auto"), (Self::Tracepoint, "tracepoint"), (Self::Fentry, "fentry"), (Self::Kprobe, "kprobe")];
}

impl Named for log::LevelFilter {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
        (Self::Trace, "trace"),
    ];
}

/// One setting, without its value.
pub(crate) struct Setting {
    /// Its name in the file.
    pub(crate) key: &'static str,
    /// What it does, a line each, as the comments above it are.
    pub(crate) doc: &'static [&'static str],
    /// What it may be: the end of "it must be …".
    pub(crate) allowed: fn() -> String,
    /// Sets it; `None` when the value is not allowed.
    pub(super) set: fn(&mut Config, &Raw) -> Option<()>,
    /// Its value as TOML.
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    /// Its name in the environment.
    pub(crate) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// Whether two configurations say different things here.
    pub(crate) fn differs(&self, one: &Config, other: &Config) -> bool {
        (self.show)(one) != (self.show)(other)
    }
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $key:ident: $rule:ty = $default:expr;)+) => {
        /// The settings, every one of them valid.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) struct Config { $($(#[doc = $doc])+ pub(crate) $key: <$rule as Rule>::Value,)+ }

        impl Default for Config {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        /// Every setting, in the order of the example file.
        pub(crate) const SETTINGS: &[Setting] = &[$(Setting {
            key: stringify!($key),
            doc: &[$($doc),+],
            allowed: <$rule as Rule>::allowed,
            set: |config, raw| {
                config.$key = <$rule as Rule>::parse(raw)?;
                Some(())
            },
            show: |config| <$rule as Rule>::show(&config.$key),
        },)+];
    };
}

settings! {
    /// Address and port of /metrics, /healthz and /readyz. Whoever can reach it can read them.
    listen: Address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10793);
    /// Names under which HTTP clients may ask for this host. `localhost` and IP addresses always may; other names are
    /// refused, because a web page can make its own name point here (DNS rebinding).
    allowed_hosts: List<HostName, 32> = Vec::new();
    /// File that puts TLS and authentication before that address, in the format of Prometheus' exporter-toolkit (see
    /// docs/SECURITY.md). With authentication the address has the API too; without, metrics and health only.
    web_config: Optional<AbsolutePath> = None;
    /// Whether the API tells of single connections. Where it does not, nobody can ask the daemon for addresses.
    connection_data: Switch = true;
    /// Unix socket of the API, through which the other commands talk to the daemon.
    socket: AbsolutePath = "/run/tcpwatch/tcpwatch.sock".into();
    /// How much is logged.
    log_level: OneOf<log::LevelFilter> = log::LevelFilter::Info;
    /// How often a busy connection is reported. It grows by itself when `records_per_second` or `cpu_budget` would be
    /// exceeded; totals and histograms do not depend on it.
    sample_interval: Span<100, 60_000> = Duration::from_secs(1);
    /// Budget of periodic records from the kernel, for all connections together.
    records_per_second: Integer<10, 1_000_000> = 5000;
    /// Budget of CPU time of the daemon, and of its kernel programs while the kernel measures them, as a share of one CPU.
    /// Above it the sample interval grows, up to a minute. When that is not enough, the histograms of round-trip times and
    /// congestion windows take fewer samples, which `tcpwatch_governor_sampled_ratio` tells. Totals stay right.
    cpu_budget: Share<1, 100_000> = 200;
    /// Size of the ring buffer between kernel and daemon. What does not fit is counted as lost; totals stay right.
    ring_bytes: RingSize<{ 64 << 20 }> = 4 << 20;
    /// Connections that the daemon keeps details of. Totals include those beyond.
    max_connections: Integer<100, 4_000_000> = 100_000;
    /// Services (direction and port) with series of their own; the rest share `service="other"`.
    services: Integer<1, MOST_SERVICES> = 16;
    /// Ports that are services from the start, whatever traffic they have, and keep their place.
    service_ports: List<Port, MOST_PORTS> = Vec::new();
    /// When the RTT of a connection is sampled: at every acknowledgement, or once a tick of the kernel, which costs
    /// less on busy connections.
    sampling: OneOf<Sampling> = Sampling::EveryAck;
    /// Retransmissions and resets that are reported one by one, a second and CPU. Beyond, they are only counted.
    detail_per_second: Integer<0, 1_000_000> = 1000;
    /// Where resets that are sent are seen: "auto" takes the tracepoint where it tells of all of them (kernel 6.10 and
    /// later), else the first of "fentry", "kprobe" and "tracepoint" that works. Another value takes that one alone.
    reset_hook: OneOf<ResetHook> = ResetHook::Auto;
    /// Kernel stacks of resets that are told apart, by their return addresses. Resets with others are counted without.
    reset_stacks: Integer<1, MOST_STACKS> = MOST_STACKS;
    /// Resets a second, of one service and cause, below which there is no storm.
    storm_min_rate: Integer<1, 1_000_000> = 20;
    /// A storm begins at so many times the usual rate; docs/STORMS.md has the whole rule.
    storm_factor: Integer<2, 1000> = 5;
    /// A storm is over when the rate was low for so long.
    storm_hold: Span<1000, 3_600_000> = Duration::from_secs(15);
    /// Causes of resets that are intended, such as "linger_zero": they are counted and make no storm.
    storm_mute_causes: List<StormCause, 14> = Vec::new();
    /// The same for services.
    storm_mute_ports: List<Port, 64> = Vec::new();
    /// The same for peers.
    storm_mute_peers: List<Network, 64> = Vec::new();
    /// Program and arguments to run when a storm begins and when it ends, without a shell, for 10 seconds at most. What
    /// it is about is in variables TCPWATCH_STORM_….
    storm_command: Words<64> = Vec::new();
    /// Who the command runs as when the daemon is root: a name, or UID:GID.
    storm_user: UserName = "nobody".to_owned();
    /// Where the same is posted as JSON. Plain HTTP only; empty for nowhere.
    storm_webhook: Webhook = None;
    /// Network namespaces to keep to, as paths such as "/proc/self/ns/net" or "/run/netns/blue". Empty: all of them.
    netns: List<AbsolutePath, 8> = Vec::new();
    /// Serve /metrics/connections at the Unix socket: series for up to 200 connections, which come and go with them.
    connection_metrics: Switch = false;
    /// Print what the kernel programs log, for debugging them.
    kernel_log: Switch = false;
    /// Refuse to start when a probe that this kernel should support cannot be attached.
    strict: Switch = false;
}

/// The setting with the name most like `name`, if one is like it at all.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let distance = |key: &str| strsim::damerau_levenshtein(key, &name);
    let key = SETTINGS.iter().map(|setting| setting.key).min_by_key(|key| distance(key))?;
    // A third of the letters wrong is a slip; more is another word.
    (distance(key) * 3 <= key.len().max(6)).then_some(key)
}

/// The file that is installed: every setting with its default, commented out.
pub(crate) fn example() -> String {
    let defaults = Config::default();
    let mut parts = vec![
        "# Settings of the tcpwatch daemon. Those commented out have the value that is shown.\n\
         # Variables of the environment and flags win over this file; `tcpwatch config` shows what holds and why,\n\
         # `tcpwatch check-config FILE` finds mistakes. SIGHUP (`systemctl reload tcpwatch`) takes up some of them, as said.\n"
            .to_owned(),
    ];
    for setting in SETTINGS {
        parts.push("\n".to_owned());
        parts.extend(setting.doc.iter().map(|line| format!("#{line}\n")));
        let reload = if TAKEN_UP.contains(&setting.key) { ". Taken up on reload" } else { "" };
        parts.push(format!("# Must be {}. Environment: {}{reload}\n", (setting.allowed)(), setting.variable()));
        parts.push(format!("#{} = {}\n", setting.key, (setting.show)(&defaults)));
    }
    parts.concat()
}

/// docs/CONFIG.md.
pub(crate) fn page() -> String {
    let defaults = Config::default();
    let mut parts = vec![
        "# Settings\n\nMade from the code by `cargo xtask docs`. Flags win over variables of the environment, those over \
         `/etc/tcpwatch/tcpwatch.toml`, that over\nthe defaults. `tcpwatch config` shows what holds and who said so, \
         `tcpwatch check-config [FILE]` finds mistakes, with lines.\n"
            .to_owned(),
    ];
    for setting in SETTINGS {
        let doc: Vec<_> = setting.doc.iter().map(|line| line.trim()).collect();
        let reload = if TAKEN_UP.contains(&setting.key) { "on SIGHUP" } else { "at start" };
        parts.push(format!(
            "\n## {}\n\n{}\n\n- must be {}\n- default `{}`\n- environment `{}`, read {reload}\n",
            setting.key,
            doc.join("\n"),
            (setting.allowed)(),
            (setting.show)(&defaults),
            setting.variable(),
        ));
    }
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_snake_case_and_unique_and_documented() {
        for (i, setting) in SETTINGS.iter().enumerate() {
            assert!(setting.key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{}", setting.key);
            assert!(SETTINGS[..i].iter().all(|other| other.key != setting.key), "{} twice", setting.key);
            assert!(setting.doc.iter().all(|line| line.starts_with(' ') && line.len() < 118), "{}", setting.key);
            assert!(setting.doc.last().unwrap().ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn a_slip_has_a_nearest_name_and_another_word_has_none() {
        assert_eq!(nearest("listn"), Some("listen"));
        assert_eq!(nearest("sample-interval"), Some("sample_interval"));
        assert_eq!(nearest("LOG_LEVEL"), Some("log_level"));
        assert_eq!(nearest("colour"), None);
        assert_eq!(nearest(""), None);
    }

    #[test]
    fn the_installed_file_is_the_generated_one() {
        crate::golden::check("../deploy/tcpwatch.toml", &example());
    }
}
