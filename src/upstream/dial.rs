//! Dials one endpoint: TCP or Unix socket, PROXY header, TLS, and the ROLE of a Redis server.

use std::io;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::warn;

use crate::addr::UpstreamAddr;
use crate::descriptors::is_local_shortage;
use crate::login::redis::upstream::ServerTraits;
use crate::outcome::Reason;
use crate::protocol::redis;
use crate::protocol::redis::{NoRole, Role, RoleParser, RoleReply};
use crate::protocol::{Negotiation, Protocol, Target, postgres};
use crate::tls::engine::Client;
use crate::tls::upstream::UpstreamHandshake;
use crate::transport::socket::{Socket, is_drained};
use crate::transport::tls_stream::TlsStream;
use crate::transport::{Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::connect::{connect, within};
use crate::upstream::endpoint::{ConfiguredAddress, Endpoint};
use crate::upstream::record::record_role;

#[derive(Debug)]
pub(crate) struct ConnectedUpstream {
    pub(crate) stream: UpstreamStream,
    pub(crate) endpoint: Endpoint,
    /// What it has sent for the client after Portcullis has authenticated to it; empty without `[listener.credentials]`.
    pub(crate) greeting: Vec<u8>,
    /// What is known about a Redis server; `None` for PostgreSQL and without `[listener.credentials]`.
    pub(crate) redis: Option<ServerTraits>,
}

/// Why an endpoint cannot serve a session.
#[derive(Debug)]
pub(crate) struct EndpointError {
    /// The audit reason if no other endpoint can serve the session either.
    pub(crate) reason: Reason,
    /// A predicate for the log and the audit, after `upstream ADDRESS: `.
    pub(crate) detail: String,
    pub(crate) fault: EndpointFault,
    /// The endpoint refuses connections. It may be restarting, so a later dial may succeed.
    pub(crate) refuses: bool,
}

/// What an error shows about the health of the endpoint; `upstream/record.rs` acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointFault {
    /// The endpoint is unhealthy.
    Failed,
    /// The endpoint responds, so it is healthy, but it has the wrong role or is not ready.
    Unsuitable,
    /// This host lacks a resource for the dial, which shows nothing about the endpoint.
    LocalShortage,
}

/// Dials an endpoint by `deadline` and sends `header`, which may be empty, before anything else. With `target = "master"`
/// only a Redis master is accepted.
pub(crate) async fn dial_endpoint(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    let mut stream = dial_any_role(endpoint, upstream, header, deadline).await?;
    check_role(&mut stream, endpoint, upstream, deadline).await?;
    Ok(stream)
}

/// With `target = "master"` accepts only a Redis master.
pub(crate) async fn check_role(
    stream: &mut UpstreamStream,
    endpoint: &Endpoint,
    upstream: &Upstream,
    deadline: Instant,
) -> Result<(), EndpointError> {
    if (upstream.protocol, upstream.settings.target) == (Protocol::Redis, Target::Primary) {
        let role = within(deadline, query_role(stream)).await;
        role.map_err(|error| closed_early(&error, upstream))?.require_master(endpoint, upstream)?;
    }
    Ok(())
}

/// Dials an endpoint of any role.
pub(crate) async fn dial_any_role(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    let socket = connect(endpoint, upstream, deadline).await.map_err(dial_failed)?;
    start(socket, &endpoint.configured, upstream, header, deadline).await
}

/// Dials an endpoint to find out whether it is healthy.
///
/// A TCP connection is not enough for PostgreSQL: the kernel accepts it even for a server that hangs. Every PostgreSQL server
/// replies to an SSLRequest and does not log it.
pub(crate) async fn dial_for_probe(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<(), EndpointError> {
    let mut stream = match &upstream.user {
        // Without a password it would not report its role.
        Some(user) if upstream.protocol == Protocol::Redis && upstream.needs_primary() => {
            let dialed = Box::pin(user.borrowed().dial_redis(endpoint, upstream, header, deadline)).await;
            dialed.map_err(|error| error.into_error(false))?.0
        }
        _ => dial_endpoint(endpoint, upstream, header, deadline).await?,
    };
    match (upstream.protocol, &mut stream) {
        (Protocol::Postgres, Stream::Plain(socket)) => {
            within(deadline, check_postgres(socket)).await.map_err(dial_failed)
        }
        _ => Ok(()),
    }
}

async fn check_postgres(socket: &mut Socket) -> io::Result<()> {
    socket.write_all(&postgres::SSL_REQUEST_PACKET).await?;
    match socket.read_u8().await {
        Ok(postgres::ACCEPT_TLS | postgres::REFUSE_ENCRYPTION) => Ok(()),
        Ok(_) => Err(io::Error::other(NOT_POSTGRES)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::other(CLOSED_WITHOUT_RESPONSE)),
        Err(error) => Err(error),
    }
}

/// Sends the PROXY header and performs TLS.
async fn start(
    mut socket: Socket,
    configured: &ConfiguredAddress,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    within(deadline, socket.write_all(header)).await.map_err(dial_failed)?;
    match (upstream.tls(), socket, configured.address()) {
        (Some(tls), Socket::Tcp(stream), UpstreamAddr::Tcp { host, .. }) => {
            let negotiation = upstream.settings.tls.as_ref().map(|tls| tls.negotiation);
            let asks_first = (upstream.protocol, negotiation) == (Protocol::Postgres, Some(Negotiation::Postgres));
            let handshake = tls.handshake(host).map_err(|error| tls_failed(error.to_string()))?;
            let encrypted = within(deadline, encrypt(stream, &handshake, asks_first)).await;
            encrypted.map(|stream| Stream::Tls(Box::new(stream))).map_err(|error| match is_local_shortage(&error) {
                true => dial_failed(error),
                false => tls_failed(handshake.explain(&error)),
            })
        }
        (_, socket, _) => Ok(Stream::Plain(socket)),
    }
}

async fn encrypt(
    mut stream: TcpStream,
    handshake: &UpstreamHandshake,
    asks_first: bool,
) -> io::Result<TlsStream<TcpStream, Client>> {
    if asks_first {
        request_tls(&mut stream).await?;
    }
    let mut stream = TlsStream::new(stream, handshake.engine().map_err(io::Error::other)?);
    while stream.engine().is_handshaking() {
        stream.next_flight().await?;
    }
    handshake.verify(stream.engine(), OffsetDateTime::now_utc())?;
    Ok(stream)
}

/// Sends PostgreSQL's SSLRequest. Plaintext after the reply is an error, because it could be taken for TLS data
/// (CVE-2021-23222).
async fn request_tls(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&postgres::SSL_REQUEST_PACKET).await?;
    match stream.read_u8().await? {
        postgres::ACCEPT_TLS if is_drained(stream)? => Ok(()),
        postgres::ACCEPT_TLS => Err(io::Error::other("sent plaintext after its reply to SSLRequest")),
        postgres::REFUSE_ENCRYPTION => Err(io::Error::other(
            "refused TLS (replied N to SSLRequest); set ssl = on in postgresql.conf, or upstream.tls = \"disable\"",
        )),
        _ => Err(io::Error::other("is not a PostgreSQL server: unexpected reply to SSLRequest")),
    }
}

