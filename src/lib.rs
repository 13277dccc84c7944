//! Portcullis: a TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.
//!
//! Nothing reaches the database unless it comes from a trusted source, over TLS, with a credential that is still good.
//!
//! ```text
//! accept ─► admit ─► greet ─► secure ─► identify ─► hear ─► count ─► dial ─► confirm ─► settle ─► relay ─► part
//! listener  source   preface  TLS       identity    first   room?    upstream still so?  writes?   bytes   last words
//! ```
//!
//! [`connection`] tells a connection's life in that order. [`snapshot`] holds the terms in force, built whole from a
//! [`config`] or not at all; [`policy`] and [`protocol`] decide, without a runtime, a file or a clock; [`server`] puts the
//! parts together; over [`admin`] an operator talks to them while they run. Modules import downwards only;
//! `docs/ARCHITECTURE.md` has the floors.
//!
//! The library exists for the `portcullis` command, its tests and its benchmarks. Its interface is the command line, the
//! configuration and the audit events, not these modules.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod addr;
pub mod admin;
pub mod audit;
pub mod audit_file;
pub mod cli;
pub mod config;
pub mod connection;
pub mod descriptors;
pub mod expiry;
pub mod fault;
pub mod listener;
pub mod names;
pub mod notify;
pub mod outcome;
pub mod permissions;
pub mod policy;
pub mod printable;
pub mod protocol;
pub mod readmission;
pub mod reload;
pub mod resolver;
pub mod revocation;
pub mod server;
pub mod sessions;
pub mod shield;
pub mod signals;
pub mod snapshot;
pub mod socket_file;
pub mod tcp_diag;
pub mod timestamp;
pub mod tls;
