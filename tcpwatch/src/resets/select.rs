//! What an expression selects among resets: the evidence that is kept, and the causes and stacks that occur in it.

use std::borrow::Cow;

use crate::api::resets::{Reset, Resets};
use crate::filter::{Fact, Filter, Subject, Value};

/// Keeps what `filter` selects; tells how many resets it chose from.
pub(super) fn select(resets: &mut Resets, filter: &Filter) -> usize {
    let kept = resets.newest.len();
    resets.newest.retain(|reset| filter.selects(reset));
    let newest = &resets.newest;
    resets.causes.retain(|cause| {
        newest.iter().any(|reset| {
            (&reset.direction, &reset.origin, &reset.cause) == (&cause.direction, &cause.origin, &cause.cause)
        })
    });
    resets.reasons.retain(|reason| newest.iter().any(|reset| reset.reason.as_ref() == Some(&reason.reason)));
    resets.stacks.retain(|stack| newest.iter().any(|reset| reset.stack.as_ref() == Some(&stack.stack)));
    kept
}

impl Subject for Reset {
    fn fact(&self, fact: Fact) -> Option<Value<'_>> {
        if fact.is_of_owner() {
            return self.owner.as_ref()?.fact(fact);
        }
        let text = |text: &'_ Option<String>| text.clone().map(|text| Value::Text(Cow::Owned(text)));
        let socket = self.socket.as_ref();
        let number = match fact {
            Fact::Local => return self.local_address.map(Value::Address),
            Fact::Peer => return self.remote_address.map(Value::Address),
            Fact::State => return text(&self.state),
            Fact::Cause => return text(&self.cause),
            Fact::Origin => return text(&self.origin),
            Fact::Reason => return text(&self.reason),
            Fact::Kind => return Some(Value::Text(Cow::Owned(format!("reset_{}", self.direction)))),
            Fact::LocalPort => self.local_port.map(u64::from),
            Fact::PeerPort => self.remote_port.map(u64::from),
            Fact::Netns => Some(self.netns.into()),
            Fact::Cookie => self.cookie,
            Fact::Age => self.age_ms.map(|ms| ms * 1000),
            Fact::Srtt => socket.and_then(|socket| socket.srtt_us).map(u64::from),
            Fact::Cwnd => socket.map(|socket| socket.cwnd_segments.into()),
            Fact::Retransmits => socket.map(|socket| socket.retransmits_total.into()),
            Fact::Sent => socket.map(|socket| socket.sent_bytes),
            Fact::Received => socket.map(|socket| socket.received_bytes),
            Fact::Unread => socket.map(|socket| socket.unread_bytes.into()),
            Fact::Unsent => socket.map(|socket| socket.unsent_bytes.into()),
            Fact::Unacked => socket.map(|socket| socket.unacked_bytes.into()),
            _ => None,
        };
        number.map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::resets;
    use super::*;

    #[test]
    fn an_expression_keeps_what_it_selects_and_what_belongs_to_that() {
        let all = resets();
        for reset in &all.newest {
            let Some(port) = reset.local_port else { continue };
            let mut chosen = all.clone();
            let from = select(&mut chosen, &format!("local port {port}").parse().unwrap());
            assert_eq!(from, all.newest.len());
            assert!(chosen.newest.iter().all(|kept| kept.local_port == Some(port)) && chosen.newest.contains(reset));
            assert!(chosen.causes.iter().all(|cause| chosen.newest.iter().any(|reset| reset.cause == cause.cause)));
        }
        let mut none = all.clone();
        select(&mut none, &"peer 203.0.113.77 and unread > 1GB".parse().unwrap());
        assert!(none.newest.is_empty() && none.causes.is_empty() && none.stacks.is_empty());
        let mut same = all.clone();
        select(&mut same, &"kind reset_sent or kind reset_received".parse().unwrap());
        assert_eq!(same.newest, all.newest);
    }
}
