//! The phases of a connection, one file each. `proxy/mod.rs` calls them in order; each takes the value of the one before.

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
