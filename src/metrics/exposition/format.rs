//! The two text formats of a scrape, chosen by the `Accept` header (RFC 9110 section 12.5.1).

use std::fmt;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// OpenMetrics if the client prefers it to plain text, otherwise Prometheus text.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        let (open_metrics, prometheus) =
            (quality(accept, "application/openmetrics-text"), quality(accept, "text/plain"));
        if open_metrics > 0 && open_metrics >= prometheus { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// # Errors
    /// A collector of the registry failed.
    pub(crate) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut body = String::new();
        match self {
            Self::Prometheus => prometheus_text::encode(&mut body, registry)?,
            Self::OpenMetrics => text::encode(&mut body, registry)?,
        }
        Ok(body)
    }
}

/// The highest quality of a media type in `accept`, in thousandths; 0 if it is not listed.
fn quality(accept: &str, media_type: &str) -> u16 {
    let of_element = |element: &str| {
        let mut parts = element.split(';').map(str::trim);
        if !parts.next().is_some_and(|listed| listed.eq_ignore_ascii_case(media_type)) {
            return 0;
        }
        let value = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        value.map_or(1000, thousandths)
    };
    accept.split(',').map(of_element).max().unwrap_or(0)
}

/// A quality value such as `0.75` in thousandths; 0 if it is none.
fn thousandths(value: &str) -> u16 {
    let value = value.parse().ok().filter(|value| (0.0..=1.0).contains(value)).unwrap_or(0.0_f32);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 1000, and not negative")]
    let thousandths = (value * 1000.0).round() as u16;
    thousandths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_is_the_one_that_the_client_prefers() {
        let prometheus_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                               text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, expected) in [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some(""), Format::Prometheus),
            (Some("text/html, ,;;q=,=,\u{1f600}"), Format::Prometheus),
            (Some("text/plain;version=0.0.4"), Format::Prometheus),
            (Some(prometheus_2_42), Format::OpenMetrics),
            (Some("Application/OpenMetrics-Text"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (Some("application/openmetrics-text;q=NaN"), Format::Prometheus),
            (Some("application/openmetrics-text;q=0.4, text/plain;q=0.5"), Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), expected, "{accept:?}");
        }
    }
}
