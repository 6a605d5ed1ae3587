//! Resets that ended a connection from the other side. Who made them cannot be seen from here: the sentences say so.

use super::{Facts, Meaning, are, bytes};
use crate::api::text::time;

pub(super) fn meaning(facts: &Facts<'_>) -> Meaning {
    let meaning = match facts.state {
        "SYN_SENT" => refused(facts),
        "SYN_RECV" => given_up(facts),
        _ => ended(facts),
    };
    let Some(socket) = facts.socket else { return meaning };
    meaning
        .known("sent_bytes", socket.sent_bytes)
        .known("received_bytes", socket.received_bytes)
        .fact("unacked_bytes", socket.unacked_bytes)
        .known("unsent_bytes", socket.unsent_bytes)
        .fact("unread_bytes", socket.unread_bytes)
        .known("srtt_us", socket.srtt_us)
}

fn refused(facts: &Facts<'_>) -> Meaning {
    let (who, peer) = (facts.who(), facts.peer());
    if facts.sent_by_nobody {
        return Meaning::new(
            format!(
                "{who} was refused by {peer}, which is this host, but the TCP of this host sent no reset: a firewall rule \
                 that rejects is suspected (nft `reject with tcp reset`, iptables `REJECT --reject-with tcp-reset`)."
            ),
            "`nft list ruleset` and `iptables-save` in the network namespace of the peer's end; counters of rules tell which \
             one it is.",
        )
        .fact("sent_by_tcp_of_this_host", false);
    }
    Meaning::new(
        format!(
            "{who} tried to connect to {peer} and was refused: nothing listens there, or a firewall answers with a reset."
        ),
        "Is the service up, and is it the right port? If it is, a rule on the way rejects: try from another host.",
    )
}

fn given_up(facts: &Facts<'_>) -> Meaning {
    Meaning::new(
        format!("{} reset its own attempt to connect to {} before the handshake was done.", facts.peer(), facts.port()),
        "A half-open scan does that, and so does a client that gives up; it needs no action here.",
    )
}

fn ended(facts: &Facts<'_>) -> Meaning {
    let peer = facts.peer();
    let state = if facts.state.is_empty() { "open" } else { facts.state };
    let age = facts.age_ms.map_or_else(String::new, |ms| format!(" after {}", time(ms)));
    let Some(socket) = facts.socket else {
        return Meaning::new(format!("{peer} reset the connection in {state}{age}."), REMEDY);
    };
    let srtt = socket.srtt_us.map_or_else(String::new, |us| format!("; the RTT was {us} us"));
    let unsent = socket.unsent_bytes.unwrap_or(0);
    let lost = match (socket.unacked_bytes, unsent) {
        (0, 0) => "everything that was sent had been acknowledged".to_owned(),
        (0, unsent) => format!("{} not sent {} lost", bytes(unsent.into()), are(unsent.into())),
        (unacked, 0) => format!("{} sent and not acknowledged {} lost", bytes(unacked.into()), are(unacked.into())),
        (unacked, unsent) => format!(
            "{} sent and not acknowledged and {} not sent are lost",
            bytes(unacked.into()),
            bytes(unsent.into())
        ),
    };
    let moved = socket.sent_bytes.zip(socket.received_bytes).map_or_else(String::new, |(sent, received)| {
        format!(", {} sent and {} received", bytes(sent), bytes(received))
    });
    let whom = match facts.owner.filter(|owner| !owner.comm.is_empty()) {
        Some(_) => format!(" of {}", facts.who()),
        None => String::new(),
    };
    let suspect = if facts.sent_by_nobody {
        " The peer's end is on this host, and its TCP sent no reset: a firewall rule that rejects is suspected."
    } else {
        ""
    };
    Meaning::new(format!("{peer} reset the connection{whom} in {state}{age}{moved}; {lost}{srtt}.{suspect}"), REMEDY)
        .known("sent_by_tcp_of_this_host", facts.sent_by_nobody.then_some(false))
}

const REMEDY: &str = "The peer, or a device on the path in its name, sent a reset that fits the window: which of them cannot be \
                      told from here. Ask the peer's log at that moment. Always at the same age or idle time: a firewall or \
                      load balancer that forgets connections. A capture tells by the TTL whether it is the peer's own: \
                      `tcpdump -v 'tcp[tcpflags] & tcp-rst != 0'`.";
