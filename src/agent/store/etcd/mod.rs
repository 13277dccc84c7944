//! The store in etcd v3.
//!
//! [`connection`] has the endpoints, [`watch`] the listing and the watch, [`operations`] and [`hold`] what the program asks for.

mod connection;
mod failure;
mod hold;
mod keys;
mod operations;
mod range;
mod watch;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch as latest};
use tokio::time::{sleep, timeout};

use crate::agent::store::engine::{End, Engine};
use crate::agent::store::etcd::connection::{Connected, Connector};
use crate::agent::store::etcd::failure::{Failure, Kind};
use crate::agent::store::etcd::hold::Leases;
use crate::agent::store::etcd::keys::Root;
use crate::agent::store::news::News;
use crate::fleet::settings::EtcdSettings;
use crate::fleet::store::{Operation, Outcome, SHARED};

/// One fleet in etcd.
#[derive(Debug)]
pub(super) struct EtcdEngine {
    root: Root,
    connector: Connector,
    /// The connection that [`Engine::follow`] has, which operations use as well.
    current: latest::Sender<Option<Connected>>,
    /// Why there is no connection.
    error: Mutex<String>,
    leases: Leases,
    /// An operation had no answer in time.
    suspected: Notify,
    /// The credentials of the connection are no longer valid.
    denied: Notify,
}

impl EtcdEngine {
    pub(super) fn new(fleet: &str, settings: EtcdSettings) -> Self {
        let root = Root::new(&settings.prefix, fleet);
        let connector = Connector::new(settings, root.full(SHARED));
        Self {
            root,
            connector,
            current: latest::channel(None).0,
            error: Mutex::new("not connected yet".to_owned()),
            leases: Leases::default(),
            suspected: Notify::new(),
            denied: Notify::new(),
        }
    }

    /// Waits a moment for a connection.
    async fn connected(&self) -> Result<Connected, Failure> {
        let mut current = self.current.subscribe();
        if let Ok(Ok(found)) = timeout(CONNECTION_WAIT, current.wait_for(Option::is_some)).await
            && let Some(connected) = &*found
        {
            return Ok(connected.clone());
        }
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(Failure::new(Kind::Unavailable, error))
    }

    fn note(&self, failure: &Failure) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&failure.error);
    }

    async fn perform_once(&self, operation: &Operation) -> Result<Outcome, Failure> {
        let connected = self.connected().await?;
        let performed = match operation {
            Operation::Get { keys } => self.get(&connected, keys).await,
            Operation::List { prefix } => self.list(&connected, prefix, false).await,
            Operation::Keys { prefix } => self.list(&connected, prefix, true).await,
            Operation::Put { key, value, expected, seconds } => {
                self.put(&connected, (key, value), expected, *seconds).await
            }
            Operation::Hold { key, value, seconds } => self.hold(&connected, (key, value), *seconds).await,
            Operation::Delete { key, expected } => self.delete(&connected, key, expected).await,
        };
        performed.map_err(|failure| failure.at(&connected.endpoint))
    }
}

impl Engine for EtcdEngine {
    async fn follow(&self, news: &mut News) -> End {
        let failure = match self.connector.connect().await {
            Ok(connected) => {
                self.current.send_replace(Some(connected.clone()));
                let failure = self.follow_by(&connected, news).await;
                self.current.send_replace(None);
                self.connector.avoid_current();
                failure.at(&connected.endpoint)
            }
            Err(failure) => failure,
        };
        self.note(&failure);
        if failure.kind == Kind::Compacted { End::Outdated } else { End::Failed(failure.error) }
    }

    /// What only reads, and what certainly was not performed, is tried again until the caller stops waiting.
    async fn perform(&self, operation: &Operation) -> Result<Outcome, String> {
        let only_reads = matches!(operation, Operation::Get { .. } | Operation::List { .. } | Operation::Keys { .. });
        for _ in 0..MAX_ATTEMPTS {
            let failure = match self.perform_once(operation).await {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => failure,
            };
            let is_connected = self.current.borrow().is_some();
            match failure.kind {
                // The next connection has the credentials of that time.
                Kind::Denied => {
                    self.denied.notify_one();
                    return Err(failure.error);
                }
                Kind::NotPerformed if is_connected => {}
                Kind::Unavailable if is_connected && only_reads => {}
                Kind::Compacted if only_reads => {}
                _ => return Err(failure.error),
            }
            self.note(&failure);
            sleep(RETRY_PAUSE).await;
        }
        Err(self.error.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn suspect(&self) {
        self.suspected.notify_one();
    }
}

/// How long an operation waits for a connection.
const CONNECTION_WAIT: Duration = Duration::from_secs(3);

const RETRY_PAUSE: Duration = Duration::from_millis(200);
const MAX_ATTEMPTS: usize = 20;
