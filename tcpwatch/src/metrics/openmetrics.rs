//! OpenMetrics 1.0.0. <https://github.com/OpenObservability/OpenMetrics/blob/main/specification/OpenMetrics.md>
//!
//! Other than in the plain text, the name of a counter's family has no `_total` and that of an info no `_info`, units are told,
//! edges of buckets are always written as floats, buckets and counters may have an exemplar, and the text has an end.

use std::fmt::{self, Write as _};

use super::export::Family;
use super::model::{Type, Unit};
use super::series::{Mark, One};

/// The text of these families. `unix_seconds` turns the time of an exemplar into that of the wall clock.
pub(crate) fn text(families: &[Family], unix_seconds: impl Fn(u64) -> f64 + Copy) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(1 << 17);
    for family in families {
        let (name, kind) = name_and_type(family);
        writeln!(text, "# TYPE {name} {kind}")?;
        if let Some(unit) = unit(family.metric.unit) {
            writeln!(text, "# UNIT {name} {unit}")?;
        }
        writeln!(text, "# HELP {name} {}", Escaped(family.metric.help))?;
        for one in &family.series {
            if family.metric.kind == Type::Histogram {
                histogram(&mut text, name, one, unix_seconds)?;
            } else {
                let counter = family.metric.kind == Type::Counter;
                let metric = &one.metric;
                let value = if counter { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
                write!(text, "{}{} {value}", family.metric.name, Labels(one, None))?;
                end(&mut text, one, 0, unix_seconds)?;
            }
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

fn name_and_type(family: &Family) -> (&'static str, &'static str) {
    let name = family.metric.name;
    match (family.metric.kind, family.metric.unit) {
        (Type::Counter, _) => (name.strip_suffix("_total").unwrap_or(name), "counter"),
        (Type::Gauge, Unit::Info) => (name.strip_suffix("_info").unwrap_or(name), "info"),
        (Type::Gauge, _) => (name, "gauge"),
        (Type::Histogram, _) => (name, "histogram"),
    }
}

/// The unit, where the name ends in it.
const fn unit(unit: Unit) -> Option<&'static str> {
    match unit {
        Unit::Seconds => Some("seconds"),
        Unit::Bytes => Some("bytes"),
        Unit::Segments => Some("segments"),
        Unit::Ratio => Some("ratio"),
        Unit::Count | Unit::Flag | Unit::Info => None,
    }
}

fn histogram(text: &mut String, name: &str, one: &One, unix_seconds: impl Fn(u64) -> f64 + Copy) -> fmt::Result {
    let histogram = one.metric.get_histogram();
    let finite = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let all = finite.chain([(f64::INFINITY, histogram.get_sample_count())]);
    for (i, (edge, count)) in all.enumerate() {
        write!(text, "{name}_bucket{} {count}", Labels(one, Some(edge)))?;
        end(text, one, i, unix_seconds)?;
    }
    writeln!(text, "{name}_count{} {}", Labels(one, None), histogram.get_sample_count())?;
    writeln!(text, "{name}_sum{} {}", Labels(one, None), histogram.get_sample_sum())
}

/// The exemplar of a sample, if there is one, and the end of the line.
fn end(text: &mut String, one: &One, place: usize, unix_seconds: impl Fn(u64) -> f64) -> fmt::Result {
    if let Some((_, Mark { labels, value, ktime_ns })) = one.marks.iter().find(|(bucket, _)| *bucket == place) {
        text.push_str(" # {");
        for (i, (name, value)) in labels.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(text, "{comma}{name}=\"{}\"", Escaped(value))?;
        }
        write!(text, "}} {value} {:.3}", unix_seconds(*ktime_ns))?;
    }
    text.push('\n');
    Ok(())
}

/// The labels of a series, with the edge of a bucket: a float, so `1.0` and not `1`.
struct Labels<'a>(&'a One, Option<f64>);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.metric.get_label();
        if pairs.is_empty() && self.1.is_none() {
            return Ok(());
        }
        f.write_char('{')?;
        for (i, pair) in pairs.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}=\"{}\"", pair.name(), Escaped(pair.value()))?;
        }
        let comma = if pairs.is_empty() { "" } else { "," };
        match self.1 {
            Some(edge) if edge.is_infinite() => write!(f, "{comma}le=\"+Inf\"")?,
            Some(edge) if edge.fract() == 0.0 => write!(f, "{comma}le=\"{edge:.1}\"")?,
            Some(edge) => write!(f, "{comma}le=\"{edge}\"")?,
            None => {}
        }
        f.write_char('}')
    }
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            _ => f.write_char(c),
        })
    }
}
