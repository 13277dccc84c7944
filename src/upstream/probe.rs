//! Whether a place that did not answer does so again.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Upstream;
use crate::upstream::connect::resolve;
use crate::upstream::dial::{reach, silent};
use crate::upstream::endpoint::Whereabouts;
use crate::upstream::proxy_header;
use crate::upstream::record::{note_answer, note_still_unfit, note_unfit};

/// Finds out whether a place that did not answer does so again, or a name that did not resolve. Where the name leads to other
/// places by now, whether those answer that nobody has dialled yet.
pub async fn probe(place: &Whereabouts, upstream: &Upstream) {
    let deadline = Instant::now() + upstream.settings.connect_timeout;
    let places = match resolve(&place.node, upstream, deadline, false).await {
        Ok(places) => places,
        Err(error) => return note_still_unfit(place, upstream, &silent(error)),
    };
    let header = proxy_header::own(upstream);
    if !place.is_name() && place.is_known() {
        return match reach::probe(place, upstream, &header, deadline).await {
            Ok(()) => note_answer(place, upstream),
            Err(endpoint_error) => note_still_unfit(place, upstream, &endpoint_error),
        };
    }
    if place.is_name() {
        note_answer(place, upstream);
    }
    for unknown in places.iter().filter(|place| place.is_unknown()) {
        let deadline = Instant::now() + share(upstream.settings.connect_timeout, places.len());
        match reach::probe(unknown, upstream, &header, deadline).await {
            Ok(()) => note_answer(unknown, upstream),
            Err(endpoint_error) => note_unfit(unknown, upstream, &endpoint_error, upstream.nodes.has_several()),
        }
    }
}

/// Its part of a time that several places share.
pub(crate) fn share(time: Duration, places: usize) -> Duration {
    time / u32::try_from(places).unwrap_or(u32::MAX).max(1)
}
