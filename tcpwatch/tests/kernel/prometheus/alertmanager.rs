//! From a real reset to the message that somebody gets: daemon, Prometheus, Alertmanager and a receiver.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tcpwatch_lab::Path;

use super::RULES;
use super::server::{Alertmanager, Prometheus, Setup};
use super::traffic::{self, while_busy};
use crate::daemon::Daemon;

/// At the scrape interval below.
const MOST: Duration = Duration::from_secs(60);
const INTERVAL_S: u32 = 5;
/// The daemon shows a storm for two minutes after its end, which it tells after 15 s; then a scrape and the Alertmanager.
const END: Duration = Duration::from_secs(240);

/// Takes what is posted to it. Its thread ends with the process.
fn receiver() -> Result<(SocketAddr, Receiver<Value>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (to, messages) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let to = to.clone();
            thread::spawn(move || {
                while let Ok(message) = message(&stream) {
                    if to.send(message).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((address, messages))
}

/// The JSON of one POST, which is answered.
fn message(mut stream: &TcpStream) -> Result<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the end");
        if let Some((_, number)) = line.to_ascii_lowercase().split_once("content-length:") {
            length = number.trim().parse()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    Ok(serde_json::from_slice(&body)?)
}

/// The first alert with this name, cause and status that comes within `patience`.
fn alert(messages: &Receiver<Value>, status: &str, patience: Duration) -> Result<Value> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = messages.recv_timeout(left).with_context(|| format!("no {status} within {patience:?}"))?;
        let all = message["alerts"].as_array().context("no alerts")?;
        let ours = all.iter().find(|alert| {
            alert["status"] == status
                && alert["labels"]["alertname"] == "TcpwatchResetStorm"
                && alert["labels"]["cause"] == "no_listener"
        });
        if let Some(alert) = ours {
            return Ok(alert.clone());
        }
    }
}

pub(crate) fn tells() -> Result<()> {
    let path = Path::builder().build()?;
    let daemon = Daemon::watching(&[path.a()])?;
    let (address, messages) = receiver()?;
    let alertmanager = Alertmanager::start(&format!(
        "route: {{ receiver: test, group_by: [alertname, cause], group_wait: 1s, group_interval: 5s }}\n\
         receivers:\n  - name: test\n    webhook_configs: [{{ url: \"http://{address}/\", send_resolved: true }}]\n"
    ))?;
    // As shipped, and not hasty.
    let prometheus = Prometheus::start(&Setup {
        rules: RULES.map(str::to_owned).to_vec(),
        interval: INTERVAL_S,
        alertmanager: Some(alertmanager.address()),
        ..Setup::of(&[daemon.address])
    })?;
    prometheus.wait(|p| Ok(p.rows("up{job=\"tcpwatch\"} == 1")?.pop()), "the first scrape")?;
    let began = Instant::now();
    let storm = |go_on: &_| traffic::storm(&path, go_on);
    let told = while_busy(&[&storm], || alert(&messages, "firing", MOST))?;
    let after = began.elapsed();
    println!("told {after:?} after the first reset: {}", told["annotations"]["summary"]);
    ensure!(after <= MOST, "{after:?}");
    let text = |key: &str| told["annotations"][key].as_str().unwrap_or_default().to_owned();
    ensure!(text("summary").contains("no_listener"), "{told}");
    ensure!(text("description").contains("a second over two minutes"), "{told}");
    ensure!(text("runbook") == "docs/ALERTS.md#tcpwatchresetstorm", "{told}");
    if crate::is_long() {
        let ended = Instant::now();
        alert(&messages, "resolved", END)?;
        println!("resolved {:?} after the last reset", ended.elapsed());
    }
    Ok(())
}
