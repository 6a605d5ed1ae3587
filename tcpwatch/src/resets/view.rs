//! Resets as text. Every name in it was made printable where it came in (`api/text.rs`, `kernel/symbols.rs`).

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::api::owner::Owner;
use crate::api::resets::{CauseTotal, OwnerCount, Reset, Resets, Socket};
use crate::api::text::time;

/// The newest that are shown; `--json` has all of them.
const NEWEST: usize = 10;
/// Columns before a sentence, and those of its lines.
const INDENT: usize = 4;
const WIDTH: usize = 100;

/// The whole page.
pub(super) fn text(resets: &Resets) -> String {
    let mut text = String::new();
    let _to_memory = write(&mut text, resets);
    text
}

/// A reset with its evidence.
pub(crate) fn evidence(reset: &Reset) -> String {
    let mut text = String::new();
    let _to_memory = write_reset(&mut text, reset);
    text
}

fn write(text: &mut String, resets: &Resets) -> std::fmt::Result {
    if resets.causes.is_empty() {
        writeln!(text, "no resets")?;
    } else {
        writeln!(text, "  COUNT     RATE  ORIGIN    CAUSE            TOP PEERS")?;
    }
    for cause in &resets.causes {
        writeln!(text, "{}", line_of(cause).trim_end())?;
        if !cause.owners.is_empty() {
            let owners: Vec<_> = cause.owners.iter().map(owner_of).collect();
            writeln!(text, "{:45}by {}", "", owners.join(", "))?;
        }
        if let Some(newest) = resets.newest.iter().find(|reset| is_of(reset, cause)) {
            write_wrapped(text, "the newest: ", &newest.meaning.sentence)?;
            write_wrapped(text, "what to do: ", &newest.meaning.remedy)?;
        }
    }
    if resets.window_ms >= 1000 && !resets.causes.is_empty() {
        writeln!(text, "rates are over the last {}", time(resets.window_ms))?;
    }
    if resets.causes.iter().any(|cause| cause.peers_approximate) {
        writeln!(text, "~: more peers than are counted; a count may be too large")?;
    }
    if let Some(why) = &resets.no_symbols {
        writeln!(text, "no names of functions: {why}")?;
    }
    if resets.without_stack > 0 {
        writeln!(text, "{} resets whose stack could not be kept", resets.without_stack)?;
    }
    for stack in &resets.stacks {
        let cause = stack.cause.as_deref().unwrap_or("other");
        writeln!(text, "\nstack {}  {}  {cause}", stack.stack, stack.count)?;
        for frame in &stack.frames {
            writeln!(text, "    {frame}")?;
        }
    }
    if resets.without_evidence > 0 {
        writeln!(text, "\n{} resets are counted without evidence: they came too fast", resets.without_evidence)?;
    }
    for reset in resets.newest.iter().take(NEWEST) {
        write_reset(text, reset)?;
    }
    if resets.newest.len() > NEWEST {
        writeln!(text, "\n{} older ones: --json", resets.newest.len() - NEWEST)?;
    }
    Ok(())
}

/// Whether a reset counts for a cause.
fn is_of(reset: &Reset, cause: &CauseTotal) -> bool {
    (&reset.direction, &reset.origin, &reset.cause) == (&cause.direction, &cause.origin, &cause.cause)
}

/// A sentence below what it belongs to, with what it is before its first line.
fn write_wrapped(text: &mut String, what: &str, sentence: &str) -> std::fmt::Result {
    let mut room = 0;
    let mut line = String::new();
    for word in sentence.split(' ') {
        if room > 0 && room + 1 + word.chars().count() > WIDTH {
            writeln!(text, "{line}")?;
            (line, room) = (format!("{:1$}", "", INDENT + what.len()), 0);
        } else if room > 0 {
            line.push(' ');
            room += 1;
        } else if line.is_empty() {
            line = format!("{:INDENT$}{what}", "");
        }
        line.push_str(word);
        room += word.chars().count();
    }
    writeln!(text, "{line}")
}

fn line_of(cause: &CauseTotal) -> String {
    let rate = cause.per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
    let (origin, name) = match (&cause.origin, &cause.cause) {
        (Some(origin), Some(name)) => (origin.as_str(), name.as_str()),
        _ => ("received", "from the peer"),
    };
    let about = if cause.peers_approximate { "~" } else { "" };
    let peers: Vec<_> = cause.peers.iter().map(|peer| format!("{} ({about}{})", peer.address, peer.count)).collect();
    format!("{:>7} {rate:>8}  {origin:<9} {name:<16} {}", cause.count, peers.join(", "))
}

