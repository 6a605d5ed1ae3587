//! The connection table at a moment, and pages of it. Filters and orders look at the records as they are: words are made
//! of those connections only that somebody is shown.

use std::sync::Arc;

use tcpwatch_common::record::ConnRecord;
use tcpwatch_common::state::Direction;

use super::connection::Connection;
use super::{Moment, owner};
use crate::aggregate::owners::{self, Names};
use crate::aggregate::snapshot::Service;
use crate::filter::{ConnFacts, Filter};
use crate::top::columns::{Column, Key};

/// The connection table at a moment. The records are shared with the table: it costs a pointer a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// When it was made, ns of CLOCK_MONOTONIC.
    pub(crate) ktime_ns: u64,
    /// The newest record of each connection, in no order.
    pub(crate) records: Vec<Arc<ConnRecord>>,
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
    pub(crate) fn facts<'a>(&'a self, record: &'a ConnRecord, ticks_per_second: u32) -> ConnFacts<'a> {
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
        let selected = self.records.iter().filter(|record| self.selects(record, ticks_per_second, filter));
        selected.map(|record| self.connection(record, ticks_per_second)).collect()
    }

    fn selects(&self, record: &ConnRecord, ticks_per_second: u32, filter: Option<&Filter>) -> bool {
        filter.is_none_or(|filter| filter.selects(&self.facts(record, ticks_per_second)))
    }

    /// A page of the connections in their order, and how many there are on all pages. The cookie decides between equals, so
    /// that rows do not jump.
    pub(crate) fn page<'a>(
        &'a self,
        ticks_per_second: u32,
        selection: &Selection,
    ) -> (Vec<&'a Arc<ConnRecord>>, usize) {
        let Selection { filter, contains, sort, reversed, offset, limit } = selection;
        let wanted = |record: &&Arc<ConnRecord>| {
            self.selects(record, ticks_per_second, filter.as_ref())
                && contains
                    .as_ref()
                    .is_none_or(|text| crate::top::columns::contains(&self.connection(record, ticks_per_second), text))
        };
        let keyed = |record: &'a Arc<ConnRecord>| {
            let key = sort.map_or(Key::Nothing, |column| (column.key)(self.facts(record, ticks_per_second)));
            (key, record.cookie, record)
        };
        let mut all: Vec<(Key<'a>, u64, &'a Arc<ConnRecord>)> = self.records.iter().filter(wanted).map(keyed).collect();
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
        (all.into_iter().skip(*offset).map(|(_, _, record)| record).collect(), total)
    }
}
