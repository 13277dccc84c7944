//! Probes ejected endpoints until they are healthy again or no longer configured.
//!
//! No probe runs while all endpoints are healthy. [`Health`](crate::upstream::endpoint::health::Health) sets the interval of
//! the probes and ensures that at most one probe of an endpoint runs at a time. [`probe`](crate::upstream::probe::probe) does
//! one.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::fault;
use crate::upstream::Upstream;
use crate::upstream::probe::probe;

/// Probes the endpoints of the upstreams in `current` until its sender is dropped.
pub(crate) async fn run(mut current: watch::Receiver<Vec<Arc<Upstream>>>) {
    let permits = Arc::new(Semaphore::new(MAX_PROBES));
    let mut probes = JoinSet::new();
    loop {
        let upstreams = current.borrow_and_update().clone();
        start_due_probes(&upstreams, &permits, &mut probes);
        let due = upstreams.iter().filter_map(|upstream| upstream.endpoints.next_due()).min();
        tokio::select! {
            changed = current.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = any_ejected(&upstreams) => {}
            // A finished probe has set the time of the next one.
            Some(_) = probes.join_next() => {}
            () = sleep_until(due.unwrap_or_else(std::time::Instant::now).into()), if due.is_some() => {}
        }
    }
}

fn start_due_probes(upstreams: &[Arc<Upstream>], permits: &Arc<Semaphore>, probes: &mut JoinSet<()>) {
    let now = Instant::now().into_std();
    for upstream in upstreams {
        for endpoint in upstream.endpoints.take_due(now) {
            let (upstream, permits) = (Arc::clone(upstream), Arc::clone(permits));
            probes.spawn(async move {
                let _permit = permits.acquire().await;
                if let Err(fault) = fault::contained(PART, probe(&endpoint, &upstream)).await {
                    // Without a result, the endpoint would never be probed again.
                    endpoint.record_probe_failure(&fault.to_string());
                }
            });
        }
    }
}

/// Returns when an endpoint of any listener is ejected.
async fn any_ejected(upstreams: &[Arc<Upstream>]) {
    let mut ejections: Vec<_> = upstreams.iter().map(|upstream| Box::pin(upstream.endpoints.ejected())).collect();
    poll_fn(move |cx| {
        let any = ejections.iter_mut().any(|ejection| ejection.as_mut().poll(cx).is_ready());
        if any { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// The name under which faults of health checks are counted.
pub(crate) const PART: &str = "upstream health checks";

/// Concurrent probes. A network failure ejects the endpoints of all listeners at once.
const MAX_PROBES: usize = 16;
