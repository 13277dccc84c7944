//! The phases of a connection, one file each. `proxy/mod.rs` calls them in order.
//!
//! Two files belong to no phase: `proxy_header` runs before the preface of a connection from a load balancer, and `cancel`
//! takes the place of the phases after startup for a CancelRequest.

pub(crate) mod authenticate;
pub(crate) mod authorize;
pub(crate) mod cancel;
pub(crate) mod close;
pub(crate) mod dial;
pub(crate) mod handshake;
pub(crate) mod limit;
pub(crate) mod preface;
pub(crate) mod proxy_header;
pub(crate) mod reauthorize;
pub(crate) mod select;
pub(crate) mod startup;
