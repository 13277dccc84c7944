//! Connects the agent to the policy: what it has to resolve, and what happens with its observations.

use std::collections::BTreeSet;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::agent::message::Task;
use crate::agent::state::AgentState;
use crate::agent::supervisor::requests::Requests;
use crate::agent::supervisor::{self, Report};
use crate::audit::Audit;
use crate::fault;
use crate::fleet::store::Request;
use crate::policy::{Current, Snapshot};
use crate::resolution::cache::ResolutionCache;
use crate::resolution::cloud::CloudChange;
use crate::resolution::observation::Observation;
use crate::server::fleet::FleetObserver;
use crate::source::addresses::Resolvable;
use crate::source::cloud::CloudSource;

/// The sources that the agent resolves for a policy, and how.
pub(crate) fn task(snapshot: &Snapshot) -> Task {
    let resolvers = &snapshot.config.resolvers;
    Task {
        digitalocean: resolvers.digitalocean.clone(),
        kubernetes: resolvers.kubernetes.clone(),
        sources: sources(snapshot).into_iter().collect(),
        store: snapshot.config.fleet.as_ref().map(|fleet| fleet.store.clone()),
    }
}

/// The cloud sources of all listeners and groups.
pub(crate) fn sources(snapshot: &Snapshot) -> BTreeSet<CloudSource> {
    snapshot.resolvables().filter_map(|source| source.cloud().cloned()).collect()
}

/// Runs and supervises the agent until the program ends.
pub(crate) async fn supervised_agent(
    task: watch::Receiver<Arc<Task>>,
    requests: mpsc::Receiver<Request>,
    observers: (CloudObserver, FleetObserver),
    state: Arc<AgentState>,
) {
    let requests = Requests::new(requests);
    let supervise = move || {
        let (cloud, fleet) = observers.clone();
        let report = move |report| match report {
            Report::Observation(source, observation) => cloud.observe(&source, observation),
            Report::Store(store, event) => fleet.observe(&store, event),
        };
        supervisor::run(task.clone(), requests.clone(), report, Arc::clone(&state))
    };
    fault::restarted(supervisor::PART, supervise).await;
}

/// Takes over what the agent observes.
#[derive(Clone, Debug)]
pub(crate) struct CloudObserver {
    pub cache: Arc<ResolutionCache>,
    pub current: Current,
    pub audit: Audit,
}

impl CloudObserver {
    /// Records an observation, and logs and audits the changes. New addresses come into force with the next generation of the
    /// policy, which the reloader builds at once. An observation of a source that no rule names is ignored.
    pub(crate) fn observe(&self, source: &CloudSource, observation: Observation) {
        for change in self.cache.observe(source, observation, OffsetDateTime::now_utc()) {
            self.report(source, change);
        }
    }

    fn report(&self, source: &CloudSource, change: CloudChange) {
        match change {
            CloudChange::Stale { error } => {
                warn!(%source, %error, "cloud source is stale");
                let current = Arc::clone(&self.current.borrow());
                let resolvable = Resolvable::Cloud(source.clone());
                for (owner, set) in current.rule_sets() {
                    if set.resolvables().any(|named| named == resolvable) {
                        self.audit.source_stale(owner, source, &error);
                    }
                }
            }
            CloudChange::Unresolved { detail } => warn!(%source, %detail, "cloud source is unresolved"),
            CloudChange::Recovered => info!(%source, "cloud source recovered"),
            CloudChange::Shrunk { known, removed } => {
                warn!(%source, known, removed, "cloud source lost more than half of its addresses at once");
            }
            CloudChange::Omitted(omitted) => warn!(%source, detail = %omitted, "cloud source has too many addresses"),
        }
    }
}
