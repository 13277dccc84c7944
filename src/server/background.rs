//! The tasks that run beside the server loop for as long as the program runs.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::agent::state::AgentState;
use crate::audit::Audit;
use crate::dns::refresher;
use crate::fault;
use crate::fleet::store::Request;
use crate::resolution::cache::ResolutionCache;
use crate::resolution::saver;
use crate::server::cloud::{CloudObserver, supervised_agent};
use crate::server::fleet;
use crate::server::fleet::{FleetObserver, FleetService};
use crate::server::published::Published;
use crate::session::registry::ConnectionRegistry;
use crate::session::revocation;
use crate::upstream::health_check;

/// What the tasks work on.
pub(crate) struct Background<'a> {
    pub published: &'a Published,
    pub registry: &'a Arc<ConnectionRegistry>,
    pub resolutions: &'a Arc<ResolutionCache>,
    pub agent: &'a Arc<AgentState>,
    pub audit: &'a Audit,
    pub fleet: &'a Arc<FleetService>,
    /// Operations on the store of the fleet.
    pub store_requests: mpsc::Receiver<Request>,
}

impl Background<'_> {
    /// Starts the tasks. Each is started again if it panics, and all are aborted when the set is dropped.
    pub(crate) fn start(self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let (policy, connections) = (self.published.subscribe(), Arc::clone(self.registry));
        let revoke = move || revocation::run(policy.clone(), Arc::clone(&connections));
        tasks.spawn(fault::restarted("revocation", revoke));
        let (kept, answers) = (self.published.kept(), Arc::clone(self.resolutions));
        tasks.spawn(fault::restarted(saver::PART, move || saver::run(kept.clone(), Arc::clone(&answers))));
        let (hosts, known) = (self.published.hosts(), Arc::clone(self.resolutions));
        tasks.spawn(fault::restarted(refresher::PART, move || refresher::run(hosts.clone(), Arc::clone(&known))));
        let observer = CloudObserver {
            cache: Arc::clone(self.resolutions),
            current: self.published.subscribe(),
            audit: self.audit.clone(),
        };
        let (observers, state) = ((observer, FleetObserver(Arc::clone(self.fleet))), Arc::clone(self.agent));
        tasks.spawn(supervised_agent(self.published.cloud_task(), self.store_requests, observers, state));
        fleet::spawn(self.fleet, &mut tasks);
        let floods = self.audit.clone();
        tasks.spawn(fault::restarted("audit", move || floods.clone().write_summaries()));
        let upstreams = self.published.upstreams();
        tasks.spawn(fault::restarted(health_check::PART, move || health_check::run(upstreams.clone())));
        tasks
    }
}
