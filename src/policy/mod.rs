//! The policy in force: one immutable snapshot per generation, built completely or not at all.
//!
//! Everything that can fail happens before a snapshot is published: reading and parsing files, matching keys with certificates,
//! building TLS configurations. `portcullis check` runs the same code.

pub(crate) mod authorize;
pub(crate) mod builder;
pub(crate) mod changes;
pub(crate) mod diff;
pub(crate) mod explain;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod fleet;
pub(crate) mod history;
pub(crate) mod issuing;
pub(crate) mod pins;
pub(crate) mod shield_filter;
pub(crate) mod usage;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::limit::attempts::AttemptLimiter;
use crate::limit::handshakes::{AcquiredHandshake, HandshakeLimitReached, HandshakeLimiter};
use crate::limit::rate_limiter::{RateDecision, RateExceeded, RateLimiter};
use crate::metrics::listener::ListenerMetrics;
use crate::policy::history::{CertificateHistory, GenerationStamp};
use crate::policy::issuing::IssuingCa;
use crate::policy::pins::Pins;
use crate::policy::usage::Usage;
use crate::upstream::Upstream;

use crate::addr::{ClientAddr, ListenAddr};
use crate::config::files::Files;
use crate::config::problem::{Problem, Problems};
use crate::config::rule_cache::KnownRules;
use crate::config::{Config, Limits, Loaded, Revoke, Shield};
use crate::credential::check::RightPasswords;
use crate::credential::credentials::Credentials;
use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::limit::sessions::{LimitReached, SessionLimiter, SessionLimits, SessionPermit};
use crate::policy::builder::Builder;
use crate::policy::builder::reader::Reader;
use crate::policy::fleet::FleetSecrets;
use crate::protocol::{MinTlsVersion, Protocol};
use crate::source::addresses::{AddressBook, Resolvable};
use crate::source::group::{RuleOwner, SourceGroup};
use crate::source::host::Host;
use crate::source::proxies::TrustedProxies;
use crate::source::rule_set::RuleSet;
use crate::source::trusted::SourcePolicy;
use crate::tls::server::ServerTls;
use crate::tls::tickets::TicketKeys;
use crate::transport::unix_socket::Access;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
use crate::x509::crl::{Crl, KnownCrls};

/// Receives the snapshot in force.
pub(crate) type Current = watch::Receiver<Arc<Snapshot>>;

/// The TLS of the admin addresses.
#[derive(Debug)]
pub struct AdminTlsPolicy {
    pub server: Arc<ServerTls>,
    /// The trust anchors of client certificates; empty if clients need none.
    pub client_cas: Vec<Certificate>,
}

/// The policy of all listeners in one generation.
#[derive(Debug)]
pub struct Snapshot {
    /// Number of the policy, counted from 1. New addresses of hosts and cloud sources make new generations too.
    pub generation: u64,
    /// When the snapshot was built.
    pub built_at: OffsetDateTime,
    /// The configuration that the snapshot was built from.
    pub config: Arc<Config>,
    /// The TLS of the admin addresses.
    pub admin_tls: Option<Arc<AdminTlsPolicy>>,
    /// The rules of the `sources_file`s by their text, for the next build.
    pub(crate) known_rules: Arc<KnownRules>,
    /// In the order of the configuration.
    groups: Vec<Arc<SourceGroup>>,
    policies: Vec<Arc<ListenerPolicy>>,
    by_name: HashMap<Arc<str>, usize>,
    by_bind_addr: HashMap<BindAddr, usize>,
    /// The counters of removed listeners, the last removed one at the end. A listener that returns continues to count.
    removed: Arc<Vec<RemovedListener>>,
    /// Computed when it is first needed.
    config_hash: Arc<OnceLock<String>>,
    /// The same. It does not change with the addresses of hosts and cloud sources.
    trust_hash: Arc<OnceLock<String>>,
    /// What the members of the fleet keep secret.
    pub(crate) fleet_secrets: Arc<FleetSecrets>,
}

/// The counters of a listener that an earlier generation had.
#[derive(Clone, Debug)]
pub(crate) struct RemovedListener {
    pub(crate) name: Arc<str>,
    pub(crate) metrics: Arc<ListenerMetrics>,
}

