//! What the client says first inside TLS, as far as it decides what happens next.
//!
//! Only PostgreSQL has something to decide: a CancelRequest is no session, a second SSLRequest must not reach an upstream
//! that would answer it, and a client that says nothing costs the upstream nothing. The packet is bounded and passed on
//! to the byte, protocol version and options untouched.

pub(crate) mod packet;

use tokio::time::timeout;

use crate::outcome::{Ending, Reason};
use crate::protocol::Protocol;
use crate::protocol::postgres::Packet;
use crate::proxy::phase::authorize::Identified;
use crate::proxy::phase::close::Leave;
use crate::proxy::phase::startup::packet::{Unheard, first_packet};

/// A client that wants the upstream, and what it has said already.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) identified: Identified,
    pub(crate) first: Vec<u8>,
}

/// What the client has come for.
#[derive(Debug)]
pub(crate) enum Heard {
    Session(Ready),
    /// A whole CancelRequest, as it came.
    Cancel(Identified, Vec<u8>),
}

pub(crate) async fn hear(mut identified: Identified) -> Result<Heard, Leave> {
    if identified.terms.protocol != Protocol::Postgres {
        return Ok(Heard::Session(Ready { identified, first: Vec::new() }));
    }
    // The handshake's deadline ends with TLS; the first packet gets as long again.
    let patience = identified.terms.limits.handshake_timeout;
    let ending = match timeout(patience, first_packet(&mut identified.client)).await {
        Ok(Ok((Packet::Startup { .. }, first))) => {
            return Ok(Heard::Session(Ready { identified, first }));
        }
        Ok(Ok((Packet::Cancel { .. }, packet))) => return Ok(Heard::Cancel(identified, packet)),
        Ok(Ok((Packet::Ssl | Packet::GssEncryption, _))) => {
            Ending::new(Reason::ProtocolViolation, "encryption was requested where there is none to be had")
        }
        Ok(Err(Unheard::Malformed(what))) => Ending::new(Reason::ProtocolViolation, what),
        Ok(Err(Unheard::Lost(error))) => Ending::new(
            Reason::ClientClosed,
            format_args!(
                "the client left after the TLS handshake, before its StartupMessage ({error}); it may not accept our certificate's name"
            ),
        ),
        Err(_) => Ending::new(Reason::HandshakeTimeout, "no StartupMessage came after the TLS handshake"),
    };
    Err(identified.refused(ending))
}