async fn query_role(stream: &mut UpstreamStream) -> io::Result<Role> {
    stream.write_all(redis::ROLE_COMMAND).await?;
    stream.flush().await?;
    let mut parser = RoleParser::default();
    let mut bytes = [0; 1024];
    loop {
        let count = stream.read(&mut bytes).await?;
        let Some(received) = bytes.get(..count).filter(|received| !received.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match parser.follow(received) {
            RoleReply::More => {}
            // The client would take bytes after the reply for the reply to its first command.
            RoleReply::Done { role, used } if used == received.len() => return Ok(role),
            RoleReply::Done { .. } | RoleReply::Invalid => {
                return Err(io::Error::other("sent an invalid reply to ROLE"));
            }
        }
    }
}

impl Role {
    /// Accepts only a master. A server that does not report its role may be one, so it is accepted.
    fn require_master(self, endpoint: &Endpoint, upstream: &Upstream) -> Result<(), EndpointError> {
        let detail = match self {
            Self::Master => {
                record_role(endpoint, upstream, true);
                return Ok(());
            }
            Self::Unknown(unknown @ (NoRole::NoAuth | NoRole::NoPerm | NoRole::Other)) => {
                if endpoint.set_role_unknown() {
                    warn!(
                        listener = %upstream.listener,
                        upstream = %endpoint,
                        reply = ?unknown,
                        "cannot determine the role of the upstream, assuming that it is the master"
                    );
                }
                return Ok(());
            }
            Self::Replica => "is a replica, but target is \"master\"",
            Self::Sentinel => "is a sentinel, but target is \"master\"",
            Self::Unknown(NoRole::Loading) => "is loading its dataset",
        };
        record_role(endpoint, upstream, false);
        Err(unsuitable(detail))
    }
}

/// Explains an error on a new connection. In TLS 1.3 an upstream rejects our certificate only after our side has completed
/// the handshake.
pub(crate) fn closed_early(error: &io::Error, upstream: &Upstream) -> EndpointError {
    let detail = upstream.tls().and_then(|tls| tls.explain(error));
    detail.map_or_else(|| dial_failed(io::Error::new(error.kind(), error.to_string())), tls_failed)
}

/// An endpoint that responds, but has the wrong role or is not ready.
pub(crate) fn unsuitable(detail: &str) -> EndpointError {
    let (reason, fault) = (Reason::UpstreamUnreachable, EndpointFault::Unsuitable);
    EndpointError { reason, detail: detail.to_owned(), fault, refuses: false }
}

/// An endpoint that cannot be reached, or a local shortage: only the error tells which.
pub(crate) fn dial_failed(error: io::Error) -> EndpointError {
    let reason = Reason::UpstreamUnreachable;
    if is_local_shortage(&error) {
        let detail = format!("the proxy is out of local resources: {error}");
        return EndpointError { reason, detail, fault: EndpointFault::LocalShortage, refuses: false };
    }
    let refuses = is_refusal(error.kind());
    EndpointError { reason, detail: error.to_string(), fault: EndpointFault::Failed, refuses }
}

/// A name that does not resolve counts as a refusal. A resolver that times out does not.
pub(crate) fn unresolved(error: io::Error) -> EndpointError {
    let timed_out = error.kind() == io::ErrorKind::TimedOut;
    let endpoint_error = dial_failed(error);
    EndpointError { refuses: !timed_out && endpoint_error.fault != EndpointFault::LocalShortage, ..endpoint_error }
}

/// Whether the connection was refused at once, as opposed to a timeout.
fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            // The file of a Unix socket does not exist while its server is stopped.
            | io::ErrorKind::NotFound
    )
}

fn tls_failed(detail: String) -> EndpointError {
    EndpointError { reason: Reason::UpstreamTlsFailed, detail, fault: EndpointFault::Failed, refuses: false }
}

pub(crate) const NOT_POSTGRES: &str = "is not a PostgreSQL server: unexpected reply";
pub(crate) const CLOSED_WITHOUT_RESPONSE: &str = "closed the connection without a response";
