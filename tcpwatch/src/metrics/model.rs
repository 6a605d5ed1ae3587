//! What a definition of a metric consists of, and how many series it can have.

use super::series::{Series, View};

/// Type of a metric, as Prometheus has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// Only grows while the daemon runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in classic buckets.
    Histogram,
}

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Seconds; the name says so.
    Seconds,
    /// Bytes; the name says so.
    Bytes,
    /// TCP segments; the name says so.
    Segments,
    /// A number of the things that the name says.
    Count,
    /// One number over another; the name says so.
    Ratio,
    /// 1 when it holds, 0 when it does not.
    Flag,
    /// Always 1; the labels are what matters.
    Info,
}

/// Which values a label can have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values {
    /// These and no others.
    Closed(&'static [&'static str]),
    /// What these words describe.
    Open(&'static str),
}

/// What a label does to the number of series.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Factor {
    /// Each of its closed values may come with all values of the other labels.
    Values,
    /// It follows from the other labels.
    Determined,
    /// At most so many values.
    Most(usize),
    /// One per group: the services that the configuration allows, and the fixed ones.
    Groups,
}

/// A label.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its values.
    pub(crate) values: Values,
    /// How it multiplies series.
    pub(crate) factor: Factor,
}

/// Buckets of a histogram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    /// Upper edges, without the infinite one.
    pub(crate) edges: &'static [f64],
    /// Why these.
    pub(crate) reason: &'static str,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: &'static str,
    /// Heading under which the documentation lists it.
    pub(crate) area: &'static str,
    /// Its type.
    pub(crate) kind: Type,
    /// Its unit.
    pub(crate) unit: Unit,
    /// One sentence, which every scrape carries.
    pub(crate) help: &'static str,
    /// More, for the documentation only; may be empty.
    pub(crate) note: &'static str,
    /// Its labels, in the order in which `read` gives their values.
    pub(crate) labels: &'static [Label],
    /// Its buckets, when it is a histogram.
    pub(crate) buckets: Option<Buckets>,
    /// First version that has it.
    pub(crate) since: &'static str,
    /// It tells of the process that prints it, and not of what that has seen: a replay does not show it.
    pub(crate) of_process: bool,
    /// Reads its series.
    pub(crate) read: fn(&View<'_>, &mut Series),
}

impl Metric {
    const fn new(name: &'static str, kind: Type, unit: Unit, help: &'static str) -> Self {
        let (labels, buckets) = (&[], None);
        Self {
            name,
            area: "",
            kind,
            unit,
            help,
            note: "",
            labels,
            buckets,
            since: "0.1.0",
            of_process: false,
            read: |_, _| (),
        }
    }

    /// A counter.
    pub(crate) const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self::new(name, Type::Counter, unit, help)
    }

    /// A gauge.
    pub(crate) const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self::new(name, Type::Gauge, unit, help)
    }

    /// A histogram.
    pub(crate) const fn histogram(name: &'static str, unit: Unit, help: &'static str, buckets: Buckets) -> Self {
        Self { buckets: Some(buckets), ..Self::new(name, Type::Histogram, unit, help) }
    }

    /// With these labels.
    pub(crate) const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// With these words in the documentation.
    pub(crate) const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// Told of the process that prints it.
    pub(crate) const fn of_process(self) -> Self {
        Self { of_process: true, ..self }
    }

    /// Under this heading, with its values from `read`.
    pub(crate) const fn read(self, area: &'static str, read: fn(&View<'_>, &mut Series)) -> Self {
        Self { area, read, ..self }
    }

    /// The most series it can have with so many groups; of a histogram each line is one.
    pub(crate) fn bound(&self, groups: usize) -> usize {
        let lines = self.buckets.map_or(1, |buckets| buckets.edges.len() + 3);
        let factors = self.labels.iter().map(|label| match (label.factor, label.values) {
            (Factor::Values, Values::Closed(values)) => values.len(),
            (Factor::Values | Factor::Determined, _) => 1,
            (Factor::Most(most), _) => most,
            (Factor::Groups, _) => groups,
        });
        factors.product::<usize>() * lines
    }
}
