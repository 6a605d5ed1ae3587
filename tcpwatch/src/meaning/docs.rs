//! docs/RESETS.md: every cause with what is said of it and done about it, of made-up resets.

use tcpwatch_common::reset::ResetCause;

use super::{Facts, Limits, Listener, Meaning, Owner, Socket, of};

const BEGINNING: &str = "\
# What resets mean

<!-- Made by `tcpwatch docs resets`. -->

Each reset that is reported one by one comes with a `sentence`, a `remedy` and the `evidence` that they stand on: in the events
`reset_sent` and `reset_received` (`/api/v1/events`, `tcpwatch trace`), in the list `newest` of `/api/v1/resets`, in `tcpwatch resets`,
and as the `example` of a storm ([STORMS.md](STORMS.md)). What follows is what is said of made-up resets of each cause.

Numbers are those of the socket at that moment, settings those of its network namespace, read within a second before. Where a
setting explains a reset, the remedy has the command that changes it and the one that undoes that; both hold until the next boot.
What cannot be told is not said: a part that is not known is missing, and where nothing is known the cause is `unknown`. The
causes are those of `tcpwatch_resets_sent_total`; how they are decided is in `tcpwatch-common/src/reset.rs`.

";

/// The page.
pub(crate) fn page() -> String {
    let limits = Limits {
        abort_on_overflow: Some(1),
        somaxconn: Some(4096),
        max_orphans: Some(131_072),
        orphans: Some(131_072),
        tcp_mem_pages: [Some(287_898), Some(383_867), Some(575_796)],
        memory_pages: Some(1_200),
        keepalive_time_s: Some(7200),
        keepalive_interval_s: Some(75),
        keepalive_probes: Some(9),
        fin_timeout_s: Some(60),
    };
    let flags = ["psh", "ack"].map(str::to_owned);
    let syn_ack = ["syn", "ack"].map(str::to_owned);
    let mut text = BEGINNING.to_owned();
    let mut add = |title: &str, facts: &Facts<'_>| {
        let Meaning { sentence, remedy, .. } = of(facts);
        text.extend(["## ", title, "\n\n> ", &sentence, "\n\n", &remedy, "\n\n"]);
    };
    for cause in ResetCause::ALL.into_iter().filter(|cause| *cause != ResetCause::Unknown) {
        add(cause.name(), &sent(cause, &limits, &flags));
        match cause {
            ResetCause::ClosedSocket => {
                let facts = Facts { flags: &syn_ack, ..without_socket(&sent(cause, &limits, &flags)) };
                add("closed_socket, where no socket is left", &facts);
            }
            ResetCause::Memory => {
                let full = Limits { orphans: Some(12), memory_pages: Some(575_800), ..limits.clone() };
                add("memory, of all sockets", &Facts { limits: Some(&full), ..sent(cause, &limits, &flags) });
                let neither = Limits { orphans: Some(12), ..limits.clone() };
                add("memory, when it is over", &Facts { limits: Some(&neither), ..sent(cause, &limits, &flags) });
            }
            _ => {}
        }
    }
    add("unknown", &sent(ResetCause::Unknown, &limits, &flags));
    let received = |state| Facts { received: true, state, reason: "", ..sent(ResetCause::Unknown, &limits, &[]) };
    let titles = [
        ("a connection that was open", received("ESTABLISHED")),
        ("an attempt to connect", received("SYN_SENT")),
        (
            "the same, refused by a rule of this host",
            Facts { sent_by_nobody: true, remote: Some(([192, 0, 2, 1], 80).into()), ..received("SYN_SENT") },
        ),
        ("an attempt of the peer", received("SYN_RECV")),
    ];
    for (title, facts) in titles {
        add(&format!("Received: {title}"), &facts);
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// A reset of a cause, with all that is usually known of one.
fn sent<'a>(cause: ResetCause, limits: &'a Limits, flags: &'a [String]) -> Facts<'a> {
    let with = Facts {
        cause: cause.name(),
        reason: "tcp_state",
        local: Some(([192, 0, 2, 1], 443).into()),
        remote: Some(([198, 51, 100, 7], 50_000).into()),
        state: "ESTABLISHED",
        in_state_ms: Some(65_000),
        age_ms: Some(66_000),
        flags,
        socket: Some(Socket {
            unread_bytes: 777,
            unsent_bytes: Some(0),
            unacked_bytes: 1448,
            sent_bytes: Some(5000),
            received_bytes: Some(6000),
            srtt_us: Some(20_000),
            linger_ms: (cause == ResetCause::LingerZero).then_some(0),
            probes: Some(if cause == ResetCause::Keepalive { 9 } else { 0 }),
        }),
        owner: Some(Owner { comm: "nginx", pid: Some(812), unit: Some("nginx.service") }),
        limits: Some(limits),
        listener: Some(Listener { queue: 128, limit: 128 }),
        ..Facts::default()
    };
    match cause {
        ResetCause::ClosedSocket => Facts { state: "FIN_WAIT2", ..with },
        ResetCause::NoListener | ResetCause::TimeWait => without_socket(&with),
        ResetCause::BadAck => Facts { state: "LISTEN", ..with },
        _ => with,
    }
}

fn without_socket<'a>(facts: &Facts<'a>) -> Facts<'a> {
    Facts { socket: None, state: "", in_state_ms: None, age_ms: None, ..facts.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_cause_and_nothing_without_a_value() {
        let page = page();
        for cause in ResetCause::ALL {
            assert!(page.contains(&format!("\n## {}\n", cause.name())), "{}", cause.name());
        }
        assert!(!page.contains("=N`") && !page.contains("unknown ("), "{page}");
    }
}
