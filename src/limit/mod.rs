//! Limits: sessions, handshakes and connection rates, for each listener and each source.

pub(crate) mod attempts;
pub(crate) mod gcra;
pub(crate) mod handshakes;
pub(crate) mod rate;
pub(crate) mod rate_limiter;
pub(crate) mod sessions;
pub(crate) mod table;
