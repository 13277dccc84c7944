//! HTTPS for the APIs of clouds: one origin, no redirects, everything bounded.

use std::error::Error as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::agent::client::chain;
use crate::agent::client::endpoint::Endpoint;
use crate::agent::client::token::Token;

/// A client of one API.
#[derive(Debug)]
pub(crate) struct ApiClient {
    endpoint: Endpoint,
    /// PEM file of the trust anchors; `None` means those of the system.
    ca: Option<PathBuf>,
    current: Option<Connections>,
}

/// Connections that are verified by these trust anchors.
#[derive(Debug)]
struct Connections {
    /// The content of `ca`.
    anchors: Option<Vec<u8>>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// A complete answer with any status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{}: {error}", file.display())]
    Ca { file: PathBuf, error: String },
    #[error("the system has no trust anchors; install the package ca-certificates, or set ca")]
    NoRoots,
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the request failed: {0}")]
    Request(String),
    #[error("the answer is cut off: {0}")]
    Cut(String),
    #[error("the answer has more than {} MiB", MAX_BODY >> 20)]
    TooLong,
    #[error("no answer within {REQUEST_TIMEOUT:?}")]
    Timeout,
}

impl ApiClient {
    pub(crate) const fn new(endpoint: Endpoint, ca: Option<PathBuf>) -> Self {
        Self { endpoint, ca, current: None }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Requests a path with its query, such as `/v2/droplets?page=1`.
    ///
    /// # Errors
    /// If there is no complete answer in time.
    pub(crate) async fn get(&mut self, path: &str, token: &Token) -> Result<Answer, ClientError> {
        let result = match timeout(REQUEST_TIMEOUT, self.exchange(path, token)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Timeout),
        };
        if result.is_err() {
            // A new connection next time, verified by what the system trusts then.
            self.current = None;
        }
        result
    }

    async fn exchange(&mut self, path: &str, token: &Token) -> Result<Answer, ClientError> {
        let request = Request::get(self.endpoint.url(path))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, USER_AGENT_VALUE)
            .header(AUTHORIZATION, token.bearer());
        let request = request.body(Empty::new()).map_err(|error| ClientError::Request(error.to_string()))?;
        let answer = self.connections()?.request(request).await.map_err(|error| {
            // The error itself has only its kind.
            let chain = chain(error.source().unwrap_or(&error));
            if error.is_connect() { ClientError::Connect(chain) } else { ClientError::Request(chain) }
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { ClientError::TooLong } else { ClientError::Cut(chain(&*error)) }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// The connections, new ones if `ca` has changed.
    fn connections(&mut self) -> Result<&Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, ClientError> {
        let ca =
            |error: io::Error| ClientError::Ca { file: self.ca.clone().unwrap_or_default(), error: error.to_string() };
        let anchors = self.ca.as_deref().map(fs::read).transpose().map_err(ca)?;
        let current = match self.current.take().filter(|current| current.anchors == anchors) {
            Some(current) => current,
            None => Connections { client: self.connect(anchors.as_deref())?, anchors },
        };
        Ok(&self.current.insert(current).client)
    }

    fn connect(
        &self,
        anchors: Option<&[u8]>,
    ) -> Result<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>, ClientError> {
        let mut roots = RootCertStore::empty();
        match (anchors, &self.ca) {
            (Some(pem), Some(file)) => {
                let invalid = |error: String| ClientError::Ca { file: file.clone(), error };
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
                    roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(invalid("it has no certificate".to_owned()));
                }
            }
            _ => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(ClientError::NoRoots);
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new());
        Ok(client.build(connector))
    }
}

/// For a whole request, from the lookup of the name to the last byte of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum length of an answer in bytes.
const MAX_BODY: usize = 16 << 20;

const USER_AGENT_VALUE: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));
