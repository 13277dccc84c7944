//! The store in the API of a Kubernetes cluster.
//!
//! [`object`] is pure: keys to objects and back. [`request`] has single requests, [`watch`] the listing and the watches,
//! [`operations`] what the program asks for, [`expiry`] removes what has a limited life, and [`lifetimes`] is what has not changed
//! for too long.

mod expiry;
mod lifetimes;
mod object;
mod operations;
mod request;
mod watch;

use std::fs;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell};

use crate::agent::kubernetes::collection::Collection;
use crate::agent::kubernetes::connection::Connection;
use crate::agent::kubernetes::failure::{Failure, FailureKind};
use crate::agent::store::engine::{End, Engine};
use crate::agent::store::kubernetes::expiry::Unwatched;
use crate::agent::store::kubernetes::lifetimes::Lifetimes;
use crate::agent::store::kubernetes::object::{Kind, Object};
use crate::agent::store::kubernetes::request::Requests;
use crate::agent::store::news::News;
use crate::fleet::store::{Operation, Outcome};
use crate::resolution::settings::KubernetesSettings;

/// One fleet in a namespace.
pub(super) struct KubernetesEngine {
    fleet: String,
    connection: Arc<Connection>,
    /// Of the settings.
    chosen: Option<String>,
    /// The file with the namespace of the pod.
    pod_namespace: PathBuf,
    namespace: OnceCell<String>,
    /// When each held Lease was last seen to change.
    holders: Mutex<Lifetimes>,
    unwatched: Mutex<Unwatched>,
    suspected: Notify,
}

impl KubernetesEngine {
    pub(super) fn new(fleet: &str, settings: KubernetesSettings, namespace: Option<String>) -> Self {
        Self {
            fleet: fleet.to_owned(),
            connection: Arc::new(Connection::new(settings, REQUEST_TIMEOUT)),
            chosen: namespace,
            pod_namespace: PathBuf::from(POD_NAMESPACE),
            namespace: OnceCell::new(),
            holders: Mutex::new(Lifetimes::default()),
            unwatched: Mutex::new(Unwatched::default()),
            suspected: Notify::new(),
        }
    }

    /// The namespace of the fleet: the chosen one, that of the pod, or that of the kubeconfig.
    async fn namespace(&self) -> Result<&str, Failure> {
        let found = self.namespace.get_or_try_init(|| async {
            if let Some(chosen) = &self.chosen {
                return Ok::<_, Failure>(chosen.clone());
            }
            if let Ok(own) = fs::read_to_string(&self.pod_namespace) {
                return Ok(own.trim().to_owned());
            }
            Ok(self.connection.client().await?.client.default_namespace().to_owned())
        });
        let namespace: &String = found.await?;
        let is_valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if namespace.is_empty() || namespace.len() > 63 || !namespace.bytes().all(is_valid) {
            return Err(Failure::invalid(
                "the name of the namespace is not valid; check namespace of [fleet.kubernetes]",
            ));
        }
        Ok(namespace)
    }

    async fn requests(&self, kind: Kind) -> Result<Requests, Failure> {
        let path = kind.path(self.namespace().await?);
        Ok(Requests { connection: Arc::clone(&self.connection), path })
    }

    async fn collection(&self, kind: Kind, selector: String) -> Result<Collection<Object>, Failure> {
        Ok(Collection {
            path: kind.path(self.namespace().await?),
            list_kind: format!("{}List", kind.name()),
            selector: Some(selector),
            objects: kind.plural().to_owned(),
            kind: PhantomData,
        })
    }
}

impl Engine for KubernetesEngine {
    async fn follow(&self, news: &mut News) -> End {
        let generation = self.connection.client().await.map(|connected| connected.generation);
        let Err(failure) = self.list_and_watch(news).await else { return End::Outdated };
        if let (FailureKind::Unauthorized, Ok(rejected)) = (failure.kind, generation) {
            // The next attempt has other credentials, if there are any.
            self.connection.renew(rejected).await;
        }
        if failure.kind == FailureKind::Outdated { End::Outdated } else { End::Failed(failure.error) }
    }

    async fn perform(&self, operation: &Operation) -> Result<Outcome, String> {
        let performed = match operation {
            Operation::Get { keys } => self.get(keys).await,
            Operation::List { prefix } => self.list(prefix, true).await,
            Operation::Keys { prefix } => self.list(prefix, false).await,
            Operation::Put { key, value, expected, seconds } => self.put((key, value), expected, *seconds).await,
            Operation::Hold { key, value, seconds } => self.hold((key, value), *seconds).await,
            Operation::Delete { key, expected } => self.delete(key, expected).await,
        };
        performed.map_err(|failure| failure.error)
    }

    fn suspect(&self) {
        self.suspected.notify_one();
    }
}

/// The time that one request may take. An operation without an answer fails earlier, which makes the connection suspect.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(4500);

/// Where Kubernetes mounts the namespace of a pod.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(chosen: Option<&str>, pod: &str) -> (KubernetesEngine, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let mut engine = KubernetesEngine::new("prod", KubernetesSettings::InCluster, chosen.map(str::to_owned));
        engine.pod_namespace = directory.path().join("namespace");
        fs::write(&engine.pod_namespace, pod).unwrap();
        (engine, directory)
    }

    #[tokio::test]
    async fn namespace_is_by_default_that_of_the_pod() {
        for (chosen, pod, expected) in [(None, "shop\n", "shop"), (Some("fleet"), "shop\n", "fleet")] {
            let (engine, _directory) = engine(chosen, pod);
            assert_eq!(engine.namespace().await.unwrap(), expected);
        }
        for pod in ["", "a/b", &"a".repeat(64)] {
            let (engine, _directory) = engine(None, pod);
            let failure = engine.namespace().await.unwrap_err();
            assert!(failure.error.contains("check namespace of [fleet.kubernetes]"), "{failure:?}");
        }
    }
}
