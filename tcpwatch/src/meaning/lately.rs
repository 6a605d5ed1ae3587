//! Resets sent a moment ago, to tell one that this host's TCP made from one that a firewall rule of it did.

use std::collections::VecDeque;

use tcpwatch_common::conn::ConnKey;

/// How many are remembered.
const MOST: usize = 256;
/// For how long, ns: on this host a reset arrives at once.
const LATELY_NS: u64 = 1_000_000_000;

/// The ends of resets sent lately.
#[derive(Debug, Default)]
pub(crate) struct SentLately(VecDeque<(u64, ConnKey)>);

impl SentLately {
    /// One was sent.
    pub(crate) fn sent(&mut self, ktime_ns: u64, key: ConnKey) {
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back((ktime_ns, key));
    }

    /// Whether a reset that was received comes from an address of this host, whose TCP sent none. When many are sent, some
    /// of them untold, nothing can be said.
    pub(crate) fn by_nobody(&self, ktime_ns: u64, key: &ConnKey) -> bool {
        let own = key.local == key.remote && key.local != [0; 16];
        let lately = || self.0.iter().filter(|(at, _)| at + LATELY_NS >= ktime_ns);
        let same = |sent: &ConnKey| {
            (sent.local, sent.local_port, sent.remote, sent.remote_port)
                == (key.remote, key.remote_port, key.local, key.local_port)
        };
        own && lately().count() < MOST / 2 && !lately().any(|(_, sent)| same(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_addresses_without_a_reset_of_ours_are_suspect() {
        let mut key = ConnKey::EMPTY;
        (key.local, key.local_port, key.remote, key.remote_port) = ([1; 16], 5000, [1; 16], 80);
        let mut lately = SentLately::default();
        assert!(lately.by_nobody(5, &key));
        let (mut foreign, mut sent) = (key, key);
        foreign.remote = [2; 16];
        assert!(!lately.by_nobody(5, &foreign));
        (sent.local_port, sent.remote_port) = (80, 5000);
        lately.sent(4, sent);
        assert!(!lately.by_nobody(5, &key));
        assert!(lately.by_nobody(4 + LATELY_NS + 1, &key), "that was another one");
        for port in 0..1000 {
            sent.remote_port = port;
            lately.sent(2 * LATELY_NS, sent);
        }
        assert!(!lately.by_nobody(2 * LATELY_NS, &key), "too many to tell");
    }
}
