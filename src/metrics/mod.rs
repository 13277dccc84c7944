//! What happens, counted for Prometheus. Recording costs a relaxed addition, and a short lock once for each handshake.
//!
//! The parts of the program record into [`listener`] and [`process`]. [`exposition`] reads them, and the rest of the state, when
//! a scrape arrives. docs/METRICS.md is the reference; it is generated from [`exposition::catalog`].

pub(crate) mod exposition;
pub(crate) mod listener;
pub(crate) mod process;
pub(crate) mod relayed;
