//! Accepts a store that was restored or replaced, and forgets members that are gone.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::fault;
use crate::fleet::guard::is_strange;
use crate::fleet::manifest::Manifest;
use crate::fleet::roster::Liveness;
use crate::fleet::store::{EPOCH, Expected, MEMBERS, Operation, Outcome, TICKETS};
use crate::fleet::view::{Reach, Shared, View};
use crate::server::admin_handler::action::Action;
use crate::server::fleet::apply::{fleet_listeners, in_force};
use crate::server::fleet::write::{Base, Swapped, fleet_of, unavailable};
use crate::server::fleet::{FleetService, PART};

impl FleetService {
    /// Accepts the store as it is, for all members. Rules that it lacks and this member has are written first, so that no
    /// member finds an accepted store without rules. They are never replaced by an empty list.
    ///
    /// # Errors
    /// The response to the caller.
    pub(crate) async fn accept(&self, action: Action) -> Result<Value, AdminResponse> {
        let fleet = fleet_of(self)?;
        let view = self.view_of(&fleet.store);
        if !matches!(view.reach, Reach::Up { .. }) {
            return Err(self.no_store());
        }
        let mut written = Vec::new();
        for listener in fleet_listeners(&self.policy()) {
            if self.has_lost(&view, &listener) && self.write_back(&view, &listener, &fleet.member).await? {
                written.push(listener);
            }
        }
        if view.tickets().is_none() {
            let file = fleet.tickets_file();
            let ring = fault::contained_blocking(PART, move || std::fs::read_to_string(file)).await;
            if let Ok(Ok(value)) = ring {
                // Without it, the fleet makes new keys.
                let (key, expected) = (TICKETS.to_owned(), Expected::Absent);
                let _ = self.store.perform(Operation::Put { key, value, expected, seconds: None }).await;
            }
        }
        let known = self.status().position.map_or(0, |position| position.epoch);
        let seen = Some(view.epoch()).filter(|seen| !is_strange(known, *seen)).unwrap_or_default();
        let epoch = seen.max(known).saturating_add(1);
        let version = view.epoch_key().map(|shared| Expected::Version(shared.version.clone()));
        let (key, value) = (EPOCH.to_owned(), epoch.to_string());
        let put = Operation::Put { key, value, expected: version.unwrap_or(Expected::Absent), seconds: None };
        match self.store.perform(put).await {
            // Another operator has accepted it at the same time.
            Outcome::Done { .. } | Outcome::Conflict { .. } => {}
            other => return Err(unavailable(other.failure())),
        }
        action.write(&self.audit);
        let mut believed = self.believed.subscribe();
        let accepted = believed.wait_for(|view| view.as_ref().is_some_and(|view| view.epoch() >= epoch));
        let is_in_use = timeout(ACCEPT_TIMEOUT, accepted).await.is_ok_and(|waited| waited.is_ok());
        Ok(json!({ "epoch": epoch, "rules_written": written, "in_use": is_in_use }))
    }

    /// Whether the store has no rules of a listener that any change could follow.
    fn has_lost(&self, view: &View, listener: &str) -> bool {
        let known = self.status().rules.get(listener).map_or(0, |rules| rules.sequence);
        let strange = |shared: &Shared| Manifest::parse(&shared.value).is_ok_and(|manifest| manifest.is_strange(known));
        view.rules(listener).is_none_or(strange)
    }

    /// Writes the last good rules of a listener. Returns whether there were any.
    async fn write_back(&self, view: &View, listener: &str, member: &str) -> Result<bool, AdminResponse> {
        let policy = self.policy();
        let Some(digest) = in_force(&policy, listener) else { return Ok(false) };
        let fleet = fleet_of(self)?;
        let file = fleet.rules_file(listener);
        let text = fault::contained_blocking(PART, move || std::fs::read_to_string(file)).await;
        let text = text.map_err(|fault| AdminResponse::error(ErrorKind::ServerError, fault))?;
        let text =
            text.map_err(|error| AdminResponse::conflict(format_args!("the last good rules of {listener}: {error}")))?;
        let known = self.status().rules.get(listener).map_or(0, |rules| rules.sequence);
        let base = Base::of(view, listener, known)?;
        let encoded = self.encode(&text, base.sequence, member).await?;
        if encoded.manifest.sha256() != digest {
            let message = format_args!("the last good rules of {listener} were edited by hand; reload first");
            return Err(AdminResponse::conflict(message));
        }
        match self.swap(listener, &encoded, &base).await.map_err(unavailable)? {
            Swapped::Done(listed) => {
                self.clean_up(listener, &encoded.manifest, listed);
                Ok(true)
            }
            Swapped::Conflict => Ok(false),
        }
    }

    /// Removes a member that is gone for good.
    ///
    /// # Errors
    /// The response to the caller.
    pub(crate) async fn forget_member(&self, name: &str, action: Action) -> Result<(), AdminResponse> {
        fleet_of(self)?;
        if self.believed.borrow().is_none() {
            return Err(self.no_store());
        }
        let roster = self.list_members().await.map_err(unavailable)?;
        match roster.members().iter().find(|member| member.name == name).map(|member| member.liveness) {
            None => Err(AdminResponse::error(ErrorKind::NotFound, format_args!("the fleet has no member {name:?}"))),
            Some(Liveness::Live) => Err(AdminResponse::conflict(format_args!(
                "{name} is alive; stop it, and it leaves the fleet by itself"
            ))),
            Some(Liveness::Unknown) => {
                let delete = Operation::Delete { key: format!("{MEMBERS}{name}"), expected: Expected::Any };
                match self.store.perform(delete).await {
                    Outcome::Done { .. } => {
                        action.write(&self.audit);
                        Ok(())
                    }
                    other => Err(unavailable(other.failure())),
                }
            }
        }
    }
}

/// How long a command waits until the accepted store is in use here.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