/// Identifies a bound address, so that a reload can move it between listeners. With port 0 the kernel chooses a port for each
/// listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BindAddr {
    /// The address as configured.
    pub address: ListenAddr,
    /// Listener name and index in `listen`; for port 0 only.
    ephemeral: Option<(Arc<str>, usize)>,
}

/// The policy of one listener.
#[derive(Clone, Debug)]
pub struct ListenerPolicy {
    pub name: Arc<str>,
    /// The protocol inside TLS.
    pub protocol: Protocol,
    pub bind_addrs: Vec<BindAddr>,
    /// Owner and permissions of the Unix sockets in `bind_addrs`.
    socket_files: BTreeMap<PathBuf, Access>,
    pub sources: SourcePolicy,
    /// The load balancers whose PROXY headers are accepted.
    pub proxies: TrustedProxies,
    pub shield: Shield,
    /// TLS towards clients; `None` if it is off.
    pub tls: Option<Arc<ServerTls>>,
    /// The trust anchors for client certificates, in the order of the files.
    pub anchors: Vec<Certificate>,
    /// The pinned client certificates.
    pub pins: Pins,
    /// The CA with which the admin API issues client certificates.
    pub(crate) issuing: Option<Arc<IssuingCa>>,
    pub upstream: Arc<Upstream>,
    /// Who may authenticate, and how the listener authenticates to the database; `None` if clients authenticate to the database
    /// themselves. The same value as long as nothing in it changes.
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub limits: Limits,
    /// Shared by all generations, as are `handshakes`, `usage` and `metrics`.
    sessions: Arc<SessionLimiter>,
    handshakes: Arc<HandshakeLimiter>,
    /// The effective limit of `handshakes`.
    pub max_handshakes: NonZeroU32,
    /// Shared by all generations.
    pub(crate) attempts: Arc<AttemptLimiter>,
    /// Shared by all generations.
    pub(crate) right_passwords: Arc<RightPasswords>,
    /// `None` without `connection_rate_per_source`.
    rate_limiter: Option<Arc<RateLimiter>>,
    pub revoke: Revoke,
    /// Whether a CancelRequest is accepted without TLS.
    pub plaintext_cancel: bool,
    pub history: CertificateHistory,
    pub usage: Arc<Usage>,
    pub(crate) metrics: Arc<ListenerMetrics>,
    /// The PEM text of `ca_bundle`.
    pub ca_bundle: Option<Arc<[u8]>>,
    /// Whether the rules that are not in the configuration are in the store of the fleet.
    pub(crate) has_fleet_rules: bool,
    /// The inputs of `tls`.
    tls_inputs: Option<Arc<TlsInputs>>,
}

/// The inputs of a [`ServerTls`]. If none changes, a reload keeps the old one and session tickets stay valid.
///
/// Private keys are not included: a key that matches an unchanged certificate is the same key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TlsInputs {
    chains: Vec<Vec<CertificateDer<'static>>>,
    trust: ClientAuthSettings,
    tickets: Option<TicketKeys>,
    min_version: MinTlsVersion,
    protocol: Protocol,
}

