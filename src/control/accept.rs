//! The accept loop of the admin socket. A limited number of clients is served; the others wait in the kernel backlog.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use crate::control::{PART, PendingRequest, http};
use crate::fault;
use crate::fault::Backoff;

/// Accepts until the sender of `stopped` is dropped, then returns once every client has its response.
///
/// After a panic, the loop is resumed with the same socket.
pub(crate) async fn keep_accepting(
    listener: Arc<UnixListener>,
    mut stopped: watch::Receiver<()>,
    requests: mpsc::Sender<PendingRequest>,
) {
    let mut backoff = Backoff::default();
    loop {
        let accepting = accept(Arc::clone(&listener), &mut stopped, &requests);
        if fault::contained(PART, accepting).await.is_ok() || stopped.has_changed().is_err() {
            return;
        }
        sleep(backoff.pause()).await;
    }
}

async fn accept(
    listener: Arc<UnixListener>,
    stopped: &mut watch::Receiver<()>,
    requests: &mpsc::Sender<PendingRequest>,
) {
    let mut clients = JoinSet::new();
    let mut is_failing = false;
    loop {
        tokio::select! {
            // Completes only when the sender is dropped.
            _ = stopped.changed() => break,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, _)) => {
                    is_failing = false;
                    clients.spawn(fault::contained(PART, http::serve(stream, requests.clone())));
                }
                Err(error) => {
                    if !is_failing {
                        warn!(%error, "admin socket: accept failed, retrying (further errors are not logged)");
                    }
                    is_failing = true;
                    sleep(RETRY_DELAY).await;
                }
            },
        }
    }
    drop(listener);
    while clients.join_next().await.is_some() {}
}

/// Concurrent clients. More than there are operators, and few enough to bound the cost of slow ones.
pub(crate) const MAX_CLIENTS: usize = 16;

/// Delay after an accept error; the usual cause is a lack of file descriptors.
const RETRY_DELAY: Duration = Duration::from_millis(250);
