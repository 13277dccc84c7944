//! The policy in force, and what of it the parts watch that know of no policy.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::dns::Watched;
use crate::dns::cache_file::CacheFile;
use crate::policy::{Current, Snapshot};
use crate::upstream::Upstream;

/// Where a policy is put in force.
#[derive(Debug)]
pub(crate) struct Published {
    policy: watch::Sender<Arc<Snapshot>>,
    /// The upstreams of all listeners, for the health checks.
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    /// The host names that rules trust, for the lookups.
    hosts: watch::Sender<Arc<Watched>>,
}

impl Published {
    /// With the first policy in force.
    pub(crate) fn new(snapshot: &Arc<Snapshot>) -> Self {
        Self {
            policy: watch::Sender::new(Arc::clone(snapshot)),
            upstreams: watch::Sender::new(upstreams(snapshot)),
            hosts: watch::Sender::new(Arc::new(watched(snapshot))),
        }
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Arc<Snapshot> {
        Arc::clone(&self.policy.borrow())
    }

    /// Where the policy in force can be followed.
    pub(crate) fn subscribe(&self) -> Current {
        self.policy.subscribe()
    }

    /// Where the upstreams in use can be followed.
    pub(crate) fn upstreams(&self) -> watch::Receiver<Vec<Arc<Upstream>>> {
        self.upstreams.subscribe()
    }

    /// Where the host names that rules trust can be followed.
    pub(crate) fn hosts(&self) -> watch::Receiver<Arc<Watched>> {
        self.hosts.subscribe()
    }

    /// Puts a policy in force.
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
