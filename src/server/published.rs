//! The policy in force, with the parts of it that other tasks watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::dns::Watched;
use crate::dns::cache_file::CacheFile;
use crate::policy::{Current, Snapshot};
use crate::upstream::Upstream;

#[derive(Debug)]
pub(crate) struct Published {
    policy: watch::Sender<Arc<Snapshot>>,
    /// For the health checks.
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    /// The host names of all rules, for the DNS refresher.
    hosts: watch::Sender<Arc<Watched>>,
}

impl Published {
    pub(crate) fn new(snapshot: &Arc<Snapshot>) -> Self {
        Self {
            policy: watch::Sender::new(Arc::clone(snapshot)),
            upstreams: watch::Sender::new(upstreams(snapshot)),
            hosts: watch::Sender::new(Arc::new(watched(snapshot))),
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

    /// Puts the policy in force and updates all watchers.
    pub(crate) fn publish(&self, snapshot: &Arc<Snapshot>) {
        self.policy.send_replace(Arc::clone(snapshot));
        self.upstreams.send_replace(upstreams(snapshot));
        self.hosts.send_replace(Arc::new(watched(snapshot)));
    }
}

fn upstreams(snapshot: &Snapshot) -> Vec<Arc<Upstream>> {
    snapshot.listeners().iter().map(|policy| Arc::clone(&policy.upstream)).collect()
}

fn watched(snapshot: &Snapshot) -> Watched {
    let mut refresh = BTreeMap::new();
    for host in snapshot.hosts() {
        let shortest = refresh.entry(host.name.clone()).or_insert(host.refresh);
        *shortest = host.refresh.min(*shortest);
    }
    Watched { refresh, cache_file: CacheFile::new(&snapshot.config.state_directory, &snapshot.config.file) }
}
