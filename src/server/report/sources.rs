//! The JSON of trusted sources, for `/v1` and for DigitalOcean's API.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::digest::hex;
use crate::policy::usage::Item;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::printable;
use crate::resolution::cache::ResolutionCache;
use crate::resolution::status::ResolutionState;
use crate::server::report::{EndedSessions, MAX_LISTED, relaying};
use crate::session::registry::ConnectionRegistry;
use crate::session::registry::state::SessionInfo;
use crate::source::addresses::MAX_HOST_ADDRESSES;
use crate::source::id::listener_uuid;
use crate::source::rule::{Origin, Rule, Source};
use crate::source::trusted::Enforcement;
use crate::timestamp::seconds;

/// The rules of a listener with their use, and the state of those that are resolved.
pub(crate) fn list(policy: &ListenerPolicy, registry: &ConnectionRegistry, resolutions: &ResolutionCache) -> Value {
    let sessions = sessions_by_source(policy, registry);
    let rule = |rule: &Rule| with_state(rule_json(policy, rule, &sessions), policy, rule, resolutions);
    let rules: Vec<_> = policy.sources.trusted.rules().iter().map(|each| rule(each)).collect();
    json!({ "rules": rules })
}

/// The rules with these UUIDs, in this order.
pub(crate) fn rules_of(
    policy: &ListenerPolicy,
    registry: &ConnectionRegistry,
    resolutions: &ResolutionCache,
    uuids: &[Uuid],
) -> Vec<Value> {
    let sessions = sessions_by_source(policy, registry);
    let wanted: HashSet<&Uuid> = uuids.iter().collect();
    let rules = policy.sources.trusted.rules().iter().filter(|rule| wanted.contains(&rule.uuid));
    let by_uuid: HashMap<Uuid, &Rule> = rules.map(|rule| (rule.uuid, &**rule)).collect();
    let rule = |uuid: &Uuid| {
        let rule = by_uuid.get(uuid)?;
        Some(with_state(rule_json(policy, rule, &sessions), policy, rule, resolutions))
    };
    uuids.iter().filter_map(rule).collect()
}

/// The rules of the `sources_file`, as DigitalOcean's API lists them.
pub(crate) fn firewall(policy: &ListenerPolicy) -> Value {
    let cluster = listener_uuid(&policy.name);
    let rules = policy.sources.trusted.rules().iter().filter_map(|rule| {
        let Origin::SourcesFile { created_at } = rule.origin else { return None };
        let mut fields = Map::new();
        fields.insert("uuid".to_owned(), json!(rule.uuid.to_string()));
        fields.insert("cluster_uuid".to_owned(), json!(cluster.to_string()));
        fields.insert("type".to_owned(), json!(rule.source.kind()));
        fields.insert("value".to_owned(), json!(rule.written_value()));
        // Its clients fail on an empty time.
        if let Some(created_at) = created_at {
            fields.insert("created_at".to_owned(), json!(seconds(created_at)));
        }
        fields.insert("description".to_owned(), json!(rule.description.as_deref().unwrap_or_default()));
        Some(Value::Object(fields))
    });
    json!({ "rules": rules.collect::<Vec<_>>() })
}

/// The entity tag of a listener's rules: it changes with every field of a rule that the API shows and that does not change by
/// itself.
pub(crate) fn etag(policy: &ListenerPolicy) -> String {
    let mut context = Context::new(&SHA256);
    let mut text = String::new();
    for rule in policy.sources.trusted.rules() {
        text.clear();
        let Rule { uuid, has_stated_uuid: _, source, spelling: _, description, expires_at, origin } = &**rule;
        let place = origin.code();
        let [expires_at, created_at] =
            [*expires_at, origin.created_at()].map(|at| at.map_or(0, OffsetDateTime::unix_timestamp));
        let description = description.as_deref().unwrap_or_default();
        // With its length, free text cannot be mistaken for the next rule.
        let _ = writeln!(
            text,
            "{uuid} {place} {} {} {expires_at} {created_at} {} {description}",
            source.kind(),
            rule.written_value(),
            description.len()
        );
        context.update(text.as_bytes());
    }
    hex(context.finish().as_ref().get(..ETAG_BYTES).unwrap_or_default())
}

