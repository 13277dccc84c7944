//! The log: tracing events that pass the filter, in the same shape and through the same writer as audit events.

use std::fmt::{self, Write as _};
use std::io;

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer as _, Registry, reload};

use crate::audit::line::{Line, MAX_LINE};
use crate::audit::sink::Sink;
use crate::audit::{Audit, LineFormat};
use crate::printable;
use crate::timestamp;

/// A handle that changes the log filter at runtime.
#[derive(Clone, Debug)]
pub(crate) struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Replaces the log filter.
    ///
    /// # Errors
    /// If `level` is not a valid tracing filter.
    pub(crate) fn set_level(&self, level: &str) -> Result<(), ParseError> {
        let filter = EnvFilter::try_new(level)?;
        // Fails only if the subscriber was dropped, and then nothing is logged.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// The subscriber that writes to the log of `audit`.
///
/// # Errors
/// If `level` is not a valid tracing filter.
pub(crate) fn subscriber(audit: &Audit, level: &str) -> Result<(impl Subscriber + Send + Sync, LogHandle), ParseError> {
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
        let mut line = Line::new();
        match self.0 {
            LineFormat::Json => {
                write!(line, "{{\"ts\":\"{now}\",\"level\":\"{}\"", metadata.level())?;
                line.json_field("target", &metadata.target().into());
                line.json_field("message", &fields.message.into());
                for (key, value) in fields.others {
                    line.json_field(key, &value.into());
                }
                write!(line, "}}")?;
            }
            LineFormat::Text => {
                write!(line, "{now} {:>5} ", metadata.level().as_str())?;
                line.message(&fields.message);
                for (key, value) in fields.others {
                    line.text_field(key, &value.into());
                }
            }
        }
        out.write_str(&line.end())
    }
}

/// The escaped text of a tracing event. The message may take a whole line.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, &format_args!("{value:?}"));
    }
}

impl Fields {
    fn record(&mut self, field: &Field, value: &dyn fmt::Display) {
        if field.name() == "message" {
            self.message = printable::cut(value, MAX_LINE);
        } else {
            self.others.push((field.name(), printable::field(value)));
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

/// tracing-subscriber passes one whole event at a time.
impl io::Write for ToSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
