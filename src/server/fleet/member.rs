//! Tells the other members that this one is alive, and what it has in force.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{info, warn};

use crate::audit::fleet::FleetEvent;
use crate::config::fleet::Fleet;
use crate::digest::hex;
use crate::fault;
use crate::fleet::roster::{MemberState, Roster};
use crate::fleet::store::{ALIVE, Entry, Expected, MEMBERS, Operation, Outcome};
use crate::server::fleet::memory::MemoryFile;
use crate::server::fleet::{FleetService, Leaving, PART};
use crate::timestamp;

/// An ID for this process.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    // Without random numbers, the process and the time are distinct enough for a name.
    if rand::fill(&mut bytes).is_err() {
        return format!("{}-{}", std::process::id(), OffsetDateTime::now_utc().unix_timestamp_nanos());
    }
    hex(&bytes)
}

/// Takes part in the fleet until the program ends.
pub(crate) async fn run(service: Arc<FleetService>) {
    service
        .with_fleet(|service, fleet| async move {
            Member::start(service, fleet).await.run().await;
        })
        .await;
}

struct Member {
    service: Arc<FleetService>,
    fleet: Fleet,
    /// The process that had the name before this one, and may still hold it.
    predecessor: String,
    /// Whether this process has the name.
    holds: bool,
    /// What was last written, without its time.
    written: Option<MemberState>,
    /// When it was written.
    written_at: Option<Instant>,
}

impl Member {
    async fn start(service: Arc<FleetService>, fleet: Fleet) -> Self {
        let file = MemoryFile::new(&fleet.directory);
        let known = fault::contained_blocking(PART, move || file.read()).await;
        let predecessor = known.ok().and_then(Result::ok).map(|known| known.instance).unwrap_or_default();
        Self { service, fleet, predecessor, holds: false, written: None, written_at: None }
    }

