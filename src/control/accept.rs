//! The loop behind the socket: a few callers at a time, the others wait their turn in the kernel.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use crate::control::{PART, Request, http};
use crate::fault;
use crate::fault::Backoff;

/// Accepts until `stopped`, and returns once every caller has its answer. After a fault it is resumed with the same socket.
pub(crate) async fn keep_accepting(
    listener: Arc<UnixListener>,
    mut stopped: watch::Receiver<()>,
    requests: mpsc::Sender<Request>,
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

async fn accept(listener: Arc<UnixListener>, stopped: &mut watch::Receiver<()>, requests: &mpsc::Sender<Request>) {
    let mut callers = JoinSet::new();
    let mut complained = false;
    loop {
        tokio::select! {
            // Only a dropped sender ends the wait.
            _ = stopped.changed() => break,
            Some(_) = callers.join_next() => {}
            accepted = listener.accept(), if callers.len() < MOST_AT_A_TIME => match accepted {
                Ok((stream, _)) => {
                    complained = false;
                    callers.spawn(fault::contained(PART, http::serve(stream, requests.clone())));
                }
                Err(error) => {
                    if !complained {
                        warn!(%error, "admin socket: accept failed, retrying (further errors are not logged)");
                    }
                    complained = true;
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while callers.join_next().await.is_some() {}
}

/// More than there are operators, and few enough that slow ones are nobody's burden.
pub(crate) const MOST_AT_A_TIME: usize = 16;

/// When the system is out of something, most often file descriptors.
const PAUSE: Duration = Duration::from_millis(250);