fn write_reset(text: &mut String, reset: &Reset) -> std::fmt::Result {
    let what = match (&reset.origin, &reset.cause) {
        (Some(origin), Some(cause)) => format!("sent, {origin}: {cause}"),
        _ => "received".to_owned(),
    };
    let ends = match (reset.local_address, reset.local_port, reset.remote_address, reset.remote_port) {
        (Some(local), Some(ours), Some(remote), Some(theirs)) => {
            format!("{} -> {}", SocketAddr::new(local, ours), SocketAddr::new(remote, theirs))
        }
        _ => "no addresses".to_owned(),
    };
    writeln!(text, "\n{} ago  {what}  {ends}", time(reset.ago_ms))?;
    write_wrapped(text, "", &reset.meaning.sentence)?;
    let mut facts = Vec::new();
    if let Some(owner) = &reset.owner {
        facts.push(told(owner));
    }
    facts.extend(reset.reason.as_ref().map(|reason| format!("kernel's reason {reason}")));
    facts.extend(reset.state.as_ref().map(|state| match reset.in_state_ms {
        Some(ms) => format!("in {state} for {}", time(ms)),
        None => format!("in {state}"),
    }));
    if reset.states.len() > 1 {
        facts.push(format!("before: {}", reset.states.iter().skip(1).cloned().collect::<Vec<_>>().join(", ")));
    }
    facts.extend(reset.age_ms.map(|ms| format!("age {}", time(ms))));
    facts.extend(reset.closed_first.as_ref().map(|end| format!("{end} end closed first")));
    facts.extend(reset.segment.as_ref().map(|segment| {
        let flags = segment.flags.join(",");
        format!("for a segment {flags} seq {} ack {}", segment.sequence, segment.acknowledgement)
    }));
    facts.extend(reset.socket.iter().flat_map(of_socket));
    facts.extend(reset.stack.as_ref().map(|stack| format!("stack {stack}")));
    for fact in facts {
        writeln!(text, "    {fact}")?;
    }
    Ok(())
}

/// A process, with its unit or container, and how many are its.
fn owner_of(owner: &OwnerCount) -> String {
    let OwnerCount { pid, comm, count, .. } = owner;
    let place =
        owner.unit.as_ref().or(owner.container.as_ref()).map_or_else(String::new, |place| format!(" of {place}"));
    format!("{comm}[{pid}]{place} ({count})")
}

/// All that is known of an owner.
fn told(owner: &Owner) -> String {
    let user = owner.user.as_ref().map_or_else(|| format!("uid {}", owner.uid), |user| format!("user {user}"));
    let Some(pid) = owner.pid else { return user };
    let mut text = match &*owner.known_by {
        "listener" => format!("at a listener of {}[{pid}], {user}", owner.comm),
        _ => format!("by {}[{pid}], {user}", owner.comm),
    };
    let places = [("unit", &owner.unit), ("container", &owner.container), ("pod", &owner.pod)];
    let mut places: Vec<_> = places.into_iter().filter_map(|(what, name)| Some((what, name.as_ref()?))).collect();
    if places.is_empty() {
        places.extend(owner.cgroup.as_ref().map(|cgroup| ("cgroup", cgroup)));
    }
    for (what, name) in places {
        for part in [", ", what, " ", name] {
            text.push_str(part);
        }
    }
    if owner.exited {
        text += ", which has ended";
    }
    text
}

