//! Makes events of records, for those who listen. The oldest is overwritten when one of them is slow, who is told.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tcpwatch_common::conn::ConnKey;
use tcpwatch_common::record::{ConnRecord, Kind, Record, decode};
use tokio::sync::broadcast;

use crate::aggregate::Aggregator;
use crate::aggregate::snapshot::Service;
use crate::api::event::{Event, Surroundings};
use crate::api::interest::Interests;
use crate::api::owner::Owner;
use crate::meaning::Around;

/// Events that a slow listener may lag behind.
const KEPT: usize = 4096;
/// Connections that ended lately, for filters: the reset that ended one is told after its close. Who owned one is longer
/// known, by the aggregator.
const ENDED: usize = 512;

/// Tells those who listen.
pub(crate) struct Teller {
    /// To them.
    pub(crate) sender: broadcast::Sender<Arc<Event>>,
    /// What they want to hear of.
    pub(crate) interests: Arc<Interests>,
    ended: LruCache<u64, Arc<ConnRecord>>,
}

impl Teller {
    /// With nobody who listens.
    pub(crate) fn new() -> Self {
        let ended = LruCache::new(NonZeroUsize::new(ENDED).unwrap_or(NonZeroUsize::MIN));
        Self { sender: broadcast::channel(KEPT).0, interests: Arc::default(), ended }
    }

    /// Tells of a record that `aggregator` has taken.
    pub(crate) fn tell(&mut self, record: &[u8], aggregator: &Aggregator) {
        if self.sender.receiver_count() == 0 {
            self.ended.clear();
            return;
        }
        let Ok(record) = decode(record) else { return };
        if let Record::Conn(Kind::Close, conn) = &record {
            self.ended.push(conn.cookie, Arc::new(*conn));
        }
        if !self.interests.wanted(Event::kind_of(&record)) {
            return;
        }
        if let Some(event) = Event::of(&record, &Known { aggregator, ended: &self.ended }) {
            let around = match &record {
                Record::Reset(kind, reset) => aggregator.around(*kind, reset),
                _ => Around::default(),
            };
            let event = event.among(around);
            let _nobody_listens_any_more = self.sender.send(Arc::new(event));
        }
    }
}

/// What is known where a record was taken.
struct Known<'a> {
    aggregator: &'a Aggregator,
    ended: &'a LruCache<u64, Arc<ConnRecord>>,
}

impl Surroundings for Known<'_> {
    fn service(&self, slot: u32) -> Service {
        self.aggregator.service(slot)
    }

    fn connection(&self, cookie: u64) -> Option<Arc<ConnRecord>> {
        self.aggregator.connection_of(cookie).or_else(|| self.ended.peek(&cookie).cloned())
    }

    fn owner(&self, cookie: u64, key: &ConnKey) -> Option<Owner> {
        self.aggregator.owner(cookie, key)
    }
}
