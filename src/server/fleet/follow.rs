//! Puts in force what the store has, if the store can be believed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::audit::fleet::FleetEvent;
use crate::config::fleet::Fleet;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::fault;
use crate::fleet::guard::Position;
use crate::fleet::known::{AppliedRules, Known};
use crate::fleet::manifest::Manifest;
use crate::fleet::ticket_ring::Ring;
use crate::fleet::view::{Reach, View};
use crate::policy::Snapshot;
use crate::policy::builder::fleet::open;
use crate::printable;
use crate::server::admin_handler::action::Action;
use crate::server::fleet::apply::{Apply, change_file, fleet_listeners, in_force, message_of};
use crate::server::fleet::chunks::{FetchError, INCOMPLETE, fetch};
use crate::server::fleet::memory::MemoryFile;
use crate::server::fleet::status::{RulesState, RulesStatus, StoreState};
use crate::server::fleet::write::unavailable;
use crate::server::fleet::{FleetService, PART};
use crate::server::reload::change::{Affected, ChangeResult, ChangedFile, Edit, Edited, FileChange};

/// Follows the store until the program ends.
pub(crate) async fn run(service: Arc<FleetService>) {
    service
        .with_fleet(|service, fleet| async move {
            Follower::start(service, fleet).await.run().await;
        })
        .await;
}

struct Follower {
    service: Arc<FleetService>,
    fleet: Fleet,
    memory: MemoryFile,
    known: Known,
    saved: Known,
    /// Why nothing is known, and the epoch of the store that was seen first: a later acceptance makes up for it.
    unreadable_memory: Option<(String, Option<u64>)>,
    /// The view of which everything is in the memory file.
    saved_view: View,
    /// Rules and ticket keys that could not be put in force, by listener (or the name of the ticket keys): the digest of the
    /// rules and the time of the next attempt.
    failed: BTreeMap<String, (String, Instant)>,
    /// When to try again without a change of the store.
    retry: Option<Instant>,
    /// When something was last reported.
    reported: BTreeMap<&'static str, Instant>,
}

impl Follower {
    async fn start(service: Arc<FleetService>, fleet: Fleet) -> Self {
        service.forget();
        let memory = MemoryFile::new(&fleet.directory);
        let file = memory.clone();
        let read = fault::contained_blocking(PART, move || {
            if let Err(error) = file.directory() {
                warn!(%error, "cannot create the directory of the fleet's last good copies");
            }
            file.read()
        });
        let (known, unreadable_memory) = match read.await.unwrap_or_else(|fault| Err(fault.to_string())) {
            Ok(known) => (known, None),
            Err(why) => (Known::default(), Some((why, None))),
        };
        let sequences = known.rules.iter().map(|(listener, rules)| {
            (listener.clone(), RulesStatus { sequence: rules.sequence, ..RulesStatus::default() })
        });
        let (rules, position, ticket_age) = (sequences.collect(), known.position.clone(), known.tickets);
        service.update(|status| {
            status.rules = rules;
            status.position = position;
            status.ticket_age = ticket_age;
        });
        let (saved, saved_view, failed) = (known.clone(), View::default(), BTreeMap::new());
        Self {
            service,
            fleet,
            memory,
            known,
            saved,
            unreadable_memory,
            saved_view,
            failed,
            retry: None,
            reported: BTreeMap::new(),
        }
    }

