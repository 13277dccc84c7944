//! Portcullis: a TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.

pub mod addr;
pub mod audit;
pub mod config;
pub mod connection;
pub mod outcome;
pub mod policy;
pub mod protocol;
pub mod sessions;
pub mod snapshot;
pub mod tls;
