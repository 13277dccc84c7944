//! The JSON about the fleet.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::fleet::command::{Answer, CommandTask};
use crate::fleet::roster::{Liveness, Member};
use crate::fleet::settings::Engine;
use crate::metrics::exposition::FleetFigures;
use crate::policy::Snapshot;
use crate::printable;
use crate::server::fleet::FleetService;
use crate::server::fleet::ask::Missing;
use crate::server::fleet::status::{FleetStatus, StoreState};
use crate::server::fleet::write::{fleet_of, unavailable};
use crate::timestamp::seconds;

/// The members without an answer, as the API lists them.
pub(crate) fn missing(members: &[Missing]) -> Value {
    let one = |Missing { member, liveness }: &Missing| json!({ "member": member, "state": liveness.code() });
    members.iter().map(one).collect()
}

/// The state of the fleet's rules of a listener; `null` if it has none.
pub(crate) fn rules(policy: &Snapshot, listener: &str, status: &FleetStatus) -> Value {
    let configured = policy.config.listeners.iter().find(|configured| configured.name == listener);
    let Some(rules) = configured.and_then(|configured| configured.fleet_rules.as_ref()) else { return Value::Null };
    let known = status.rules.get(listener).cloned().unwrap_or_default();
    json!({
        "state": known.state.code(),
        "sequence": known.sequence,
        "has_copy": rules.copy.is_some(),
        "detail": known.detail.as_deref().map(printable::lines),
    })
}

impl FleetService {
    /// The state of the store in short; `null` without `[fleet]`.
    pub(crate) fn summary(&self) -> Value {
        let policy = self.policy();
        let Some(fleet) = &policy.config.fleet else { return Value::Null };
        let status = self.status();
        let (live, unknown) = self.member_counts();
        json!({
            "name": fleet.name(),
            "member": fleet.member,
            "store": status.store.code(),
            "since": status.since.map(seconds),
            "detail": status.store.detail().map(printable::lines),
            "duplicate": status.duplicate.is_some(),
            "members": { "live": live, "unknown": unknown },
        })
    }

    /// The numbers of members that are live and unknown. Without the store, nothing is known of the others.
    pub(crate) fn member_counts(&self) -> (usize, usize) {
        let status = self.lock();
        let (live, unknown) = status.roster.counts();
        match status.store {
            StoreState::Up => (live, unknown),
            StoreState::Unheard | StoreState::Down { .. } | StoreState::Refused { .. } => {
                let own = live.min(1);
                (own, live.saturating_add(unknown).saturating_sub(own))
            }
        }
    }

    /// The figures for the metrics; `None` without `[fleet]`.
    pub(crate) fn figures(&self) -> Option<FleetFigures> {
        self.policy().config.fleet.as_ref()?;
        let revision = self.lock().position.as_ref().map(|position| position.revision);
        Some(FleetFigures { members: self.member_counts(), revision })
    }

    /// The members and the store.
    ///
    /// # Errors
    /// A 404 response without `[fleet]`.
    pub(crate) async fn describe(&self) -> Result<Value, AdminResponse> {
        let policy = self.policy();
        let none = || AdminResponse::error(ErrorKind::NotFound, "there is no [fleet] in the configuration");
        let fleet = policy.config.fleet.as_ref().ok_or_else(none)?;
        let is_believed = self.believed.borrow().is_some();
        let listed = if is_believed { self.list_members().await.ok() } else { None };
        let status = self.status();
        let is_current = listed.is_some();
        let roster = listed.unwrap_or_else(|| status.roster.clone());
        let members: Vec<_> = roster.members().iter().map(|member| self.member(member, is_current)).collect();
        let listeners: Map<_, _> = status
            .rules
            .keys()
            .map(|listener| (listener.clone(), rules(&policy, listener, &status)))
            .filter(|(_, rules)| !rules.is_null())
            .collect();
        let position = status.position.as_ref();
        Ok(json!({
            "name": fleet.name(),
            "member": fleet.member,
            "duplicate": status.duplicate.is_some(),
            "store": {
                "engine": match &fleet.store.engine {
                    Engine::Etcd(_) => "etcd",
                    Engine::Kubernetes { .. } => "kubernetes",
                },
                "state": status.store.code(),
                "since": status.since.map(seconds),
                "detail": status.store.detail().map(printable::lines),
                "cluster": position.map(|position| position.cluster.clone()),
                "revision": position.map(|position| position.revision),
                "epoch": position.map(|position| position.epoch),
            },
            "rules": listeners,
            "tickets": super::tickets::are_used(&policy).then(|| json!({
                "sequence": status.tickets,
                "error": status.tickets_error.as_deref().map(printable::lines),
            })),
            "members": members,
        }))
    }

