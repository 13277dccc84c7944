//! The JSON of the admin API: sessions, the use of certificates and sources, and reload plans.
//!
//! Pure functions of a snapshot and the connection registry. docs/ADMIN.md describes the JSON.

pub(crate) mod certificates;
pub(crate) mod client_certificates;
pub(crate) mod clients;
pub(crate) mod denials;
pub(crate) mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::agent::state::{AgentStatus, Phase};
use crate::audit::changes::{Difference, MAX_DIFFERENCES};
use crate::control::request::SessionFilter;
use crate::credential::login::UsedPassword;
use crate::credential::upstream_passwords::{DatabaseUser, LineEvidence};
use crate::descriptors;
use crate::outcome::Outcome;
use crate::policy::changes::SourceChanges;
use crate::policy::usage::{Item, LastUser};
use crate::policy::{Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::protocol::Target;
use crate::resolution::cache::ResolutionCache;
use crate::session::registry::state::SessionInfo;
use crate::session::registry::{ConnectionRegistry, LiveConnection, Session};
use crate::session::revocation;
use crate::shield::ShieldStatus;
use crate::source::group::{GroupName, RuleOwner};
use crate::source::rule::Rule;
use crate::source::trusted::MatchingRule;
use crate::timestamp::seconds;
use crate::upstream::endpoint::health::{Dial, UpstreamHealth};
use crate::upstream::endpoint::{ConfiguredAddress, EndpointStatus};
use crate::x509::certificate::{Certificate, NameDigest};
use crate::x509::fingerprint::CertificateFingerprint;

/// The sessions that a filter selects, including closing ones, oldest first; `total` counts also those beyond its limit.
pub(crate) fn sessions(snapshot: &Snapshot, registry: &ConnectionRegistry, filter: &SessionFilter) -> Value {
    let mut live = registry.all();
    live.sort_unstable_by_key(|live| live.id());
    let listed = live.iter().filter_map(|live| Some((live, live.listed()?)));
    let selected: Vec<_> = listed.filter(|(live, listed)| is_selected(live, listed, filter)).collect();
    let page = selected.iter().skip(filter.offset).take(filter.limit.unwrap_or(usize::MAX));
    let sessions: Vec<_> = page.map(|(live, listed)| session(snapshot, live, listed)).collect();
    json!({ "sessions": sessions, "total": selected.len() })
}

fn is_selected(live: &LiveConnection, listed: &SessionInfo, filter: &SessionFilter) -> bool {
    let SessionFilter { listener, source, client, offset: _, limit: _ } = filter;
    let identity = listed.session.authorization.identity.as_ref();
    listener.as_ref().is_none_or(|listener| **live.listener() == **listener)
        && source.is_none_or(|network| live.client().ip().is_some_and(|ip| network.net().contains(&ip)))
        && client
            .as_ref()
            .is_none_or(|part| identity.is_some_and(|identity| identity.certificate.subject.contains(part.as_str())))
}

fn session(snapshot: &Snapshot, live: &LiveConnection, listed: &SessionInfo) -> Value {
    let SessionInfo { state, opened_at, session } = listed;
    let must_authenticate = snapshot.named(live.listener()).is_some_and(|policy| policy.credentials.is_some());
    let certificate = session.authorization.identity.as_ref().map(|identity| &identity.certificate);
    let matching = session.authorization.rule.as_ref();
    let facts = json!({
        "state": state.code(),
        "half_closed_by": state.half_closed_by(),
        "rule": matching.map(|matching| matching.rule.to_string()),
        "group": matching.and_then(MatchingRule::group).map(GroupName::as_str),
        "client_sha256": certificate.map(|certificate| &certificate.sha256),
        "unauthenticated": must_authenticate && session.authorization.login.is_none(),
        "opened_at": seconds(*opened_at),
    });
    with_session(facts, live, session)
}

/// Adds the fields by which an operator finds a session. They are the same in a list and in a plan.
fn with_session(mut facts: Value, live: &LiveConnection, session: &Session) -> Value {
    let identity = session.authorization.identity.as_ref();
    let via = live.origin().via;
    if let Some(object) = facts.as_object_mut() {
        object.extend([
            ("session".to_owned(), json!(live.id())),
            ("listener".to_owned(), json!(&**live.listener())),
            ("source".to_owned(), json!(live.client().source())),
            ("source_port".to_owned(), json!(live.client().port())),
            ("balancer".to_owned(), json!(via.map(ClientAddr::source))),
            ("balancer_port".to_owned(), json!(via.and_then(ClientAddr::port))),
            ("user".to_owned(), json!(session.authorization.login.as_ref().map(|login| &login.client.user))),
            ("client_subject".to_owned(), json!(identity.map(|identity| &identity.certificate.subject))),
        ]);
    }
    facts
}

/// The upstream addresses and the status of each resolved endpoint.
pub(crate) fn upstreams(policy: &ListenerPolicy) -> Vec<Value> {
    let endpoints = |configured: &Arc<ConfiguredAddress>| {
        let address = configured.address().to_string();
        let endpoint = |status: EndpointStatus| {
            let since = status.ejection.as_ref().map(|(since, _)| seconds(*since));
            json!({
                "address": address,
                "socket": status.socket,
                "healthy": is_healthy(status.health),
                "health": status.health.code(),
                "since": since,
                "error": status.ejection.map(|(_, error)| printable::fitted(error)),
                "last_dial": status.last_dial.as_ref().map(dial),
                "role": status.is_primary.map(role),
            })
        };
        let undialled =
            || vec![json!({ "address": address, "healthy": null, "health": UpstreamHealth::Unknown.code() })];
        let known: Vec<_> = configured.statuses().into_iter().map(endpoint).collect();
        if known.is_empty() { undialled() } else { known }
    };
    policy.upstream.endpoints.iter().flat_map(endpoints).take(MAX_LISTED).collect()
}

/// The denied connections since the start of the program, by reason.
pub(crate) fn denied(policy: &ListenerPolicy) -> Value {
    let counts = policy.metrics.denied().filter(|(_, count)| *count > 0);
    counts.map(|(reason, count)| (reason.code().to_owned(), json!(count))).collect::<serde_json::Map<_, _>>().into()
}

fn is_healthy(health: UpstreamHealth) -> Option<bool> {
    match health {
        UpstreamHealth::Unknown => None,
        UpstreamHealth::Healthy => Some(true),
        UpstreamHealth::Unhealthy => Some(false),
    }
}

const fn role(is_primary: bool) -> &'static str {
    if is_primary { "primary" } else { "replica" }
}

