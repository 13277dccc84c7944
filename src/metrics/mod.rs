//! What happens, counted for Prometheus. Recording costs a relaxed addition, and a short lock once for each handshake.

pub(crate) mod listener;
pub(crate) mod process;
pub(crate) mod relayed;