/// A snapshot and the warnings about its configuration.
#[derive(Debug)]
pub struct Built {
    pub snapshot: Snapshot,
    /// Messages for the operator that do not prevent a start.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Builds the snapshot of the configuration `loaded` as the successor of `previous`, with the addresses in `book`.
    ///
    /// # Errors
    /// All problems of the configuration and the files it names.
    pub fn build(
        loaded: Loaded,
        files: &mut Files,
        previous: Option<&Self>,
        book: &AddressBook,
    ) -> Result<Built, Problems> {
        let missing = if loaded.problems.is_empty() { Vec::new() } else { loaded.unreadable(files) };
        let Loaded { config, mut problems, .. } = loaded;
        let groups = builder::groups::groups(&config, previous, book);
        let mut policies = Vec::with_capacity(config.listeners.len());
        let generation = previous.map_or(1, |snapshot| snapshot.generation + 1);
        let now = GenerationStamp { generation, at: OffsetDateTime::now_utc() };
        let mut warnings: Vec<String> = config.admin.iter().flat_map(|admin| admin.warnings(now.at)).collect();
        let former = previous.into_iter().flat_map(|snapshot| &snapshot.policies);
        let mut known_lists: KnownCrls = former.flat_map(|policy| policy.revocation_lists()).cloned().collect();
        let mut reader = Reader {
            owner: "fleet".to_owned(),
            files,
            problems: &mut problems,
            warnings: &mut warnings,
            known_lists: &mut known_lists,
        };
        let fleet_secrets = config.fleet.as_ref().map(|fleet| builder::fleet::secrets(fleet, &config, &mut reader));
        let fleet_secrets = Arc::new(fleet_secrets.unwrap_or_default());
        for listener in &config.listeners {
            let before = previous.and_then(|snapshot| snapshot.named(&listener.name));
            let former_metrics = previous.and_then(|snapshot| snapshot.metrics_of_removed(&listener.name)).cloned();
            let reader = Reader {
                owner: format!("listener {}", listener.name),
                files,
                problems: &mut problems,
                warnings: &mut warnings,
                known_lists: &mut known_lists,
            };
            let fleet = &*fleet_secrets;
            let mut builder = Builder { listener, reader, book, groups: &groups, now, former_metrics, fleet };
            policies.extend(builder.policy(before.map(|before| &**before)).map(Arc::new));
        }
        for group in &groups {
            let mut reader = Reader {
                owner: format!("source_group {}", group.name),
                files,
                problems: &mut problems,
                warnings: &mut warnings,
                known_lists: &mut known_lists,
            };
            builder::groups::warn(group, &policies, &mut reader, now.at);
        }
        let mut reader = Reader {
            owner: "resolver".to_owned(),
            files,
            problems: &mut problems,
            warnings: &mut warnings,
            known_lists: &mut known_lists,
        };
        builder::resolver::check(&config.resolvers, &mut reader);
        let mut reader = Reader {
            owner: "admin".to_owned(),
            files,
            problems: &mut problems,
            warnings: &mut warnings,
            known_lists: &mut known_lists,
        };
        let admin_tls = config.admin.as_ref().and_then(|admin| admin.tls.as_ref());
        let admin_tls = admin_tls.and_then(|tls| builder::admin::tls(tls, &mut reader)).map(Arc::new);
        // The builder has already reported the unreadable files of valid listeners.
        let is_new = |problem: &Problem| {
            problems.iter().all(|known| (&known.position, &known.key) != (&problem.position, &problem.key))
        };
        let missing: Vec<_> = missing.into_iter().filter(is_new).collect();
        problems.extend(missing);
        let mut snapshot = Self::of(now, config, admin_tls, (groups, policies), previous);
        snapshot.fleet_secrets = fleet_secrets;
        Problems::unless_any(problems, Built { snapshot, warnings })
    }

    /// Builds the next generation of the same configuration with the addresses in `book`; `None` if no address changed.
    pub fn with_addresses(&self, book: &AddressBook) -> Option<Self> {
        let mut changed = false;
        let groups = self.groups.iter().map(|group| match group.sources.with_addresses(book) {
            Some(sources) => {
                changed = true;
                Arc::new(SourceGroup { name: group.name.clone(), sources: Arc::new(sources) })
            }
            None => Arc::clone(group),
        });
        let groups = groups.collect::<Vec<_>>();
        let policies = self.policies.iter().map(|policy| match policy.sources.trusted.updated(book, &groups) {
            Some(trusted) => {
                changed = true;
                let sources = SourcePolicy { trusted: Arc::new(trusted), ..policy.sources.clone() };
                Arc::new(ListenerPolicy { sources, ..ListenerPolicy::clone(policy) })
            }
            None => Arc::clone(policy),
        });
        let policies = policies.collect();
        let (by_name, by_bind_addr) = (self.by_name.clone(), self.by_bind_addr.clone());
        let (generation, config) = (self.generation + 1, Arc::clone(&self.config));
        let (removed, config_hash) = (Arc::clone(&self.removed), Arc::clone(&self.config_hash));
        let (trust_hash, fleet_secrets) = (Arc::clone(&self.trust_hash), Arc::clone(&self.fleet_secrets));
        let (admin_tls, known_rules) = (self.admin_tls.clone(), Arc::clone(&self.known_rules));
        changed.then(|| Self {
            generation,
            built_at: OffsetDateTime::now_utc(),
            config,
            admin_tls,
            known_rules,
            groups,
            policies,
            by_name,
            by_bind_addr,
            removed,
            config_hash,
            trust_hash,
            fleet_secrets,
        })
    }