fn dial(Dial { at, outcome }: &Dial) -> Value {
    let error = outcome.error().map(|error| printable::fitted(error.to_owned()));
    json!({ "at": seconds(*at), "result": outcome.code(), "error": error })
}

/// The combined health: whether a new client can reach an upstream, as far as is known.
pub(crate) fn upstream_health(policy: &ListenerPolicy) -> &'static str {
    policy.upstream.endpoints.health(policy.upstream.settings.target == Target::Primary).code()
}

/// The `dns` sources of a listener with their addresses and the state of their resolution.
pub(crate) fn dns_sources(policy: &ListenerPolicy, resolutions: &ResolutionCache) -> Vec<Value> {
    let trusted = &policy.sources.trusted;
    let hosts: BTreeSet<_> = trusted.resolvables().filter(|source| source.host().is_some()).collect();
    let sources = hosts.into_iter().take(MAX_LISTED).map(|source| {
        let status = resolutions.status(&source);
        json!({
            "rule": source.to_string(),
            "addresses": trusted.addresses_of(&source),
            "resolved_at": status.resolved_at.map(seconds),
            "stale": status.is_failing,
            "error": status.detail.as_ref().map(printable::field),
            "next_lookup_at": status.next_lookup.map(seconds),
        })
    });
    sources.collect()
}

/// The cloud sources of a listener with the number of their addresses and the state of their resolution.
pub(crate) fn cloud_sources(policy: &ListenerPolicy, resolutions: &ResolutionCache) -> Vec<Value> {
    let trusted = &policy.sources.trusted;
    let cloud: BTreeSet<_> = trusted.resolvables().filter(|source| source.cloud().is_some()).collect();
    let sources = cloud.into_iter().take(MAX_LISTED).map(|source| {
        let status = resolutions.status(&source);
        json!({
            "rule": source.to_string(),
            "state": status.state.code(),
            "detail": status.detail.as_ref().map(printable::field),
            "addresses_count": trusted.addresses_of(&source).len(),
            "resolved_at": status.resolved_at.map(seconds),
        })
    });
    sources.collect()
}

/// The state of the agent; `null` if the configuration needs none.
pub(crate) fn agent(status: &AgentStatus) -> Value {
    let AgentStatus { phase, since, restarts, last_error } = status;
    let (state, process, confinement) = match phase {
        Phase::NotNeeded => return Value::Null,
        Phase::Down => ("down", None, None),
        Phase::Up { process, confinement } => ("up", Some(process), Some(confinement.name())),
    };
    json!({
        "state": state,
        "since": seconds(*since),
        "pid": process,
        "confinement": confinement,
        "restarts": restarts,
        "last_error": last_error,
    })
}

