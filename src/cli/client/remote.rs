//! An admin API on TCP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::addr::ClientAddr;
use crate::cli::Failure;
use crate::cli::client::access_token::AccessToken;
use crate::cli::client::args::RemoteArgs;
use crate::cli::client::http::{BoxedStream, rustls_error};
use crate::cli::client::tls;
use crate::cli::client::url::{AdminUrl, Scheme};

pub(crate) struct Remote {
    pub(crate) url: AdminUrl,
    pub(crate) token: AccessToken,
    /// `None` for plain HTTP to a loopback address.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Remote {
    pub(crate) fn new(url: &AdminUrl, args: &RemoteArgs) -> Result<Self, Failure> {
        let token = AccessToken::read(args.token_file.as_deref())?;
        let tls = match url.scheme {
            Scheme::Http if args.cacert.is_some() || args.cert.is_some() => {
                let message = format!("{url}: --cacert, --cert and --key need TLS; use https://");
                return Err(Failure::Usage(message));
            }
            Scheme::Http => None,
            Scheme::Https => {
                let name = ServerName::try_from(url.host.clone());
                let name = name.map_err(|_| Failure::Usage(format!("{url}: {} is not a host name", url.host)))?;
                Some((TlsConnector::from(tls::settings(args)?), name))
            }
        };
        Ok(Self { url: url.clone(), token, tls })
    }

    /// Connects within [`CONNECT_TIMEOUT`] and verifies the server.
    pub(crate) async fn connect(&self) -> Result<BoxedStream, Failure> {
        timeout(CONNECT_TIMEOUT, self.open()).await.unwrap_or_else(|_| {
            Err(self.failure(format_args!(
                "no connection within {CONNECT_TIMEOUT:?}; check host and port, and that no firewall drops the packets"
            )))
        })
    }

    async fn open(&self) -> Result<BoxedStream, Failure> {
        let stream = TcpStream::connect(&*self.addresses().await?).await.map_err(|error| self.unreachable(&error))?;
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(stream)) };
        match connector.connect(name.clone(), stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(self.handshake_failure(&error)),
        }
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failure> {
        let AdminUrl { scheme, host, port } = &self.url;
        let found = lookup_host((host.as_str(), *port)).await;
        let found = found.map_err(|error| self.failure(format_args!("cannot resolve {host}: {error}; check --url")))?;
        // A hosts file can give localhost any address.
        let is_loopback = |address: SocketAddr| ClientAddr::new(address).ip().is_some_and(|ip| ip.is_loopback());
        let is_allowed = |address: &SocketAddr| *scheme == Scheme::Https || is_loopback(*address);
        let addresses: Vec<_> = found.filter(is_allowed).collect();
        if addresses.is_empty() {
            return Err(self.failure(format_args!("{host} has no loopback address; use 127.0.0.1 or [::1]")));
        }
        Ok(addresses)
    }

    /// Whether the connection is without TLS.
    pub(crate) const fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => self.failure(
                "connection refused: no program listens there; check host and port, and that admin.listen of the program \
                 has this address",
            ),
            _ => self.failure(format_args!("cannot be connected to: {error}; check host and port")),
        }
    }

    fn handshake_failure(&self, error: &io::Error) -> Failure {
        match rustls_error(error) {
            Some(error) => self.failure(tls::explain(error, &self.url.host)),
            None => self.failure(format_args!(
                "the connection ended during the TLS handshake: {error}; see the log of the server"
            )),
        }
    }

    pub(crate) fn failure(&self, why: impl fmt::Display) -> Failure {
        Failure::Failed(format!("{}: {why}", self.url))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).field("token", &self.token).finish_non_exhaustive()
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
