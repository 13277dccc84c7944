//! Records the result of a dial in the endpoint's status, and logs each change.

use tracing::{info, warn};

use crate::upstream::Upstream;
use crate::upstream::dial::{EndpointError, EndpointFault};
use crate::upstream::endpoint::Endpoint;

/// Marks the endpoint healthy. Logs a recovery.
pub(crate) fn record_healthy(endpoint: &Endpoint, upstream: &Upstream) {
    if endpoint.mark_healthy() {
        log_recovered(endpoint, upstream);
    }
}

/// Records why an endpoint cannot serve a session, and logs a change. This is the rule that ejects endpoints.
///
/// `several` only chooses the log message: without another endpoint to try first, an ejection changes no order.
pub(crate) fn record_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError, several: bool) {
    let detail = &endpoint_error.detail;
    match endpoint_error.fault {
        EndpointFault::LocalShortage => endpoint.record_local_failure(detail),
        EndpointFault::Unsuitable => record_unsuitable(endpoint, upstream, detail),
        EndpointFault::Failed => {
            if endpoint.eject(detail) {
                log_ejected(endpoint, upstream, detail, several);
            }
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

/// Records why a probe of an ejected endpoint has failed.
pub(crate) fn record_probe_failure(endpoint: &Endpoint, upstream: &Upstream, endpoint_error: &EndpointError) {
    let detail = &endpoint_error.detail;
    match endpoint_error.fault {
        EndpointFault::LocalShortage => endpoint.record_local_probe_failure(detail),
        EndpointFault::Unsuitable => record_unsuitable(endpoint, upstream, detail),
        EndpointFault::Failed => endpoint.record_probe_failure(detail),
    }
}

/// The endpoint responds, so it is no longer ejected.
fn record_unsuitable(endpoint: &Endpoint, upstream: &Upstream, detail: &str) {
    if endpoint.mark_unsuitable(detail) {
        log_recovered(endpoint, upstream);
    }
}

fn log_ejected(endpoint: &Endpoint, upstream: &Upstream, detail: &str, several: bool) {
    if several {
        warn!(listener = %upstream.listener, upstream = %endpoint, error = %detail, "upstream ejected");
    } else {
        warn!(listener = %upstream.listener, upstream = %endpoint, error = %detail, "upstream unhealthy");
    }
}

fn log_recovered(endpoint: &Endpoint, upstream: &Upstream) {
    info!(listener = %upstream.listener, upstream = %endpoint, "upstream recovered");
}
