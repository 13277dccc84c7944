//! The agent's end of the store of a fleet: follows the shared keys, and performs operations.
//!
//! `engine` has what no engine differs in. An engine has the connection, the listing, the watch and the operations.

#[cfg(any(feature = "etcd", feature = "kubernetes"))]
mod engine;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
mod limits;
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
mod news;

use std::future::pending;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::agent::message::FromAgent;
use crate::fleet::settings::{Engine, StoreSettings};
use crate::fleet::store::{Operation, Outcome};

/// The store of the task, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Store {
    running: Option<Running>,
}

/// A store in use.
#[derive(Debug)]
struct Running {
    settings: StoreSettings,
    operations: mpsc::Sender<(u64, Operation)>,
    messages: mpsc::Receiver<FromAgent>,
    /// Ends when this is dropped.
    _task: JoinSet<()>,
}

impl Store {
    /// Uses this store from now on.
    pub(crate) fn apply(&mut self, settings: Option<&StoreSettings>) {
        if self.running.as_ref().map(|running| &running.settings) == settings {
            return;
        }
        self.running = settings.map(|settings| {
            let (sender, messages) = mpsc::channel(MAX_QUEUED);
            let (operations, received) = mpsc::channel(MAX_OPEN);
            let task = start(settings, sender, received);
            Running { settings: settings.clone(), operations, messages, _task: task }
        });
    }

    /// Performs an operation, whose answer is one of the next messages. Returns the answer if there is one already.
    pub(crate) fn perform(&mut self, number: u64, operation: Operation) -> Option<FromAgent> {
        let sent = self.running.as_ref().map(|running| running.operations.try_send((number, operation)));
        let error = match sent {
            Some(Ok(())) => return None,
            Some(Err(_)) => "too many operations at a time",
            None => "no store",
        };
        Some(FromAgent::StoreReply { number, outcome: Outcome::Failed { error: error.to_owned() } })
    }

    /// The next message to the program.
    pub(crate) async fn next(&mut self) -> FromAgent {
        match &mut self.running {
            Some(running) => match running.messages.recv().await {
                Some(message) => message,
                None => pending().await,
            },
            None => pending().await,
        }
    }
}

/// Starts the engine of a store.
fn start(
    settings: &StoreSettings,
    messages: mpsc::Sender<FromAgent>,
    operations: mpsc::Receiver<(u64, Operation)>,
) -> JoinSet<()> {
    match &settings.engine {
        #[cfg(feature = "etcd")]
        Engine::Etcd(etcd) => {
            let engine = etcd::EtcdEngine::new(&settings.fleet, etcd.clone());
            JoinSet::from_iter([engine::serve(engine, messages, operations)])
        }
        #[cfg(feature = "kubernetes")]
        Engine::Kubernetes { connection, namespace } => {
            let engine = kubernetes::KubernetesEngine::new(&settings.fleet, connection.clone(), namespace.clone());
            JoinSet::from_iter([engine::serve(engine, messages, operations)])
        }
        // The configuration rejects a store whose feature is missing, so no task has one.
        #[cfg(not(feature = "etcd"))]
        Engine::Etcd(_) => ended(messages, operations),
        #[cfg(not(feature = "kubernetes"))]
        Engine::Kubernetes { .. } => ended(messages, operations),
    }
}

/// A store that does nothing.
#[cfg(not(all(feature = "etcd", feature = "kubernetes")))]
fn ended(messages: mpsc::Sender<FromAgent>, operations: mpsc::Receiver<(u64, Operation)>) -> JoinSet<()> {
    drop((messages, operations));
    JoinSet::new()
}

/// Operations at a time. The program has at most this many without an answer.
const MAX_OPEN: usize = 64;

/// Messages that wait for the program.
const MAX_QUEUED: usize = 16;
