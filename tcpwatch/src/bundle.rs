//! `tcpwatch doctor --bundle FILE`: what somebody who helps wants to know, and nothing that tells who talks with whom.
//!
//! What goes in is listed here, one by one; nothing is copied whole and cleaned afterwards.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::Config;

/// What is in it, for who sends it.
pub(crate) const CONTENTS: &str = "version, kernel release, distribution, capabilities, probes, fields, losses and totals of the daemon, and \
     settings as they hold; no address, host name, user name, path or process: settings that could have one are \
     reduced to whether or how many";

/// Settings of the kernel that decide about BPF.
const SYSCTLS: [&str; 6] = [
    "kernel/unprivileged_bpf_disabled",
    "kernel/perf_event_paranoid",
    "kernel/kptr_restrict",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "kernel/bpf_stats_enabled",
];

/// Writes the bundle: the report of the doctor, the settings, and the host as far as it matters.
pub(crate) fn write(file: &Path, mut report: Value, config: &Config) -> io::Result<()> {
    if let Some(error) = report.pointer_mut("/daemon/error") {
        // The sentence names the socket.
        *error = "the daemon does not answer".into();
    }
    if let Some(mount) = report.get_mut("cgroup2_mount") {
        *mount = mount.is_string().into();
    }
    if let Some(report) = report.as_object_mut() {
        report.insert("contents".into(), CONTENTS.into());
        report.insert("settings".into(), settings(config));
        report.insert("host".into(), host(Path::new("/")));
    }
    // For the owner only, and never over something that is there: the file of somebody else, or a link to it.
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(format!("{report:#}\n").as_bytes())?;
    out.sync_all()
}

fn settings(config: &Config) -> Value {
    let listen = match config.listen.ip() {
        ip if ip.is_loopback() => "loopback",
        ip if ip.is_unspecified() => "every address",
        _ => "another address",
    };
    json!({
        "listen": listen,
        "allowed_hosts": config.allowed_hosts.len(),
        "web_config": config.web_config.is_some(),
        "connection_data": config.connection_data,
        "usual_socket": config.socket == Config::default().socket,
        "log_level": config.log_level.as_str(),
        "sample_interval_ms": config.sample_interval.as_millis() as u64,
        "records_per_second": config.records_per_second,
        "ring_bytes": config.ring_bytes,
        "max_connections": config.max_connections,
        "services": config.services,
        "service_ports": config.service_ports.len(),
        "detail_per_second": config.detail_per_second,
        "netns": config.netns.len(),
        "kernel_log": config.kernel_log,
        "strict": config.strict,
    })
}

fn host(root: &Path) -> Value {
    let mut sysctls = Map::new();
    for name in SYSCTLS {
        let value = fs::read_to_string(root.join("proc/sys").join(name)).ok();
        sysctls.insert(name.replace('/', "."), value.and_then(|text| text.trim().parse::<i64>().ok()).into());
    }
    let release = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    let field = |name: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    json!({
        "distribution": field("ID"),
        "distribution_version": field("VERSION_ID"),
        "architecture": std::env::consts::ARCH,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "btf_bytes": fs::metadata(root.join("sys/kernel/btf/vmlinux")).map(|found| found.len()).ok(),
        "sysctls": sysctls,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn nothing_that_names_anybody_gets_in_and_only_the_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bundle.json");
        let config = Config {
            listen: "198.51.100.7:10793".parse().unwrap(),
            allowed_hosts: vec!["secret-host".into()],
            web_config: Some("/srv/alice/web.yml".into()),
            socket: "/srv/alice/socket".into(),
            netns: vec!["/run/netns/customer".into()],
            ..Config::default()
        };
        write(&file, json!({"daemon": {"error": "cannot reach /srv/alice/s"}}), &config).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for secret in ["198.51", "secret-host", "alice", "customer", "socket\": \""] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let bundle: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&bundle["settings"]["netns"], &bundle["settings"]["listen"]),
            (&json!(1), &json!("another address"))
        );
        assert_eq!(bundle["contents"], CONTENTS);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&file, json!({}), &config).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
