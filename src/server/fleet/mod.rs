//! This program as a member of a fleet: follows the store, writes to it, and tells the other members what is in force here.
//!
//! Nothing in the data path waits for this. Rules that come from the store take the way of a changed file: they are built,
//! judged, written to the last good copy and published by the reloader.

pub(crate) mod accept;
pub(crate) mod apply;
pub(crate) mod ask;
pub(crate) mod chunks;
pub(crate) mod commands;
pub(crate) mod evidence;
pub(crate) mod follow;
pub(crate) mod member;
pub(crate) mod memory;
pub(crate) mod report;
pub(crate) mod status;
#[cfg(test)]
mod tests;
pub(crate) mod tickets;
pub(crate) mod write;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::audit::Audit;
use crate::config::fleet::Fleet;
use crate::fault;
use crate::fleet::roster::Roster;
use crate::fleet::settings::StoreSettings;
use crate::fleet::store::{StoreClient, StoreEvent};
use crate::fleet::view::{Collector, View};
use crate::policy::{Current, Snapshot};
use crate::server::fleet::apply::Apply;
use crate::server::fleet::evidence::EvidenceQueue;
use crate::server::fleet::status::{FleetStatus, StoreState};
use crate::server::reload::ReloadRequest;
use crate::session::registry::ConnectionRegistry;

/// The part of the program that belongs to a fleet.
#[derive(Debug)]
pub(crate) struct FleetService {
    pub(crate) store: StoreClient,
    pub(crate) current: Current,
    pub(crate) registry: Arc<ConnectionRegistry>,
    pub(crate) audit: Audit,
    reload_requests: mpsc::Sender<ReloadRequest>,
    /// Identifies this process among those that have had the name of the member.
    instance: String,
    collector: Mutex<Collector>,
    /// What the agent has last reported.
    view: watch::Sender<View>,
    /// The same, while the store answers and is believed.
    believed: watch::Sender<Option<View>>,
    status: Mutex<FleetStatus>,
    /// Changes with the rules and ticket keys in force, and with the state of the store.
    progress: watch::Sender<u64>,
    /// Rules that this member has written to the store, to be put in force.
    applies: Mutex<VecDeque<Apply>>,
    apply_added: Notify,
    /// Removals of chunks that no manifest names.
    clean_ups: Mutex<JoinSet<()>>,
    evidence: EvidenceQueue,
    /// The commands that were carried out, as long as they are in the store.
    done: Mutex<HashSet<String>>,
    /// When the members were last listed for a caller.
    listed: Mutex<Option<(Instant, Roster)>>,
    listing: Semaphore,
    /// Whether this member leaves the fleet.
    leaving: watch::Sender<Leaving>,
}

/// How far this member has left the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    Wanted,
    Done,
}

/// What a service works on.
pub(crate) struct Parts {
    pub(crate) store: StoreClient,
    pub(crate) current: Current,
    pub(crate) registry: Arc<ConnectionRegistry>,
    pub(crate) audit: Audit,
    pub(crate) reload_requests: mpsc::Sender<ReloadRequest>,
}

impl FleetService {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, current, registry, audit, reload_requests } = parts;
        Arc::new(Self {
            store,
            current,
            registry,
            audit,
            reload_requests,
            instance: member::random_id(),
            collector: Mutex::default(),
            view: watch::Sender::new(View::default()),
            believed: watch::Sender::new(None),
            status: Mutex::default(),
            progress: watch::Sender::new(0),
            applies: Mutex::default(),
            apply_added: Notify::new(),
            clean_ups: Mutex::default(),
            evidence: EvidenceQueue::default(),
            done: Mutex::default(),
            listed: Mutex::default(),
            listing: Semaphore::new(1),
            leaving: watch::Sender::new(Leaving::No),
        })
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    pub(crate) fn status(&self) -> FleetStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, FleetStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status, and wakes those that wait for a change.
    fn update(&self, change: impl FnOnce(&mut FleetStatus)) {
        change(&mut self.lock());
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What the agent has last reported of this store.
    fn view_of(&self, store: &StoreSettings) -> View {
        let view = self.view.borrow();
        if view.is_of(store) { view.clone() } else { View::default() }
    }

    /// The same, while the store answers and is believed.
    fn believed_view_of(&self, store: &StoreSettings) -> Option<View> {
        self.believed.borrow().clone().filter(|view| view.is_of(store))
    }

    /// Notes the state of the store. Returns whether it is another one than before.
    fn enter(&self, store: StoreState) -> bool {
        let is_other = self.lock().store != store;
        if is_other {
            self.update(|status| {
                status.store = store;
                status.since = Some(OffsetDateTime::now_utc());
            });
        }
        is_other
    }

    /// Forgets what was concluded from a store, because the section has changed. What the agent has reported stays: it does
    /// not report it again if the store is the same.
    fn forget(&self) {
        self.believed.send_replace(None);
        self.update(|status| *status = FleetStatus::default());
    }

    fn collector(&self) -> MutexGuard<'_, Collector> {
        self.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self) -> MutexGuard<'_, HashSet<String>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn applies(&self) -> MutexGuard<'_, VecDeque<Apply>> {
        self.applies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` with the fleet of the configuration whenever there is one, until the program ends. It starts again when the
    /// section changes.
    async fn with_fleet<F: Future<Output = ()>>(self: &Arc<Self>, work: impl Fn(Arc<Self>, Fleet) -> F) {
        let mut current = self.current.clone();
        loop {
            let fleet = current.borrow_and_update().config.fleet.clone();
            let changed = async {
                while current.changed().await.is_ok() {
                    if current.borrow().config.fleet != fleet {
                        return true;
                    }
                }
                false
            };
            let continues = match fleet.clone() {
                Some(fleet) => tokio::select! {
                    continues = changed => continues,
                    () = work(Arc::clone(self), fleet) => true,
                },
                None => changed.await,
            };
            if !continues {
                return;
            }
        }
    }
}

/// Starts the tasks of a member. Each is started again if it panics.
pub(crate) fn spawn(service: &Arc<FleetService>, tasks: &mut JoinSet<()>) {
    restart(service, tasks, follow::run);
    restart(service, tasks, member::run);
    restart(service, tasks, commands::run);
    restart(service, tasks, tickets::run);
}

fn restart<F: Future<Output = ()> + Send + 'static>(
    service: &Arc<FleetService>,
    tasks: &mut JoinSet<()>,
    run: fn(Arc<FleetService>) -> F,
) {
    let service = Arc::clone(service);
    tasks.spawn(fault::restarted(PART, move || run(Arc::clone(&service))));
}

/// Takes over what the agent reports of the store.
#[derive(Clone, Debug)]
pub(crate) struct FleetObserver(pub(crate) Arc<FleetService>);

impl FleetObserver {
    pub(crate) fn observe(&self, store: &Arc<StoreSettings>, event: StoreEvent) {
        let mut collector = self.0.collector();
        let mut known = self.0.view.borrow().clone();
        if !known.is_of(store) {
            *collector = Collector::default();
            known = View::unheard(Arc::clone(store));
            self.0.view.send_replace(known.clone());
        }
        if let Some(view) = collector.apply(event, &known) {
            self.0.view.send_replace(view);
        }
    }
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "fleet";
