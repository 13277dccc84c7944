//! The JSON of trusted sources, for `/v1` and for DigitalOcean's API.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

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
use crate::source::addresses::{Addresses, MAX_HOST_ADDRESSES};
use crate::source::group::{GroupName, RuleOwner, SourceGroup};
use crate::source::id::listener_uuid;
use crate::source::rule::{Origin, Rule};
use crate::source::rule_set::RuleSet;
use crate::source::trusted::Enforcement;
use crate::timestamp::seconds;

/// The rules of a listener or a group, and the listeners that they admit clients to.
#[derive(Debug)]
pub(crate) struct RuleList<'s> {
    owner: RuleOwner<'s>,
    set: &'s RuleSet,
    /// The listener itself, or those that use the group.
    listeners: Vec<&'s ListenerPolicy>,
}

impl<'s> RuleList<'s> {
    /// The rules of an owner; `None` for an unknown one.
    pub(crate) fn of(snapshot: &'s Snapshot, owner: RuleOwner<'_>) -> Option<Self> {
        match owner {
            RuleOwner::Listener(name) => snapshot.named(name).map(|policy| Self::of_listener(policy)),
            RuleOwner::Group(name) => snapshot.group(name).map(|group| Self::of_group(snapshot, group)),
        }
    }

    pub(crate) fn of_listener(policy: &'s ListenerPolicy) -> Self {
        let owner = RuleOwner::Listener(&policy.name);
        Self { owner, set: policy.sources.trusted.own(), listeners: vec![policy] }
    }

    pub(crate) fn of_group(snapshot: &'s Snapshot, group: &'s SourceGroup) -> Self {
        let listeners = snapshot.users_of(group).map(|policy| &**policy).collect();
        Self { owner: group.owner(), set: &group.sources, listeners }
    }

    pub(crate) fn owner(&self) -> RuleOwner<'s> {
        self.owner
    }

    pub(crate) fn rules(&self) -> &'s [Arc<Rule>] {
        self.set.rules()
    }

    /// The names of the listener, or of those that use the group.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &'s str> {
        self.listeners.iter().map(|policy| &*policy.name)
    }

    /// The item of a rule in the usage of a listener.
    fn item(&self, rule: &Rule) -> Item {
        match self.group() {
            Some(group) => Item::GroupSource(group, rule.source.clone()),
            None => Item::Source(rule.source.clone()),
        }
    }

    fn group(&self) -> Option<GroupName> {
        match self.owner {
            RuleOwner::Listener(_) => None,
            RuleOwner::Group(name) => name.parse().ok(),
        }
    }

    /// The number of sessions that each rule admits, at all listeners.
    fn sessions(&self, registry: &ConnectionRegistry) -> HashMap<Item, u64> {
        let mut sessions = HashMap::new();
        for live in registry.all() {
            if !self.listeners().any(|name| *name == **live.listener()) {
                continue;
            }
            let Some(SessionInfo { session, .. }) = relaying(&live) else { continue };
            for item in session.authorization.items() {
                *sessions.entry(item).or_default() += 1;
            }
        }
        sessions
    }

    fn last_used(&self, item: &Item) -> Option<OffsetDateTime> {
        self.listeners.iter().filter_map(|policy| policy.usage.of(item)).map(|used| used.last).max()
    }

    /// Whether the rules that are not in the configuration are in the store of the fleet.
    fn is_in_fleet(&self) -> bool {
        matches!(self.owner, RuleOwner::Listener(_)) && self.listeners.iter().any(|policy| policy.has_fleet_rules)
    }

    /// Whether a listener admits no client.
    fn admits_nobody(&self) -> bool {
        self.listeners.iter().any(|policy| admits_nobody(policy))
    }
}

/// The rules of a list with their use, and the state of those that are resolved.
pub(crate) fn list(list: &RuleList<'_>, registry: &ConnectionRegistry, resolutions: &ResolutionCache) -> Value {
    let sessions = list.sessions(registry);
    let rule = |rule: &Rule| with_state(rule_json(list, rule, &sessions), list.set, rule, resolutions);
    let rules: Vec<_> = list.rules().iter().map(|each| rule(each)).collect();
    json!({ "rules": rules })
}

/// The rules with these UUIDs, in this order.
pub(crate) fn rules_of(
    list: &RuleList<'_>,
    registry: &ConnectionRegistry,
    resolutions: &ResolutionCache,
    uuids: &[Uuid],
) -> Vec<Value> {
    let sessions = list.sessions(registry);
    let wanted: HashSet<&Uuid> = uuids.iter().collect();
    let rules = list.rules().iter().filter(|rule| wanted.contains(&rule.uuid));
    let by_uuid: HashMap<Uuid, &Rule> = rules.map(|rule| (rule.uuid, &**rule)).collect();
    let rule = |uuid: &Uuid| {
        let rule = by_uuid.get(uuid)?;
        Some(with_state(rule_json(list, rule, &sessions), list.set, rule, resolutions))
    };
    uuids.iter().filter_map(rule).collect()
}

