//! The connection to an API server: its client, rebuilt when the files of its credentials change.

mod client;
mod credentials;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::agent::kubernetes::PART;
use crate::agent::kubernetes::connection::credentials::Credentials;
use crate::agent::kubernetes::failure::Failure;
use crate::fault;
use crate::resolution::settings::KubernetesSettings;

/// How the API server of the settings is reached. All watches share it.
pub(crate) struct Connection {
    settings: Arc<KubernetesSettings>,
    state: Mutex<State>,
    /// Bounds the memory of lists that are read at the same time.
    pub(crate) lists: Semaphore,
    /// The time that one request may take. A watch has to start within it.
    pub(crate) request_timeout: Duration,
}

#[derive(Default)]
struct State {
    read_at: Option<Instant>,
    current: Option<(Credentials, Client)>,
    /// The number of times that the credentials have changed.
    generation: u64,
}

/// A client, and the generation of its credentials.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) generation: u64,
}

impl Connection {
    pub(crate) fn new(settings: KubernetesSettings, request_timeout: Duration) -> Self {
        let (settings, state) = (Arc::new(settings), Mutex::new(State::default()));
        Self { settings, state, lists: Semaphore::new(MAX_CONCURRENT_LISTS), request_timeout }
    }

    /// Waits for the answer to a request.
    ///
    /// # Errors
    /// If it fails, or takes longer than `request_timeout`.
    pub(crate) async fn within_timeout<T>(
        &self,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        let limit = self.request_timeout;
        let answered = timeout(limit, answer).await;
        Ok(answered.map_err(|_| Failure::unavailable(format_args!("no answer within {limit:?}")))??)
    }

    /// The client. The files are read again after [`REREAD`].
    pub(crate) async fn client(&self) -> Result<Connected, Failure> {
        let mut state = self.state.lock().await;
        if state.read_at.is_none_or(|read_at| read_at.elapsed() >= REREAD) {
            self.read(&mut state).await.map_err(Failure::unavailable)?;
        }
        match &state.current {
            Some((_, client)) => Ok(Connected { client: client.clone(), generation: state.generation }),
            None => Err(Failure::unavailable("no credentials")),
        }
    }

    /// Reads the files again, because the server has rejected the token of this generation. Returns whether the credentials
    /// are others now.
    pub(crate) async fn renew(&self, rejected: u64) -> bool {
        let mut state = self.state.lock().await;
        if state.generation == rejected {
            // An error keeps the credentials, which the server has rejected.
            let _ = self.read(&mut state).await;
        }
        state.generation != rejected
    }

    /// # Errors
    /// When the files cannot be read and there are no earlier credentials.
    async fn read(&self, state: &mut State) -> Result<(), String> {
        let settings = Arc::clone(&self.settings);
        let read = fault::contained_blocking(PART, move || Credentials::read(&settings)).await;
        let read = read.unwrap_or_else(|fault| Err(fault.to_string()));
        let built = match read {
            Ok(credentials) if state.current.as_ref().is_some_and(|(known, _)| *known == credentials) => {
                state.read_at = Some(Instant::now());
                return Ok(());
            }
            Ok(credentials) => client::build(credentials.config.clone()).map(|client| (credentials, client)),
            Err(error) => Err(error),
        };
        match built {
            Ok(current) => {
                if state.current.is_some() {
                    info!("credentials of the Kubernetes API have changed");
                }
                state.current = Some(current);
                state.generation = state.generation.saturating_add(1);
                state.read_at = Some(Instant::now());
                Ok(())
            }
            // A file that is being replaced is complete a moment later.
            Err(error) if state.current.is_some() => {
                warn!(%error, "cannot read the credentials of the Kubernetes API again");
                state.read_at = Some(Instant::now());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// The age at which token, CA and kubeconfig are read again. The token of a service account is replaced before it expires.
const REREAD: Duration = Duration::from_secs(60);

/// With pages of at most 64 MiB.
const MAX_CONCURRENT_LISTS: usize = 2;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair};
    use tokio::time::advance;

    use super::*;

    fn write_ca(path: &Path) {
        let key = KeyPair::generate().unwrap();
        fs::write(path, CertificateParams::default().self_signed(&key).unwrap().pem()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn changed_ca_is_read_after_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.crt");
        write_ca(&ca);
        let (server, file) = ("https://127.0.0.1:1".to_owned(), Some(ca.clone()));
        let settings = KubernetesSettings::Server { server, ca: file, token: None };
        let connection = Connection::new(settings, Duration::from_secs(10));
        let generation = async || connection.client().await.unwrap().generation;
        assert_eq!(generation().await, 1);
        advance(REREAD).await;
        assert_eq!(generation().await, 1, "nothing has changed");
        write_ca(&ca);
        advance(REREAD - Duration::from_secs(1)).await;
        assert_eq!(generation().await, 1);
        advance(Duration::from_secs(1)).await;
        assert_eq!(generation().await, 2);
        fs::remove_file(&ca).unwrap();
        advance(REREAD).await;
        assert_eq!(generation().await, 2, "what cannot be read changes nothing");
    }
}
