//! Records the result of a dial in the endpoint's status, and logs each change.

use tracing::{info, warn};

use crate::upstream::Upstream;
use crate::upstream::dial::EndpointError;
use crate::upstream::endpoint::Endpoint;

/// Marks the endpoint healthy. Logs a recovery.
pub(crate) fn record_healthy(endpoint: &Endpoint, upstream: &Upstream) {
    if endpoint.mark_healthy() {
        log_recovered(endpoint, upstream);
    }
}

/// Records why an endpoint cannot serve a session, and logs a change. `several` says whether other endpoints exist.
pub(crate) fn record_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError, several: bool) {
    let EndpointError { detail, is_healthy, is_local, .. } = endpoint_error;
    if *is_local {
        endpoint.record_local_failure(detail);
    } else if *is_healthy {
        if endpoint.mark_unsuitable(detail) {
            log_recovered(endpoint, upstream);
        }
    } else if endpoint.eject(detail) {
        if several {
            warn!(listener = %upstream.listener, upstream = %endpoint, error = %detail, "upstream ejected");
        } else {
            warn!(listener = %upstream.listener, upstream = %endpoint, error = %detail, "upstream unhealthy");
        }
    }
}

/// Records the role of an endpoint, and logs a change.
pub(crate) fn record_role(endpoint: &Endpoint, upstream: &Upstream, is_primary: bool) {
    if endpoint.set_role(is_primary) {
        let role = if is_primary { "primary" } else { "replica" };
        info!(listener = %upstream.listener, upstream = %endpoint, role, "upstream role changed");
    }
}

/// Records why a probe has failed.
pub(crate) fn record_probe_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError) {
    match endpoint_error {
        // The endpoint responds, so it is no longer ejected.
        EndpointError { is_healthy: true, .. } => record_failure(endpoint, upstream, endpoint_error, true),
        EndpointError { detail, is_local: true, .. } => endpoint.record_local_probe_failure(detail),
        EndpointError { detail, .. } => endpoint.record_probe_failure(detail),
    }
}

fn log_recovered(endpoint: &Endpoint, upstream: &Upstream) {
    info!(listener = %upstream.listener, upstream = %endpoint, "upstream recovered");
}
