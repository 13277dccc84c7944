//! TODO

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
