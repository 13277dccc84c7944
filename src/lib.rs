//! Portcullis: a TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.

pub mod addr;
pub mod audit;
pub mod cli;
pub mod config;
pub mod connection;
pub mod expiry;
pub mod listener;
pub mod notify;
pub mod outcome;
pub mod policy;
pub mod protocol;
pub mod reload;
pub mod server;
pub mod sessions;
pub mod signals;
pub mod snapshot;
pub mod timestamp;
pub mod tls;
pub mod watcher;
