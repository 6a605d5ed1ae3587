//! Every cause has a sentence with its numbers in it, and none claims what the facts do not say.

use super::*;
use tcpwatch_common::reset::ResetCause;

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn limits() -> Limits {
    Limits {
        abort_on_overflow: Some(1),
        somaxconn: Some(4096),
        max_orphans: Some(1000),
        orphans: Some(3),
        tcp_mem_pages: [Some(3000), Some(4000), Some(5000)],
        memory_pages: Some(10),
        keepalive_time_s: Some(7200),
        keepalive_interval_s: Some(75),
        keepalive_probes: Some(9),
        fin_timeout_s: Some(60),
    }
}

fn full<'a>(cause: &'a str, limits: &'a Limits, flags: &'a [String]) -> Facts<'a> {
    Facts {
        cause,
        reason: "tcp_state",
        local: Some(end("192.0.2.1:443")),
        remote: Some(end("198.51.100.7:50000")),
        state: "ESTABLISHED",
        in_state_ms: Some(65_000),
        age_ms: Some(66_000),
        flags,
        socket: Some(Socket {
            unread_bytes: 777,
            unsent_bytes: Some(33),
            unacked_bytes: 1448,
            sent_bytes: Some(5000),
            received_bytes: Some(6000),
            srtt_us: Some(20_000),
            linger_ms: Some(0),
            probes: Some(3),
        }),
        owner: Some(Owner { comm: "nginx", pid: Some(812), unit: Some("nginx.service") }),
        limits: Some(limits),
        listener: Some(Listener { queue: 129, limit: 128 }),
        ..Facts::default()
    }
}

#[test]
fn sentences_are_as_agreed() {
    let (limits, flags) = (limits(), ["ack".to_owned(), "psh".to_owned()]);
    let mut text = String::new();
    let mut add = |title: &str, facts: &Facts<'_>| {
        let Meaning { sentence, remedy, evidence } = of(facts);
        let evidence = serde_json::to_string(&evidence).unwrap();
        text.extend([title, "\n  ", &sentence, "\n  ", &remedy, "\n  ", &evidence, "\n\n"]);
    };
    for cause in ResetCause::ALL {
        add(cause.name(), &full(cause.name(), &limits, &flags));
        let bare = Facts { cause: cause.name(), ..Facts::default() };
        add(&format!("{}, nothing else known", cause.name()), &bare);
    }
    let crowded = Limits { orphans: Some(1000), ..limits.clone() };
    add("memory, too many orphans", &full("memory", &crowded, &flags));
    let used_up = Limits { memory_pages: Some(5001), ..limits.clone() };
    add("memory, TCP memory", &full("memory", &used_up, &flags));
    add("closed_socket, no socket", &Facts { socket: None, state: "", ..full("closed_socket", &limits, &flags) });
    for state in ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "CLOSE_WAIT"] {
        let facts = Facts { received: true, state, reason: "", ..full("", &limits, &[]) };
        add(&format!("received in {state}"), &facts);
        if state != "SYN_RECV" {
            add(&format!("received in {state}, sent by nobody"), &Facts { sent_by_nobody: true, ..facts });
        }
    }
    crate::golden::check("tests/golden/meanings.txt", &text);
}

#[test]
fn every_cause_of_ours_has_a_sentence_of_its_own() {
    let limits = limits();
    let mut seen = std::collections::BTreeSet::new();
    for cause in ResetCause::ALL.into_iter().filter(|cause| *cause != ResetCause::Unknown) {
        let meaning = of(&full(cause.name(), &limits, &[]));
        assert!(!meaning.sentence.contains("not known"), "{}", cause.name());
        assert!(seen.insert(meaning.sentence), "{}", cause.name());
    }
}

#[test]
fn sentences_end_and_have_no_holes() {
    let limits = limits();
    for cause in ResetCause::ALL {
        for facts in [full(cause.name(), &limits, &[]), Facts { cause: cause.name(), ..Facts::default() }] {
            let Meaning { sentence, remedy, .. } = of(&facts);
            for text in [sentence, remedy] {
                assert!(text.ends_with(['.', '?']) && !text.contains("  ") && !text.contains("None"), "{text}");
                assert!(
                    text.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit() || "an`[".contains(c)),
                    "{text}"
                );
            }
        }
    }
}