    async fn run(mut self) {
        let service = Arc::clone(&self.service);
        let mut progress = service.progress.subscribe();
        let mut leaving = service.leaving.subscribe();
        let mut ticks = interval(HOLD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_state = self.written_at.map(|at| at + STATE_INTERVAL);
            tokio::select! {
                _ = ticks.tick() => {
                    self.hold().await;
                    self.put_state().await;
                    self.list().await;
                }
                changed = progress.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.put_state().await;
                }
                () = sleep_until(next_state.unwrap_or_else(Instant::now)), if next_state.is_some() => {
                    self.written = None;
                    self.put_state().await;
                }
                () = async { drop(leaving.wait_for(|leaving| *leaving == Leaving::Wanted).await) } => {
                    self.leave().await;
                    service.leaving.send_replace(Leaving::Done);
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Holds the name of the member.
    async fn hold(&mut self) {
        if self.service.believed_view_of(&self.fleet.store).is_none() {
            return;
        }
        let (key, value) = (format!("{ALIVE}{}", self.fleet.member), self.service.instance.clone());
        let hold = Operation::Hold { key: key.clone(), value, seconds: LIFE };
        let mut outcome = self.service.store.perform(hold.clone()).await;
        if let Outcome::Conflict { current: Some(Entry { value, version, .. }) } = &outcome
            && *value == self.predecessor
        {
            // It was this member, and has not stopped cleanly.
            let expected = Expected::Version(version.clone());
            let _ = self.service.store.perform(Operation::Delete { key, expected }).await;
            outcome = self.service.store.perform(hold).await;
        }
        match outcome {
            Outcome::Done { .. } => {
                self.set_name(true);
                self.set_duplicate(None);
            }
            Outcome::Conflict { current } => {
                self.set_name(false);
                self.set_duplicate(current.map(|entry| entry.value));
            }
            other => warn!(error = other.failure(), "cannot tell the fleet that this member is alive"),
        }
    }

    fn set_name(&mut self, holds: bool) {
        self.holds = holds;
        if self.service.lock().has_name != holds {
            self.service.update(|status| status.has_name = holds);
        }
    }

    fn set_duplicate(&self, holder: Option<String>) {
        let is_other = self.service.lock().duplicate != holder;
        if !is_other {
            return;
        }
        if holder.is_some() {
            warn!(member = self.fleet.member, "another process of the fleet has the name of this member");
            self.service.audit.fleet(self.fleet.name(), &self.fleet.member, FleetEvent::MemberDuplicate);
        } else {
            info!(member = self.fleet.member, "this process has the name of the member");
        }
        self.service.update(|status| status.duplicate = holder);
    }

    /// Writes what this member has in force, if that has changed.
    async fn put_state(&mut self) {
        if !self.holds || self.service.believed_view_of(&self.fleet.store).is_none() {
            return;
        }
        let mut state = self.state().await;
        let is_same = self.written.as_ref().is_some_and(|written| is_same_for_others(written, &state));
        if is_same {
            return;
        }
        self.written = Some(state.clone());
        state.at = timestamp::seconds(OffsetDateTime::now_utc());
        let key = format!("{MEMBERS}{}", self.fleet.member);
        let value = serde_json::json!(state).to_string();
        let put = Operation::Put { key, value, expected: Expected::Any, seconds: None };
        if let other @ (Outcome::Failed { .. } | Outcome::Conflict { .. } | Outcome::Entries(_)) =
            self.service.store.perform(put).await
        {
            warn!(error = other.failure(), "cannot tell the fleet what is in force at this member");
            self.written = None;
        }
        self.written_at = Some(Instant::now());
    }

    async fn state(&self) -> MemberState {
        let policy = self.service.policy();
        let hashed = Arc::clone(&policy);
        // It is computed once for each policy.
        let hash = fault::contained_blocking(PART, move || hashed.trust_hash().to_owned()).await;
        let status = self.service.status();
        MemberState {
            instance: self.service.instance.clone(),
            at: String::new(),
            epoch: status.position.as_ref().map_or(0, |position| position.epoch),
            revision: status.position.as_ref().map_or(0, |position| position.revision),
            applied: status.rules.into_iter().map(|(listener, rules)| (listener, rules.sequence)).collect(),
            tickets: status.tickets,
            policy_hash: hash.unwrap_or_default(),
            sessions: u64::try_from(self.service.registry.relaying()).unwrap_or(u64::MAX),
        }
    }

    /// Lists the members for the metrics.
    async fn list(&self) {
        if self.service.believed_view_of(&self.fleet.store).is_some()
            && let Ok(roster) = self.service.list_members().await
        {
            self.service.lock().roster = roster;
        }
    }

    async fn leave(&self) {
        // To a store that is not believed nothing is written, and whoever believes it must not think that this member is gone.
        if !self.holds || self.service.believed_view_of(&self.fleet.store).is_none() {
            return;
        }
        for key in [format!("{MEMBERS}{}", self.fleet.member), format!("{ALIVE}{}", self.fleet.member)] {
            let _ = self.service.store.perform(Operation::Delete { key, expected: Expected::Any }).await;
        }
    }
}

/// Whether nothing has changed that another member waits for.
fn is_same_for_others(one: &MemberState, other: &MemberState) -> bool {
    let shared = |state: &MemberState| MemberState { sessions: 0, revision: 0, at: String::new(), ..state.clone() };
    shared(one) == shared(other)
}

impl FleetService {
    /// Reads which members there are.
    ///
    /// # Errors
    /// Why the store cannot be read.
    pub(crate) async fn list_members(&self) -> Result<Roster, String> {
        let list = |prefix: &str| self.store.perform(Operation::List { prefix: prefix.to_owned() });
        let (states, alive) = tokio::join!(list(MEMBERS), list(ALIVE));
        let (states, alive) = match (states, alive) {
            (Outcome::Entries(states), Outcome::Entries(alive)) => (states, alive),
            (Outcome::Entries(_), other) | (other, _) => return Err(other.failure()),
        };
        let named =
            |entry: &Entry, prefix: &str| Some((entry.key.strip_prefix(prefix)?.to_owned(), entry.value.clone()));
        let states: Vec<_> = states.iter().filter_map(|entry| named(entry, MEMBERS)).collect();
        let alive: Vec<_> = alive.iter().filter_map(|entry| named(entry, ALIVE)).collect();
        Ok(Roster::of(
            states.iter().map(|(name, value)| (name.as_str(), value.as_str())),
            alive.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        ))
    }

    /// The members as they were within the last second. However many callers ask, the store is asked once for them.
    ///
    /// # Errors
    /// Why the store cannot be read.
    pub(crate) async fn recent_members(&self) -> Result<Roster, String> {
        let _turn = self.listing.acquire().await.map_err(|closed| closed.to_string())?;
        let known = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, roster)) = known.filter(|(listed_at, _)| listed_at.elapsed() < LISTED_FOR) {
            return Ok(roster);
        }
        let listed = self.list_members().await?;
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), listed.clone()));
        Ok(listed)
    }

    /// Leaves the fleet, so that the other members do not wait for this one. Returns soon also without a store.
    pub(crate) async fn leave(&self) {
        if self.policy().config.fleet.is_none() {
            return;
        }
        let mut leaving = self.leaving.subscribe();
        self.leaving.send_replace(Leaving::Wanted);
        let _ = timeout(LEAVE_TIMEOUT, leaving.wait_for(|leaving| *leaving == Leaving::Done)).await;
    }
}

/// A member that is not heard of for this long is unknown. In seconds.
const LIFE: u32 = 10;

/// Two holds may be lost.
const HOLD_INTERVAL: Duration = Duration::from_secs(3);

/// How often a member writes its state if nothing happens that others wait for.
const STATE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a list of the members serves those who look at it.
const LISTED_FOR: Duration = Duration::from_secs(1);

const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
