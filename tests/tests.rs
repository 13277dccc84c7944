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

/// What must not hurt.
mod abuse;
/// `status`, `reload`, `sessions`, `check --diff`: the commands that talk to the running program.
mod admin;
/// Trusted sources: who may come in at all.
mod admission;
/// What a CA in a bundle has to be.
mod anchors;
/// What an upstream is told of a client by the PROXY protocol.
mod announce;
/// The floors of `src/`.
mod architecture;
/// The events about connections and reloads.
mod audit;
/// The audit file: rotated, a FIFO, beside the configuration.
mod audit_file;
/// New files that cannot be taken.
mod bad_reload;
/// The word of load balancers on where their clients come from.
mod balancers;
/// PostgreSQL's cancel requests.
mod cancel;
/// How many cancel requests reach the database.
mod cancel_limits;
/// Certificates issued, renewed, bundled and shown.
mod certs;
/// Certificates and hellos of unusual kinds.
mod chains;
/// SCRAM channel binding.
mod channel_binding;
/// Dates at the far ends of time, and a wall clock that is set.
mod clock;
/// `check`, `explain`, `certs`, `completions`, `man`, exit codes.
mod commands;
/// Good and bad configurations, with approved error texts.
mod config;
/// What runs out or is taken away while a client is on its way in.
mod confirm;
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
/// SIGTERM, and what systemd is told.
mod drain;
/// The drills of docs/ROTATION.md.
mod drills;
/// `explain`, answered by the running program and by the file.
mod explain;
/// What the audit says of very many who are turned away.
mod floods;
/// The last words to sessions that have to end.
mod goodbye;
/// How many connections may be in their handshake.
mod handshakes;
/// Client certificates.
mod identity;
/// Runs of these tests that are interrupted.
mod interrupted;
/// Keys behind a passphrase, in the environment, and as credentials.
mod keys;
/// Sessions over legs with TLS and without.
mod legs;
/// How many sessions at once, and how fast they may come.
mod limits;
/// Sources that are host names.
mod names;
/// Several upstreams: which is tried when, and who is let back in.
mod nodes;
/// Listeners without TLS: loopback and Unix sockets.
mod plaintext;
/// What a plan announces and a reload records: every key, old value and new value.
mod plan;
/// PostgreSQL, psql, pgbench, tokio-postgres.
mod postgres;
/// The bytes before TLS.
mod preface;
/// What `check` finds before a start or a client would.
mod preflight;
/// PostgreSQL with a primary and its standby, as they change places.
mod primary;
/// TLS records of every size, padding, key updates.
mod records;
/// Redis, redis-cli, redis-benchmark, the crate `redis`.
mod redis;
/// Bytes both ways, half-close, timeouts, back-pressure.
mod relay;
/// New configurations, sources and listeners in a running process.
mod reload;
/// TLS sessions that are taken up again: where that works, and where it must not.
mod resumption;
/// What stops being good ends the sessions that rely on it, and no others.
mod revocation;
/// Certificates that change under load.
mod rotation;
/// The systemd unit: installed, started, reloaded.
mod service;
/// What is shown of sessions, in each state and of those that were refused.
mod sessions;
/// The kernel keeps strangers out.
mod shield;
/// Versions, certificates, resumption.
mod tls;
/// Names and texts that others choose.
mod untrusted_text;
/// What `status` knows of the upstream, and how it finds out.
mod upstream_health;
/// TLS towards the upstream.
mod upstream_tls;
/// Changes that nobody announces.
mod watch;