/// What a change of a listener's rules does.
pub(crate) fn plan(snapshot: &Snapshot, current: &Snapshot, listener: &str, registry: &ConnectionRegistry) -> Value {
    let is_of_listener = |(name, _): &(&str, &Rule)| *name == listener;
    let changes = snapshot.source_changes_since(current);
    let added = changes.iter().flat_map(|changes| changes.added()).filter(is_of_listener);
    let removed = changes.iter().flat_map(|changes| changes.removed()).filter(is_of_listener);
    let shown = |rules: Vec<&Rule>| {
        let shown = rules.into_iter().take(MAX_LISTED).map(|rule| {
            json!({
                "uuid": rule.uuid.to_string(),
                "type": rule.source.kind(),
                "value": rule.written_value(),
                "description": rule.description.as_ref().map(printable::field),
                "expires_at": rule.expires_at.map(seconds),
            })
        });
        shown.collect::<Vec<_>>()
    };
    let (added, removed): (Vec<_>, Vec<_>) =
        (added.map(|(_, rule)| rule).collect(), removed.map(|(_, rule)| rule).collect());
    let warnings: Vec<_> = added.iter().filter_map(|rule| warning(rule)).collect();
    let (added_count, removed_count) = (added.len(), removed.len());
    let ended = EndedSessions::from_registry(snapshot, registry);
    json!({
        "rules_added": shown(added),
        "rules_added_count": added_count,
        "rules_removed": shown(removed),
        "rules_removed_count": removed_count,
        "sessions_ended": ended.listed(),
        "sessions_ended_count": ended.0.len(),
        "admits_nobody": snapshot.named(listener).is_none_or(|policy| admits_nobody(policy)),
        "warnings": warnings,
    })
}

fn warning(rule: &Rule) -> Option<String> {
    let network = rule.source.network()?;
    (network.net().prefix_len() == 0).then(|| format!("{rule} trusts every address of its family"))
}

pub(crate) fn admits_nobody(policy: &ListenerPolicy) -> bool {
    policy.sources.enforcement == Enforcement::Enforce
        && policy.sources.trusted.live_networks(OffsetDateTime::now_utc()).next().is_none()
}

fn sessions_by_source(policy: &ListenerPolicy, registry: &ConnectionRegistry) -> HashMap<Source, u64> {
    let mut sessions = HashMap::new();
    for live in registry.all().iter().filter(|live| **live.listener() == *policy.name) {
        let Some(SessionInfo { session, .. }) = relaying(live) else { continue };
        if let Some(rule) = &session.authorization.rule {
            *sessions.entry(rule.source.clone()).or_default() += 1;
        }
    }
    sessions
}

fn rule_json(policy: &ListenerPolicy, rule: &Rule, sessions: &HashMap<Source, u64>) -> Value {
    let used = policy.usage.of(&Item::Source(rule.source.clone()));
    json!({
        "uuid": rule.uuid.to_string(),
        "type": rule.source.kind(),
        "value": rule.written_value(),
        "description": rule.description,
        "created_at": rule.origin.created_at().map(seconds),
        "expires_at": rule.expires_at.map(seconds),
        "origin": origin(policy, rule),
        "sessions": sessions.get(&rule.source).copied().unwrap_or_default(),
        "last_used": used.map(|used| seconds(used.last)),
    })
}

fn origin(policy: &ListenerPolicy, rule: &Rule) -> &'static str {
    match rule.origin {
        Origin::SourcesFile { .. } if policy.has_fleet_rules => "fleet",
        Origin::SourcesFile { .. } | Origin::Configuration => rule.origin.code(),
    }
}

/// Adds `state` and `detail`, and for a host or a cloud source `addresses_count` and, if there are not too many, `addresses`.
fn with_state(mut shown: Value, policy: &ListenerPolicy, rule: &Rule, resolutions: &ResolutionCache) -> Value {
    let resolvable = rule.source.resolvable();
    let status = resolvable.as_ref().map(|source| resolutions.status(source));
    let addresses = resolvable.as_ref().map(|source| policy.sources.trusted.addresses_of(source));
    let (state, detail) = match (rule.is_live(OffsetDateTime::now_utc()), status) {
        (false, _) => ("expired", None),
        (true, None) => (ResolutionState::Resolved.code(), None),
        // The policy with the newest addresses may not be in force yet.
        (true, Some(status)) => (status.state.code(), status.detail),
    };
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("state".to_owned(), state.into());
        fields.insert("detail".to_owned(), json!(detail.map(|detail| printable::field(&detail))));
        if let Some(addresses) = addresses {
            fields.insert("addresses_count".to_owned(), addresses.len().into());
            if addresses.len() <= MAX_HOST_ADDRESSES {
                fields.insert("addresses".to_owned(), json!(addresses));
            }
        }
    }
    shown
}

/// Bytes of the digest that an entity tag shows.
const ETAG_BYTES: usize = 16;
