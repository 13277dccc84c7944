//! Changes the rules in the store.
//!
//! The change is edited, built and judged as a change of a file, and then replaces the manifest by compare-and-swap. So no
//! change of another member is lost, and no member is sent rules that are not valid where they were written.

use std::collections::HashSet;
use std::future::Future;
use std::sync::PoisonError;
use std::time::Duration;

use hyper::header::{HeaderValue, RETRY_AFTER};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::config::fleet::Fleet;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::fault;
use crate::fleet::command::CommandTask;
use crate::fleet::manifest::{Encoded, Manifest, ManifestError};
use crate::fleet::store::{Entry, Expected, Operation, Outcome, RULES};
use crate::fleet::view::View;
use crate::server::admin_handler::action::Action;
use crate::server::fleet::apply::{Apply, change_file, in_force};
use crate::server::fleet::chunks::{self, Listed};
use crate::server::fleet::status::{RulesState, StoreState};
use crate::server::fleet::{FleetService, PART};
use crate::server::reload::change::{ChangeResult, ChangedFile, Edit, Edited, FileChange};

/// A change of the rules of a listener.
pub(crate) struct RulesChange {
    pub(crate) listener: String,
    /// Makes the edit of the text with this digest, if there is one. It is made again when another member was faster.
    pub(crate) edit: Box<dyn Fn(Option<String>) -> Box<Edit> + Send + Sync>,
    /// Whether the rules must be those that the caller has read.
    pub(crate) has_precondition: bool,
    /// Whether all rules are replaced, whatever they were.
    pub(crate) replaces_all: bool,
    pub(crate) action: Action,
}

/// Rules that are in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
}

/// What a change replaces.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) expected: Expected,
    /// The sequence of the rules, 0 if there are none.
    pub(crate) sequence: u64,
    /// The digest of the rules; `None` if the store has none that can be used.
    pub(crate) sha256: Option<String>,
    /// The chunks that the manifest names.
    pub(crate) chunks: HashSet<String>,
}

/// How a compare-and-swap ended.
#[derive(Debug)]
pub(crate) enum Swapped {
    Done(Listed),
    /// Another member was faster.
    Conflict,
}

impl FleetService {
    /// Changes the rules of a listener and puts them in force here.
    ///
    /// # Errors
    /// The response to the caller. Status 503 if the store cannot be used now.
    pub(crate) async fn change_rules(&self, change: RulesChange) -> Result<(ChangeResult, Written), AdminResponse> {
        let (deadline, limit) = (Instant::now() + WRITE_TIMEOUT, Instant::now() + ANSWER_TIMEOUT);
        let RulesChange { listener, edit, has_precondition, replaces_all, action } = change;
        loop {
            let fleet = self.policy().config.fleet.clone().ok_or_else(|| unavailable("there is no fleet any more"))?;
            let (view, base) = self.newest_base(&fleet, &listener, replaces_all, deadline).await?;
            let Edited { content, affected } =
                self.edited(&listener, edit(base.sha256.clone()), has_precondition).await?;
            let text = String::from_utf8(content.unwrap_or_default())
                .map_err(|_| AdminResponse::error(ErrorKind::ServerError, "the rules are not UTF-8"))?;
            let encoded = self.encode(&text, base.sequence, &fleet.member).await?;
            let mut manifest = encoded.manifest.clone();
            let is_same = base.sha256.as_deref() == Some(manifest.sha256());
            let listed = if is_same {
                // The rules are in the store already.
                manifest.sequence = base.sequence;
                None
            } else {
                let swapped = timeout_at(limit, self.swap(&listener, &encoded, &base)).await;
                let swapped = swapped.map_err(|_| unavailable("the store of the fleet does not answer in time"))?;
                match swapped.map_err(unavailable)? {
                    Swapped::Done(listed) => Some(listed),
                    Swapped::Conflict if has_precondition => return Err(changed_meanwhile()),
                    Swapped::Conflict => {
                        self.wait_for_news(&view, deadline).await?;
                        continue;
                    }
                }
            };
            drop(encoded);
            if let Some(listed) = listed {
                self.clean_up(&listener, &manifest, listed);
            }
            let written = Written { epoch: view.epoch(), sequence: manifest.sequence };
            let (reply, result) = oneshot::channel();
            self.applies().push_back(Apply { listener, manifest, text, action, affected, reply });
            self.apply_added.notify_one();
            // The change comes into force when the agent reports it, which this member still waits for after the answer.
            let result = timeout_at(limit, result).await.map_err(|_| {
                unavailable("the change is in the store, and the store has not reported it to this member in time")
            })?;
            let result = result.unwrap_or_else(|_| Err(unavailable("the fleet was reconfigured")));
            return result.map(|result| (result, written)).map_err(|response| not_here(&response));
        }
    }

