//! The log: tracing events that pass the filter, in the same shape and through the same writer as audit events.

use std::fmt::{self, Write as _};
use std::io;

use serde_json::Value;
use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer as _, Registry, reload};

use super::sink::Sink;
use super::{Audit, LineFormat};
use crate::timestamp;

/// Changes the filter of a running log.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// When `level` is no tracing filter.
    pub fn set_level(&self, level: &str) -> Result<(), ParseError> {
        let filter = EnvFilter::try_new(level)?;
        // Fails only when the subscriber is gone, and then nobody logs.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// The subscriber that writes to the log of `audit`.
///
/// # Errors
/// When `level` is no tracing filter.
pub fn subscriber(audit: &Audit, level: &str) -> Result<(impl Subscriber + Send + Sync, LogHandle), ParseError> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(level)?);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines(audit.format))
        .with_writer(ToSink(audit.log_sink()))
        .with_filter(filter);
    Ok((tracing_subscriber::registry().with(lines), LogHandle(handle)))
}

struct Lines(LineFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let now = timestamp::milliseconds(OffsetDateTime::now_utc());
        let mut fields = Fields::default();
        event.record(&mut fields);
        match self.0 {
            LineFormat::Json => {
                write!(out, "{{\"ts\":\"{now}\",\"level\":\"{}\",", metadata.level())?;
                write!(
                    out,
                    "\"target\":{},\"message\":{}",
                    Value::from(metadata.target()),
                    Value::from(fields.message)
                )?;
                for (key, value) in &fields.others {
                    write!(out, ",\"{key}\":{}", Value::from(value.as_str()))?;
                }
                writeln!(out, "}}")
            }
            LineFormat::Text => {
                write!(out, "{now} {:>5} {}", metadata.level().as_str(), printable(&fields.message))?;
                for (key, value) in &fields.others {
                    write!(out, " {key}={}", Value::from(value.as_str()))?;
                }
                writeln!(out)
            }
        }
    }
}

/// A message on one line, whatever is in it.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.record(field, text);
    }
}

impl Fields {
    fn record(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push((field.name(), value));
        }
    }
}

#[derive(Clone)]
struct ToSink(Sink);

impl<'a> MakeWriter<'a> for ToSink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// tracing-subscriber hands over one whole event at a time.
impl io::Write for ToSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
