//! The policy in force: one immutable snapshot per generation, built whole or not at all.
//!
//! Everything that can fail happens here, on private values, before the result is published: files are read and parsed, keys are
//! matched with certificates, TLS configurations are built. `portcullis check` runs the same code.

pub(crate) mod authorize;
pub(crate) mod builder;
pub(crate) mod changes;
pub(crate) mod diff;
pub(crate) mod explain;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod history;
pub(crate) mod shield_filter;
pub(crate) mod usage;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::limit::handshakes::{AcquiredHandshake, HandshakeLimitReached};
use crate::limit::rate_limiter::{RateDecision, RateExceeded};
use crate::limit::sessions::{LimitReached, SessionPermit};
use crate::policy::history::{CertificateHistory, GenerationStamp};
use crate::policy::usage::Usage;
use crate::upstream::Upstream;

use crate::addr::{ClientAddr, ListenAddr};
use crate::config::files::Files;
use crate::config::problem::{Problem, Problems};
use crate::config::{Config, Limits, Loaded, Revoke, Shield};
use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::limit::handshakes::HandshakeLimiter;
use crate::limit::rate_limiter::RateLimiter;
use crate::limit::sessions::{SessionLimiter, SessionLimits};
use crate::policy::builder::Builder;
use crate::protocol::{MinTlsVersion, Protocol};
use crate::source::host::{AddressBook, Host};
use crate::source::proxies::TrustedProxies;
use crate::source::trusted::SourcePolicy;
use crate::tls::server::ServerTls;
use crate::tls::tickets::TicketKeys;
use crate::transport::unix_socket::Access;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::{Crl, KnownCrls};

/// Where the current snapshot is read from.
pub(crate) type Current = watch::Receiver<Arc<Snapshot>>;

/// The policy of one generation.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts policies that were put in force, from 1.
    pub generation: u64,
    /// When it was built.
    pub built_at: OffsetDateTime,
    /// The configuration it was built from.
    pub config: Arc<Config>,
    policies: Vec<Arc<ListenerPolicy>>,
    by_name: HashMap<Arc<str>, usize>,
    by_bind_addr: HashMap<BindAddr, usize>,
}

/// One bound address, whoever it belongs to. With port 0 the kernel chooses, and every listener gets its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BindAddr {
    /// The address as configured.
    pub address: ListenAddr,
    /// Listener and position, for addresses with port 0 only.
    ephemeral: Option<(Arc<str>, usize)>,
}

/// The terms of one listener.
#[derive(Clone, Debug)]
pub struct ListenerPolicy {
    /// The listener's name.
    pub name: Arc<str>,
    /// What clients speak inside TLS.
    pub protocol: Protocol,
    /// Where it listens.
    pub bind_addrs: Vec<BindAddr>,
    /// Who may open those of them that are Unix sockets.
    socket_files: BTreeMap<PathBuf, Access>,
    /// Whose connections it takes.
    pub sources: SourcePolicy,
    /// Whose word on where a client comes from it takes.
    pub proxies: TrustedProxies,
    /// Whether the kernel turns strangers away already, where it can.
    pub shield: Shield,
    /// Its side of TLS; `None` where it is off.
    pub tls: Option<Arc<ServerTls>>,
    /// Facts of its trust anchors, in the order of the files.
    pub anchors: Vec<Certificate>,
    /// Facts of the client certificates it trusts by themselves.
    pub pinned: Vec<Certificate>,
    /// Its database.
    pub upstream: Arc<Upstream>,
    /// How many it takes, how fast and for how long.
    pub limits: Limits,
    /// Its sessions.
    sessions: Arc<SessionLimiter>,
    /// Its connections whose clients are not identified yet.
    handshakes: Arc<HandshakeLimiter>,
    /// How many of those there may be at once.
    pub max_handshakes: NonZeroU32,
    /// Keeps the pace of its sources, where there is a rate.
    rate_limiter: Option<Arc<RateLimiter>>,
    /// What becomes of open sessions it no longer lets in.
    pub revoke: Revoke,
    /// Whether a CancelRequest may come without TLS.
    pub plaintext_cancel: bool,
    /// Since when it goes by its certificates.
    pub history: CertificateHistory,
    /// What of it handshakes have used.
    pub usage: Arc<Usage>,
    /// What its side of TLS is made of.
    tls_inputs: Option<Arc<TlsInputs>>,
}

/// What a [`ServerTls`] is made of. Where nothing of it changes the old one is kept, and session tickets stay good.
/// Keys are not part of it: a key that fits an unchanged certificate is the same key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TlsInputs {
    chains: Vec<Vec<CertificateDer<'static>>>,
    trust: ClientAuthSettings,
    tickets: Option<TicketKeys>,
    min_version: MinTlsVersion,
    protocol: Protocol,
}

