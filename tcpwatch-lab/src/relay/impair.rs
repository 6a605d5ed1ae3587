//! The steady impairments of one direction: delay, jitter and rate, and the arithmetic of when a packet leaves.
//!
//! Single packets are picked out by [`super::rules`]; this is what happens to all others alike.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

use crate::clock::as_ns;

/// A limited rate: packets leave one after the other at the speed of the link, and wait in a queue meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, of whole IP packets.
    pub bits_per_second: u64,
    /// Packets that may wait, the one under way included; the next is dropped.
    pub queue_packets: usize,
    /// Bytes that may wait, the packet under way included; a packet that does not fit is dropped.
    pub queue_bytes: usize,
}

impl Rate {
    /// A rate with a queue of 1000 packets and any number of bytes.
    pub fn bits_per_second(bits_per_second: u64) -> Self {
        Self { bits_per_second, queue_packets: 1000, queue_bytes: usize::MAX }
    }

    /// The same rate with a queue of at most so many packets.
    #[must_use]
    pub fn queue_packets(self, queue_packets: usize) -> Self {
        Self { queue_packets, ..self }
    }

    /// The same rate with a queue of at most so many bytes.
    #[must_use]
    pub fn queue_bytes(self, queue_bytes: usize) -> Self {
        Self { queue_bytes, ..self }
    }

    /// Nanoseconds that a packet of `bytes` takes on the link.
    pub fn serialisation_ns(&self, bytes: usize) -> u64 {
        let bit_ns = bytes as u128 * 8 * 1_000_000_000;
        u64::try_from(bit_ns / u128::from(self.bits_per_second.max(1))).unwrap_or(u64::MAX)
    }
}

/// What happens to every packet of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// From the arrival in the relay (or, with a rate, from the end of serialisation) to the departure.
    pub delay: Duration,
    /// A further delay, drawn evenly between zero and this for each packet.
    pub jitter: Duration,
    /// What the draws of the jitter begin from: the same seed and packets give the same delays.
    pub seed: u64,
    /// Whether jitter may let a packet overtake another; without it a packet waits for the one before it.
    pub reorder: bool,
    /// The rate of the link; `None` is unlimited.
    pub rate: Option<Rate>,
}

impl Impairment {
    /// A constant delay, nothing else.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Adds jitter that keeps the order of packets.
    #[must_use]
    pub fn jitter(self, jitter: Duration, seed: u64) -> Self {
        Self { jitter, seed, ..self }
    }

    /// Lets jitter reorder packets.
    #[must_use]
    pub fn reordering(self) -> Self {
        Self { reorder: true, ..self }
    }

    /// Adds a rate limit.
    #[must_use]
    pub fn rate(self, rate: Rate) -> Self {
        Self { rate: Some(rate), ..self }
    }
}

/// The queue of a limited rate is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// Computes departures in one direction. Knows no clock: times come in with the packets.
#[derive(Debug)]
pub(crate) struct Shaper {
    impairment: Impairment,
    random: Rng,
    /// When the link has sent all that was given to it.
    link_free_ns: u64,
    /// Packets on or before the link: when each has been sent, and its bytes.
    queue: VecDeque<(u64, usize)>,
    queued_bytes: usize,
    last_due_ns: u64,
}

impl Shaper {
    pub(crate) fn new(impairment: Impairment) -> Self {
        Self {
            impairment,
            random: Rng::with_seed(impairment.seed),
            link_free_ns: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            last_due_ns: 0,
        }
    }

    pub(crate) fn impairment(&self) -> Impairment {
        self.impairment
    }

    /// Changes what happens to packets from now on; those that are scheduled leave as they were to. The draws of
    /// the jitter begin anew only with another seed.
    pub(crate) fn set(&mut self, impairment: Impairment) {
        if impairment.seed != self.impairment.seed {
            self.random = Rng::with_seed(impairment.seed);
        }
        self.impairment = impairment;
    }

