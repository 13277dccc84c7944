//! What the client says first inside TLS, as far as it decides what happens next.
//!
//! Only PostgreSQL has something to decide: a CancelRequest is no session, a second SSLRequest must not reach an upstream
//! that would answer it, and a client that says nothing costs the upstream nothing. The packet is bounded and passed on
//! to the byte, protocol version and options untouched.

pub(crate) mod packet;

use tokio::time::timeout;

use crate::outcome::{Outcome, Reason};
use crate::protocol::Protocol;
use crate::protocol::postgres::Packet;
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::packet::{Unheard, first_packet};

/// A client that wants the upstream, and what it has said already.
#[derive(Debug)]
pub(crate) struct SessionRequest {
    pub(crate) authorized: AuthorizedClient,
    pub(crate) first: Vec<u8>,
}

/// What the client has come for.
#[derive(Debug)]
pub(crate) enum StartupRequest {
    Session(SessionRequest),
    /// A whole CancelRequest, as it came.
    Cancel(AuthorizedClient, Vec<u8>),
}

pub(crate) async fn hear(mut authorized: AuthorizedClient) -> Result<StartupRequest, Close> {
    if authorized.policy.protocol != Protocol::Postgres {
        return Ok(StartupRequest::Session(SessionRequest { authorized, first: Vec::new() }));
    }
    // The handshake's deadline ends with TLS; the first packet gets as long again.
    let patience = authorized.policy.limits.handshake_timeout;
    let ending = match timeout(patience, first_packet(&mut authorized.client)).await {
        Ok(Ok((Packet::Startup { .. }, first))) => {
            return Ok(StartupRequest::Session(SessionRequest { authorized, first }));
        }
        Ok(Ok((Packet::Cancel { .. }, packet))) => return Ok(StartupRequest::Cancel(authorized, packet)),
        Ok(Ok((Packet::Ssl | Packet::GssEncryption, _))) => {
            Outcome::new(Reason::ProtocolViolation, "encryption was requested where there is none to be had")
        }
        Ok(Err(Unheard::Malformed(what))) => Outcome::new(Reason::ProtocolViolation, what),
        Ok(Err(Unheard::Lost(error))) => Outcome::new(
            Reason::ClientClosed,
            format_args!(
                "the client left after the TLS handshake, before its StartupMessage ({error}); it may not accept our certificate's name"
            ),
        ),
        Err(_) => Outcome::new(Reason::HandshakeTimeout, "no StartupMessage came after the TLS handshake"),
    };
    Err(authorized.refused(ending))
}
