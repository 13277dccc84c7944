//! `[listener.limits]`.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::Limits;
use crate::config::document::Section;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_connections_per_source: None,
            max_handshakes: None,
            connection_rate_per_source: None,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            half_close_timeout: Duration::from_secs(300),
            dead_peer_timeout: Duration::from_secs(300),
        }
    }
}

pub(crate) fn limits(section: Option<Section<'_>>) -> Limits {
    let mut limits = Limits::default();
    let Some(section) = section else { return limits };
    limits.max_connections = section.get("max_connections").and_then(|node| node.limit(NONE)).and_then(NonZeroU32::new);
    let per_source = section.get("max_connections_per_source").and_then(|node| node.limit(NONE));
    limits.max_connections_per_source = per_source.and_then(NonZeroU32::new);
    let handshakes = section.get("max_handshakes").and_then(|node| node.limit("the built-in limit"));
    limits.max_handshakes = handshakes.and_then(NonZeroU32::new);
    limits.connection_rate_per_source = section.get("connection_rate_per_source").and_then(|node| node.rate());
    if let Some(timeout) = section.get("handshake_timeout").and_then(|node| node.positive_duration()) {
        limits.handshake_timeout = timeout;
    }
    if let Some(timeout) = section.get("idle_timeout").and_then(|node| node.duration_or_never()) {
        limits.idle_timeout = timeout;
    }
    if let Some(timeout) = section.get("half_close_timeout").and_then(|node| node.positive_duration()) {
        limits.half_close_timeout = timeout;
    }
    if let Some(timeout) = section.get("dead_peer_timeout").and_then(|node| node.positive_duration()) {
        limits.dead_peer_timeout = timeout;
    }
    section.finish();
    limits
}

const NONE: &str = "no limit";