/// Connections and their maximum by the limit of open files.
pub(crate) fn descriptors(status: &descriptors::DescriptorStatus) -> Value {
    json!({
        "limit": status.limit,
        "reserved": status.reserved,
        "connections": status.connections,
        "max_connections": status.max_connections,
        "accepting": status.paused_since.is_none(),
        "paused_since": status.paused_since.map(seconds),
        "last_paused_at": status.last_paused_at.map(seconds),
    })
}

pub(crate) fn shield(status: &ShieldStatus) -> Value {
    json!({
        "mode": status.mode.to_string(),
        "active_since": status.active_since.map(seconds),
        "dropped": status.dropped,
        "unavailable_reason": status.unavailable_reason,
    })
}

/// For each certificate, trust anchor, password and rule of each listener: since when it is in force, when a handshake last used
/// it, and how many open sessions depend on it. For each password of a database: when the database last accepted and rejected it.
pub(crate) fn rotation(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Value {
    let active_use = ActiveUse::from_registry(registry);
    let items: Vec<_> = snapshot.listeners().iter().flat_map(|policy| active_use.items(policy)).collect();
    json!({ "generation": snapshot.generation, "items": items })
}

/// The number of open sessions per client, for each item of each listener.
struct ActiveUse(HashMap<(Arc<str>, Item), BTreeMap<Client, u64>>);

/// The identity by which sessions are grouped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Client {
    subject: Option<String>,
    /// The digest of the whole subject, because the text may be cut.
    digest: Option<NameDigest>,
    user: Option<String>,
    source: String,
}

impl ActiveUse {
    fn from_registry(registry: &ConnectionRegistry) -> Self {
        let mut all: HashMap<_, BTreeMap<_, u64>> = HashMap::new();
        for live in registry.all() {
            // A closing session relays no bytes, so it does not depend on anything.
            let Some(SessionInfo { session, .. }) = relaying(&live) else { continue };
            let identity = session.authorization.identity.as_ref();
            let certificate = identity.map(|identity| &identity.certificate);
            let client = Client {
                subject: certificate.map(|certificate| certificate.subject.clone()),
                digest: certificate.map(|certificate| certificate.subject_digest),
                user: session.authorization.user().map(str::to_owned),
                source: live.client().source(),
            };
            for item in session.authorization.items() {
                let clients = all.entry((Arc::clone(live.listener()), item)).or_default();
                *clients.entry(client.clone()).or_default() += 1;
            }
        }
        Self(all)
    }

    /// The number of open sessions that depend on an item.
    fn sessions(&self, policy: &ListenerPolicy, item: Item) -> u64 {
        self.0.get(&(Arc::clone(&policy.name), item)).into_iter().flatten().map(|(_, sessions)| sessions).sum()
    }

