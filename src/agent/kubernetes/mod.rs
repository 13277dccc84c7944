//! Resolves the sources of a Kubernetes API: nodes, pods of a namespace, endpoints of a service.
//!
//! Each source has a task of its own, which lists the objects once and then watches them. [`objects`] is pure: objects in,
//! addresses out. [`connection`] has the client and its credentials, [`collection`] the list and the watch of any objects,
//! [`watch`] those of a source.
//!
//! kube brings the client and the requests. Its `watcher` is not used: it hides bookmarks, so a restored server with older
//! versions stays unnoticed, it retries a version that the server rejects as too large for ever, and it has no time limit for
//! the start of a request.

pub(crate) mod collection;
pub(crate) mod connection;
pub(crate) mod failure;
mod objects;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::{mpsc, watch as latest};
use tokio::task::{AbortHandle, JoinSet};

use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::watch::SourceWatch;
use crate::fault;
use crate::resolution::observation::Observation;
use crate::resolution::settings::KubernetesSettings;
use crate::source::cloud::{CloudSource, KubernetesSource};

/// Resolves the sources until one of the channels is closed. A changed set of sources starts and stops the watches of the
/// sources that differ, and no others.
pub(crate) async fn run(
    settings: KubernetesSettings,
    mut sources: latest::Receiver<Arc<BTreeSet<CloudSource>>>,
    observed: mpsc::Sender<(CloudSource, Observation)>,
) {
    let connection = Arc::new(Connection::new(settings, REQUEST_TIMEOUT));
    let mut tasks = JoinSet::new();
    let mut watches: BTreeMap<KubernetesSource, AbortHandle> = BTreeMap::new();
    loop {
        let all = Arc::clone(&sources.borrow_and_update());
        let wanted: BTreeSet<_> = all.iter().filter_map(CloudSource::kubernetes).collect();
        watches.retain(|source, task| {
            let stays = wanted.contains(&source);
            if !stays {
                task.abort();
            }
            stays
        });
        for source in wanted {
            watches.entry(source.clone()).or_insert_with(|| {
                let (source, connection, observed) = (source.clone(), Arc::clone(&connection), observed.clone());
                tasks.spawn(async move {
                    fault::restarted(PART, || follow(source.clone(), Arc::clone(&connection), observed.clone())).await;
                })
            });
        }
        tokio::select! {
            changed = sources.changed() => if changed.is_err() { return },
            () = observed.closed() => return,
            // A stopped watch. Running ones never end.
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Resolves one source. Never returns.
async fn follow(
    source: KubernetesSource,
    connection: Arc<Connection>,
    observed: mpsc::Sender<(CloudSource, Observation)>,
) {
    match &source {
        KubernetesSource::Nodes { .. } => Box::pin(SourceWatch::<Node>::new(source, connection, observed).run()).await,
        KubernetesSource::Pods { .. } => Box::pin(SourceWatch::<Pod>::new(source, connection, observed).run()).await,
        KubernetesSource::Service { .. } => {
            Box::pin(SourceWatch::<EndpointSlice>::new(source, connection, observed).run()).await;
        }
    }
}

/// The time that one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The name of this part in fault reports.
const PART: &str = "kubernetes resolver";
