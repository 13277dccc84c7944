//! One node: connected to, told where its client comes from, met in TLS, and asked for its role.

use std::io;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::warn;

use crate::addr::UpstreamAddr;
use crate::descriptors::is_local_shortage;
use crate::outcome::Reason;
use crate::protocol::redis;
use crate::protocol::redis::{NoRole, Role, RoleParser, RoleReply};
use crate::protocol::{Negotiation, Protocol, Target, postgres};
use crate::tls::engine::Client;
use crate::tls::upstream::UpstreamHandshake;
use crate::transport::socket::{Socket, nothing_waits};
use crate::transport::tls_stream::TlsStream;
use crate::transport::{Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::connect::{connect, within};
use crate::upstream::endpoint::{ConfiguredUpstream, Endpoint};
use crate::upstream::record::record_role;

/// A node that answers.
#[derive(Debug)]
pub(crate) struct ConnectedUpstream {
    pub(crate) stream: UpstreamStream,
    pub(crate) endpoint: Endpoint,
}

/// A node that will not do.
#[derive(Debug)]
pub(crate) struct EndpointError {
    /// For the auditor, should no other do either.
    pub(crate) reason: Reason,
    /// For the operator.
    pub(crate) words: String,
    /// Whether it answers, and only has not the role that is wanted, or is not ready.
    pub(crate) is_healthy: bool,
    /// Whether this machine could not dial it for want of something of its own, which says nothing of the node.
    pub(crate) is_local: bool,
    /// Whether it refuses connections: then it may restart, and accept the next one.
    pub(crate) refuses: bool,
}

/// Reaches a place by `deadline`, with the header before all else where there is one.
pub(crate) async fn connect_endpoint(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    let mut stream = connect_any_role(endpoint, upstream, header, deadline).await?;
    if (upstream.protocol, upstream.settings.target) == (Protocol::Redis, Target::Primary) {
        let role = within(deadline, ask_role(&mut stream)).await;
        role.map_err(|error| closed_early(&error, upstream))?.judge(endpoint, upstream)?;
    }
    Ok(stream)
}

/// Reaches a place, whatever its role.
pub(crate) async fn connect_any_role(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    let socket = connect(endpoint, upstream, deadline).await.map_err(unhealthy)?;
    prepare(socket, &endpoint.configured, upstream, header, deadline).await
}

/// Reaches a place as far as is needed to know whether it is back. That a connection is taken says little of PostgreSQL: the
/// kernel takes it for a server that hangs, too. Every PostgreSQL server answers an SSLRequest, and nothing in its log tells of it.
pub(crate) async fn probe(
    endpoint: &Endpoint,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<(), EndpointError> {
    let mut stream = connect_endpoint(endpoint, upstream, header, deadline).await?;
    match (upstream.protocol, &mut stream) {
        (Protocol::Postgres, Stream::Plain(socket)) => within(deadline, is_postgres(socket)).await.map_err(unhealthy),
        _ => Ok(()),
    }
}

async fn is_postgres(socket: &mut Socket) -> io::Result<()> {
    socket.write_all(&postgres::SSL_REQUEST_PACKET).await?;
    match socket.read_u8().await {
        Ok(postgres::ACCEPT_TLS | postgres::REFUSE_ENCRYPTION) => Ok(()),
        Ok(_) => Err(io::Error::other("what answers is no PostgreSQL server")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(io::Error::other("it closed the connection without a word"))
        }
        Err(error) => Err(error),
    }
}

/// Says what has to be said before the client's first byte.
async fn prepare(
    mut socket: Socket,
    configured: &ConfiguredUpstream,
    upstream: &Upstream,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamStream, EndpointError> {
    within(deadline, socket.write_all(header)).await.map_err(unhealthy)?;
    match (upstream.tls(), socket, configured.address()) {
        (Some(tls), Socket::Tcp(stream), UpstreamAddr::Tcp { host, .. }) => {
            let negotiation = upstream.settings.tls.as_ref().map(|tls| tls.negotiation);
            let asks_first = (upstream.protocol, negotiation) == (Protocol::Postgres, Some(Negotiation::Postgres));
            let handshake = tls.handshake(host).map_err(|error| no_tls(error.to_string()))?;
            let encrypted = within(deadline, encrypt(stream, &handshake, asks_first)).await;
            encrypted.map(|stream| Stream::Tls(Box::new(stream))).map_err(|error| match is_local_shortage(&error) {
                true => unhealthy(error),
                false => no_tls(handshake.explain(&error)),
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

/// PostgreSQL's SSLRequest. What came behind the answer in the clear could be taken for a part of TLS (CVE-2021-23222).
async fn request_tls(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&postgres::SSL_REQUEST_PACKET).await?;
    match stream.read_u8().await? {
        postgres::ACCEPT_TLS if nothing_waits(stream)? => Ok(()),
        postgres::ACCEPT_TLS => Err(io::Error::other("bytes came in the clear behind its answer to SSLRequest")),
        postgres::REFUSE_ENCRYPTION => Err(io::Error::other(
            "the upstream has no TLS (it answered SSLRequest with N); set ssl = on there, or tls = \"disable\" here",
        )),
        _ => Err(io::Error::other("what answers SSLRequest is no PostgreSQL server")),
    }
}

async fn ask_role(stream: &mut UpstreamStream) -> io::Result<Role> {
    stream.write_all(redis::QUESTION).await?;
    stream.flush().await?;
    let mut answer = RoleParser::default();
    let mut bytes = [0; 1024];
    loop {
        let heard = stream.read(&mut bytes).await?;
        let Some(heard) = bytes.get(..heard).filter(|heard| !heard.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match answer.follow(heard) {
            RoleReply::More => {}
            // Bytes behind it would be taken for the answer to the client's first command.
            RoleReply::Done { role, used } if used == heard.len() => return Ok(role),
            RoleReply::Done { .. } | RoleReply::Invalid => return Err(io::Error::other("its answer to ROLE is none")),
        }
    }
}

impl Role {
    /// Whether a server of this role takes writes. One that does not say is taken, for it may.
    fn judge(self, endpoint: &Endpoint, upstream: &Upstream) -> Result<(), EndpointError> {
        let words = match self {
            Self::Master => {
                record_role(endpoint, upstream, true);
                return Ok(());
            }
            Self::Untold(untold @ (NoRole::NoAuth | NoRole::NoPerm | NoRole::Other)) => {
                if endpoint.set_role_unknown() {
                    warn!(
                        listener = %upstream.listener,
                        upstream = %endpoint,
                        reply = ?untold,
                        "cannot determine the role of the upstream, assuming that it is the master"
                    );
                }
                return Ok(());
            }
            Self::Replica => "it is a replica, and target is \"master\"",
            Self::Sentinel => "it is a sentinel, and target is \"master\"",
            Self::Untold(NoRole::Loading) => "it is still loading its data",
        };
        record_role(endpoint, upstream, false);
        Err(EndpointError {
            reason: Reason::UpstreamUnreachable,
            words: words.to_owned(),
            is_healthy: true,
            is_local: false,
            refuses: false,
        })
    }
}

/// In TLS 1.3 an upstream refuses our certificate when the handshake is over for us.
pub(crate) fn closed_early(error: &io::Error, upstream: &Upstream) -> EndpointError {
    let words = upstream.tls().and_then(|tls| tls.explain(error));
    words.map_or_else(|| unhealthy(io::Error::new(error.kind(), error.to_string())), no_tls)
}

pub(crate) fn unhealthy(error: io::Error) -> EndpointError {
    let is_local = is_local_shortage(&error);
    let words = match is_local {
        true => format!("the proxy is out of local resources: {error}"),
        false => error.to_string(),
    };
    let refuses = !is_local && is_refusal(error.kind());
    EndpointError { reason: Reason::UpstreamUnreachable, words, is_healthy: false, is_local, refuses }
}

/// A name that does not resolve counts as a refusal, other than a resolver that does not answer.
pub(crate) fn unresolved(error: io::Error) -> EndpointError {
    let is_silence = error.kind() == io::ErrorKind::TimedOut;
    let endpoint_error = unhealthy(error);
    EndpointError { refuses: !is_silence && !endpoint_error.is_local, ..endpoint_error }
}

/// Whether a connection is refused at once, and not merely left without an answer.
fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            // The file of a Unix socket is gone while its server is.
            | io::ErrorKind::NotFound
    )
}

fn no_tls(words: String) -> EndpointError {
    EndpointError { reason: Reason::UpstreamTlsFailed, words, is_healthy: false, is_local: false, refuses: false }
}