    /// Waits until the newest rules are in force here, and returns what a change of them replaces.
    async fn newest_base(
        &self,
        fleet: &Fleet,
        listener: &str,
        replaces_all: bool,
        deadline: Instant,
    ) -> Result<(View, Base), AdminResponse> {
        let mut progress = self.progress.subscribe();
        let mut believed = self.believed.subscribe();
        loop {
            progress.mark_unchanged();
            believed.mark_unchanged();
            let view = self.believed_view_of(&fleet.store).ok_or_else(|| self.no_store())?;
            let status = self.lock().rules.get(listener).cloned().unwrap_or_default();
            let base = Base::of(&view, listener, status.sequence)?;
            let is_newest = base.sha256.is_none() || base.sha256 == in_force(&self.policy(), listener);
            if is_newest || (status.state == RulesState::Invalid && replaces_all) {
                return Ok((view, base));
            }
            if status.state == RulesState::Invalid {
                let why = status.detail.unwrap_or_default();
                return Err(AdminResponse::conflict(format_args!(
                    "the rules in the store are not valid at this member, so it cannot change them: {why}; correct this, \
                     change the rules at another member, or replace all of them"
                )));
            }
            let changed = async {
                tokio::select! {
                    _ = progress.changed() => {}
                    _ = believed.changed() => {}
                }
            };
            before(deadline, changed, "the newest rules of the fleet are not in force here yet").await?;
        }
    }

    /// Edits the last good copy, and judges the policy that the change leads to.
    async fn edited(&self, listener: &str, edit: Box<Edit>, has_precondition: bool) -> Result<Edited, AdminResponse> {
        let file = ChangedFile::Sources { owner: listener.to_owned() };
        let change = FileChange { file, edit, requires_list_in_force: has_precondition, plan: true, action: None };
        match change_file(self, change).await? {
            ChangeResult::Planned { edited, .. } => Ok(edited),
            ChangeResult::Applied { .. } => Err(AdminResponse::error(ErrorKind::ServerError, "a plan was applied")),
        }
    }

    pub(crate) async fn encode<'t>(
        &self,
        text: &'t str,
        previous: u64,
        member: &str,
    ) -> Result<Encoded<'t>, AdminResponse> {
        // About 30 ms for 100,000 rules.
        let encoded = fault::contain(PART, || Manifest::encode(text, previous, member, OffsetDateTime::now_utc()));
        encoded.map_err(|fault| AdminResponse::error(ErrorKind::ServerError, fault))
    }

    /// Writes the chunks of new rules, and replaces the manifest if it is still the one of `base`.
    ///
    /// # Errors
    /// Why it is not known whether the rules are in the store, or why they are not.
    pub(crate) async fn swap(&self, listener: &str, encoded: &Encoded<'_>, base: &Base) -> Result<Swapped, String> {
        let listed = chunks::put(&self.store, listener, encoded, &base.chunks).await?;
        let (key, value) = (format!("{RULES}{listener}"), encoded.manifest.to_json());
        let put =
            Operation::Put { key: key.clone(), value: value.clone(), expected: base.expected.clone(), seconds: None };
        match self.store.perform(put).await {
            Outcome::Done { .. } => Ok(Swapped::Done(listed)),
            Outcome::Conflict { current } if current.as_ref().is_some_and(|current| current.value == value) => {
                // An earlier attempt of the agent has succeeded.
                Ok(Swapped::Done(listed))
            }
            Outcome::Conflict { .. } => Ok(Swapped::Conflict),
            unknown => match self.store.perform(Operation::Get { keys: vec![key] }).await {
                Outcome::Entries(entries) if entries.iter().any(|Entry { value: found, .. }| *found == value) => {
                    Ok(Swapped::Done(listed))
                }
                _ => Err(unknown.failure()),
            },
        }
    }

    /// Makes the rules of a plan readable for all members. `None` if the store cannot be used.
    ///
    /// Their chunks are removed after a limited time, or after the next change.
    pub(crate) async fn planned_rules(&self, listener: &str, text: &str) -> Option<CommandTask> {
        let view = self.believed.borrow().clone()?;
        let base = Base::of(&view, listener, 0).ok()?;
        let encoded = self.encode(text, base.sequence, "plan").await.ok()?;
        chunks::put_planned(&self.store, listener, &encoded, &base.chunks).await.ok()?;
        Some(CommandTask::Plan { listener: listener.to_owned(), manifest: encoded.manifest.to_json() })
    }

    /// Removes chunks that are not named any more, in the background.
    pub(crate) fn clean_up(&self, listener: &str, manifest: &Manifest, listed: Listed) {
        let (store, manifest, listener) = (self.store.clone(), manifest.clone(), listener.to_owned());
        let mut clean_ups = self.clean_ups.lock().unwrap_or_else(PoisonError::into_inner);
        while clean_ups.try_join_next().is_some() {}
        clean_ups.spawn(async move {
            let removed = chunks::remove_unnamed(&store, &manifest, &listener, listed);
            let _ = fault::contained(PART, removed).await;
        });
    }

    /// Waits until the agent has reported something newer than `view`.
    async fn wait_for_news(&self, view: &View, deadline: Instant) -> Result<(), AdminResponse> {
        let mut believed = self.believed.subscribe();
        let news = believed.wait_for(|known| known.as_ref().is_none_or(|known| !known.has_same_keys(view)));
        before(deadline, async { drop(news.await) }, "another member is changing the rules").await
    }

    /// The response while the store cannot be used.
    pub(crate) fn no_store(&self) -> AdminResponse {
        match self.status().store {
            StoreState::Refused { why } => unavailable(format_args!("the store of the fleet is refused: {why}")),
            StoreState::Down { error } => unavailable(format_args!("the store of the fleet is down: {error}")),
            StoreState::Connecting | StoreState::Up => unavailable("the store of the fleet has not answered yet"),
        }
    }
}