    /// A member. If the list is not current, nothing is known of the others.
    fn member(&self, member: &Member, is_current: bool) -> Value {
        let Member { name, liveness, state } = member;
        let is_own = state.as_ref().is_some_and(|state| state.instance == self.instance);
        let liveness = if is_current || is_own { *liveness } else { Liveness::Unknown };
        let state = state.as_ref();
        json!({
            "member": name,
            "state": liveness.code(),
            "last_seen": member.last_seen().map(seconds),
            "revision": state.map(|state| state.revision),
            "policy_hash": state.map(|state| state.policy_hash.clone()),
            "applied": state.map(|state| state.applied.clone()),
            "sessions": state.filter(|_| liveness == Liveness::Live).map(|state| state.sessions),
        })
    }

    /// The use of certificates and rules at all members. `own` is the report of this one.
    ///
    /// # Errors
    /// The response to the caller.
    pub(crate) async fn rotation(&self, mut own: Value) -> Result<Value, AdminResponse> {
        let fleet = fleet_of(self)?;
        if self.believed.borrow().is_none() {
            return Err(self.no_store());
        }
        let answers = self.ask(&fleet.member, CommandTask::Evidence, EVIDENCE_TIMEOUT).await.map_err(unavailable)?;
        let items = own.get_mut("items").map(Value::take).and_then(|items| match items {
            Value::Array(items) => Some(items),
            _ => None,
        });
        let mut all = Vec::new();
        let mut known = BTreeMap::new();
        for mut item in items.unwrap_or_default() {
            // The answer of this member has its use too.
            without_use(&mut item);
            known.insert(identity(&item), all.len());
            all.push(item);
        }
        for (member, answer) in &answers.by_member {
            let Answer::Evidence(items) = answer else { continue };
            for item in items {
                match known.get(&identity(item)).and_then(|index| all.get_mut(*index)) {
                    Some(sum) => add(sum, item),
                    None => {
                        let mut item = item.clone();
                        set(&mut item, "only_at", json!(member));
                        known.insert(identity(&item), all.len());
                        all.push(item);
                    }
                }
            }
        }
        if !answers.missing.is_empty() {
            // No use is known, and there may be one at a member that is missing.
            for item in all.iter_mut().filter(|item| number(item, "sessions") == 0) {
                set(item, "sessions", Value::Null);
            }
        }
        let members: Vec<_> = answers.by_member.keys().collect();
        set(&mut own, "items", Value::Array(all));
        set(&mut own, "members", json!(members));
        set(&mut own, "missing", missing(&answers.missing));
        Ok(own)
    }
}

/// What the items of different members have in common if they are the same.
fn identity(item: &Value) -> [String; 4] {
    ["listener", "kind", "name", "sha256"]
        .map(|key| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn without_use(item: &mut Value) {
    for (key, value) in [
        ("sessions", json!(0)),
        ("first_used", Value::Null),
        ("last_used", Value::Null),
        ("last_users", json!([])),
        ("clients", json!([])),
        ("more_clients", json!(0)),
    ] {
        set(item, key, value);
    }
}

/// Adds the use at another member.
fn add(sum: &mut Value, other: &Value) {
    for key in ["sessions", "more_clients"] {
        let total = number(sum, key).saturating_add(number(other, key));
        set(sum, key, json!(total));
    }
    // Times in RFC 3339 with the same precision and offset are ordered as text.
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
    let first = [text(sum, "first_used"), text(other, "first_used")].into_iter().flatten().min();
    let last = [text(sum, "last_used"), text(other, "last_used")].into_iter().flatten().max();
    set(sum, "first_used", json!(first));
    set(sum, "last_used", json!(last));
    for (key, most) in [("clients", MAX_CLIENTS), ("last_users", MAX_LAST_USERS)] {
        let list = |item: &Value| item.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let mut both = [list(sum), list(other)].concat();
        let omitted = both.len().saturating_sub(most);
        both.truncate(most);
        set(sum, key, Value::Array(both));
        if key == "clients" {
            let more = number(sum, "more_clients").saturating_add(u64::try_from(omitted).unwrap_or(u64::MAX));
            set(sum, "more_clients", json!(more));
        }
    }
}

fn number(item: &Value, key: &str) -> u64 {
    item.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn set(item: &mut Value, key: &str, value: Value) {
    if let Some(fields) = item.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

/// How long the members may take to answer.
const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_CLIENTS: usize = 5;
const MAX_LAST_USERS: usize = 8;
