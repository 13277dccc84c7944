//! The first packet of the client inside TLS. Only PostgreSQL has one.
//!
//! A CancelRequest is not a session, and a second SSLRequest must not reach the upstream, which would answer it. A client
//! that sends nothing costs the upstream nothing. The packet has a maximum length and is forwarded unchanged.

pub(crate) mod packet;

use tokio::time::timeout;

use crate::outcome::{Outcome, Reason};
use crate::protocol::Protocol;
use crate::protocol::postgres::Packet;
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::packet::{PacketError, read_first_packet};

/// A client that requests a session, and the bytes that it has already sent.
#[derive(Debug)]
pub(crate) struct SessionRequest {
    pub(crate) authorized: AuthorizedClient,
    pub(crate) buffered: Vec<u8>,
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
        return Ok(StartupRequest::Session(SessionRequest { authorized, buffered: Vec::new() }));
    }
    // The handshake deadline ends with TLS. The first packet has a separate deadline of the same length.
    let handshake_timeout = authorized.policy.limits.handshake_timeout;
    let outcome = match timeout(handshake_timeout, read_first_packet(&mut authorized.client)).await {
        Ok(Ok((Packet::Startup { .. }, buffered))) => {
            return Ok(StartupRequest::Session(SessionRequest { authorized, buffered }));
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