impl Base {
    /// What a change of the rules in `view` replaces. `known` is the sequence of the rules in force here.
    ///
    /// # Errors
    /// A 409 response if a newer version of the program has written the rules.
    pub(crate) fn of(view: &View, listener: &str, known: u64) -> Result<Self, AdminResponse> {
        let none = |expected| Self { expected, sequence: known, sha256: None, chunks: HashSet::new() };
        let Some(shared) = view.rules(listener) else { return Ok(none(Expected::Absent)) };
        let expected = Expected::Version(shared.version.clone());
        match Manifest::parse(&shared.value) {
            Ok(manifest) if manifest.is_strange(known) => Ok(none(expected)),
            Ok(manifest) => Ok(Self {
                expected,
                sequence: manifest.sequence.max(known),
                sha256: Some(manifest.sha256().to_owned()),
                chunks: manifest.chunks().iter().cloned().collect(),
            }),
            Err(error @ ManifestError::Format(_)) => {
                Err(AdminResponse::conflict(format_args!("the manifest of the rules {error}")))
            }
            Err(_) => Ok(none(expected)),
        }
    }
}

/// The fleet that this program is a member of.
///
/// # Errors
/// A 409 response if there is none.
pub(crate) fn fleet_of(service: &FleetService) -> Result<Fleet, AdminResponse> {
    let fleet = service.policy().config.fleet.clone();
    fleet.ok_or_else(|| AdminResponse::conflict("there is no [fleet] in the configuration; add it and reload"))
}

async fn before(deadline: Instant, work: impl Future<Output = ()>, otherwise: &str) -> Result<(), AdminResponse> {
    timeout_at(deadline, work).await.map_err(|_| unavailable(otherwise))
}

/// A 503 response: nothing was changed, as far as is known.
pub(crate) fn unavailable(why: impl std::fmt::Display) -> AdminResponse {
    let message = format_args!("{why}; the rules in force stay, try again");
    AdminResponse::error(ErrorKind::ServiceUnavailable, message).with_header(RETRY_AFTER, HeaderValue::from_static("2"))
}

fn changed_meanwhile() -> AdminResponse {
    let message = "the rules have changed since they were read (ETag); read them again";
    AdminResponse::error(ErrorKind::PreconditionFailed, message)
}

/// The response to a change that is in the store and not in force here.
fn not_here(response: &AdminResponse) -> AdminResponse {
    let why = super::apply::message_of(response);
    unavailable(format_args!("the change is in the store, and not in force at this member yet: {why}"))
}

/// Time to find the newest rules. An operation of the store has its own limit.
const WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// Time for all that depends on the store, within the 10 s in which a change is answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);
