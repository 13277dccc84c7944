//! Resolves the sources of a Kubernetes API: nodes, pods of a namespace, endpoints of a service.
//!
//! Each source has a task of its own, which lists the objects once and then watches them. [`objects`] is pure: objects in,
//! addresses out. [`connection`] has the client and its credentials, [`watch`] the list and the watch.
//!
//! kube brings the client and the requests. Its `watcher` is not used: it hides bookmarks, so a restored server with older
//! versions stays unnoticed, it retries a version that the server rejects as too large for ever, and it has no time limit for
//! the start of a request.

mod connection;
mod failure;
mod objects;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::{AbortHandle, JoinSet};

use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::watch::SourceWatch;
use crate::fault;
use crate::resolution::observation::{Evidence, Observation};
use crate::resolution::settings::KubernetesSettings;
use crate::source::cloud::{CloudSource, KubernetesSource};

/// Resolves the sources until one of the channels is closed. A changed set of sources starts and stops the watches of the
/// sources that differ, and no others.
pub(crate) async fn run(
    settings: KubernetesSettings,
    mut sources: latest::Receiver<Arc<BTreeSet<KubernetesSource>>>,
    observed: mpsc::Sender<(CloudSource, Observation)>,
) {
    let connection = Arc::new(Connection::new(settings));
    let mut tasks = JoinSet::new();
    let mut watches: BTreeMap<KubernetesSource, AbortHandle> = BTreeMap::new();
    loop {
        let wanted = Arc::clone(&sources.borrow_and_update());
        watches.retain(|source, task| {
            let stays = wanted.contains(source);
            if !stays {
                task.abort();
            }
            stays
        });
        for source in wanted.iter() {
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

/// As [`run`], with JSON in the place of types: for the tests of this repository.
///
/// # Errors
/// When the settings or a source are not valid.
pub async fn run_as_json(
    settings: Value,
    mut sources: latest::Receiver<Vec<String>>,
    observed: mpsc::Sender<Value>,
) -> Result<(), String> {
    let settings = serde_json::from_value(settings).map_err(|error| error.to_string())?;
    let parse = |texts: &[String]| -> Result<_, String> {
        let parsed: Result<BTreeSet<KubernetesSource>, _> = texts.iter().map(|text| text.parse()).collect();
        parsed.map(Arc::new).map_err(|error| error.to_string())
    };
    let (wanted, inner) = latest::channel(parse(&sources.borrow_and_update())?);
    let (sender, mut receiver) = mpsc::channel(1);
    let mut resolver = pin!(run(settings, inner, sender));
    loop {
        tokio::select! {
            () = &mut resolver => return Ok(()),
            changed = sources.changed() => match changed {
                Ok(()) => drop(wanted.send_replace(parse(&sources.borrow_and_update())?)),
                Err(_) => return Ok(()),
            },
            Some((source, observation)) = receiver.recv() => {
                if observed.send(as_json(&source, &observation)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// An observation for the tests: each address with its object, or the error.
fn as_json(source: &CloudSource, observation: &Observation) -> Value {
    let source = source.to_string();
    match observation {
        Observation::Addresses { addresses, evidence } => {
            let addresses: Vec<_> =
                addresses.iter().map(|address| format!("{} {}", address.ip, address.object)).collect();
            json!({ "source": source, "addresses": addresses, "is_watched": *evidence == Evidence::Watch })
        }
        Observation::Failed { error } => json!({ "source": source, "error": error }),
        other => json!({ "source": source, "error": format!("{other:?}") }),
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

/// The name of this part in fault reports.
const PART: &str = "kubernetes resolver";
