//! The measured works. Each module has one kind of work. A `Work` is a kind with its parameters, and has one or more rows in the
//! report.

mod drive;
mod exchange;
mod handshake;
mod memory;
pub(crate) mod neighbour;
mod pgbench;
mod rules;
mod storm;
mod unidentified;
mod untrusted;

use std::time::Duration;

use exchange::Exchanges;
use handshake::Handshake;
use neighbour::Neighbour;
use pgbench::Pgbench;

use crate::fault::Result;
use crate::options::Plan;
use crate::route::Route;
use crate::site::Site;
use crate::targets::{Abilities, Instance, Target};
use crate::tls::Offer;

/// The target, the environment and the amounts of a sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trial<'a> {
    pub(crate) site: &'a Site,
    pub(crate) plan: &'a Plan,
    pub(crate) target: &'a Target,
    pub(crate) instance: &'a Instance,
}

/// One number.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    /// Whether the report shows its ratio to other targets.
    pub(crate) compared: bool,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, value, compared: true }
    }

    /// A figure without ratios.
    pub(crate) fn info(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { compared: false, ..Self::new(name, unit, value) }
    }
}

/// The result of one sample.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Vec<Figure>,
    /// The inputs of figures that are quotients.
    pub(crate) units: u64,
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) failures: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Exchanges(Exchanges),
    Latency,
    Handshake(Handshake),
    Memory,
    Unidentified,
    Storm,
    Pgbench(Pgbench),
    Untrusted,
    Rules,
    Neighbour(Neighbour),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    kind: Kind,
}

const WORKS: &[Work] = &[
    work("bulk-get-1", "GET of 1 MiB, 1 connection", Kind::Exchanges(Exchanges::bulk(false, 1))),
    work("bulk-get-4", "GET of 1 MiB, 4 connections", Kind::Exchanges(Exchanges::bulk(false, 4))),
    work("bulk-set-1", "SET of 1 MiB, 1 connection", Kind::Exchanges(Exchanges::bulk(true, 1))),
    work("bulk-set-4", "SET of 1 MiB, 4 connections", Kind::Exchanges(Exchanges::bulk(true, 4))),
    work("small-p1", "GET/SET of 50 B, 50 connections", Kind::Exchanges(Exchanges::small(1))),
    work("small-p16", "GET/SET of 50 B, 50 connections, pipeline 16", Kind::Exchanges(Exchanges::small(16))),
    work("latency", "PING-PONG, 1 connection", Kind::Latency),
    work("full-ecdsa", "full handshake, ECDSA", Kind::Handshake(Handshake::full(Route::Redis))),
    work("full-rsa", "full handshake, RSA-2048", Kind::Handshake(Handshake::full(Route::Rsa))),
    work("full-mutual", "full handshake, client certificate", Kind::Handshake(Handshake::full(Route::Mutual))),
    work("full-hybrid", "full handshake, ECDSA, X25519MLKEM768", Kind::Handshake(Handshake::hybrid())),
    work("resumed", "resumed handshake", Kind::Handshake(Handshake::resumed(Route::Redis))),
    work("resumed-mutual", "resumed handshake, client certificate", Kind::Handshake(Handshake::resumed(Route::Mutual))),
    work("untrusted", "untrusted client rejected", Kind::Untrusted),
    work("pgbench", "pgbench -S", Kind::Pgbench(Pgbench { reconnect: false })),
    work("pgbench-connect", "pgbench -S -C", Kind::Pgbench(Pgbench { reconnect: true })),
    work("storm", "connection storm", Kind::Storm),
    work("neighbour-get", "during bulk GET", Kind::Neighbour(Neighbour { set: false })),
    work("neighbour-set", "during bulk SET", Kind::Neighbour(Neighbour { set: true })),
    work("rules", "source decision", Kind::Rules),
    work("memory", "idle sessions", Kind::Memory),
    work("unidentified", "clients that stop in their handshake", Kind::Unidentified),
];

const fn work(name: &'static str, title: &'static str, kind: Kind) -> Work {
    Work { name, title, kind }
}

impl Work {
    /// The requested works, or all.
    pub(crate) fn chosen(asked: &[String]) -> Result<Vec<Self>> {
        let meant = |work: &Self, name: &String| {
            work.name == name || work.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'))
        };
        if let Some(unknown) = asked.iter().find(|name| !WORKS.iter().any(|work| meant(work, name))) {
            return Err(format!("--works: unknown work {unknown}; see --list").into());
        }
        let wanted = |work: &&Self| asked.is_empty() || asked.iter().any(|name| meant(work, name));
        Ok(WORKS.iter().filter(wanted).copied().collect())
    }

    pub(crate) fn needs_postgres(self) -> bool {
        matches!(self.kind, Kind::Pgbench(_))
    }

    /// Whether a target supports this work.
    pub(crate) fn suits(self, can: Abilities) -> bool {
        let has = |route| can.routes.contains(&route);
        match self.kind {
            Kind::Handshake(handshake) => has(handshake.route) && (can.hybrid || !can.tls || !handshake.offer.hybrid),
            Kind::Pgbench(_) => has(Route::Postgres),
            Kind::Untrusted => can.allowlist,
            Kind::Rules => can.many_rules,
            Kind::Unidentified => can.tls && has(Route::Mutual),
            Kind::Neighbour(_) => has(Route::Redis) && has(Route::Bulk),
            _ => has(Route::Redis),
        }
    }

    /// The number of rounds. Memory is measured in at most two, because it takes long and depends little on other load.
    pub(crate) fn rounds(self, rounds: u32) -> u32 {
        if matches!(self.kind, Kind::Memory | Kind::Unidentified) { rounds.min(2) } else { rounds }
    }

    /// Takes one sample.
    pub(crate) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        match self.kind {
            Kind::Exchanges(exchanges) => exchanges.sample(trial).await,
            Kind::Latency => exchange::latency(trial).await,
            Kind::Handshake(handshake) => handshake.sample(trial).await,
            Kind::Memory => memory::sample(trial).await,
            Kind::Unidentified => unidentified::sample(trial).await,
            Kind::Storm => storm::sample(trial).await,
            Kind::Pgbench(pgbench) => pgbench.sample(trial).await,
            Kind::Untrusted => untrusted::sample(trial).await,
            Kind::Rules => rules::sample(trial).await,
            Kind::Neighbour(neighbour) => neighbour.sample(trial).await,
        }
    }
}

/// The TLS options of an ordinary client.
const PLAIN_OFFER: Offer = Offer { certificate: false, hybrid: false, resume: false };