/// A snapshot that could be built, and what about it deserves a look.
#[derive(Debug)]
pub struct Built {
    /// The policy.
    pub snapshot: Snapshot,
    /// Nothing that stops it, in words for the operator.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Builds the policy that `loaded` describes, following `previous`, with what `book` knows of the hosts it trusts.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration and with the files it names.
    pub fn build(
        loaded: Loaded,
        files: &mut Files,
        previous: Option<&Self>,
        book: &AddressBook,
    ) -> Result<Built, Problems> {
        let missing = if loaded.problems.is_empty() { Vec::new() } else { loaded.unreadable(files) };
        let Loaded { config, mut problems, .. } = loaded;
        let mut warnings = Vec::new();
        let mut policies = Vec::with_capacity(config.listeners.len());
        let generation = previous.map_or(1, |snapshot| snapshot.generation + 1);
        let now = GenerationStamp { generation, at: OffsetDateTime::now_utc() };
        let former = previous.into_iter().flat_map(|snapshot| &snapshot.policies);
        let mut known_lists: KnownCrls = former.flat_map(|policies| policies.revocation_lists()).cloned().collect();
        for listener in &config.listeners {
            let before = previous.and_then(|snapshot| snapshot.named(&listener.name));
            let (problems, warnings, known_lists) = (&mut problems, &mut warnings, &mut known_lists);
            let mut builder = Builder { listener, files, problems, warnings, book, now, known_lists };
            policies.extend(builder.policies(before.map(|before| &**before)).map(Arc::new));
        }
        // Those of listeners that were built have been told.
        let is_news = |problem: &Problem| {
            problems.iter().all(|told| (&told.position, &told.key) != (&problem.position, &problem.key))
        };
        let missing: Vec<_> = missing.into_iter().filter(is_news).collect();
        problems.extend(missing);
        let snapshot = Self::of(now, config, policies);
        Problems::unless_any(problems, Built { snapshot, warnings })
    }

    /// The policy after this one, of the same configuration, with what `book` knows of the hosts; `None` where that is
    /// what this one knows.
    pub fn with_addresses(&self, book: &AddressBook) -> Option<Self> {
        let mut moved = false;
        let policies = self.policies.iter().map(|policies| match policies.sources.trusted.with_addresses(book) {
            Some(trusted) => {
                moved = true;
                let sources = SourcePolicy { trusted: Arc::new(trusted), ..policies.sources.clone() };
                Arc::new(ListenerPolicy { sources, ..ListenerPolicy::clone(policies) })
            }
            None => Arc::clone(policies),
        });
        let policies = policies.collect();
        let (by_name, by_bind_addr) = (self.by_name.clone(), self.by_bind_addr.clone());
        let (generation, config) = (self.generation + 1, Arc::clone(&self.config));
        moved.then(|| Self { generation, built_at: OffsetDateTime::now_utc(), config, policies, by_name, by_bind_addr })
    }

    /// The hosts that rules trust; one that several rules name comes as often.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.policies.iter().flat_map(|policies| policies.sources.trusted.hosts())
    }

    fn of(now: GenerationStamp, config: Config, policies: Vec<Arc<ListenerPolicy>>) -> Self {
        let by_name =
            policies.iter().enumerate().map(|(index, policies)| (Arc::clone(&policies.name), index)).collect();
        let bind_addrs = |(index, policies): (usize, &Arc<ListenerPolicy>)| {
            policies.bind_addrs.iter().map(move |bind_addr| (bind_addr.clone(), index)).collect::<Vec<_>>()
        };
        let by_bind_addr = policies.iter().enumerate().flat_map(bind_addrs).collect();
        let GenerationStamp { generation, at } = now;
        Self { generation, built_at: at, config: Arc::new(config), policies, by_name, by_bind_addr }
    }

    /// The same policy for a plan: what it takes out is not gone yet.
    #[must_use]
    pub fn planned(self) -> Self {
        let planned = |policies: &Arc<ListenerPolicy>| {
            let history = policies.history.clone().planned(self.generation);
            Arc::new(ListenerPolicy { history, ..ListenerPolicy::clone(policies) })
        };
        Self { policies: self.policies.iter().map(planned).collect(), ..self }
    }

    /// The terms of every listener, in the order of the configuration.
    pub fn listeners(&self) -> &[Arc<ListenerPolicy>] {
        &self.policies
    }

    /// The terms of the listener of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<ListenerPolicy>> {
        self.policies.get(*self.by_name.get(name)?)
    }

    /// What becomes of a listener's open sessions that it no longer lets in, and of those of one that is gone.
    pub fn revoke(&self, listener: &str) -> Revoke {
        self.named(listener).map_or(self.config.reload.revoke, |policies| policies.revoke)
    }

    /// The terms of the listener that has this address.
    pub fn at_address(&self, bind_addr: &BindAddr) -> Option<&Arc<ListenerPolicy>> {
        self.policies.get(*self.by_bind_addr.get(bind_addr)?)
    }
}

