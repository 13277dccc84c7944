//! Checks whether an ejected endpoint is healthy again.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Upstream;
use crate::upstream::connect::resolve;
use crate::upstream::dial::{dial_failed, dial_for_probe};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::proxy_header;
use crate::upstream::record::{record_failure, record_healthy, record_probe_failure};

/// Dials an ejected endpoint, or resolves a name that did not resolve, and records the result. If the name resolves to other
/// addresses now, those that were never dialed are dialed.
pub(crate) async fn probe(endpoint: &Endpoint, upstream: &Upstream) {
    let deadline = Instant::now() + upstream.settings.connect_timeout;
    let endpoints = match resolve(&endpoint.configured, upstream, deadline, false).await {
        Ok(endpoints) => endpoints,
        Err(error) => return record_probe_failure(endpoint, upstream, &dial_failed(error)),
    };
    let header = proxy_header::own_header(upstream);
    if !endpoint.is_name() && endpoint.is_known() {
        return match dial_for_probe(endpoint, upstream, &header, deadline).await {
            Ok(()) => record_healthy(endpoint, upstream),
            Err(endpoint_error) => record_probe_failure(endpoint, upstream, &endpoint_error),
        };
    }
    if endpoint.is_name() {
        record_healthy(endpoint, upstream);
    }
    for unknown in endpoints.iter().filter(|endpoint| endpoint.is_undialed()) {
        let deadline = Instant::now() + share(upstream.settings.connect_timeout, endpoints.len());
        match dial_for_probe(unknown, upstream, &header, deadline).await {
            Ok(()) => record_healthy(unknown, upstream),
            Err(endpoint_error) => record_failure(unknown, upstream, &endpoint_error, upstream.endpoints.has_several()),
        }
    }
}

/// Divides a time among several endpoints.
pub(crate) fn share(time: Duration, endpoints: usize) -> Duration {
    time / u32::try_from(endpoints).unwrap_or(u32::MAX).max(1)
}
