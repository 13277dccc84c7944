//! Audit events as server-sent events (WHATWG HTML, "Server-sent events").

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{sleep, timeout};

use crate::audit::recent::EventReader;
use crate::audit::recent::{Batch, RecordedEvent};
use crate::control::access::Caller;
use crate::control::shared::{ResponseBody, Shared};

/// Knows when a connection that follows events has to end.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    shared: Arc<Shared>,
    caller: Option<Caller>,
    /// Notified whenever more events fit into the buffers of the connection.
    progress: Arc<Notify>,
}

struct Stream {
    events: EventReader,
    follower: Follower,
    _permit: OwnedSemaphorePermit,
}

/// The body that sends events until the client disconnects, its token ends, or the program stops.
pub(crate) fn body(events: EventReader, follower: Follower, permit: OwnedSemaphorePermit) -> ResponseBody {
    let stream = Stream { events, follower, _permit: permit };
    let frames = stream::unfold(stream, |mut stream| async move {
        let text = stream.next().await?;
        Some((Ok(Frame::data(Bytes::from(text))), stream))
    });
    StreamBody::new(frames).boxed_unsync()
}

impl Follower {
    pub(crate) fn new(shared: Arc<Shared>, caller: Option<Caller>) -> Self {
        Self { shared, caller, progress: Arc::default() }
    }

    /// Returns when the connection has to be closed although its client does not read: it would keep its place among
    /// the followers, also after its token has ended.
    pub(crate) async fn ended(&self) {
        let stalled = async { while timeout(STALL_TIMEOUT, self.progress.notified()).await.is_ok() {} };
        tokio::select! {
            () = stalled => {}
            // The body ends by itself if the client reads.
            () = async { self.over().await; sleep(END_TIMEOUT).await } => {}
        }
    }

    /// Returns when the token of the caller has ended, or the program stops.
    async fn over(&self) {
        let Self { shared, caller, .. } = self;
        let token_ended = async {
            match caller {
                Some(caller) => shared.access.ended(caller).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.requests.closed() => {}
            () = token_ended => {}
        }
    }
}

impl Stream {
    /// The next events, or a comment that shows a client and the proxies before it that the stream is alive. `None` at the end.
    async fn next(&mut self) -> Option<String> {
        let Self { events, follower, .. } = self;
        follower.progress.notify_one();
        tokio::select! {
            () = follower.over() => None,
            batch = timeout(KEEP_ALIVE, events.next()) => match batch {
                Ok(batch) => batch.map(|batch| to_text(&batch)),
                Err(_) => Some(": keep-alive\n\n".to_owned()),
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

/// A client for which no more events fit into the buffers for this long is disconnected. Several times [`KEEP_ALIVE`].
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// From the end of a token to the end of a connection whose client does not read.
const END_TIMEOUT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::audit::recent::EventFilter;
    use crate::audit::{Audit, LineFormat};
    use crate::control::access::Peer;
    use crate::control::clients::Identified;
    use crate::control::http;
    use crate::control::response::AdminResponse;
    use crate::control::shared::MAX_STREAMS;
    use crate::token::fixtures::token;

    /// Serves a follower that reads nothing, and returns when its connection was closed. `end` runs once it follows.
    async fn closed_after(end: impl FnOnce(&Shared)) -> Duration {
        let (requests, mut received) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(requests, Audit::start(LineFormat::Text, None), Arc::default()));
        shared.access.set_tokens(&Arc::new(vec![token("tail", "text")]));
        let (mut client, server) = tokio::io::duplex(64);
        let mut serving = JoinSet::new();
        let (addr, served) = (ClientAddr::from_ip([127, 0, 0, 1].into()), Arc::clone(&shared));
        let peer = Peer { addr, is_tls: false };
        serving.spawn(async move { http::serve(server, peer, Identified::default(), &served).await });
        let request = b"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer text\r\n\r\n";
        client.write_all(request).await.unwrap();
        let pending = received.recv().await.unwrap();
        let events = shared.audit.recent_events().reader(0, EventFilter::default());
        pending.reply.send(AdminResponse::events(events)).unwrap();
        while shared.streams.available_permits() == MAX_STREAMS {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        end(&shared);
        serving.join_next().await.unwrap().unwrap();
        drop(client);
        assert_eq!(shared.streams.available_permits(), MAX_STREAMS);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn follower_that_does_not_read_is_disconnected() {
        let elapsed = closed_after(|_| {}).await;
        // hyper holds up to sixteen parts of a body.
        let longest = STALL_TIMEOUT + KEEP_ALIVE * 20;
        assert!((STALL_TIMEOUT..longest).contains(&elapsed), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn follower_that_does_not_read_ends_with_its_token() {
        let elapsed = closed_after(|shared| shared.access.set_tokens(&Arc::default())).await;
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn follower_ends_when_its_token_may_no_longer_be_used_from_its_source() {
        let elsewhere = crate::token::Token { sources: vec!["192.0.2.0/24".parse().unwrap()], ..token("tail", "text") };
        let elapsed = closed_after(|shared| shared.access.set_tokens(&Arc::new(vec![elsewhere]))).await;
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
    }
}
