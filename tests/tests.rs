//! The table of contents of the tests: what Portcullis does, seen from outside.
//!
//! Every test starts the real program on ports of its own and stands alone. What they start from is in `harness`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect has to fail, and say where"
)]

/// The world around a test: certificates, programs, clients, upstreams.
mod harness;

/// `status`, `reload`, `sessions`, `check --diff`: the commands that talk to the running program.
mod admin;
/// The floors of `src/`.
mod architecture;
/// The events about connections and reloads.
mod audit;
/// The audit file: rotated, a FIFO, beside the configuration.
mod audit_file;
/// What the audit says of very many who are turned away.
mod audit_suppression;
/// PostgreSQL's cancel requests.
mod cancel;
/// How many cancel requests reach the database.
mod cancel_limits;
/// Certificates and hellos of unusual kinds.
mod certificate_chains;
/// Certificates issued, renewed, bundled and shown.
mod certs;
/// SCRAM channel binding.
mod channel_binding;
/// Client certificates.
mod client_certificates;
/// Dates at the far ends of time, and a wall clock that is set.
mod clock;
/// `check`, `explain`, `certs`, `completions`, `man`, exit codes.
mod commands;
/// Good and bad configurations, with approved error texts.
mod config;
/// Revocation lists.
mod crl;
/// Peers that stop acknowledging, and peers that only do not read.
mod dead_peers;
/// File descriptors, and the reserve of them.
mod descriptors;
/// The upstream, when it is there and when it is not.
mod dial;
/// An upstream that refuses connections for a while.
mod dial_retry;
/// Host names and the DNS: its servers, its records, its failures.
mod dns;
/// Sources that are host names.
mod dns_sources;
/// SIGTERM, and what systemd is told.
mod drain;
/// The drills of docs/ROTATION.md.
mod drills;
/// `explain`, answered by the running program and by the file.
mod explain;
/// The last words to sessions that have to end.
mod farewell;
/// Changes that nobody announces.
mod file_watcher;
/// How many connections may be in their handshake.
mod handshake_limit;
/// Runs of these tests that are interrupted.
mod interrupted;
/// How many sessions at once, and how fast they may come.
mod limits;
/// Listeners without TLS: loopback and Unix sockets.
mod plaintext;
/// PostgreSQL, psql, pgbench, tokio-postgres.
mod postgres;
/// PostgreSQL with a primary and its standby, as they change places.
mod postgres_primary;
/// The bytes before TLS.
mod preface;
/// What `check` finds before a start or a client would.
mod preflight;
/// Keys behind a passphrase, in the environment, and as credentials.
mod private_keys;
/// The word of load balancers on where their clients come from.
mod proxy_protocol;
/// What runs out or is taken away while a client is on its way in.
mod reauthorize;
/// Redis, redis-cli, redis-benchmark, the crate `redis`.
mod redis;
/// New files that cannot be taken.
mod rejected_reload;
/// Bytes both ways, half-close, timeouts, back-pressure.
mod relay;
/// New configurations, sources and listeners in a running process.
mod reload;
/// What a plan announces and a reload records: every key, old value and new value.
mod reload_plan;
/// TLS sessions that are taken up again: where that works, and where it must not.
mod resumption;
/// What stops being good ends the sessions that rely on it, and no others.
mod revocation;
/// What must not hurt.
mod robustness;
/// Certificates that change under load.
mod rotation;
/// What is shown of sessions, in each state and of those that were refused.
mod sessions;
/// The kernel keeps strangers out.
mod shield;
/// The systemd unit: installed, started, reloaded.
mod systemd_service;
/// Versions, certificates, resumption.
mod tls;
/// TLS records of every size, padding, key updates.
mod tls_records;
/// Sessions over legs with TLS and without.
mod transports;
/// What a CA in a bundle has to be.
mod trust_anchors;
/// Trusted sources: who may come in at all.
mod trusted_sources;
/// Names and texts that others choose.
mod untrusted_text;
/// What `status` knows of the upstream, and how it finds out.
mod upstream_health;
/// What an upstream is told of a client by the PROXY protocol.
mod upstream_proxy_header;
/// Several upstreams: which is tried when, and who is let back in.
mod upstream_selection;
/// TLS towards the upstream.
mod upstream_tls;