    fn items(&self, policy: &ListenerPolicy) -> Vec<Value> {
        let mut items: Vec<_> = policy
            .client_facing_certificates()
            .map(|(role, certificate)| self.certificate(policy, role, certificate))
            .collect();
        items.extend(self.passwords(policy).take(MAX_LISTED));
        items.extend(upstream_passwords(policy));
        let rules = policy.sources.trusted.rules();
        // Used rules first: there can be very many unused ones.
        let (used, unused): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| policy.usage.contains(&source(rule)));
        let listed = used.into_iter().chain(unused).take(MAX_LISTED);
        items.extend(listed.map(|rule| self.source(policy, rule)));
        items
    }

    fn certificate(&self, policy: &ListenerPolicy, role: &str, certificate: &Certificate) -> Value {
        let since = policy.history.since(certificate.sha256.as_str());
        let is_anchor = role == "client_ca";
        let fault =
            if is_anchor { policy.anchor_error(certificate.sha256.as_str(), OffsetDateTime::now_utc()) } else { None };
        let kind = if role == "server" { "server_certificate" } else { role };
        let facts = json!({
            "listener": &*policy.name,
            "kind": kind,
            "name": certificate.subject,
            "sha256": certificate.sha256,
            "issuer": certificate.issuer,
            "not_after": seconds(certificate.not_after),
            "since": since.map(|since| seconds(since.at)),
            "since_generation": since.map(|since| since.generation),
            "fault": fault.map(|fault| fault.to_string()),
        });
        self.with_use(facts, policy, Item::Certificate(certificate.sha256.as_str().into()))
    }

    fn passwords(&self, policy: &ListenerPolicy) -> impl Iterator<Item = Value> {
        let clients = policy.credentials.iter().flat_map(|credentials| credentials.clients.iter());
        let passwords = clients.flat_map(|client| client.passwords.iter().map(move |password| (client, password)));
        passwords.map(|(client, password)| {
            let facts = json!({
                "listener": &*policy.name,
                "kind": "password",
                "name": printable::field(format_args!("{} {}", client.user, password.id)),
                "user": printable::field(&client.user),
                "id": password.id,
                "not_after": password.expires_at.map(seconds),
                "since": password.created_at.map(seconds),
            });
            self.with_use(facts, policy, Item::Password(UsedPassword::new(client, password)))
        })
    }

    fn source(&self, policy: &ListenerPolicy, rule: &Rule) -> Value {
        let since = policy.history.rule_since(&rule.source);
        let facts = json!({
            "listener": &*policy.name,
            "kind": "source",
            "name": rule.to_string(),
            "description": rule.description.as_ref().map(printable::field),
            "not_after": rule.expires_at.map(seconds),
            "since": since.map(|since| seconds(since.at)),
            "since_generation": since.map(|since| since.generation),
        });
        self.with_use(facts, policy, source(rule))
    }

    fn with_use(&self, mut facts: Value, policy: &ListenerPolicy, item: Item) -> Value {
        let uses = policy.usage.of(&item);
        let clients = self.0.get(&(Arc::clone(&policy.name), item));
        let mut clients: Vec<_> = clients.into_iter().flatten().collect();
        clients.sort_by_key(|(_, sessions)| std::cmp::Reverse(**sessions));
        let named: Vec<_> = clients
            .iter()
            .take(MAX_CLIENTS)
            .map(|(client, sessions)| {
                let Client { subject, digest: _, user, source } = client;
                let user = user.as_ref().map(printable::field);
                json!({ "subject": subject, "user": user, "source": source, "sessions": sessions })
            })
            .collect();
        let last_users: Vec<_> = uses.iter().flat_map(|uses| &uses.users).map(last_user).collect();
        if let Some(object) = facts.as_object_mut() {
            object.extend([
                ("sessions".to_owned(), json!(clients.iter().map(|(_, sessions)| **sessions).sum::<u64>())),
                ("first_used".to_owned(), json!(uses.as_ref().map(|uses| seconds(uses.first)))),
                ("last_used".to_owned(), json!(uses.as_ref().map(|uses| seconds(uses.last)))),
                ("last_users".to_owned(), json!(last_users)),
                ("clients".to_owned(), json!(named)),
                ("more_clients".to_owned(), json!(clients.len().saturating_sub(MAX_CLIENTS))),
            ]);
        }
        facts
    }
}

fn last_user(user: &LastUser) -> Value {
    let name = user.user.as_ref().map(printable::field);
    json!({ "subject": user.subject, "user": name, "source": user.source(), "last_used": seconds(user.last) })
}

/// The passwords of the database. No session relies on one: each connection to the database uses it once.
fn upstream_passwords(policy: &ListenerPolicy) -> impl Iterator<Item = Value> {
    let evidence = policy.credentials.iter().flat_map(|credentials| credentials.upstream_passwords.evidence());
    evidence.map(|LineEvidence { line, accepted, rejected }| {
        let users = |users: &[DatabaseUser], at: &str| {
            let user = |user: &DatabaseUser| json!({ "user": printable::field(&user.name), at: seconds(user.at) });
            users.iter().map(user).collect::<Vec<_>>()
        };
        json!({
            "listener": &*policy.name,
            "kind": "upstream_password",
            "name": format!("line {line}"),
            "line": line,
            "not_after": null,
            "since": null,
            "sessions": 0,
            "first_used": null,
            "last_used": accepted.first().map(|user| seconds(user.at)),
            "last_users": users(&accepted, "last_used"),
            "last_rejected": rejected.first().map(|user| seconds(user.at)),
            "rejected_users": users(&rejected, "last_rejected"),
            "clients": [],
            "more_clients": 0,
        })
    })
}

fn source(rule: &Rule) -> Item {
    Item::Source(rule.source.clone())
}

/// What putting a snapshot in force would change, and which sessions it would close.
pub(crate) fn plan(built: &Built, current: &Snapshot, registry: &ConnectionRegistry) -> Value {
    let Built { snapshot, warnings } = built;
    let sources = snapshot.source_changes_since(current);
    let changes = snapshot.changes_since(current, &sources);
    let ended = EndedSessions::from_registry(snapshot, registry);
    json!({
        "generation": current.generation,
        "listeners_added": changes.listeners_added,
        "listeners_removed": changes.listeners_removed,
        "listeners_moved": changes.listeners_moved,
        "sources_added": rules(sources.iter().flat_map(SourceChanges::added)),
        "sources_added_count": changes.sources_added,
        "sources_removed": rules(sources.iter().flat_map(SourceChanges::removed)),
        "sources_removed_count": changes.sources_removed,
        "certificates_in": certificates_without(snapshot, current),
        "certificates_out": certificates_without(current, snapshot),
        "differences": differences(&changes.differences),
        "differences_count": changes.differences.len(),
        "weakened_count": changes.weakened().count(),
        "sessions_ended": ended.listed(),
        "sessions_ended_count": ended.0.len(),
        "sessions_kept": ended.count_others(registry),
        "warnings": warnings.iter().map(|warning| printable::lines(warning)).collect::<Vec<_>>(),
    })
}