    async fn run(mut self) {
        let mut views = self.service.view.subscribe();
        let mut current = self.service.current.clone();
        let service = Arc::clone(&self.service);
        loop {
            views.mark_unchanged();
            current.mark_unchanged();
            self.follow().await;
            let retry = self.retry;
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                changed = current.changed() => if changed.is_err() { return },
                () = service.apply_added.notified() => {}
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {}
            }
        }
    }

    async fn follow(&mut self) {
        self.retry = None;
        let view = self.service.view_of(&self.fleet.store);
        let is_believed = self.judge(&view);
        let believed = is_believed.then(|| view.clone());
        self.service.believed.send_if_modified(|known| {
            let is_other = *known != believed;
            *known = believed;
            is_other
        });
        self.take_applies(&view, is_believed).await;
        if !is_believed {
            return;
        }
        for listener in fleet_listeners(&self.service.policy()) {
            self.follow_rules(&view, &listener).await;
        }
        self.follow_tickets(&view).await;
        self.remember(view).await;
    }

    /// Decides whether the store may be used, and reports when that changes.
    fn judge(&mut self, view: &View) -> bool {
        let (store, is_believed) = match &view.reach {
            Reach::Unheard => return false,
            Reach::Down { error } => (StoreState::Down { error: error.clone() }, false),
            Reach::Up { cluster, revision } => {
                let seen = Position { cluster: cluster.clone(), revision: *revision, epoch: view.epoch() };
                match self.check(view, &seen) {
                    Ok(()) => {
                        self.known.position = Some(seen.clone());
                        self.unreadable_memory = None;
                        self.service.lock().position = Some(seen);
                        (StoreState::Up, true)
                    }
                    Err(why) => (StoreState::Refused { why }, false),
                }
            }
        };
        if self.service.enter(store.clone()) {
            let event = match &store {
                StoreState::Connecting => return false,
                StoreState::Down { error } => {
                    warn!(%error, "the store of the fleet is down");
                    FleetEvent::StoreDown { error }
                }
                StoreState::Refused { .. } if !self.may_report("refused") => return is_believed,
                StoreState::Refused { why } => {
                    warn!(%why, "the store of the fleet is refused");
                    FleetEvent::StoreRefused { error: why }
                }
                StoreState::Up => FleetEvent::StoreUp,
            };
            self.event(event);
        }
        is_believed
    }

    fn check(&mut self, view: &View, seen: &Position) -> Result<(), String> {
        if let Some((why, first)) = &mut self.unreadable_memory {
            let first = *first.get_or_insert(seen.epoch);
            return if seen.epoch > first { Ok(()) } else { Err(why.clone()) };
        }
        let policy = self.service.policy();
        let listeners = fleet_listeners(&policy);
        let manifests = listeners.iter().filter_map(|listener| {
            let manifest = Manifest::parse(&view.rules(listener)?.value).ok()?;
            // A strange one is not valid, and says nothing about the store.
            (!manifest.is_strange(self.known.sequence(listener))).then_some((listener.as_str(), manifest))
        });
        let manifests: Vec<_> = manifests.collect();
        let manifests = manifests.iter().map(|(listener, manifest)| (*listener, manifest));
        self.known.check(seen, manifests).map_err(|suspicion| format!("{suspicion}; {ACCEPT}"))
    }

    /// Puts the rules of the store in force, unless they are already.
    async fn follow_rules(&mut self, view: &View, listener: &str) {
        let policy = self.service.policy();
        let Some(shared) = view.rules(listener) else {
            let has_copy = in_force(&policy, listener).is_some();
            let state = if has_copy { RulesState::Missing } else { RulesState::Unwritten };
            let detail = has_copy.then(|| MISSING.to_owned());
            if self.set_rules(listener, state, self.known.sequence(listener), detail) && has_copy {
                self.event(FleetEvent::RulesMissing { listener });
            }
            return;
        };
        let manifest = match Manifest::parse(&shared.value) {
            Ok(manifest) => manifest,
            Err(error) => return self.reject_rules(listener, &format!("the manifest {error}")),
        };
        if manifest.is_strange(self.known.sequence(listener)) {
            let (sequence, known) = (manifest.sequence, self.known.sequence(listener));
            let error = format!("the rules have number {sequence}, and this member knows number {known}");
            return self.reject_rules(listener, &error);
        }
        if in_force(&policy, listener).as_deref() == Some(manifest.sha256()) {
            return self.note_applied(listener, &manifest);
        }
        if self.postpones(listener, manifest.sha256()) {
            return;
        }
        let known = self.copy(&policy, listener).await;
        match fetch(&self.service.store, listener, &manifest, known).await {
            Ok(text) => {
                if let Err(response) = self.put_rules_in_force(listener, &manifest, text, None).await {
                    self.wait(listener, manifest.sha256(), REJECTED_RETRY);
                    self.reject_rules(listener, &message_of(&response));
                } else {
                    self.note_applied(listener, &manifest);
                }
            }
            Err(FetchError::Unavailable(error)) => {
                info!(listener, %error, "the rules of the fleet cannot be read yet");
                self.wait(listener, manifest.sha256(), FETCH_RETRY);
            }
            Err(FetchError::Invalid(error)) => {
                self.wait(listener, manifest.sha256(), REJECTED_RETRY);
                self.reject_rules(listener, &error);
            }
            Err(FetchError::Incomplete) if self.has_failed(listener, manifest.sha256()) => {
                self.wait(listener, manifest.sha256(), REJECTED_RETRY);
                self.reject_rules(listener, INCOMPLETE);
            }
            // Unless they were lost, newer rules have replaced them, and the next view has those.
            Err(FetchError::Incomplete) => self.wait(listener, manifest.sha256(), FETCH_RETRY),
        }
    }

    /// Puts rules in force. They are remembered first: after a crash in between, a store that has lost them is refused.
    async fn put_rules_in_force(
        &mut self,
        listener: &str,
        manifest: &Manifest,
        text: String,
        action: Option<Action>,
    ) -> Result<Arc<Snapshot>, AdminResponse> {
        let before = self.known.rules.insert(listener.to_owned(), self.applied(manifest));
        self.save(None).await;
        let result = self.put_in_force(rules_of(listener), text, action).await;
        if result.is_err() {
            match before {
                Some(before) => drop(self.known.rules.insert(listener.to_owned(), before)),
                None => drop(self.known.rules.remove(listener)),
            }
        }
        result
    }

    fn applied(&self, manifest: &Manifest) -> AppliedRules {
        let (sequence, sha256) = (manifest.sequence, manifest.sha256().to_owned());
        AppliedRules { epoch: self.known.epoch(), sequence, sha256 }
    }

    /// The text in force, whose chunks need not be read again.
    async fn copy(&self, policy: &Snapshot, listener: &str) -> Option<Arc<[u8]>> {
        in_force(policy, listener)?;
        let file = self.fleet.rules_file(listener);
        let read = fault::contained_blocking(PART, move || std::fs::read(file));
        read.await.ok()?.ok().map(Arc::from)
    }

    fn reject_rules(&mut self, listener: &str, error: &str) {
        let sequence = self.known.sequence(listener);
        let is_other = self.set_rules(listener, RulesState::Invalid, sequence, Some(error.to_owned()));
        if is_other && self.may_report("rules") {
            warn!(listener, %error, "the rules of the fleet are not valid here");
            self.event(FleetEvent::RulesInvalid { listener, error });
        }
    }

    fn note_applied(&mut self, listener: &str, manifest: &Manifest) {
        self.failed.remove(listener);
        self.known.rules.insert(listener.to_owned(), self.applied(manifest));
        if self.set_rules(listener, RulesState::InForce, manifest.sequence, None) {
            info!(
                listener,
                sequence = manifest.sequence,
                by = printable::field(&manifest.written_by),
                "rules of the fleet are in force"
            );
        }
    }

    /// Returns whether the state is another one than before.
    fn set_rules(&self, listener: &str, state: RulesState, sequence: u64, detail: Option<String>) -> bool {
        let status = RulesStatus { state, sequence, detail };
        let is_other = self.service.lock().rules.get(listener) != Some(&status);
        if is_other {
            self.service.update(|all| {
                all.rules.insert(listener.to_owned(), status);
            });
        }
        is_other
    }

    /// Takes the ticket keys of the store over, unless they are already.
    async fn follow_tickets(&mut self, view: &View) {
        let policy = self.service.policy();
        let (Some(keys), Some(shared)) = (&policy.fleet_secrets.keys, view.tickets()) else { return };
        let opened = open(shared.value.as_bytes(), keys, self.fleet.name());
        let opened = opened.and_then(|opened| match Ring::parse(&shared.value).map(|ring| ring.age()) {
            Ok(age) if self.known.may_use(age) => Ok((opened, age)),
            Ok(_) => Err("retired keys are back in the store".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let (sequence, tickets) = match opened {
            Ok((opened, age)) => {
                self.known.tickets = Some(age);
                self.service.lock().ticket_age = Some(age);
                opened
            }
            Err(error) => {
                let is_other = self.service.lock().tickets_error.as_ref() != Some(&error);
                if is_other {
                    if self.may_report("tickets") {
                        self.event(FleetEvent::KeyWrong { error: &error });
                    }
                    self.service.update(|status| status.tickets_error = Some(error));
                }
                return;
            }
        };
        let is_in_force = |policy: &Snapshot| {
            policy.fleet_secrets.tickets.as_ref().is_some_and(|known| *known == (sequence, tickets.clone()))
        };
        if !is_in_force(&policy) && super::tickets::are_used(&policy) {
            if self.postpones(TICKETS, &shared.version) {
                return;
            }
            let text = shared.value.to_string();
            if let Err(response) = self.put_in_force(ChangedFile::FleetTickets, text, None).await {
                let error = message_of(&response);
                warn!(%error, "the ticket keys of the fleet cannot be put in force");
                return self.wait(TICKETS, &shared.version, REJECTED_RETRY);
            }
        }
        if self.service.lock().tickets != sequence || self.service.lock().tickets_error.is_some() {
            self.service.update(|status| {
                status.tickets = sequence;
                status.tickets_error = None;
            });
        }
    }

    /// Puts rules in force that this member has written, once the view has them too: an older view would undo them, and look
    /// like a store that went back.
    async fn take_applies(&mut self, view: &View, is_believed: bool) {
        let waiting = std::mem::take(&mut *self.service.applies());
        for Apply { listener, manifest, text, action, affected, reply } in waiting {
            if !is_believed {
                let _ = reply.send(Err(unavailable("the store of the fleet is not in use")));
                continue;
            }
            let newest = view.rules(&listener).and_then(|shared| Manifest::parse(&shared.value).ok());
            if newest.as_ref().is_none_or(|newest| newest.sequence < manifest.sequence) {
                self.service.applies().push_back(Apply { listener, manifest, text, action, affected, reply });
                continue;
            }
            let is_overtaken = newest.is_some_and(|newest| newest.sequence > manifest.sequence);
            let is_in_force = in_force(&self.service.policy(), &listener).as_deref() == Some(manifest.sha256());
            let result = if is_overtaken || is_in_force {
                action.write(&self.service.audit);
                Ok(self.service.policy())
            } else {
                self.put_rules_in_force(&listener, &manifest, text, Some(action)).await
            };
            if result.is_ok() && !is_overtaken {
                self.note_applied(&listener, &manifest);
                self.remember(view.clone()).await;
            }
            let applied = |snapshot| ChangeResult::Applied { snapshot, affected, listeners: Vec::new() };
            // Fails if the client has disconnected.
            let _ = reply.send(result.map(applied));
        }
    }

    /// Writes a last good copy and puts its policy in force, or does neither.
    async fn put_in_force(
        &self,
        file: ChangedFile,
        text: String,
        action: Option<Action>,
    ) -> Result<Arc<Snapshot>, AdminResponse> {
        let edit: Box<Edit> =
            Box::new(move |_, _, _, _| Ok(Edited { content: Some(text.into_bytes()), affected: Affected::Nothing }));
        let change = FileChange { file, edit, requires_list_in_force: false, plan: false, action };
        match change_file(&self.service, change).await? {
            ChangeResult::Applied { snapshot, .. } => Ok(snapshot),
            ChangeResult::Planned { .. } => Err(AdminResponse::error(ErrorKind::ServerError, "a change became a plan")),
        }
    }

    /// Whether this failed a moment ago, so that the next attempt comes later.
    fn postpones(&mut self, what: &str, digest: &str) -> bool {
        let Some((failed, until)) = self.failed.get(what) else { return false };
        let is_waiting = failed == digest && Instant::now() < *until;
        if is_waiting {
            let until = *until;
            self.retry_at(until);
        }
        is_waiting
    }

    fn has_failed(&self, what: &str, digest: &str) -> bool {
        self.failed.get(what).is_some_and(|(failed, _)| failed == digest)
    }

    fn wait(&mut self, what: &str, digest: &str, pause: Duration) {
        let until = Instant::now() + pause;
        self.failed.insert(what.to_owned(), (digest.to_owned(), until));
        self.retry_at(until);
    }

    fn retry_at(&mut self, at: Instant) {
        self.retry = Some(self.retry.map_or(at, |retry| retry.min(at)));
    }

    /// Writes the memory file, if more has changed than the revision.
    async fn remember(&mut self, view: View) {
        let position = |known: &Known| known.position.as_ref().map(|at| (at.cluster.clone(), at.epoch));
        let instance = self.service.instance.clone();
        let is_same = self.saved.rules == self.known.rules
            && self.saved.tickets == self.known.tickets
            && position(&self.saved) == position(&self.known)
            && self.saved_view.has_same_keys(&view)
            && self.saved.instance == instance;
        if is_same {
            return;
        }
        self.known.instance = instance;
        self.save(Some(view)).await;
    }

    /// Writes the memory file, which then has everything of `view`.
    async fn save(&mut self, view: Option<View>) {
        let (memory, known) = (self.memory.clone(), self.known.clone());
        let written = fault::contained_blocking(PART, move || memory.write(&known)).await;
        match written.unwrap_or_else(|fault| Err(fault.to_string())) {
            Ok(()) => {
                self.saved = self.known.clone();
                if let Some(view) = view {
                    self.saved_view = view;
                }
            }
            Err(error) => {
                warn!(%error, "a restart could not detect a store that was restored");
                self.retry_at(Instant::now() + REJECTED_RETRY);
            }
        }
    }

    /// Whether something may be reported now. Whoever can write to the store could fill the log otherwise.
    fn may_report(&mut self, what: &'static str) -> bool {
        let now = Instant::now();
        let is_due = self.reported.get(what).is_none_or(|at| now.duration_since(*at) >= REPORT_INTERVAL);
        if is_due {
            self.reported.insert(what, now);
        }
        is_due
    }

    fn event(&self, event: FleetEvent<'_>) {
        self.service.audit.fleet(self.fleet.name(), &self.fleet.member, event);
    }
}

fn rules_of(listener: &str) -> ChangedFile {
    ChangedFile::FleetRules { listener: listener.to_owned() }
}

/// The name of the ticket keys among what failed. No listener has it.
const TICKETS: &str = "ticket keys";

const ACCEPT: &str = "if this is intended, run portcullis fleet accept at one member";

const MISSING: &str =
    "the rules are no longer in the store; the last good ones are in force, and the next change writes them again";

/// The time between two reports of the same kind.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long after a failure rules are read again.
const FETCH_RETRY: Duration = Duration::from_secs(1);

/// How long after a failure the same rules are tried again: other files may have been the cause.
const REJECTED_RETRY: Duration = Duration::from_secs(10);
