//! What becomes known of a place while it is dialled: noted, and logged where it is news.

use tracing::{info, warn};

use crate::upstream::Upstream;
use crate::upstream::dial::EndpointError;
use crate::upstream::endpoint::Endpoint;

/// Notes that a place has answered as it should, and says so where that is news.
pub(crate) fn record_healthy(endpoint: &Endpoint, upstream: &Upstream) {
    if endpoint.mark_healthy() {
        log_recovered(endpoint, upstream);
    }
}

/// Notes why a place will not do, and says so where that is news; `several` where there are others to try.
pub(crate) fn record_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError, several: bool) {
    let EndpointError { words, is_healthy, is_local, .. } = endpoint_error;
    if *is_local {
        endpoint.record_local_failure(words);
    } else if *is_healthy {
        if endpoint.mark_unsuitable(words) {
            log_recovered(endpoint, upstream);
        }
    } else if endpoint.eject(words) {
        if several {
            warn!(listener = %upstream.listener, upstream = %endpoint, error = %words, "upstream ejected");
        } else {
            warn!(listener = %upstream.listener, upstream = %endpoint, error = %words, "upstream unhealthy");
        }
    }
}

/// Notes whether a place takes writes, and says so where that is news.
pub(crate) fn record_role(endpoint: &Endpoint, upstream: &Upstream, writes: bool) {
    if endpoint.set_role(writes) {
        let role = if writes { "primary" } else { "replica" };
        info!(listener = %upstream.listener, upstream = %endpoint, role, "upstream role changed");
    }
}

/// Notes why a place that was asked again will not do.
pub(crate) fn record_probe_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError) {
    match endpoint_error {
        // It is there, if not what everybody wants.
        EndpointError { is_healthy: true, .. } => record_failure(endpoint, upstream, endpoint_error, true),
        EndpointError { words, is_local: true, .. } => endpoint.record_local_probe_failure(words),
        EndpointError { words, .. } => endpoint.record_probe_failure(words),
    }
}

fn log_recovered(endpoint: &Endpoint, upstream: &Upstream) {
    info!(listener = %upstream.listener, upstream = %endpoint, "upstream recovered");
}
