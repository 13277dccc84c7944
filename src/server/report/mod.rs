//! What the running program tells of itself: its sessions, what they rely on, what a reload would change.
//!
//! Functions of a snapshot and the register; docs/ADMIN.md is the reference of what they return.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::audit::changes::{Difference, MAX_DIFFERENCES};
use crate::descriptors;
use crate::dns::HostCache;
use crate::outcome::Outcome;
use crate::policy::changes::SourceChanges;
use crate::policy::usage::{Item, LastUser};
use crate::policy::{Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::protocol::Target;
use crate::session::registry::state::SessionInfo;
use crate::session::registry::{ConnectionRegistry, LiveConnection};
use crate::session::revocation;
use crate::shield::ShieldStatus;
use crate::source::rule::Rule;
use crate::timestamp::seconds;
use crate::upstream::endpoint::health::{Dial, UpstreamHealth};
use crate::upstream::endpoint::{ConfiguredUpstream, EndpointStatus};
use crate::x509::certificate::{Certificate, NameDigest};

/// The sessions, the oldest first: those that are open, and those that are ending.
pub(crate) fn sessions(registry: &ConnectionRegistry) -> Value {
    let mut live = registry.all();
    live.sort_unstable_by_key(|live| live.id());
    let sessions: Vec<_> = live.iter().filter_map(|live| Some(session(live, &live.listed()?))).collect();
    json!({ "sessions": sessions })
}

fn session(live: &LiveConnection, listed: &SessionInfo) -> Value {
    let SessionInfo { state, opened_at, session } = listed;
    let certificate = session.authorization.identity.as_ref().map(|identity| &identity.certificate);
    json!({
        "session": live.id(),
        "listener": &**live.listener(),
        "source": live.client().source(),
        "source_port": live.client().port(),
        "balancer": live.origin().via.map(ClientAddr::source),
        "balancer_port": live.origin().via.and_then(ClientAddr::port),
        "state": state.code(),
        "half_closed_by": state.half_closed_by(),
        "rule": session.authorization.rule.as_ref().map(ToString::to_string),
        "client_subject": certificate.map(|certificate| &certificate.subject),
        "client_sha256": certificate.map(|certificate| &certificate.sha256),
        "opened_at": seconds(*opened_at),
    })
}

/// The upstream's addresses and where each leads, and what sessions have found out about that.
pub(crate) fn upstreams(policy: &ListenerPolicy) -> Vec<Value> {
    let told = |node: &Arc<ConfiguredUpstream>| {
        let address = node.address().to_string();
        let position = |condition: EndpointStatus| {
            let since = condition.unhealthy.as_ref().map(|(since, _)| seconds(*since));
            json!({
                "address": address,
                "socket": condition.socket,
                "answers": answers(condition.health),
                "health": condition.health.code(),
                "since": since,
                "error": condition.unhealthy.map(|(_, words)| printable::fitted(words)),
                "last_dial": condition.last_dial.as_ref().map(dial),
                "writes": condition.writes,
            })
        };
        let untried = || vec![json!({ "address": address, "answers": null, "health": UpstreamHealth::Unknown.code() })];
        let known: Vec<_> = node.statuses().into_iter().map(position).collect();
        if known.is_empty() { untried() } else { known }
    };
    policy.upstream.endpoints.iter().flat_map(told).take(MOST_TOLD).collect()
}

fn answers(health: UpstreamHealth) -> Option<bool> {
    match health {
        UpstreamHealth::Unknown => None,
        UpstreamHealth::Healthy => Some(true),
        UpstreamHealth::Unhealthy => Some(false),
    }
}

fn dial(Dial { at, outcome }: &Dial) -> Value {
    let error = outcome.error().map(|words| printable::fitted(words.to_owned()));
    json!({ "at": seconds(*at), "result": outcome.code(), "error": error })
}

/// Whether a client that comes now finds an upstream, as far as is known.
pub(crate) fn upstream_health(policy: &ListenerPolicy) -> &'static str {
    policy.upstream.endpoints.health(policy.upstream.settings.target == Target::Primary).code()
}