    /// The hosts in rules, once for each rule that names them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.rule_sets().flat_map(|(_, set)| set.hosts())
    }

    /// The hosts and cloud sources in rules, once for each rule that names them.
    pub fn resolvables(&self) -> impl Iterator<Item = Resolvable> {
        self.rule_sets().flat_map(|(_, set)| set.resolvables())
    }

    /// The rules of each listener and each group.
    pub fn rule_sets(&self) -> impl Iterator<Item = (RuleOwner<'_>, &RuleSet)> {
        let of_listeners =
            self.policies.iter().map(|policy| (RuleOwner::Listener(&policy.name), policy.sources.trusted.own()));
        of_listeners.chain(self.groups.iter().map(|group| (group.owner(), &*group.sources)))
    }

    /// The rules of a listener or a group.
    pub fn rule_set(&self, owner: RuleOwner<'_>) -> Option<&RuleSet> {
        match owner {
            RuleOwner::Listener(name) => self.named(name).map(|policy| policy.sources.trusted.own()),
            RuleOwner::Group(name) => self.group(name).map(|group| &*group.sources),
        }
    }

    /// All groups, in the order of the configuration.
    pub fn groups(&self) -> &[Arc<SourceGroup>] {
        &self.groups
    }

    /// The group with this name.
    pub fn group(&self, name: &str) -> Option<&Arc<SourceGroup>> {
        self.groups.iter().find(|group| group.name.as_str() == name)
    }

    /// The listeners that use a group.
    pub fn users_of(&self, group: &SourceGroup) -> impl Iterator<Item = &Arc<ListenerPolicy>> {
        self.policies.iter().filter(|policy| policy.sources.trusted.group(&group.name).is_some())
    }

    fn of(
        now: GenerationStamp,
        config: Config,
        admin_tls: Option<Arc<AdminTlsPolicy>>,
        (groups, policies): (Vec<Arc<SourceGroup>>, Vec<Arc<ListenerPolicy>>),
        previous: Option<&Self>,
    ) -> Self {
        let by_name: HashMap<_, _> =
            policies.iter().enumerate().map(|(index, policy)| (Arc::clone(&policy.name), index)).collect();
        let bind_addrs = |(index, policy): (usize, &Arc<ListenerPolicy>)| {
            policy.bind_addrs.iter().map(move |bind_addr| (bind_addr.clone(), index)).collect::<Vec<_>>()
        };
        let by_bind_addr = policies.iter().enumerate().flat_map(bind_addrs).collect();
        let removed = previous.map(|previous| previous.removed_by(&by_name)).unwrap_or_default();
        let GenerationStamp { generation, at } = now;
        Self {
            generation,
            built_at: at,
            config: Arc::new(config),
            admin_tls,
            known_rules: Arc::default(),
            groups,
            policies,
            by_name,
            by_bind_addr,
            removed: Arc::new(removed),
            config_hash: Arc::default(),
            trust_hash: Arc::default(),
            fleet_secrets: Arc::default(),
        }
    }

    /// The removed listeners of a successor that has the listeners `kept`.
    fn removed_by(&self, kept: &HashMap<Arc<str>, usize>) -> Vec<RemovedListener> {
        let gone = self
            .policies
            .iter()
            .map(|policy| RemovedListener { name: Arc::clone(&policy.name), metrics: Arc::clone(&policy.metrics) });
        let mut removed: Vec<_> =
            self.removed.iter().cloned().chain(gone).filter(|listener| !kept.contains_key(&listener.name)).collect();
        while removed.len() > MAX_REMOVED {
            // One with open sessions is still counting.
            let Some(oldest) = removed.iter().position(|listener| listener.metrics.active() == 0) else { break };
            removed.remove(oldest);
        }
        removed
    }

    /// The listeners of earlier generations, the last removed one at the end.
    pub(crate) fn removed_listeners(&self) -> &[RemovedListener] {
        &self.removed
    }

    fn metrics_of_removed(&self, name: &str) -> Option<&Arc<ListenerMetrics>> {
        self.removed.iter().find(|listener| *listener.name == *name).map(|listener| &listener.metrics)
    }

    /// Returns the snapshot for a plan, in which the certificates that it drops are not removed yet.
    #[must_use]
    pub fn planned(self) -> Self {
        let planned = |policy: &Arc<ListenerPolicy>| {
            let history = policy.history.clone().planned(self.generation);
            Arc::new(ListenerPolicy { history, ..ListenerPolicy::clone(policy) })
        };
        Self { policies: self.policies.iter().map(planned).collect(), ..self }
    }

    /// The policies of all listeners, in the order of the configuration.
    pub fn listeners(&self) -> &[Arc<ListenerPolicy>] {
        &self.policies
    }

    /// The policy of the listener with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<ListenerPolicy>> {
        self.policies.get(*self.by_name.get(name)?)
    }

    /// What happens to a listener's open sessions that are no longer admitted. Covers removed listeners.
    pub fn revoke(&self, listener: &str) -> Revoke {
        self.named(listener).map_or(self.config.reload.revoke, |policy| policy.revoke)
    }

    /// The certificates of the admin addresses with their role: `admin` or `admin_client_ca`.
    pub fn admin_certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        self.admin_tls.iter().flat_map(|tls| {
            let presented = tls.server.certificates().iter().map(|certificate| ("admin", &**certificate));
            presented.chain(tls.client_cas.iter().map(|anchor| ("admin_client_ca", anchor)))
        })
    }

    /// The host names of the admin addresses, beside IP addresses: those of the configuration and of their certificates.
    pub fn admin_host_names(&self) -> Vec<String> {
        let configured = self.config.admin.iter().flat_map(|admin| admin.hosts.iter().cloned());
        let servers = self.admin_tls.iter().flat_map(|tls| tls.server.certificates());
        configured.chain(servers.flat_map(|certificate| certificate.dns_names())).collect()
    }

    /// The TLS that the admin addresses use.
    pub fn admin_server_tls(&self) -> Option<Arc<ServerTls>> {
        self.admin_tls.as_ref().map(|tls| Arc::clone(&tls.server))
    }

    /// The policy of the listener that owns this address.
    pub fn at_address(&self, bind_addr: &BindAddr) -> Option<&Arc<ListenerPolicy>> {
        self.policies.get(*self.by_bind_addr.get(bind_addr)?)
    }
}

