//! The first packet of the client inside TLS. Only PostgreSQL has one.
//!
//! A CancelRequest is not a session, and a second SSLRequest must not reach the upstream, which would answer it. A client
//! that sends nothing costs the upstream nothing. The packet has a maximum length and is forwarded unchanged.

pub(crate) mod packet;

use tokio::time::timeout;

use crate::audit::event::ConnectionFields;
use crate::outcome::{Outcome, Reason};
use crate::policy::Snapshot;
use crate::policy::authorize::Permit;
use crate::protocol::Protocol;
use crate::protocol::postgres::Packet;
use crate::proxy::phase::authenticate::Access;
use crate::proxy::phase::authorize::{AuthorizedClient, evaluate_with_login};
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::packet::{PacketError, read_first_packet};

/// A client that requests a session.
#[derive(Debug)]
pub(crate) struct SessionRequest {
    pub(crate) authorized: AuthorizedClient,
    /// The bytes that it has already sent, for the upstream.
    pub(crate) buffered: Vec<u8>,
    /// Present if it has authenticated.
    pub(crate) access: Option<Box<Access>>,
}

impl SessionRequest {
    /// Evaluates source, identity and login against `snapshot`.
    pub(crate) fn evaluate(&self, snapshot: &Snapshot, fields: &mut ConnectionFields) -> Result<Permit, Outcome> {
        let login = self.access.as_ref().map(|access| &access.login);
        evaluate_with_login(&self.authorized.client, login, snapshot, fields)
    }
}

#[derive(Debug)]
pub(crate) enum StartupRequest {
    Session(SessionRequest),
    /// A complete CancelRequest packet.
    Cancel(AuthorizedClient, Vec<u8>),
}

/// Reads the StartupMessage or CancelRequest of a PostgreSQL client.
pub(crate) async fn read_startup(mut authorized: AuthorizedClient) -> Result<StartupRequest, Close> {
    if authorized.policy.protocol != Protocol::Postgres {
        return Ok(StartupRequest::Session(SessionRequest { authorized, buffered: Vec::new(), access: None }));
    }
    // The handshake deadline ends with TLS. The first packet has a separate deadline of the same length.
    let handshake_timeout = authorized.policy.limits.handshake_timeout;
    let outcome = match timeout(handshake_timeout, read_first_packet(&mut authorized.client)).await {
        Ok(Ok((Packet::Startup { .. }, buffered))) => {
            return Ok(StartupRequest::Session(SessionRequest { authorized, buffered, access: None }));
        }
        Ok(Ok((Packet::Cancel { .. }, packet))) => return Ok(StartupRequest::Cancel(authorized, packet)),
        Ok(Ok((Packet::Ssl | Packet::GssEncryption, _))) => Outcome::new(
            Reason::ProtocolViolation,
            "the client requested encryption again instead of starting a session",
        ),
        Ok(Err(PacketError::Malformed(error))) => Outcome::new(Reason::ProtocolViolation, error),
        Ok(Err(PacketError::Lost(error))) => Outcome::new(
            Reason::ClientClosed,
            format_args!(
                "the client disconnected after the TLS handshake, before StartupMessage ({error}); it may have rejected \
                 the host name of the server certificate"
            ),
        ),
        Err(_) => Outcome::new(Reason::HandshakeTimeout, "the client sent no StartupMessage within handshake_timeout"),
    };
    Err(authorized.refuse(outcome))
}
