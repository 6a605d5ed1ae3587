//! The connection table at a moment, and pages of it. Filters and orders look at the records as they are: words are made
//! of those connections only that somebody is shown.

use std::sync::Arc;

use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::Direction;

use super::connection::Connection;
use super::{Moment, owner};
use crate::aggregate::kept::Kept;
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;
use crate::filter::{ConnFacts, Filter};
use crate::top::columns::{Column, Key};

/// The connection table at a moment. The records are packed as in the table: about 250 bytes a
/// connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// When it was made, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// The newest record of each connection, the one heard of last first.
    pub(crate) records: Vec<Kept>,
    /// Direction and service of each group slot.
    pub(crate) services: Vec<(Direction, Service)>,
    /// Users and control groups.
    pub(crate) names: Arc<Names>,
}

/// Which connections are wanted, and in what order.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Those that it selects.
    pub(crate) filter: Option<Filter>,
    /// Those with this text in a column of `top`; in lower case.
    pub(crate) contains: Option<String>,
    /// Those that matter most by it come first; without it, by cookie.
    pub(crate) sort: Option<&'static Column<Connection>>,
    /// From the other end.
    pub(crate) reversed: bool,
    /// Go past so many.
    pub(crate) offset: usize,
    /// At most so many.
    pub(crate) limit: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { filter: None, contains: None, sort: None, reversed: false, offset: 0, limit: usize::MAX }
    }
}

impl Listing {
    /// What a slot is shown as.
    pub(crate) fn service(&self, slot: u32) -> Service {
        self.services.get(slot as usize).map_or(Service::Other, |(_, service)| *service)
    }

    /// What a filter looks at in a connection.
    pub(crate) fn facts<'r, 'n>(&'n self, record: &'r ConnRecord, ticks_per_second: u32) -> ConnFacts<'r, 'n> {
        let moment = Moment { ktime_ns: self.ktime_ns, ticks_per_second };
        ConnFacts { record, service: self.service(record.slot), moment, names: Some(&self.names) }
    }

    /// A connection as the API shows it.
    pub(crate) fn connection(&self, record: &ConnRecord, ticks_per_second: u32) -> Connection {
        let moment = Moment { ktime_ns: self.ktime_ns, ticks_per_second };
        let owner = owner::Owner::new(&owners::Owner::of(record), &self.names);
        Connection { owner, ..Connection::new(record, self.service(record.slot), moment) }
    }

    /// The connections that a filter selects, as the API shows them.
    pub(crate) fn connections(&self, ticks_per_second: u32, filter: Option<&Filter>) -> Vec<Connection> {
        let selected = self.records.iter().map(Kept::record);
        let selected = selected.filter(|record| self.selects(record, ticks_per_second, filter));
        selected.map(|record| self.connection(&record, ticks_per_second)).collect()
    }

    fn selects(&self, record: &ConnRecord, ticks_per_second: u32, filter: Option<&Filter>) -> bool {
        filter.is_none_or(|filter| filter.selects(&self.facts(record, ticks_per_second)))
    }

    /// A page of the connections in their order, and how many there are on all pages. The cookie decides between equals, so
    /// that rows do not jump.
    pub(crate) fn page(&self, ticks_per_second: u32, selection: &Selection) -> (Vec<&Kept>, usize) {
        let Selection { filter, contains, sort, reversed, offset, limit } = selection;
        let wanted = |record: &ConnRecord| {
            self.selects(record, ticks_per_second, filter.as_ref())
                && contains
                    .as_ref()
                    .is_none_or(|text| crate::top::columns::contains(&self.connection(record, ticks_per_second), text))
        };
        let keyed = |kept| {
            let record = Kept::record(kept);
            wanted(&record).then(|| {
                let key = sort.map_or(Key::Nothing, |column| (column.key)(self.facts(&record, ticks_per_second)));
                (key, record.cookie, kept)
            })
        };
        let mut all: Vec<(Key<'_>, u64, &Kept)> = self.records.iter().filter_map(keyed).collect();
        let total = all.len();
        let order = |a: &(Key<'_>, u64, _), b: &(Key<'_>, u64, _)| {
            let order = (&a.0, a.1).cmp(&(&b.0, b.1));
            if *reversed { order.reverse() } else { order }
        };
        let end = offset.saturating_add(*limit);
        if end < total {
            // What comes after the page needs no order.
            all.select_nth_unstable_by(end, order);
            all.truncate(end);
        }
        all.sort_unstable_by(order);
        (all.into_iter().skip(*offset).map(|(_, _, kept)| kept).collect(), total)
    }
}
