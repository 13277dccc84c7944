//! Lets upstream nodes back in that were ejected: each is asked again and again whether it answers, until it does or nobody
//! wants it any more.
//!
//! There is nothing to do here as long as all of them answer. How long one is left alone between two questions is up to
//! [`Endpoints`](crate::upstream::endpoint::Endpoints), which also sees to it that each is asked by one at a time.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::fault;
use crate::upstream::Upstream;
use crate::upstream::probe::probe;

/// Looks after the nodes of the upstreams in use until nobody names them any more.
pub(crate) async fn run(mut current: watch::Receiver<Vec<Arc<Upstream>>>) {
    let endpoints = Arc::new(Semaphore::new(MOST_PROBES));
    let mut probes = JoinSet::new();
    loop {
        let upstreams = current.borrow_and_update().clone();
        probe_those_due(&upstreams, &endpoints, &mut probes);
        let due = upstreams.iter().filter_map(|upstream| upstream.endpoints.next_due()).min();
        tokio::select! {
            changed = current.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = one_is_ejected(&upstreams) => {}
            // It knows by now when it is to be asked again.
            Some(_) = probes.join_next() => {}
            () = sleep_until(due.unwrap_or_else(std::time::Instant::now).into()), if due.is_some() => {}
        }
    }
}

fn probe_those_due(upstreams: &[Arc<Upstream>], endpoints: &Arc<Semaphore>, probes: &mut JoinSet<()>) {
    let now = Instant::now().into_std();
    for upstream in upstreams {
        for endpoint in upstream.endpoints.take_pending(now) {
            let (upstream, endpoints) = (Arc::clone(upstream), Arc::clone(endpoints));
            probes.spawn(async move {
                let _permit = endpoints.acquire().await;
                if let Err(fault) = fault::contained(PART, probe(&endpoint, &upstream)).await {
                    // Only who was told to ask can say when to ask again.
                    endpoint.record_probe_failure(&fault.to_string());
                }
            });
        }
    }
}

/// Returns when a node of any listener is ejected.
async fn one_is_ejected(upstreams: &[Arc<Upstream>]) {
    let mut ejections: Vec<_> = upstreams.iter().map(|upstream| Box::pin(upstream.endpoints.ejected())).collect();
    poll_fn(move |cx| {
        let is_one = ejections.iter_mut().any(|ejection| ejection.as_mut().poll(cx).is_ready());
        if is_one { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What its faults are noted under.
pub(crate) const PART: &str = "upstream health checks";

/// How many are asked at once: a network that is gone takes all nodes of all listeners along.
const MOST_PROBES: usize = 16;
