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

use crate::audit::event::Facts;
use crate::limit::handshakes::Handshake;
use crate::outcome::{Ending, Reason};
use crate::policy::{Current, Terms};
use crate::protocol::postgres::HEADER_LENGTH;
use crate::proxy::accepted::finish;
use crate::proxy::phase::authorize::{Identified, judge, judge_source};
use crate::proxy::phase::close::{Leave, Parting};
use crate::proxy::phase::dial::dial_for_cancel;
use crate::transport::socket::Socket;
use crate::transport::{ClientLeg, Leg, UpstreamLeg};
use crate::upstream::Upstream;
use crate::upstream::proxy_header;

/// A CancelRequest that wants to go to the upstream.
#[derive(Debug)]
pub(crate) struct CancelRequest {
    packet: Vec<u8>,
    terms: Arc<Terms>,
    client: Canceller,
}

/// Whom it came from, and how.
#[derive(Debug)]
enum Canceller {
    /// Without TLS where there should be, as libpq before 17 sends it.
    Unasked(TcpStream),
    /// As any other client comes.
    Identified(ClientLeg),
}

impl CancelRequest {
    pub(crate) fn unasked(stream: TcpStream, packet: Vec<u8>, terms: &Arc<Terms>) -> Self {
        Self { packet, terms: Arc::clone(terms), client: Canceller::Unasked(stream) }
    }

    pub(crate) fn of(identified: Identified, packet: Vec<u8>) -> Self {
        let Identified { client, terms, .. } = identified;
        Self { packet, terms, client: Canceller::Identified(client) }
    }

    /// Passes it on and waits for the upstream to be done with it, if there are not too many of them.
    pub(crate) async fn forward(
        self,
        handshake: &mut Option<Handshake>,
        current: &Current,
        facts: &mut Facts,
    ) -> Result<Parting, Leave> {
        match self.pass_on(handshake, current, facts).await {
            Ok(()) => Ok(self.client.into()),
            Err(ending) => Err(Leave { ending, parting: self.client.into() }),
        }
    }

    async fn pass_on(
        &self,
        handshake: &mut Option<Handshake>,
        current: &Current,
        facts: &mut Facts,
    ) -> Result<(), Ending> {
        let key = self.packet.get(HEADER_LENGTH..).unwrap_or_default();
        // Dropped behind the upstream's connection: what is counted is what the upstream bears.
        let begun = self.terms.upstream.cancels.begin(key, facts.client, std::time::Instant::now())?;
        finish(handshake)?;
        let deadline = Instant::now() + PATIENCE;
        let header = self.client.header(&self.terms.upstream, facts);
        let dialled = timeout_at(deadline, dial_for_cancel(begun.place.as_ref(), &self.terms.upstream, &header)).await;
        let (mut upstream, node) = dialled.map_err(|_| unreachable(&"it was not reached in time"))??;
        facts.upstream = Some(node.address().to_string().into());
        // Asked at the last moment: the packet may have taken its time, and the policy may be another one by now.
        self.client.judge(current, facts)?;
        let sent = timeout_at(deadline, upstream.write_all(&self.packet)).await;
        sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| unreachable(&error))?;
        // Delivered. How the upstream ends the connection, and when, is its own business.
        let _ = timeout_at(deadline, ended(&mut upstream)).await;
        Ok(())
    }
}

impl Canceller {
    fn header(&self, upstream: &Upstream, facts: &Facts) -> Vec<u8> {
        match self {
            Self::Unasked(stream) => proxy_header::of_address(stream.local_addr().ok(), upstream, facts),
            Self::Identified(client) => proxy_header::of_address(client.local_addr(), upstream, facts),
        }
    }

    fn judge(&self, current: &Current, facts: &mut Facts) -> Result<(), Ending> {
        let snapshot = Arc::clone(&current.borrow());
        match self {
            Self::Unasked(_) => {
                let permission = judge_source(&snapshot, facts)?;
                if permission.terms.plaintext_cancel { Ok(()) } else { Err(Reason::PlaintextRefused.into()) }
            }
            Self::Identified(client) => judge(client, &snapshot, facts).map(|_| ()),
        }
    }
}

/// A canceller expects no answer, only the end of the connection.
impl From<Canceller> for Parting {
    fn from(client: Canceller) -> Self {
        match client {
            Canceller::Unasked(stream) => Self::Words(Leg::Plain(Socket::Tcp(stream)), Vec::new()),
            Canceller::Identified(client) => Self::Words(client, Vec::new()),
        }
    }
}

async fn ended(upstream: &mut UpstreamLeg) -> io::Result<()> {
    let mut bytes = [0; 64];
    while upstream.read(&mut bytes).await? > 0 {}
    Ok(())
}

fn unreachable(error: &dyn Display) -> Ending {
    Ending::new(Reason::UpstreamUnreachable, error)
}

/// From dialling to the end of the upstream's connection. A server acts on a CancelRequest as soon as it has read it.
const PATIENCE: Duration = Duration::from_secs(10);