/// The number of sessions that a policy would end.
pub(crate) fn count_ended(snapshot: &Snapshot, registry: &ConnectionRegistry) -> usize {
    EndedSessions::from_registry(snapshot, registry).0.len()
}

/// The sessions that a policy would end, and why.
struct EndedSessions(Vec<(SessionInfo, Arc<LiveConnection>, Outcome)>);

impl EndedSessions {
    fn from_registry(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Self {
        let previewed = revocation::preview(snapshot, registry).into_iter();
        // A connection that has not reached its upstream would be refused, but is not a session.
        Self(previewed.filter_map(|(live, outcome)| Some((relaying(&live)?, live, outcome))).collect())
    }

    /// Up to [`MAX_LISTED`].
    fn listed(&self) -> Vec<Value> {
        let one = |(info, live, outcome): &(SessionInfo, Arc<LiveConnection>, Outcome)| {
            let facts = json!({ "reason": outcome.reason.code(), "detail": outcome.detail });
            with_session(facts, live, &info.session)
        };
        self.0.iter().take(MAX_LISTED).map(one).collect()
    }

    /// The number of sessions that would continue.
    fn count_others(&self, registry: &ConnectionRegistry) -> usize {
        let numbers: HashSet<u64> = self.0.iter().map(|(_, live, _)| live.id()).collect();
        registry.all().iter().filter(|live| relaying(live).is_some() && !numbers.contains(&live.id())).count()
    }
}

/// The changed settings, up to [`MAX_DIFFERENCES`].
pub(crate) fn differences(differences: &[Difference]) -> Value {
    json!(differences.iter().take(MAX_DIFFERENCES).collect::<Vec<_>>())
}

/// The session of a connection, unless it is closing.
pub(crate) fn relaying(live: &LiveConnection) -> Option<SessionInfo> {
    live.listed().filter(|listed| listed.state.is_relaying())
}

/// Rules with the listener or the group they belong to.
fn rules<'a>(rules: impl Iterator<Item = (RuleOwner<'a>, &'a Rule)>) -> Vec<Value> {
    let one =
        |(owner, rule): (RuleOwner<'_>, &Rule)| json!({ "listener": owner.to_string(), "rule": rule.to_string() });
    rules.take(MAX_LISTED).map(one).collect()
}

/// The certificates of `one` that `other` does not have at the same listener in the same role.
fn certificates_without(one: &Snapshot, other: &Snapshot) -> Vec<Value> {
    let has = |policy: &ListenerPolicy, role: &str, sha256: &CertificateFingerprint| {
        let twin = other.named(&policy.name);
        twin.is_some_and(|twin| twin.certificates().any(|(its, facts)| its == role && facts.sha256 == *sha256))
    };
    let of = |policy: &Arc<ListenerPolicy>| {
        let gone = policy.certificates().filter(|(role, facts)| !has(policy, role, &facts.sha256));
        gone.map(|(role, facts)| planned_certificate(Some(&policy.name), role, facts)).collect::<Vec<_>>()
    };
    let admin_has = |role: &str, sha256: &CertificateFingerprint| {
        other.admin_certificates().any(|(its, facts)| its == role && facts.sha256 == *sha256)
    };
    let of_admin = one.admin_certificates().filter(|(role, facts)| !admin_has(role, &facts.sha256));
    let of_admin = of_admin.map(|(role, facts)| planned_certificate(None, role, facts));
    one.listeners().iter().flat_map(of).chain(of_admin).collect()
}

/// `listener` is `None` for a certificate of the admin addresses.
fn planned_certificate(listener: Option<&str>, role: &str, facts: &Certificate) -> Value {
    let Certificate { subject, sha256, not_after, .. } = facts;
    json!({
        "listener": listener,
        "role": role,
        "subject": subject,
        "sha256": sha256,
        "not_after": seconds(*not_after),
    })
}

/// Elements of a list; a separate count has the total.
pub(crate) const MAX_LISTED: usize = 1_000;

/// Clients listed per item.
const MAX_CLIENTS: usize = 5;
