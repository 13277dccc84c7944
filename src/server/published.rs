//! The policy in force, with the parts of it that other tasks watch.

use std::sync::Arc;

use tokio::sync::watch;

use crate::agent::message::Task;
use crate::dns::refresher::Watched;
use crate::policy::{Current, Snapshot};
use crate::resolution::cache_file::CacheFile;
use crate::resolution::saver::Kept;
use crate::server::cloud;
use crate::upstream::Upstream;

#[derive(Debug)]
pub(crate) struct Published {
    policy: watch::Sender<Arc<Snapshot>>,
    /// For the health checks.
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    /// The host names of all rules, for the DNS refresher.
    hosts: watch::Sender<Arc<Watched>>,
    /// The sources whose answers are kept on disk.
    kept: watch::Sender<Arc<Kept>>,
    /// What the agent resolves.
    cloud_task: watch::Sender<Arc<Task>>,
}

impl Published {
    pub(crate) fn new(snapshot: &Arc<Snapshot>) -> Self {
        Self {
            policy: watch::Sender::new(Arc::clone(snapshot)),
            upstreams: watch::Sender::new(upstreams(snapshot)),
            hosts: watch::Sender::new(Arc::new(hosts(snapshot))),
            kept: watch::Sender::new(Arc::new(kept(snapshot))),
            cloud_task: watch::Sender::new(Arc::new(cloud::task(snapshot))),
        }
    }

    pub(crate) fn policy(&self) -> Arc<Snapshot> {
        Arc::clone(&self.policy.borrow())
    }

    pub(crate) fn subscribe(&self) -> Current {
        self.policy.subscribe()
    }

    pub(crate) fn upstreams(&self) -> watch::Receiver<Vec<Arc<Upstream>>> {
        self.upstreams.subscribe()
    }

    pub(crate) fn hosts(&self) -> watch::Receiver<Arc<Watched>> {
        self.hosts.subscribe()
    }

    pub(crate) fn kept(&self) -> watch::Receiver<Arc<Kept>> {
        self.kept.subscribe()
    }

    /// What the agent resolves. It changes only when the task differs.
    pub(crate) fn cloud_task(&self) -> watch::Receiver<Arc<Task>> {
        self.cloud_task.subscribe()
    }

    /// Puts the policy in force and updates all watchers.
    pub(crate) fn publish(&self, snapshot: &Arc<Snapshot>) {
        self.policy.send_replace(Arc::clone(snapshot));
        self.upstreams.send_replace(upstreams(snapshot));
        self.hosts.send_replace(Arc::new(hosts(snapshot)));
        replace_if_other(&self.kept, kept(snapshot));
        replace_if_other(&self.cloud_task, cloud::task(snapshot));
    }
}

fn replace_if_other<T: PartialEq>(sender: &watch::Sender<Arc<T>>, next: T) {
    sender.send_if_modified(|known| {
        let is_other = **known != next;
        if is_other {
            *known = Arc::new(next);
        }
        is_other
    });
}

fn upstreams(snapshot: &Snapshot) -> Vec<Arc<Upstream>> {
    snapshot.listeners().iter().map(|policy| Arc::clone(&policy.upstream)).collect()
}

fn hosts(snapshot: &Snapshot) -> Watched {
    let mut refresh = Watched::new();
    for host in snapshot.hosts() {
        let shortest = refresh.entry(host.name.clone()).or_insert(host.refresh);
        *shortest = host.refresh.min(*shortest);
    }
    refresh
}

fn kept(snapshot: &Snapshot) -> Kept {
    let cache_file = CacheFile::new(&snapshot.config.state_directory, &snapshot.config.file);
    Kept { sources: snapshot.resolvables().collect(), cache_file }
}