    /// When a packet that arrives now is to leave.
    pub(crate) fn schedule(&mut self, arrived_ns: u64, bytes: usize) -> Result<u64, QueueFull> {
        let sent_ns = self.serialise(arrived_ns, bytes)?;
        let jitter = as_ns(self.impairment.jitter);
        let extra = if jitter == 0 { 0 } else { self.random.u64(0..=jitter) };
        let mut due_ns = sent_ns.saturating_add(as_ns(self.impairment.delay)).saturating_add(extra);
        if !self.impairment.reorder {
            due_ns = due_ns.max(self.last_due_ns);
        }
        self.last_due_ns = self.last_due_ns.max(due_ns);
        Ok(due_ns)
    }

    fn serialise(&mut self, arrived_ns: u64, bytes: usize) -> Result<u64, QueueFull> {
        while let Some(&(sent_ns, length)) = self.queue.front() {
            if sent_ns > arrived_ns {
                break;
            }
            self.queue.pop_front();
            self.queued_bytes -= length;
        }
        let Some(rate) = self.impairment.rate else { return Ok(arrived_ns) };
        if self.queue.len() >= rate.queue_packets || self.queued_bytes.saturating_add(bytes) > rate.queue_bytes {
            return Err(QueueFull);
        }
        let sent_ns = self.link_free_ns.max(arrived_ns).saturating_add(rate.serialisation_ns(bytes));
        self.link_free_ns = sent_ns;
        self.queue.push_back((sent_ns, bytes));
        self.queued_bytes += bytes;
        Ok(sent_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_delay_counts_from_the_arrival() {
        let mut shaper = Shaper::new(Impairment::delay(Duration::from_millis(20)));
        assert_eq!(shaper.schedule(7, 1500), Ok(20 * MS + 7));
        assert_eq!(shaper.schedule(8, 1500), Ok(20 * MS + 8));
    }

    #[test]
    fn jitter_keeps_the_order_and_repeats_with_its_seed() {
        let jitter = Impairment::default().jitter(Duration::from_millis(5), 42);
        let departures = |impairment| {
            let mut shaper = Shaper::new(impairment);
            (0..100).map(|n| shaper.schedule(n * MS, 100).unwrap()).collect::<Vec<_>>()
        };
        let first = departures(jitter);
        assert!(first.is_sorted());
        assert_eq!(first, departures(jitter));
        assert!(!departures(jitter.reordering()).is_sorted());
        assert!(departures(jitter.reordering()).iter().zip(0..).all(|(due, n)| (n * MS..=(n + 5) * MS).contains(due)));
    }

    #[test]
    fn a_rate_sends_packets_one_after_the_other() {
        let rate = Rate::bits_per_second(12_000_000).queue_packets(2);
        let mut shaper = Shaper::new(Impairment::default().rate(rate));
        assert_eq!(shaper.schedule(0, 1500), Ok(MS));
        assert_eq!(shaper.schedule(0, 1500), Ok(2 * MS));
        assert_eq!(shaper.schedule(0, 1500), Err(QueueFull));
        assert_eq!(shaper.schedule(MS, 1500), Ok(3 * MS), "the first has left the queue");
        assert_eq!(shaper.schedule(10 * MS, 750), Ok(10 * MS + MS / 2), "an idle link is not saved up");
    }

    #[test]
    fn a_queue_is_limited_in_bytes() {
        let rate = Rate::bits_per_second(8).queue_bytes(2000);
        let mut shaper = Shaper::new(Impairment::default().rate(rate));
        assert!(shaper.schedule(0, 1500).is_ok());
        assert_eq!(shaper.schedule(0, 501), Err(QueueFull));
        assert!(shaper.schedule(0, 500).is_ok());
    }

    #[test]
    fn a_change_keeps_the_order() {
        let mut shaper = Shaper::new(Impairment::delay(Duration::from_millis(20)));
        assert_eq!(shaper.schedule(0, 100), Ok(20 * MS));
        shaper.set(Impairment::default());
        assert_eq!(shaper.schedule(MS, 100), Ok(20 * MS));
        assert_eq!(shaper.schedule(30 * MS, 100), Ok(30 * MS));
    }
}
