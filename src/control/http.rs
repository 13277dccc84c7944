//! Serves one HTTP request per connection. Each step has a size limit and a timeout.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::control::access::Peer;
use crate::control::clients::Identified;
use crate::control::encoding::Tail;
use crate::control::exchange::Exchange;
use crate::control::shared::Shared;

/// Serves one client. Errors of the connection are ignored: the client has disconnected or does not speak HTTP.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: Peer,
    identified: Identified,
    shared: &Arc<Shared>,
) {
    let tail = SetOnce::new();
    let service = service_fn(|request| {
        let answer = Exchange::new(peer, identified.clone(), Arc::clone(shared)).answer(request);
        async {
            let mut response = answer.await;
            if let Some(kept) = response.extensions_mut().remove::<Tail>() {
                // A connection has one response.
                let _ = tail.set(kept);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        // An idle client would occupy one of the few connections.
        .keep_alive(false)
        // A client may end its direction after the request.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let end = Instant::now() + CONNECTION_TIMEOUT;
    let ended = async {
        match timeout_at(end, tail.wait()).await {
            Ok(Tail::Events(follower)) => follower.ended().await,
            Ok(Tail::Memory(_)) => sleep_until(end).await,
            Err(_) => {}
        }
    };
    tokio::select! {
        _ = connection => {}
        () = ended => {}
    }
}

/// From accept to the end of the request head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole connection, including the time in which the client reads the response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

/// Bytes.
const MAX_HEAD: usize = 16 << 10;
