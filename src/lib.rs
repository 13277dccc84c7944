//! Portcullis: a TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.
//!
//! The library exists for the `portcullis` command, its tests and its benchmarks. The public interface is the command line, the
//! configuration, the API and the audit events. `docs/ARCHITECTURE.md` describes the folders.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod addr;
mod agent;
mod audit;
pub mod cli;
mod config;
mod control;
mod credential;
mod descriptors;
mod digest;
mod dns;
mod durable_file;
mod fault;
mod fleet;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod identity;
mod issuing;
mod jitter;
mod limit;
mod login;
mod metrics;
mod outcome;
mod panel;
mod permissions;
mod policy;
mod printable;
mod protocol;
mod proxy;
mod resolution;
mod server;
mod session;
mod shield;
mod source;
pub mod timestamp;
mod tls;
mod token;
mod transport;
mod upstream;
mod x509;

/// For the tests and benchmarks of this repository. Not a stable interface.
#[doc(hidden)]
pub mod internals {
    pub use super::timestamp;
    pub use crate::addr::ClientAddr;
    pub use crate::config::edit::sources::{Field, NewRule, SourcesChange};
    pub use crate::control::error::ErrorKind;
    pub use crate::control::response::AdminResponse;
    pub use crate::control::{AdminRequest, AdminServer};
    #[cfg(any(test, fuzzing))]
    pub use crate::fuzz::{
        postgres_client, postgres_parameters, postgres_upstream, redis_before, redis_commands, redis_session,
        redis_upstream,
    };
    pub use crate::identity::auth_settings::ClientAuthSettings;
    pub use crate::identity::client_verifier::{ClientVerifier, PresentedIdentity};
    pub use crate::identity::settings::ClientAuth;
    pub use crate::identity::trusted_clients::TrustedClients;
    pub use crate::metrics::exposition::reference::reference as metrics_reference;
    pub use crate::policy::Snapshot;
    pub use crate::policy::usage::Authorization;
    pub use crate::protocol::postgres::frame::FrameTracker;
    pub use crate::protocol::redis::commands::{CommandFollower, Piece};
    pub use crate::resolution::cache::ResolutionCache;
    pub use crate::server::reload::build as build_policy;
    pub use crate::session::registry::{ConnectionGuard, ConnectionRegistry};
    pub use crate::session::revocation;
    pub use crate::source::rule::{Origin, Rule, Source};
    pub use crate::source::trusted::TrustedSources;
    pub use crate::x509::certificate::Certificate;
    pub use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
    pub use crate::x509::crl::Crl;
}