/// The hosts that a listener trusts: by which addresses, and how old that knowledge is.
pub(crate) fn host_cache(policy: &ListenerPolicy, host_cache: &HostCache) -> Vec<Value> {
    let trusted = &policy.sources.trusted;
    let hosts: BTreeSet<_> = trusted.hosts().map(|host| &host.name).collect();
    let told = hosts.into_iter().take(MOST_TOLD).map(|name| {
        let status = host_cache.state(name).unwrap_or_default();
        json!({
            "rule": format!("dns:{name}"),
            "addresses": trusted.addresses_of(name),
            "resolved_at": status.good.map(|(_, at)| seconds(at)),
            "stale": status.failure.is_some(),
            "error": status.failure.as_ref().map(printable::field),
            "next_look_at": status.next_lookup.map(seconds),
        })
    });
    told.collect()
}

/// How many connections the limit of open files leaves room for.
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

/// How the shield of a listener is.
pub(crate) fn shield(status: &ShieldStatus) -> Value {
    json!({
        "wanted": status.mode.to_string(),
        "up_since": status.active_since.map(seconds),
        "dropped": status.dropped,
        "obstacle": status.unavailable_reason,
    })
}

/// Who relies on what: of every listener each certificate, trust anchor and rule, since when it is in force, when a
/// handshake last used it, and the open sessions that it let in.
pub(crate) fn rotation(snapshot: &Snapshot, registry: &ConnectionRegistry) -> Value {
    let reliances = ActiveUse::of(registry);
    let items: Vec<_> = snapshot.listeners().iter().flat_map(|policy| reliances.items(policy)).collect();
    json!({ "generation": snapshot.generation, "items": items })
}

/// How many open sessions each client has that rely on something of a listener.
struct ActiveUse(HashMap<(Arc<str>, Item), BTreeMap<Client, u64>>);

/// Who a client is, as far as it makes a difference for what it relies on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Client {
    subject: Option<String>,
    /// The digest of the whole subject, because the text may be cut.
    digest: Option<NameDigest>,
    source: String,
}

impl ActiveUse {
    fn of(registry: &ConnectionRegistry) -> Self {
        let mut all: HashMap<_, BTreeMap<_, u64>> = HashMap::new();
        for live in registry.all() {
            // A closing session carries nothing any more: whatever is removed, it loses nothing.
            let Some(SessionInfo { session, .. }) = relaying(&live) else { continue };
            let identity = session.authorization.identity.as_ref();
            let certificate = identity.map(|identity| &identity.certificate);
            let client = Client {
                subject: certificate.map(|certificate| certificate.subject.clone()),
                digest: certificate.map(|certificate| certificate.subject_digest),
                source: live.client().source(),
            };
            for item in session.authorization.items() {
                let clients = all.entry((Arc::clone(live.listener()), item)).or_default();
                *clients.entry(client.clone()).or_default() += 1;
            }
        }
        Self(all)
    }

    fn items(&self, policy: &ListenerPolicy) -> Vec<Value> {
        let mut items: Vec<_> = policy
            .client_facing_certificates()
            .map(|(role, certificate)| self.certificate(policy, role, certificate))
            .collect();
        let rules = policy.sources.trusted.rules();
        // Those that nobody used say little, and can be many.
        let (used, unused): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| policy.usage.knows(&source(rule)));
        let told = used.into_iter().chain(unused).take(MOST_TOLD);
        items.extend(told.map(|rule| self.source(policy, rule)));
        items
    }

    fn certificate(&self, policy: &ListenerPolicy, role: &str, certificate: &Certificate) -> Value {
        let since = policy.history.since(&certificate.sha256);
        let is_anchor = role == "client_ca";
        let fault = if is_anchor { policy.anchor_error(&certificate.sha256, OffsetDateTime::now_utc()) } else { None };
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
            .take(MOST_CLIENTS)
            .map(|(client, sessions)| json!({ "subject": client.subject, "source": client.source, "sessions": sessions }))
            .collect();
        let last_users: Vec<_> = uses.iter().flat_map(|uses| &uses.users).map(last_user).collect();
        if let Some(object) = facts.as_object_mut() {
            object.extend([
                ("sessions".to_owned(), json!(clients.iter().map(|(_, sessions)| **sessions).sum::<u64>())),
                ("first_used".to_owned(), json!(uses.as_ref().map(|uses| seconds(uses.first)))),
                ("last_used".to_owned(), json!(uses.as_ref().map(|uses| seconds(uses.last)))),
                ("last_users".to_owned(), json!(last_users)),
                ("clients".to_owned(), json!(named)),
                ("more_clients".to_owned(), json!(clients.len().saturating_sub(MOST_CLIENTS))),
            ]);
        }
        facts
    }
}

