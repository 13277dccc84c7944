//! The terms in force: one immutable value per generation, built whole or not at all.
//!
//! Everything that can fail happens here, on private values, before anybody sees the result: files are read and parsed,
//! keys matched with certificates, TLS configurations built. What `portcullis check` checks is this very code.

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

use crate::limit::handshakes::{Begun, NoPlace};
use crate::limit::rate_limiter::{Pace, TooFast};
use crate::limit::sessions::{Counted, Full};
use crate::policy::history::{Lineage, Moment};
use crate::policy::usage::{Item, Usage};
use crate::upstream::Upstream;

use crate::addr::{ClientAddr, ListenAddr};
use crate::config::files::Files;
use crate::config::problem::{Problem, Problems};
use crate::config::{Config, Limits, Loaded, Revoke, Shield};
use crate::identity::auth_settings::TrustParts;
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::limit::handshakes::Handshakes;
use crate::limit::rate_limiter::Pacer;
use crate::limit::sessions::{Headcount, SessionLimits};
use crate::policy::builder::Builder;
use crate::protocol::{MinTlsVersion, Protocol};
use crate::source::host::{AddressBook, Host};
use crate::source::proxies::Balancers;
use crate::source::trusted::SourcePolicy;
use crate::tls::server::ServerTls;
use crate::tls::tickets::TicketKeys;
use crate::transport::unix_socket::Access;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::{Crl, KnownCrls};

/// Where the current snapshot is read from.
pub type Current = watch::Receiver<Arc<Snapshot>>;

/// The policy of one generation.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts policies that were put in force, from 1.
    pub generation: u64,
    /// When it was built.
    pub built_at: OffsetDateTime,
    /// The configuration it was built from.
    pub config: Arc<Config>,
    terms: Vec<Arc<Terms>>,
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
pub struct Terms {
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
    pub balancers: Balancers,
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
    headcount: Arc<Headcount>,
    /// Its connections whose clients are not identified yet.
    handshakes: Arc<Handshakes>,
    /// How many of those there may be at once.
    pub max_handshakes: NonZeroU32,
    /// Keeps the pace of its sources, where there is a rate.
    pacer: Option<Arc<Pacer>>,
    /// What becomes of open sessions it no longer lets in.
    pub revoke: Revoke,
    /// Whether a CancelRequest may come without TLS.
    pub plaintext_cancel: bool,
    /// Since when it goes by its certificates.
    pub lineage: Lineage,
    /// What of it handshakes have used.
    pub usage: Arc<Usage>,
    /// What its side of TLS is made of.
    tls_inputs: Option<Arc<TlsInputs>>,
}

