//! `portcullis events`: recent audit events, and with `--follow` those that happen.

use std::io::{self, Write as _};
use std::ops::ControlFlow;

use clap::Args;
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::http::with_query;
use crate::cli::client::http::{Call, OpenResponse};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::listeners::require_listener;
use crate::cli::client::server_events::{EventParser, ServerEvent};
use crate::cli::{Failure, escaped, hint};
use crate::printable;

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    running: Running,
    /// Continue with the events that happen, until the command is interrupted
    #[arg(long)]
    follow: bool,
    /// Only the events of this listener
    #[arg(long, value_name = "LISTENER")]
    listener: Option<String>,
    /// Only the events of this name, such as connection.denied
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn events(args: &EventsArgs) -> Result<(), Failure> {
    let client = AdminClient::find(&args.running)?;
    if let Some(listener) = &args.listener {
        require_listener(listener, &client)?;
    }
    let recent = RECENT.to_string();
    let parameters = [
        ("recent", Some(recent.as_str())),
        ("follow", (!args.follow).then_some("false")),
        ("listener", args.listener.as_deref()),
        ("event", args.event.as_deref()),
    ];
    client.block_on(async {
        let failed = |error: io::Error| Failure::Failed(error.to_string());
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let response = client.open(Call::get(&with_query("/v1/events", &parameters))).await?;
        tokio::select! {
            result = copy(&client, response, args) => result,
            _ = interrupted.recv() => Ok(()),
            () = output_closed() => Ok(()),
        }
    })
}

/// Prints events until the response or the output ends.
async fn copy(client: &AdminClient, mut response: OpenResponse, args: &EventsArgs) -> Result<(), Failure> {
    let mut parser = EventParser::default();
    loop {
        let piece = match response.next().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(client.broken(&error)),
            None if args.follow => return Err(client.failure(ENDED)),
            None => return Ok(()),
        };
        for event in parser.push(&piece).map_err(|error| client.failure(error))? {
            if show(&event, args.json)?.is_break() {
                return Ok(());
            }
        }
    }
}

/// Prints an event. Breaks if standard output is closed.
fn show(event: &ServerEvent, as_json: bool) -> Result<ControlFlow<()>, Failure> {
    let Ok(body) = serde_json::from_str::<Value>(&event.data) else { return Ok(ControlFlow::Continue(())) };
    if event.name == LOST {
        let lost = JsonView(&body).number("lost");
        hint(&format!(
            "{lost} events are missing here: they came faster than this command read; the audit file has them"
        ));
        return Ok(ControlFlow::Continue(()));
    }
    let line = if as_json { format!("{}\n", escaped(&body)) } else { to_line(&body) };
    let mut out = io::stdout().lock();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::Failed(format!("cannot write to standard output: {error}"))),
    }
}

/// `2026-11-30T14:05:00.123Z connection.denied listener=cache reason=untrusted_source …`, without absent fields.
fn to_line(event: &Value) -> String {
    let view = JsonView(event);
    let mut line = format!("{} {}", view.text_or_dash("ts"), view.text_or_dash("event"));
    let fields = || event.as_object().into_iter().flatten();
    let leading = fields().filter(|(key, _)| *key == "listener");
    let others = fields().filter(|(key, _)| !["ts", "event", "listener"].contains(&key.as_str()));
    for (key, value) in leading.chain(others) {
        let text = match value {
            Value::Null => continue,
            Value::String(text) if is_word(text) => text.clone(),
            other => escaped(other).to_string(),
        };
        line.push_str(&format!(" {}={text}", printable::quoted(key)));
    }
    line.push('\n');
    line
}

/// Whether a text needs no quotes.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\=".contains(&byte))
}

/// Completes when the reader of standard output has closed it; never for a file, which has no reader.
async fn output_closed() {
    #[allow(
        deprecated,
        reason = "unsound only for types that close their descriptor early; standard output stays open"
    )]
    let output = AsyncFd::with_interest(io::stdout(), Interest::ERROR);
    let Ok(output) = output else { return std::future::pending().await };
    if output.ready(Interest::ERROR).await.is_err() {
        std::future::pending().await
    }
}

/// Past events that come first.
const RECENT: usize = 100;

/// The name of the event that reports missing ones.
const LOST: &str = "lost";

const ENDED: &str = "the program has ended the stream: it is stopping, or the token is no longer valid";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn event_is_one_line_with_quoted_texts() {
        let event = json!({
            "ts": "2026-11-30T14:05:00.123Z", "event": "connection.denied", "source": "10.0.0.5", "listener": "cache",
            "client_subject": "CN=a b\u{1b}\n", "rule": null, "bytes_in": 0, "names": ["a", "b"],
        });
        let expected = "2026-11-30T14:05:00.123Z connection.denied listener=cache bytes_in=0 \
                        client_subject=\"CN=a b\\\\u{1b}\\n\" names=[\"a\",\"b\"] source=10.0.0.5\n";
        assert_eq!(to_line(&event), expected);
    }
}
