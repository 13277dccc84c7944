//! PostgreSQL's CancelRequest: a connection of its own that asks the server to cancel a query of another one.
//!
//! It is passed on verbatim and answered by nothing. The client's side is closed only after the upstream has closed, so
//! that a canceller that waits for the end knows the request was acted upon, as it would without a proxy.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::audit::event::ConnectionFields;
use crate::limit::handshakes::HandshakePermit;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Current, ListenerPolicy};
use crate::protocol::postgres::HEADER_LENGTH;
use crate::proxy::accepted::finish;
use crate::proxy::phase::authorize::{AuthorizedClient, authorize_source, judge};
use crate::proxy::phase::close::{Close, Farewell};
use crate::proxy::phase::dial::dial_for_cancel;
use crate::transport::socket::Socket;
use crate::transport::{ClientStream, Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::proxy_header;

/// A CancelRequest that wants to go to the upstream.
#[derive(Debug)]
pub(crate) struct CancelRequest {
    packet: Vec<u8>,
    policy: Arc<ListenerPolicy>,
    client: Canceller,
}

/// Whom it came from, and how.
#[derive(Debug)]
enum Canceller {
    /// Without TLS where there should be, as libpq before 17 sends it.
    Unasked(TcpStream),
    /// As any other client comes.
    AuthorizedClient(ClientStream),
}

impl CancelRequest {
    pub(crate) fn unasked(stream: TcpStream, packet: Vec<u8>, policy: &Arc<ListenerPolicy>) -> Self {
        Self { packet, policy: Arc::clone(policy), client: Canceller::Unasked(stream) }
    }

    pub(crate) fn of(authorized: AuthorizedClient, packet: Vec<u8>) -> Self {
        let AuthorizedClient { client, policy, .. } = authorized;
        Self { packet, policy, client: Canceller::AuthorizedClient(client) }
    }

    /// Passes it on and waits for the upstream to be done with it, if there are not too many of them.
    pub(crate) async fn forward(
        self,
        handshake: &mut Option<HandshakePermit>,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<Farewell, Close> {
        match self.pass_on(handshake, current, fields).await {
            Ok(()) => Ok(self.client.into()),
            Err(ending) => Err(Close { ending, farewell: self.client.into() }),
        }
    }

    async fn pass_on(
        &self,
        handshake: &mut Option<HandshakePermit>,
        current: &Current,
        fields: &mut ConnectionFields,
    ) -> Result<(), Outcome> {
        let key = self.packet.get(HEADER_LENGTH..).unwrap_or_default();
        // Dropped behind the upstream's connection: what is counted is what the upstream bears.
        let begun = self.policy.upstream.cancel_keys.begin(key, fields.client, std::time::Instant::now())?;
        finish(handshake)?;
        let deadline = Instant::now() + PATIENCE;
        let header = self.client.header(&self.policy.upstream, fields);
        let dialed =
            timeout_at(deadline, dial_for_cancel(begun.endpoint.as_ref(), &self.policy.upstream, &header)).await;
        let (mut upstream, configured) = dialed.map_err(|_| unreachable(&"it was not reached in time"))??;
        fields.upstream = Some(configured.address().to_string().into());
        // Asked at the last moment: the packet may have taken its time, and the policy may be another one by now.
        self.client.judge(current, fields)?;
        let sent = timeout_at(deadline, upstream.write_all(&self.packet)).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| unreachable(&error))?;
        // Delivered. How the upstream ends the connection, and when, is its own business.
        let _ = timeout_at(deadline, ended(&mut upstream)).await;
        Ok(())
    }
}

impl Canceller {
    fn header(&self, upstream: &Upstream, fields: &ConnectionFields) -> Vec<u8> {
        match self {
            Self::Unasked(stream) => proxy_header::address_header(stream.local_addr().ok(), upstream, fields),
            Self::AuthorizedClient(client) => proxy_header::address_header(client.local_addr(), upstream, fields),
        }
    }

    fn judge(&self, current: &Current, fields: &mut ConnectionFields) -> Result<(), Outcome> {
        let snapshot = Arc::clone(&current.borrow());
        match self {
            Self::Unasked(_) => {
                let permit = authorize_source(&snapshot, fields)?;
                if permit.policy.plaintext_cancel { Ok(()) } else { Err(Reason::PlaintextRefused.into()) }
            }
            Self::AuthorizedClient(client) => judge(client, &snapshot, fields).map(|_| ()),
        }
    }
}

/// A canceller expects no answer, only the end of the connection.
impl From<Canceller> for Farewell {
    fn from(client: Canceller) -> Self {
        match client {
            Canceller::Unasked(stream) => Self::Words(Stream::Plain(Socket::Tcp(stream)), Vec::new()),
            Canceller::AuthorizedClient(client) => Self::Words(client, Vec::new()),
        }
    }
}

async fn ended(upstream: &mut UpstreamStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    while upstream.read(&mut bytes).await? > 0 {}
    Ok(())
}

fn unreachable(error: &dyn Display) -> Outcome {
    Outcome::new(Reason::UpstreamUnreachable, error)
}

/// From dialling to the end of the upstream's connection. A server acts on a CancelRequest as soon as it has read it.
const PATIENCE: Duration = Duration::from_secs(10);