impl ListenerPolicy {
    /// Every certificate of the listener with its role: those of [`Self::client_facing_certificates`], `upstream_ca` and
    /// `upstream_certificate`.
    pub fn certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        let upstream = self.upstream.tls().into_iter();
        let upstream = upstream.flat_map(|tls| {
            let anchors = tls.anchors().iter().map(|anchor| ("upstream_ca", &**anchor));
            anchors.chain(tls.certificate().map(|certificate| ("upstream_certificate", &**certificate)))
        });
        self.client_facing_certificates().chain(upstream)
    }

    /// What clients are shown and judged by, with its role: `server`, `client_ca` or `client_certificate`.
    pub fn client_facing_certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        with_roles(self.server_certificates(), &self.anchors, &self.pinned)
    }

    /// The leaves of the certificates it shows to clients.
    pub fn server_certificates(&self) -> &[Arc<Certificate>] {
        self.tls.as_deref().map(ServerTls::certificates).unwrap_or_default()
    }

    /// Whether it asks clients for certificates.
    pub fn client_auth(&self) -> ClientAuth {
        self.trust_parts().map_or(ClientAuth::None, |parts| parts.auth)
    }

    /// Whom of the holders of a good certificate it lets in; nothing where all.
    pub fn trusted_clients(&self) -> Option<&TrustedClients> {
        Some(self.tls.as_deref()?.trust().clients())
    }

    /// Its trust anchors as they are, in the order of [`Self::anchors`].
    pub fn anchor_ders(&self) -> &[CertificateDer<'static>] {
        self.trust_parts().map(|parts| parts.anchors.as_slice()).unwrap_or_default()
    }

    /// Why one of its trust anchors vouches for nobody at this time; nothing where it does.
    pub fn anchor_error(&self, sha256: &str, now: OffsetDateTime) -> Option<ChainError> {
        let index = self.anchors.iter().position(|anchor| anchor.sha256 == sha256)?;
        self.tls.as_ref()?.trust().anchor_error(self.anchor_ders().get(index)?, now)
    }

    /// The revocation lists it goes by.
    pub fn revocation_lists(&self) -> &[Crl] {
        self.trust_parts().map(|parts| parts.crls.as_slice()).unwrap_or_default()
    }

    /// What a list past its nextUpdate means; `None` where there is no list.
    pub fn crl_expired(&self) -> Option<CrlExpired> {
        self.trust_parts().filter(|parts| !parts.crls.is_empty()).map(|parts| parts.crl_expired)
    }

    /// What the dates of its trust anchors mean; `None` where it has none.
    pub fn anchor_validity(&self) -> Option<AnchorValidity> {
        self.trust_parts().filter(|parts| !parts.anchors.is_empty()).map(|parts| parts.anchor_validity)
    }

    /// The lowest TLS version it takes; `None` where TLS is off.
    pub fn min_version(&self) -> Option<MinTlsVersion> {
        self.tls_inputs.as_ref().map(|inputs| inputs.min_version)
    }

    /// Counts a connection whose source was let in, and says whether that source comes slowly enough.
    ///
    /// # Errors
    /// When it is not even to be told that it does not.
    pub fn check_rate(&self, client: ClientAddr, now: Instant) -> Result<RateDecision, RateExceeded> {
        self.rate_limiter.as_ref().map_or(Ok(RateDecision::Free), |rate_limiter| rate_limiter.ask(client, now))
    }

    /// Counts a session for as long as the value lives.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn acquire_session(&self, client: ClientAddr) -> Result<SessionPermit, LimitReached> {
        let Limits { max_connections: total, max_connections_per_source: per_source, .. } = self.limits;
        self.sessions.acquire(client, SessionLimits { total, per_source })
    }

    /// Takes a place among the handshakes for the connection of this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn acquire_handshake(
        &self,
        client: ClientAddr,
        connection: u64,
    ) -> Result<AcquiredHandshake, HandshakeLimitReached> {
        self.handshakes.acquire(client, connection, self.max_handshakes)
    }

    /// How many connections are in their handshake now.
    pub fn open_handshakes(&self) -> u32 {
        self.handshakes.count()
    }

    /// Who may open the Unix socket at this path.
    pub fn access(&self, path: &Path) -> Access {
        self.socket_files.get(path).copied().unwrap_or(Access::PRIVATE)
    }

    /// The files of its Unix sockets, and who may open them.
    pub fn socket_files(&self) -> impl Iterator<Item = (&Path, Access)> {
        self.socket_files.iter().map(|(path, access)| (path.as_path(), *access))
    }

    fn trust_parts(&self) -> Option<&ClientAuthSettings> {
        self.tls_inputs.as_ref().map(|inputs| &inputs.trust)
    }
}

/// Certificates with their roles.
fn with_roles<'a>(
    server: &'a [Arc<Certificate>],
    anchors: &'a [Certificate],
    pinned: &'a [Certificate],
) -> impl Iterator<Item = (&'static str, &'a Certificate)> {
    let server = server.iter().map(|certificate| ("server", &**certificate));
    let anchors = anchors.iter().map(|certificate| ("client_ca", certificate));
    server.chain(anchors).chain(pinned.iter().map(|certificate| ("client_certificate", certificate)))
}
