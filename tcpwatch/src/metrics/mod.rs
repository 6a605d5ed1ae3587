//! What Prometheus sees. `catalog` declares every metric once; `series` reads their values from a snapshot, `export`
//! turns them into text, `docs` into docs/METRICS.md. No other module knows the name of a metric.

mod catalog;
pub(crate) mod docs;
mod export;
mod model;
mod monotone;
pub(crate) mod process;
#[cfg(test)]
pub(crate) mod sample;
mod series;

pub(crate) use catalog::MOST_SERVICES;
pub(crate) use export::{CONTENT_TYPE, Exporter, MetricsError, Recorded};
