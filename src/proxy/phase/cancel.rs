//! PostgreSQL's CancelRequest: a separate connection that asks the server to cancel a query of another connection.
//!
//! The packet is forwarded unchanged, and there is no reply. The client's connection is closed only after the upstream has
//! closed, so a client that waits for the close knows that the server has processed the request.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::audit::event::ConnectionFields;
use crate::limit::handshakes::HandshakePermit;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Current, ListenerPolicy};
use crate::protocol::postgres::HEADER_LENGTH;
use crate::proxy::accepted::finish_handshake;
use crate::proxy::phase::authorize::{AuthorizedClient, authorize_source, evaluate};
use crate::proxy::phase::close::{Close, Farewell};
use crate::proxy::phase::dial::dial_for_cancel;
use crate::transport::socket::Socket;
use crate::transport::{ClientStream, Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::proxy_header;

#[derive(Debug)]
pub(crate) struct CancelRequest {
    packet: Vec<u8>,
    policy: Arc<ListenerPolicy>,
    client: Canceller,
}

/// The client that sent the request.
#[derive(Debug)]
enum Canceller {
    /// A request without TLS on a listener with TLS, as libpq before 17 sends it.
    Plaintext(TcpStream),
    /// A request after the same phases as a session.
    Authorized(ClientStream),
}

impl CancelRequest {
    /// A request without TLS, if `postgres.plaintext_cancel` and the rate limit of the source allow it.
    pub(crate) fn from_plaintext(
        stream: TcpStream,
        packet: Vec<u8>,
        policy: &Arc<ListenerPolicy>,
        rate: RateDecision,
    ) -> Result<Self, Close> {
        if !policy.plaintext_cancel {
            let detail = "CancelRequest without TLS; set postgres.plaintext_cancel = true to accept it";
            return Err(Close::plain(Outcome::new(Reason::PlaintextRefused, detail), stream, Vec::new()));
        }
        if let RateDecision::Refused(rate_exceeded) = rate {
            return Err(Close::plain(rate_exceeded, stream, Vec::new()));
        }
        Ok(Self { packet, policy: Arc::clone(policy), client: Canceller::Plaintext(stream) })
    }

    pub(crate) fn from_authorized(authorized: AuthorizedClient, packet: Vec<u8>) -> Self {
        let AuthorizedClient { client, policy, .. } = authorized;
        Self { packet, policy, client: Canceller::Authorized(client) }
    }

    /// Sends the request to the upstream and waits until the upstream closes the connection.
    ///
    /// # Errors
    /// The request exceeds a limit, the policy no longer admits the client, or the upstream is unreachable.
    pub(crate) async fn forward(
        self,
        handshake: &mut Option<HandshakePermit>,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<Farewell, Close> {
        match self.send(handshake, current, fields).await {
            Ok(()) => Ok(self.client.into()),
            Err(outcome) => Err(Close { outcome, farewell: self.client.into() }),
        }
    }

    async fn send(
        &self,
        handshake: &mut Option<HandshakePermit>,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<(), Outcome> {
        let key = self.packet.get(HEADER_LENGTH..).unwrap_or_default();
        // Dropped after the upstream connection: the limit counts the connections that the upstream has.
        let pending = self.policy.upstream.cancel_keys.admit(key, fields.client, std::time::Instant::now())?;
        finish_handshake(handshake)?;
        let deadline = Instant::now() + CANCEL_TIMEOUT;
        let header = self.client.header(&self.policy.upstream, fields);
        let dialed =
            timeout_at(deadline, dial_for_cancel(pending.endpoint.as_ref(), &self.policy.upstream, &header)).await;
        let (mut upstream, configured) =
            dialed.map_err(|_| unreachable(&format_args!("no connection within {CANCEL_TIMEOUT:?}")))??;
        fields.upstream = Some(configured.address().to_string().into());
        // Authorized again at the last moment: the policy may have changed since the packet was read.
        self.client.reauthorize(current, fields)?;
        let sent = timeout_at(deadline, upstream.write_all(&self.packet)).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| unreachable(&error))?;
        // The request is delivered, so an error or a timeout from here on does not matter.
        let _ = timeout_at(deadline, read_to_end(&mut upstream)).await;
        Ok(())
    }
}

impl Canceller {
    fn header(&self, upstream: &Upstream, fields: &ConnectionFields) -> Vec<u8> {
        match self {
            Self::Plaintext(stream) => proxy_header::address_header(stream.local_addr().ok(), upstream, fields),
            Self::Authorized(client) => proxy_header::address_header(client.local_addr(), upstream, fields),
        }
    }

    fn reauthorize(&self, current: &Current, fields: &mut ConnectionFields) -> Result<(), Outcome> {
        let snapshot = Arc::clone(&current.borrow());
        match self {
            Self::Plaintext(_) => {
                let permit = authorize_source(&snapshot, fields)?;
                if permit.policy.plaintext_cancel { Ok(()) } else { Err(Reason::PlaintextRefused.into()) }
            }
            Self::Authorized(client) => evaluate(client, &snapshot, fields).map(|_| ()),
        }
    }
}

/// The client expects no reply, only the end of the connection.
impl From<Canceller> for Farewell {
    fn from(client: Canceller) -> Self {
        match client {
            Canceller::Plaintext(stream) => Self::Message(Stream::Plain(Socket::Tcp(stream)), Vec::new()),
            Canceller::Authorized(client) => Self::Message(client, Vec::new()),
        }
    }
}

async fn read_to_end(upstream: &mut UpstreamStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    while upstream.read(&mut bytes).await? > 0 {}
    Ok(())
}

fn unreachable(error: &dyn Display) -> Outcome {
    Outcome::new(Reason::UpstreamUnreachable, error)
}

/// From dial to the close by the upstream. A server processes a CancelRequest as soon as it has read it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);