/// All groups, each with the number of its rules and the listeners that use it.
pub(crate) fn groups(snapshot: &Snapshot) -> Value {
    let group = |group: &Arc<SourceGroup>| {
        let list = RuleList::of_group(snapshot, group);
        json!({
            "name": group.name.as_str(),
            "uuid": listener_uuid(&list.owner().to_string()).to_string(),
            "sources_file": snapshot.config.sources_file(list.owner()).is_some(),
            "rules": list.rules().len(),
            "listeners": list.listeners().collect::<Vec<_>>(),
        })
    };
    snapshot.groups().iter().map(group).collect()
}

/// The rules of the `sources_file`, as DigitalOcean's API lists them.
pub(crate) fn firewall(list: &RuleList<'_>) -> Value {
    let cluster = listener_uuid(&list.owner().to_string());
    let rules = list.rules().iter().filter_map(|rule| {
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

/// The entity tag of a list of rules: it changes with every field of a rule that the API shows and that does not change by
/// itself.
pub(crate) fn etag(list: &RuleList<'_>) -> String {
    let mut context = Context::new(&SHA256);
    let mut text = String::new();
    for rule in list.rules() {
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

/// What a change of the rules of `owner` does, at all listeners that they admit clients to.
pub(crate) fn plan(
    snapshot: &Snapshot,
    current: &Snapshot,
    owner: RuleOwner<'_>,
    registry: &ConnectionRegistry,
) -> Value {
    let is_of_owner = |(changed, _): &(RuleOwner<'_>, &Rule)| *changed == owner;
    let changes = snapshot.source_changes_since(current);
    let added = changes.iter().flat_map(|changes| changes.added()).filter(is_of_owner);
    let removed = changes.iter().flat_map(|changes| changes.removed()).filter(is_of_owner);
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
    let warnings: Vec<_> = added.iter().filter_map(|rule| warning(snapshot, rule)).collect();
    let (added_count, removed_count) = (added.len(), removed.len());
    let ended = EndedSessions::from_registry(snapshot, registry);
    json!({
        "rules_added": shown(added),
        "rules_added_count": added_count,
        "rules_removed": shown(removed),
        "rules_removed_count": removed_count,
        "sessions_ended": ended.listed(),
        "sessions_ended_count": ended.0.len(),
        "admits_nobody": RuleList::of(snapshot, owner).is_none_or(|list| list.admits_nobody()),
        "warnings": warnings,
    })
}

fn warning(snapshot: &Snapshot, rule: &Rule) -> Option<String> {
    let is_everything = |rule: &Rule| rule.source.network().is_some_and(|network| network.net().prefix_len() == 0);
    if is_everything(rule) {
        return Some(format!("{rule} trusts every address of its family"));
    }
    let group = snapshot.group(rule.source.group()?.as_str())?;
    let widest = group.sources.rules().iter().find(|rule| is_everything(rule))?;
    Some(format!("{rule} contains {widest}, which trusts every address of its family"))
}

pub(crate) fn admits_nobody(policy: &ListenerPolicy) -> bool {
    policy.sources.enforcement == Enforcement::Enforce
        && policy.sources.trusted.live_networks(OffsetDateTime::now_utc()).next().is_none()
}

fn rule_json(list: &RuleList<'_>, rule: &Rule, sessions: &HashMap<Item, u64>) -> Value {
    let item = list.item(rule);
    json!({
        "uuid": rule.uuid.to_string(),
        "type": rule.source.kind(),
        "value": rule.written_value(),
        "description": rule.description,
        "created_at": rule.origin.created_at().map(seconds),
        "expires_at": rule.expires_at.map(seconds),
        "origin": origin(list, rule),
        "sessions": sessions.get(&item).copied().unwrap_or_default(),
        "last_used": list.last_used(&item).map(seconds),
    })
}

fn origin(list: &RuleList<'_>, rule: &Rule) -> &'static str {
    match rule.origin {
        Origin::SourcesFile { .. } if list.is_in_fleet() => "fleet",
        Origin::SourcesFile { .. } | Origin::Configuration => rule.origin.code(),
    }
}

/// Adds `state` and `detail`, and for a host or a cloud source `addresses_count` and, if there are not too many, `addresses`.
/// For a cloud source, `objects` names the object behind each of these.
fn with_state(mut shown: Value, set: &RuleSet, rule: &Rule, resolutions: &ResolutionCache) -> Value {
    let resolvable = rule.source.resolvable();
    let status = resolvable.as_ref().map(|source| resolutions.status(source));
    let addresses = resolvable.as_ref().map(|source| set.addresses_of(source));
    let cloud = resolvable.as_ref().filter(|source| source.cloud().is_some());
    let objects = cloud.map(|source| set.known(source).map(objects_by_address).unwrap_or_default());
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
                fields.extend(objects.map(|objects| ("objects".to_owned(), objects.into())));
            }
        }
    }
    shown
}

/// The objects that have these addresses, by address.
fn objects_by_address(addresses: &Addresses) -> Map<String, Value> {
    let named = addresses.objects().filter(|(_, object)| !object.is_empty());
    named.map(|(ip, object)| (ip.to_string(), printable::field(object).into())).collect()
}

/// Bytes of the digest that an entity tag shows.
const ETAG_BYTES: usize = 16;