fn of_socket(socket: &Socket) -> Vec<String> {
    let mut facts = vec![format!(
        "unread {} B, unsent {} B, unacknowledged {} B; sent {} B, received {} B",
        socket.unread_bytes, socket.unsent_bytes, socket.unacked_bytes, socket.sent_bytes, socket.received_bytes
    )];
    let srtt = socket.srtt_us.map_or_else(|| "no srtt".to_owned(), |us| format!("srtt {us} us"));
    facts.push(format!(
        "{srtt}, cwnd {}, retransmits {}, backoff {}",
        socket.cwnd_segments, socket.retransmits_total, socket.rto_backoff
    ));
    if socket.unanswered_probes > 0 {
        facts.push(format!("{} probes were not answered", socket.unanswered_probes));
    }
    facts.extend(socket.linger_ms.map(|ms| format!("SO_LINGER is on with {}", time(ms))));
    if socket.orphan {
        facts.push("no process holds the socket".to_owned());
    }
    facts
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::resets::{Peer, ReasonTotal, Segment, ServiceCount, StackTotal};
    use crate::meaning::Meaning;

    fn reset() -> Reset {
        let owner = Owner {
            pid: Some(812),
            comm: "nginx".to_owned(),
            uid: 33,
            user: Some("www-data".to_owned()),
            unit: Some("nginx.service".to_owned()),
            known_by: "read".into(),
            ..Owner::default()
        };
        Reset {
            ktime_ns: 5_000_000_000,
            ago_ms: 61_500,
            direction: "sent".to_owned(),
            origin: Some("active".to_owned()),
            cause: Some("unread_data".to_owned()),
            reason: Some("tcp_abort_on_close".to_owned()),
            cookie: Some(7),
            netns: 1,
            local_address: Some([192, 0, 2, 1].into()),
            local_port: Some(443),
            remote_address: Some([198, 51, 100, 2].into()),
            remote_port: Some(40_000),
            state: Some("CLOSE_WAIT".to_owned()),
            states: ["CLOSE_WAIT", "ESTABLISHED", "SYN_RECV"].map(str::to_owned).to_vec(),
            in_state_ms: Some(12),
            age_ms: Some(7_200_000),
            closed_first: Some("remote".to_owned()),
            segment: None,
            socket: Some(Socket {
                unread_bytes: 777,
                unsent_bytes: 0,
                unacked_bytes: 1,
                sent_bytes: 1_000,
                received_bytes: 1_777,
                srtt_us: Some(312),
                cwnd_segments: 10,
                retransmits_total: 2,
                rto_backoff: 1,
                linger_ms: Some(3_000),
                unanswered_probes: 2,
                orphan: true,
            }),
            owner: Some(owner),
            stack: Some("3610e821fdace9da".to_owned()),
            meaning: Meaning {
                sentence: "nginx (pid 812, nginx.service) closed the connection with 198.51.100.2:40000 and left 777 \
                           bytes unread, so the kernel sent a reset in place of a FIN."
                    .to_owned(),
                remedy: "Read to the end of the stream before close().".to_owned(),
                ..Meaning::default()
            },
        }
    }

    /// One that was sent without a socket, at a port of somebody whose unit is not known.
    fn without_socket() -> Reset {
        let owner = Owner {
            pid: Some(9),
            comm: "\\x1b[2J".to_owned(),
            cgroup: Some("/user.slice".to_owned()),
            known_by: "listener".into(),
            exited: true,
            ..Owner::default()
        };
        let nothing = Reset { states: vec![], state: None, in_state_ms: None, age_ms: None, socket: None, ..reset() };
        Reset {
            ago_ms: 900,
            origin: Some("passive".to_owned()),
            cause: Some("bad_ack".to_owned()),
            reason: Some("tcp_flags".to_owned()),
            local_address: Some("2001:db8::1".parse().unwrap()),
            remote_address: Some("2001:db8::2".parse().unwrap()),
            closed_first: None,
            segment: Some(Segment { sequence: 1, acknowledgement: 7, flags: vec!["psh".to_owned(), "ack".to_owned()] }),
            owner: Some(owner),
            stack: None,
            meaning: Meaning {
                sentence: "[2001:db8::2]:40000 sent a segment (psh,ack) that acknowledges nothing.".to_owned(),
                remedy: "Left over, or forged.".to_owned(),
                ..Meaning::default()
            },
            ..nothing
        }
    }

    pub(crate) fn resets() -> Resets {
        let cause = |origin: Option<&str>, cause: Option<&str>, count, owners| CauseTotal {
            direction: if origin.is_some() { "sent" } else { "received" }.to_owned(),
            origin: origin.map(str::to_owned),
            cause: cause.map(str::to_owned),
            count,
            per_second: Some(count as f64 / 30.0),
            services: vec![ServiceCount { direction: "inbound".to_owned(), service: "443".to_owned(), count }],
            peers: vec![Peer { address: [198, 51, 100, 2].into(), count }],
            peers_approximate: origin.is_none(),
            owners,
        };
        let owner = |pid, unit: Option<&str>, container: Option<&str>| OwnerCount {
            pid,
            comm: "nginx".to_owned(),
            unit: unit.map(str::to_owned),
            container: container.map(str::to_owned),
            count: 20,
        };
        let owners = vec![owner(812, Some("nginx.service"), None), owner(813, None, Some("0123abcd"))];
        let stack = StackTotal {
            stack: "3610e821fdace9da".to_owned(),
            origin: Some("active".to_owned()),
            cause: Some("unread_data".to_owned()),
            count: 40,
            frames: ["tcp_send_active_reset", "__tcp_close"].map(str::to_owned).to_vec(),
        };
        Resets {
            window_ms: 30_000,
            without_evidence: 3,
            without_stack: 2,
            causes: vec![
                cause(Some("active"), Some("unread_data"), 40, owners),
                cause(Some("passive"), Some("bad_ack"), 2, vec![]),
                cause(None, None, 1, vec![]),
            ],
            reasons: vec![ReasonTotal {
                origin: "active".to_owned(),
                reason: "tcp_abort_on_close".to_owned(),
                family: "ipv4".to_owned(),
                count: 40,
            }],
            stacks: vec![stack],
            newest: vec![without_socket(), reset()],
            ..Resets::default()
        }
    }

    #[test]
    fn everything_that_is_known_is_shown_and_nothing_else() {
        crate::golden::check("tests/golden/resets.txt", &text(&resets()));
        assert_eq!(text(&Resets::default()), "no resets\n");
        let hidden = Resets { no_symbols: Some("no CAP_SYSLOG".to_owned()), ..Resets::default() };
        assert_eq!(text(&hidden), "no resets\nno names of functions: no CAP_SYSLOG\n");
    }

    #[test]
    fn the_newest_are_shown_and_the_others_are_said_to_be_there() {
        let many = Resets { newest: std::iter::repeat_n(reset(), NEWEST + 3).collect(), ..resets() };
        let text = text(&many);
        assert_eq!(text.matches(" ago  sent").count(), NEWEST);
        assert!(text.ends_with("\n3 older ones: --json\n"), "{text}");
    }

    #[test]
    fn each_line_of_json_says_what_it_is() {
        let lines = super::super::shown(&resets(), true);
        let kinds = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].clone());
        let kinds: Vec<_> = kinds.map(|kind| kind.as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["summary", "cause", "cause", "cause", "reason", "stack", "reset", "reset"]);
    }
}