impl ListenerPolicy {
    /// Every certificate of the listener with its role: those of [`Self::client_facing_certificates`], and `upstream_ca` and
    /// `upstream_certificate`.
    pub fn certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        let upstream = self.upstream.tls().into_iter();
        let upstream = upstream.flat_map(|tls| {
            let anchors = tls.anchors().iter().map(|anchor| ("upstream_ca", &**anchor));
            anchors.chain(tls.certificate().map(|certificate| ("upstream_certificate", &**certificate)))
        });
        self.client_facing_certificates().chain(upstream)
    }

    /// The certificates used towards clients, with their role: `server`, `client_ca` or `client_certificate`.
    pub fn client_facing_certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        with_roles(self.server_certificates(), &self.anchors, &self.pins)
    }

    /// The leaf certificates presented to clients.
    pub fn server_certificates(&self) -> &[Arc<Certificate>] {
        self.tls.as_deref().map(ServerTls::certificates).unwrap_or_default()
    }

    pub fn client_auth(&self) -> ClientAuth {
        self.client_auth_settings().map_or(ClientAuth::None, |settings| settings.auth)
    }

    /// The `trusted_clients` patterns; `None` if TLS is off.
    pub fn trusted_clients(&self) -> Option<&TrustedClients> {
        Some(self.tls.as_deref()?.trust().clients())
    }

    /// The chains presented to clients, leaf first.
    pub(crate) fn server_chains(&self) -> &[Vec<CertificateDer<'static>>] {
        self.tls_inputs.as_ref().map(|inputs| inputs.chains.as_slice()).unwrap_or_default()
    }

    /// The trust anchors as DER, in the order of [`Self::anchors`].
    pub fn anchor_ders(&self) -> &[CertificateDer<'static>] {
        self.client_auth_settings().map(|settings| settings.anchors.as_slice()).unwrap_or_default()
    }

    /// Why a trust anchor, named by its fingerprint, authenticates no client at `now`; `None` if it does.
    pub fn anchor_error(&self, sha256: &str, now: OffsetDateTime) -> Option<ChainError> {
        let index = self.anchors.iter().position(|anchor| anchor.sha256.as_str() == sha256)?;
        self.tls.as_ref()?.trust().anchor_error(self.anchor_ders().get(index)?, now)
    }

    /// The CRLs in force.
    pub fn revocation_lists(&self) -> &[Crl] {
        self.client_auth_settings().map(|settings| settings.crls.as_slice()).unwrap_or_default()
    }

    /// What an expired CRL means; `None` without CRLs.
    pub fn crl_expired(&self) -> Option<CrlExpired> {
        self.client_auth_settings().filter(|settings| !settings.crls.is_empty()).map(|settings| settings.crl_expired)
    }

    /// Whether the validity dates of the trust anchors are enforced; `None` without trust anchors.
    pub fn anchor_validity(&self) -> Option<AnchorValidity> {
        self.client_auth_settings()
            .filter(|settings| !settings.anchors.is_empty())
            .map(|settings| settings.anchor_validity)
    }

    /// The minimum TLS version; `None` if TLS is off.
    pub fn min_version(&self) -> Option<MinTlsVersion> {
        self.tls_inputs.as_ref().map(|inputs| inputs.min_version)
    }

    /// Counts a connection of a trusted source against `connection_rate_per_source`.
    ///
    /// # Errors
    /// When the connection must be closed without an error message to the client.
    pub fn check_rate(&self, client: ClientAddr, now: Instant) -> Result<RateDecision, RateExceeded> {
        self.rate_limiter.as_ref().map_or(Ok(RateDecision::Free), |rate_limiter| rate_limiter.check(client, now))
    }

    /// Counts a session until the permit is dropped.
    ///
    /// # Errors
    /// When `max_connections` or `max_connections_per_source` is reached.
    pub fn acquire_session(&self, client: ClientAddr) -> Result<SessionPermit, LimitReached> {
        let Limits { max_connections: total, max_connections_per_source: per_source, .. } = self.limits;
        self.sessions.acquire(client, SessionLimits { total, per_source })
    }

    /// Counts the handshake of a connection, given by its number.
    ///
    /// # Errors
    /// When `max_handshakes` is reached.
    pub fn acquire_handshake(
        &self,
        client: ClientAddr,
        connection: u64,
    ) -> Result<AcquiredHandshake, HandshakeLimitReached> {
        self.handshakes.acquire(client, connection, self.max_handshakes)
    }

    /// The number of connections in their handshake.
    pub fn open_handshakes(&self) -> u32 {
        self.handshakes.count()
    }

    /// Owner and permissions of the Unix socket at this path.
    pub fn access(&self, path: &Path) -> Access {
        self.socket_files.get(path).copied().unwrap_or(Access::PRIVATE)
    }

    /// The paths of the Unix sockets, with owner and permissions.
    pub fn socket_files(&self) -> impl Iterator<Item = (&Path, Access)> {
        self.socket_files.iter().map(|(path, access)| (path.as_path(), *access))
    }

    fn client_auth_settings(&self) -> Option<&ClientAuthSettings> {
        self.tls_inputs.as_ref().map(|inputs| &inputs.trust)
    }
}

fn with_roles<'a>(
    server: &'a [Arc<Certificate>],
    anchors: &'a [Certificate],
    pins: &'a Pins,
) -> impl Iterator<Item = (&'static str, &'a Certificate)> {
    let server = server.iter().map(|certificate| ("server", &**certificate));
    let anchors = anchors.iter().map(|certificate| ("client_ca", certificate));
    server.chain(anchors).chain(pins.certificates.iter().map(|pin| ("client_certificate", &pin.certificate)))
}

/// Removed listeners whose counters are kept.
const MAX_REMOVED: usize = 256;
