//! The JSON about the fleet.

use serde_json::{Map, Value, json};

use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::fleet::roster::{Liveness, Member};
use crate::fleet::settings::Engine;
use crate::metrics::exposition::FleetFigures;
use crate::policy::Snapshot;
use crate::printable;
use crate::server::fleet::FleetService;
use crate::server::fleet::ask::Missing;
use crate::server::fleet::status::{FleetStatus, StoreState};
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
            StoreState::Connecting | StoreState::Down { .. } | StoreState::Refused { .. } => {
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
        let listed = if is_believed { self.recent_members().await.ok() } else { None };
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
}