fn last_user(user: &LastUser) -> Value {
    json!({ "subject": user.subject, "source": user.source(), "last_used": seconds(user.last) })
}

fn source(rule: &Rule) -> Item {
    Item::Source(rule.source.clone())
}

/// What putting a snapshot in force would change, and which sessions it would end.
pub(crate) fn plan(built: &Built, current: &Snapshot, registry: &ConnectionRegistry) -> Value {
    let Built { snapshot, warnings } = built;
    let sources = snapshot.source_changes_since(current);
    let changes = snapshot.changes_since(current, &sources);
    let foreseen = revocation::preview(snapshot, registry);
    // Who is on its way to its upstream would be refused, but is no session.
    let listed = |(live, ending): (Arc<LiveConnection>, Outcome)| Some((relaying(&live)?, live, ending));
    let ended: Vec<_> = foreseen.into_iter().filter_map(listed).collect();
    let numbers: HashSet<u64> = ended.iter().map(|(_, live, _)| live.id()).collect();
    let stays = |live: &&Arc<LiveConnection>| relaying(live).is_some() && !numbers.contains(&live.id());
    let kept = registry.all().iter().filter(stays).count();
    let told = ended.iter().take(MOST_TOLD).map(|(listed, live, ending)| {
        let identity = listed.session.authorization.identity.as_ref();
        json!({
            "session": live.id(),
            "listener": &**live.listener(),
            "source": live.client().source(),
            "source_port": live.client().port(),
            "balancer": live.origin().via.map(ClientAddr::source),
            "balancer_port": live.origin().via.and_then(ClientAddr::port),
            "client_subject": identity.map(|identity| &identity.certificate.subject),
            "reason": ending.reason.code(),
            "detail": ending.detail,
        })
    });
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
        "sessions_ended": told.collect::<Vec<_>>(),
        "sessions_ended_count": ended.len(),
        "sessions_kept": kept,
        "warnings": warnings.iter().map(|warning| printable::lines(warning)).collect::<Vec<_>>(),
    })
}

/// The first of the settings that differ.
pub(crate) fn differences(differences: &[Difference]) -> Value {
    json!(differences.iter().take(MAX_DIFFERENCES).collect::<Vec<_>>())
}

/// The session that a connection is, unless it is closing.
fn relaying(live: &LiveConnection) -> Option<SessionInfo> {
    live.listed().filter(|listed| listed.state.is_relaying())
}

/// Rules with the listener they belong to.
fn rules<'a>(rules: impl Iterator<Item = (&'a str, &'a Rule)>) -> Vec<Value> {
    rules.take(MOST_TOLD).map(|(listener, rule)| json!({ "listener": listener, "rule": rule.to_string() })).collect()
}

/// The certificates of one snapshot that the other does not have at the same listener in the same role.
fn certificates_without(one: &Snapshot, other: &Snapshot) -> Vec<Value> {
    let has = |policy: &ListenerPolicy, role: &str, sha256: &str| {
        let twin = other.named(&policy.name);
        twin.is_some_and(|twin| twin.certificates().any(|(its, facts)| its == role && facts.sha256 == sha256))
    };
    let of = |policy: &Arc<ListenerPolicy>| {
        let gone = policy.certificates().filter(|(role, facts)| !has(policy, role, &facts.sha256));
        gone.map(|(role, Certificate { subject, sha256, not_after, .. })| {
            json!({
                "listener": &*policy.name,
                "role": role,
                "subject": subject,
                "sha256": sha256,
                "not_after": seconds(*not_after),
            })
        })
        .collect::<Vec<_>>()
    };
    one.listeners().iter().flat_map(of).collect()
}

/// What a list holds at most; a number beside it says how many there are.
const MOST_TOLD: usize = 1_000;

/// Clients named for one item.
const MOST_CLIENTS: usize = 5;
