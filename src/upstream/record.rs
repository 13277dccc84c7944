//! What becomes known of a place while it is dialled: noted, and logged where it is news.

use tracing::{info, warn};

use crate::upstream::Upstream;
use crate::upstream::dial::EndpointError;
use crate::upstream::endpoint::Whereabouts;

/// Notes that a place has answered as it should, and says so where that is news.
pub(crate) fn note_answer(place: &Whereabouts, upstream: &Upstream) {
    if place.answers() {
        log_answer(place, upstream);
    }
}

/// Notes why a place will not do, and says so where that is news; `several` where there are others to try.
pub(crate) fn note_unfit(place: &Whereabouts, upstream: &Upstream, endpoint_error: &EndpointError, several: bool) {
    let EndpointError { words, answers, is_local, .. } = endpoint_error;
    if *is_local {
        place.is_not_dialled(words);
    } else if *answers {
        if place.is_unsuitable(words) {
            log_answer(place, upstream);
        }
    } else if place.is_silent(words) {
        if several {
            warn!(listener = %upstream.listener, upstream = %place, error = %words, "upstream ejected");
        } else {
            warn!(listener = %upstream.listener, upstream = %place, error = %words, "upstream unhealthy");
        }
    }
}

/// Notes whether a place takes writes, and says so where that is news.
pub(crate) fn note_role(place: &Whereabouts, upstream: &Upstream, writes: bool) {
    if place.takes_writes(writes) {
        let role = if writes { "primary" } else { "replica" };
        info!(listener = %upstream.listener, upstream = %place, role, "upstream role changed");
    }
}

/// Notes why a place that was asked again will not do.
pub(crate) fn note_still_unfit(place: &Whereabouts, upstream: &Upstream, endpoint_error: &EndpointError) {
    match endpoint_error {
        // It is there, if not what everybody wants.
        EndpointError { answers: true, .. } => note_unfit(place, upstream, endpoint_error, true),
        EndpointError { words, is_local: true, .. } => place.is_not_dialled_again(words),
        EndpointError { words, .. } => place.is_silent_still(words),
    }
}

fn log_answer(place: &Whereabouts, upstream: &Upstream) {
    info!(listener = %upstream.listener, upstream = %place, "upstream recovered");
}