/// What a [`ServerTls`] is made of. Where nothing of it changes the old one is kept, and session tickets stay good.
/// Keys are not part of it: a key that fits an unchanged certificate is the same key.
#[derive(Debug, PartialEq, Eq)]
struct TlsInputs {
    chains: Vec<Vec<CertificateDer<'static>>>,
    trust: TrustParts,
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
        let mut terms = Vec::with_capacity(config.listeners.len());
        let generation = previous.map_or(1, |snapshot| snapshot.generation + 1);
        let now = Moment { generation, at: OffsetDateTime::now_utc() };
        let former = previous.into_iter().flat_map(|snapshot| &snapshot.terms);
        let mut known_lists: KnownCrls = former.flat_map(|terms| terms.revocation_lists()).cloned().collect();
        for listener in &config.listeners {
            let before = previous.and_then(|snapshot| snapshot.named(&listener.name));
            let (problems, warnings, known_lists) = (&mut problems, &mut warnings, &mut known_lists);
            let mut builder = Builder { listener, files, problems, warnings, book, now, known_lists };
            terms.extend(builder.terms(before.map(|before| &**before)).map(Arc::new));
        }
        // Those of listeners that were built have been told.
        let is_news =
            |problem: &Problem| problems.iter().all(|told| (&told.place, &told.key) != (&problem.place, &problem.key));
        let missing: Vec<_> = missing.into_iter().filter(is_news).collect();
        problems.extend(missing);
        let snapshot = Self::of(now, config, terms);
        Problems::unless_any(problems, Built { snapshot, warnings })
    }

    /// The policy after this one, of the same configuration, with what `book` knows of the hosts; `None` where that is
    /// what this one knows.
    pub fn with_addresses(&self, book: &AddressBook) -> Option<Self> {
        let mut moved = false;
        let terms = self.terms.iter().map(|terms| match terms.sources.trusted.with_addresses(book) {
            Some(trusted) => {
                moved = true;
                let sources = SourcePolicy { trusted: Arc::new(trusted), ..terms.sources.clone() };
                Arc::new(Terms { sources, ..Terms::clone(terms) })
            }
            None => Arc::clone(terms),
        });
        let terms = terms.collect();
        let (by_name, by_bind_addr) = (self.by_name.clone(), self.by_bind_addr.clone());
        let (generation, config) = (self.generation + 1, Arc::clone(&self.config));
        moved.then(|| Self { generation, built_at: OffsetDateTime::now_utc(), config, terms, by_name, by_bind_addr })
    }

    /// The hosts that rules trust; one that several rules name comes as often.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.terms.iter().flat_map(|terms| terms.sources.trusted.hosts())
    }

    fn of(now: Moment, config: Config, terms: Vec<Arc<Terms>>) -> Self {
        let by_name = terms.iter().enumerate().map(|(index, terms)| (Arc::clone(&terms.name), index)).collect();
        let bind_addrs = |(index, terms): (usize, &Arc<Terms>)| {
            terms.bind_addrs.iter().map(move |bind_addr| (bind_addr.clone(), index)).collect::<Vec<_>>()
        };
        let by_bind_addr = terms.iter().enumerate().flat_map(bind_addrs).collect();
        let Moment { generation, at } = now;
        Self { generation, built_at: at, config: Arc::new(config), terms, by_name, by_bind_addr }
    }

    /// The same policy for a plan: what it takes out is not gone yet.
    #[must_use]
    pub fn planned(self) -> Self {
        let planned = |terms: &Arc<Terms>| {
            let lineage = terms.lineage.clone().planned(self.generation);
            Arc::new(Terms { lineage, ..Terms::clone(terms) })
        };
        Self { terms: self.terms.iter().map(planned).collect(), ..self }
    }

    /// The terms of every listener, in the order of the configuration.
    pub fn listeners(&self) -> &[Arc<Terms>] {
        &self.terms
    }

    /// The terms of the listener of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Terms>> {
        self.terms.get(*self.by_name.get(name)?)
    }

    /// What becomes of a listener's open sessions that it no longer lets in, and of those of one that is gone.
    pub fn revoke(&self, listener: &str) -> Revoke {
        self.named(listener).map_or(self.config.reload.revoke, |terms| terms.revoke)
    }

    /// The terms of the listener that has this address.
    pub fn at_address(&self, bind_addr: &BindAddr) -> Option<&Arc<Terms>> {
        self.terms.get(*self.by_bind_addr.get(bind_addr)?)
    }
}

impl Terms {
    /// Every certificate of the listener with its role: those of [`Self::towards_clients`], `upstream_ca` and
    /// `upstream_certificate`.
    pub fn certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        let upstream = self.upstream.tls().into_iter();
        let upstream = upstream.flat_map(|tls| {
            let anchors = tls.anchors().iter().map(|anchor| ("upstream_ca", &**anchor));
            anchors.chain(tls.certificate().map(|certificate| ("upstream_certificate", &**certificate)))
        });
        self.towards_clients().chain(upstream)
    }

    /// What clients are shown and judged by, with its role: `server`, `client_ca` or `client_certificate`.
    pub fn towards_clients(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
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
    pub fn pace(&self, client: ClientAddr, now: Instant) -> Result<Pace, TooFast> {
        self.pacer.as_ref().map_or(Ok(Pace::Free), |pacer| pacer.ask(client, now))
    }

    /// Counts a session for as long as the value lives.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn count(&self, client: ClientAddr) -> Result<Counted, Full> {
        let Limits { max_connections: total, max_connections_per_source: per_source, .. } = self.limits;
        self.headcount.count(client, SessionLimits { total, per_source })
    }

    /// Takes a place among the handshakes for the connection of this number.
    ///
    /// # Errors
    /// When there is none.
    pub fn begin_handshake(&self, client: ClientAddr, connection: u64) -> Result<Begun, NoPlace> {
        self.handshakes.begin(client, connection, self.max_handshakes)
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

    fn trust_parts(&self) -> Option<&TrustParts> {
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
