//! Which format a scraper gets: what it asks for by `Accept`, and the plain text when it says nothing.

/// A format of the exposition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// The plain text that everything reads.
    #[default]
    Text,
    /// OpenMetrics 1.0.0: text with units and exemplars.
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily`, delimited by their lengths: native histograms too.
    Protobuf,
}

impl Format {
    /// Its content type.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The one that these values of `Accept` like best; of equals the first.
    pub(crate) fn of<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let ranges = accept.into_iter().flat_map(|value| value.split(','));
        let mut best = (Self::Text, 0.0);
        for (format, weight) in ranges.filter_map(range) {
            if weight > best.1 {
                best = (format, weight);
            }
        }
        best.0
    }
}

/// The format of one media range and its weight, if there is one that we have.
fn range(text: &str) -> Option<(Format, f64)> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let parameters: Vec<(String, &str)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"')))
        .collect();
    let value = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    let is = |name: &str, wanted: &[&str]| value(name).is_none_or(|value| wanted.contains(&value));
    let format = match media.as_str() {
        "application/openmetrics-text" if is("version", &["1.0.0", "0.0.1"]) => Format::OpenMetrics,
        "application/vnd.google.protobuf"
            if value("proto") == Some("io.prometheus.client.MetricFamily")
                && value("encoding") == Some("delimited") =>
        {
            Format::Protobuf
        }
        "text/plain" if is("version", &["0.0.4"]) => Format::Text,
        "text/*" | "*/*" => Format::Text,
        _ => return None,
    };
    Some((format, value("q").map_or(Some(1.0), |weight| weight.parse().ok())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    #[test]
    fn what_prometheus_asks_for_is_what_it_gets() {
        // As 2.42 asks, without native histograms and with them; then 3.x.
        let plain = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                     text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::of([plain]), Format::OpenMetrics);
        let native = format!(
            "{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        assert_eq!(Format::of([native.as_str()]), Format::Protobuf);
        let newer = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                     text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::of([newer]), Format::OpenMetrics);
    }

    #[test]
    fn who_says_nothing_or_something_else_gets_plain_text() {
        for accept in ["", "*/*", "text/html, */*;q=0.8", "text/plain;version=0.0.4", "application/json", "a;q=x"] {
            assert_eq!(Format::of([accept]), Format::Text, "{accept}");
        }
        assert_eq!(Format::of([]), Format::Text);
        assert_eq!(Format::of(["application/vnd.google.protobuf"]), Format::Text);
        assert_eq!(Format::of(["application/openmetrics-text;version=2.0.0"]), Format::Text);
        assert_eq!(Format::of(["application/openmetrics-text;q=0", "text/plain"]), Format::Text);
        assert_eq!(Format::of(["text/plain;q=0.5", "application/openmetrics-text"]), Format::OpenMetrics);
    }

    proptest! {
        #[test]
        fn any_header_has_an_answer(accept in ".{0,200}") {
            let _format = Format::of([accept.as_str()]);
        }
    }
}
