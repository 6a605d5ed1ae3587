//! What Prometheus sees. `catalog` declares every metric once; `series` reads their values from a snapshot, `export` has
//! them written in the format that the scraper asks for (`negotiate`): the plain text, `openmetrics`, which has exemplars, or
//! `protobuf`, which has native histograms too. `docs` makes docs/METRICS.md. No other module knows the name of a metric.

mod catalog;
pub(crate) mod docs;
mod export;
mod model;
mod monotone;
mod native;
mod negotiate;
mod openmetrics;
pub(crate) mod process;
mod protobuf;
#[cfg(test)]
pub(crate) mod sample;
mod series;

pub(crate) use catalog::MOST_SERVICES;
pub(crate) use export::{Exporter, MetricsError, Recorded};
pub(crate) use negotiate::Format;
