//! Audit events as server-sent events (WHATWG HTML, "Server-sent events").

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::audit::recent::EventReader;
use crate::audit::recent::{Batch, RecordedEvent};
use crate::control::access::Caller;
use crate::control::http::{ResponseBody, Shared};

/// Marks a response whose body does not end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marker;

struct Stream {
    events: EventReader,
    shared: Arc<Shared>,
    caller: Option<Caller>,
    _permit: OwnedSemaphorePermit,
}

/// The body that sends events until the client disconnects, its token ends, or the program stops.
pub(crate) fn body(
    events: EventReader,
    shared: Arc<Shared>,
    caller: Option<Caller>,
    permit: OwnedSemaphorePermit,
) -> ResponseBody {
    let stream = Stream { events, shared, caller, _permit: permit };
    let frames = stream::unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok(Frame::data(Bytes::from(text))), stream))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Stream {
    /// The next events, or a comment that shows a client and the proxies before it that the stream is alive.
    async fn next(&mut self) -> Option<String> {
        let Self { events, shared, caller, .. } = self;
        let ended = async {
            tokio::select! {
                () = shared.requests.closed() => {}
                () = async {
                    match caller {
                        Some(caller) => shared.access.ended(caller).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        };
        tokio::select! {
            () = ended => None,
            batch = timeout(KEEP_ALIVE, events.next()) => {
                Some(batch.map_or_else(|_| ": keep-alive\n\n".to_owned(), |batch| to_text(&batch)))
            }
        }
    }
}

fn to_text(batch: &Batch) -> String {
    let Batch { lost, events } = batch;
    let mut text = String::new();
    if *lost > 0 {
        text += &format!("event: lost\ndata: {{\"lost\":{lost}}}\n\n");
    }
    for RecordedEvent { name, json, .. } in events.iter().map(|event| &**event) {
        // A line of JSON contains no line break.
        text += &format!("event: {name}\ndata: {json}\n\n");
    }
    text
}

/// Shorter than the idle timeouts of usual proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
