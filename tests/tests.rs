//! The modules of the tests, which test Portcullis from outside.
//!
//! Each test starts the real program on its own ports and depends on no other test. `harness` has what they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets something unexpected fails with its location"
)]

/// Shared parts: certificates, programs, clients, upstreams.
mod harness;

/// The commands that talk to the running program: `status`, `reload`, `sessions` and `check --diff`.
mod admin;
/// docs/ADMIN.md: its commands and its reference.
mod admin_guide;
/// The admin API: tokens, changes of sources, events, hostile requests.
mod api;
/// Attacks on the admin API and the metrics.
mod api_attacks;
/// The folders of `src/` and their allowed imports.
mod architecture;
/// Audit events of connections and reloads.
mod audit;
/// The audit file: rotation, FIFO, symbolic links.
mod audit_file;
/// Suppression of repeated denials in log and audit.
mod audit_suppression;
/// PostgreSQL CancelRequests.
mod cancel;
/// Limits of CancelRequests.
mod cancel_limits;
/// Unusual certificates, chains and ClientHellos.
mod certificate_chains;
/// The `certs` commands: issue, renew, bundle, inspect.
mod certs;
/// SCRAM channel binding.
mod channel_binding;
/// Client certificates and their authorization.
mod client_certificates;
/// Passwords of clients that the admin API lists, adds and removes.
mod client_passwords;
/// Client certificates that the admin API pins, removes and issues.
mod client_pins;
/// Dates far in the future, and a wall clock that is set.
mod clock;
/// The agent with a double of DigitalOcean's API.
mod cloud_do;
/// Sources of the Kubernetes API: lists, watches, and their failures.
mod cloud_kubernetes;
/// The whole program with an agent: sources come into force, and stay when the agent or its API fails.
mod cloud_program;
/// Cloud sources: configuration, kept answers, API.
mod cloud_sources;
/// `check`, `explain`, `certs`, `completions`, `man`, and exit codes.
mod commands;
/// Valid and invalid configurations, with approved error texts.
mod config;
/// `[listener.credentials]` with drivers of PostgreSQL.
mod credentials_drivers;
/// `[listener.credentials]` with PostgreSQL.
mod credentials_postgres;
/// The same with Redis.
mod credentials_redis;
/// The same with drivers of Redis.
mod credentials_redis_drivers;
/// Certificate revocation lists.
mod crl;
/// `dead_peer_timeout`.
mod dead_peers;
/// Limits of file descriptors.
mod descriptors;
/// Connections to the upstream.
mod dial;
/// `dial_retry`: an upstream that refuses connections for a while.
mod dial_retry;
/// DigitalOcean's API with its clients.
mod digitalocean;
/// DNS servers, records, TTLs and failures.
mod dns;
/// Trusted sources of the type `dns`.
mod dns_sources;
/// SIGTERM, drain, and notifications to systemd.
mod drain;
/// The drills of docs/ROTATION.md.
mod drills;
/// `explain`, with a running program and without.
mod explain;
/// Farewell messages to sessions that Portcullis closes.
mod farewell;
/// Changed files that no signal announces.
mod file_watcher;
/// Members of a fleet over etcd.
#[cfg(feature = "etcd")]
mod fleet;
/// Members of a fleet over a Kubernetes API.
#[cfg(feature = "kubernetes")]
mod fleet_kubernetes;
/// Members of a fleet that are slow, killed, or configured differently.
#[cfg(feature = "etcd")]
mod fleet_members;
/// The store of a fleet in etcd, with the agent.
mod fleet_store;
/// The store of a fleet in a Kubernetes API, with the agent.
mod fleet_store_kubernetes;
/// `max_handshakes`.
mod handshake_limit;
/// The container image.
mod image;
/// Interrupted runs of these tests.
mod interrupted;
/// The manifests in packaging/kubernetes.
mod kubernetes_manifests;
/// `max_connections`, `max_connections_per_source` and `connection_rate_per_source`.
mod limits;
/// Metrics, health and readiness, and the packaged rules and dashboard.
mod metrics;
/// The commands that operate a running program, over its socket and over TLS.
mod operate_cli;
/// The control panel in a real browser.
mod panel;
/// The control panel over HTTP: sessions of people, and requests of other pages.
mod panel_access;
/// `portcullis password`: adds, lists and removes the passwords of clients.
mod password_cli;
/// Listeners without TLS: loopback and Unix sockets.
mod plaintext;
/// PostgreSQL clients: psql, pgbench, tokio-postgres.
mod postgres;
/// `target = "primary"`: primary and standby, also while they change roles.
mod postgres_primary;
/// The bytes before TLS.
mod preface;
/// Faults that `check` reports before a start or a client meets them.
mod preflight;
/// Encrypted private keys, keys in the environment, systemd credentials.
mod private_keys;
/// PROXY protocol headers from load balancers.
mod proxy_protocol;
/// The quick start of README.md.
mod readme;
/// Policy changes between handshake and session.
mod reauthorize;
/// Redis clients: redis-cli, redis-benchmark, the crate `redis`, redis-py.
mod redis;
/// Reloads that are rejected.
mod rejected_reload;
/// The relay: both directions, half-close, timeouts, back-pressure.
mod relay;
/// Applied reloads of configuration, sources and listeners.
mod reload;
/// The plan of a reload, and the differences that a reload logs.
mod reload_plan;
/// TLS session resumption on the listener.
mod resumption;
/// Sessions that end because their source or credential is revoked.
mod revocation;
/// Overload, broken input and resource use.
mod robustness;
/// Certificate rotation under load.
mod rotation;
/// The listed states of sessions.
mod sessions;
/// Listeners that share pinned client certificates.
mod shared_pins;
/// The kernel source filter.
mod shield;
/// The audit file forwarded by rsyslog, and docs/SIEM.md.
mod siem;
/// `[[source_group]]`: sources that several listeners share.
mod source_groups;
/// The systemd unit: installation, start, reload.
mod systemd_service;
/// TLS versions, certificate selection, resumption.
mod tls;
/// TLS records of every size, padding, key updates.
mod tls_records;
/// Tokens of the admin API.
mod token;
/// Sessions over every pair of TLS, TCP and Unix socket.
mod transports;
/// Requirements for a CA in a bundle.
mod trust_anchors;
/// Trusted sources: addresses and networks.
mod trusted_sources;
/// Names and texts that others choose: escaped and truncated.
mod untrusted_text;
/// Health of the upstream in `status`, and its checks.
mod upstream_health;
/// PROXY protocol headers to the upstream.
mod upstream_proxy_header;
/// Several upstreams: order, ejection, recovery, `target = "master"`.
mod upstream_selection;
/// TLS to the upstream.
mod upstream_tls;
/// Words that are no longer used.
mod vocabulary;
