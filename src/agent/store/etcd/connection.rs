//! Connections to the members of an etcd cluster, one at a time.
//!
//! The library would spread requests over all endpoints, also over one that hangs. So each attempt asks the endpoints one after
//! another, without waiting long for the previous one, and the first that answers serves everything.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, KvClient, LeaseClient, TlsOptions};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::agent::client::password::read_password;
use crate::agent::store::engine::PART;
use crate::agent::store::etcd::failure::{Failure, Kind};
use crate::fault;
use crate::fleet::settings::EtcdSettings;
use crate::printable;

/// How the cluster is reached.
#[derive(Debug)]
pub(super) struct Connector {
    settings: Arc<EtcdSettings>,
    /// A key below which the user may read.
    probe: String,
    /// The endpoint to ask first.
    first: AtomicUsize,
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) client: Client,
    /// With the limit of [`MAX_RECEIVED`].
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) endpoint: String,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(settings: EtcdSettings, probe: String) -> Self {
        Self { settings: Arc::new(settings), probe, first: AtomicUsize::new(0) }
    }

    /// Connects to the first endpoint that answers a linearizable read.
    pub(super) async fn connect(&self) -> Result<Connected, Failure> {
        let settings = Arc::clone(&self.settings);
        let options = fault::contained_blocking(PART, move || Options::read(&settings)).await;
        let options = options.unwrap_or_else(|fault| Err(fault.to_string()));
        let options = options.map_err(|error| Failure::new(Kind::NotPerformed, error))?;
        let count = self.settings.endpoints.len();
        // The next attempt begins elsewhere.
        let first = self.first.fetch_add(1, Ordering::Relaxed);
        let mut waiting = (0..count).filter_map(|number| {
            let index = first.wrapping_add(number).checked_rem(count)?;
            self.settings.endpoints.get(index).cloned().map(|endpoint| (index, endpoint))
        });
        let (mut attempts, mut failures) = (JoinSet::new(), Vec::new());
        let mut next = waiting.next();
        loop {
            if let Some((index, endpoint)) = next.take() {
                let (options, probe) = (options.clone(), self.probe.clone());
                attempts.spawn(async move { (index, attempt(endpoint, options, probe).await) });
            }
            let ended = tokio::select! {
                ended = attempts.join_next() => ended,
                () = sleep(STAGGER) => {
                    next = waiting.next();
                    continue;
                }
            };
            match ended {
                Some(Ok((index, Ok(connected)))) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(connected);
                }
                Some(Ok((_, Err(failure)))) if matches!(failure.kind, Kind::Denied | Kind::Forbidden) => {
                    return Err(failure);
                }
                Some(Ok((_, Err(failure)))) => failures.push(failure.error),
                Some(Err(error)) => failures.push(error.to_string()),
                None if next.is_none() => {
                    return Err(Failure::new(Kind::NotPerformed, printable::list(&failures)));
                }
                None => {}
            }
            next = waiting.next();
        }
    }

    /// The next connection goes to another endpoint, because this one has failed.
    pub(super) fn avoid_current(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }
}

/// One attempt to connect.
async fn attempt(endpoint: String, options: Options, probe: String) -> Result<Connected, Failure> {
    let opened = async {
        let is_tls = endpoint.starts_with("https://");
        let client = Client::connect([endpoint.as_str()], Some(options.connect(is_tls))).await?;
        let kv = client.kv_client().max_decoding_message_size(MAX_RECEIVED);
        let lease = client.lease_client();
        let connected = Connected { client, kv, lease, endpoint: endpoint.clone() };
        // Only a member that has a quorum answers.
        let read = GetOptions::new().with_prefix().with_keys_only().with_limit(1);
        connected.kv.clone().get(probe, Some(read)).await?;
        Ok(connected)
    };
    let no_answer = || Failure::new(Kind::Unavailable, format_args!("no answer within {CONNECT_TIMEOUT:?}"));
    let opened = timeout(CONNECT_TIMEOUT, opened).await.unwrap_or_else(|_| Err(no_answer()));
    opened.map_err(|failure| failure.at(&endpoint))
}

/// What the files of the settings contain now.
#[derive(Clone)]
struct Options {
    tls: TlsOptions,
    login: Option<(String, String)>,
}

impl Options {
    /// # Errors
    /// If a file cannot be used.
    fn read(settings: &EtcdSettings) -> Result<Self, String> {
        let mut tls = TlsOptions::new();
        tls = match &settings.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(anchors(ca)?)),
            None => tls.with_native_roots(),
        };
        if let Some(identity) = &settings.identity {
            tls = tls.identity(Identity::from_pem(read(&identity.cert)?, read(&identity.key)?));
        }
        let login = settings.login.as_ref().map(|login| match read_password(&login.password) {
            Ok(password) => Ok((login.user.clone(), password.as_str().to_owned())),
            Err(error) => Err(error.to_string()),
        });
        Ok(Self { tls, login: login.transpose()? })
    }

    fn connect(&self, is_tls: bool) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_tcp_keepalive(KEEPALIVE)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if is_tls {
            options = options.with_tls(self.tls.clone());
        }
        match &self.login {
            Some((user, password)) => options.with_user(user.clone(), password.clone()),
            None => options,
        }
    }
}

/// The PEM file of the trust anchors. The library would skip what it cannot read.
fn anchors(file: &Path) -> Result<Vec<u8>, String> {
    let pem = read(file)?;
    let invalid = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(invalid(&"it has no certificate")),
        Ok(_) => Ok(pem),
        Err(error) => Err(invalid(&error)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// How long one endpoint may take to answer its first read.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the previous endpoint is waited for before the next one is asked as well.
const STAGGER: Duration = Duration::from_millis(500);

const KEEPALIVE: Duration = Duration::from_secs(15);

/// The maximum length of an answer of etcd in bytes.
pub(super) const MAX_RECEIVED: usize = 16 << 20;
