//! PostgreSQL's CancelRequest: a connection of its own that asks the server to cancel a query of another one.
//!
//! It is passed on verbatim and answered by nothing. The client's side is closed only after the upstream has closed, so
//! that a canceller that waits for the end knows the request was acted upon, as it would without a proxy.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::{UpstreamStream, connect};
use super::identify::Identified;
use super::part::{Leave, Parting};
use crate::outcome::{Ending, Reason};
use crate::snapshot::Terms;

/// A CancelRequest that may go to the upstream.
#[derive(Debug)]
pub(super) struct CancelRequest {
    packet: Vec<u8>,
    terms: Arc<Terms>,
    client: Parting,
}

impl CancelRequest {
    /// One that came without TLS, as libpq before 17 sends it.
    pub(super) fn plaintext(stream: TcpStream, packet: Vec<u8>, terms: &Arc<Terms>) -> Self {
        Self { packet, terms: Arc::clone(terms), client: Parting::Plain(stream, Vec::new()) }
    }

    /// One that came inside TLS.
    pub(super) fn over_tls(identified: Identified, packet: Vec<u8>) -> Self {
        let Identified { stream, terms, .. } = identified;
        Self { packet, terms, client: Parting::Tls(stream, Vec::new()) }
    }

    /// Passes it on and waits for the upstream to be done with it.
    pub(super) async fn forward(self) -> Result<Parting, Leave> {
        let Self { packet, terms, client } = self;
        let passed_on = async {
            let mut upstream = connect(&terms.upstream).await?;
            match timeout(PATIENCE, deliver(&mut upstream, &packet)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Ending::new(Reason::UpstreamUnreachable, error)),
                // It was delivered; how long the upstream takes over it is its own business.
                Err(_) => Ok(()),
            }
        };
        match passed_on.await {
            Ok(()) => Ok(client),
            Err(ending) => Err(Leave { ending, parting: client }),
        }
    }
}

async fn deliver(upstream: &mut UpstreamStream, packet: &[u8]) -> std::io::Result<()> {
    upstream.send(packet).await?;
    let mut bytes = [0; 64];
    while upstream.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// A server acts on a CancelRequest as soon as it has read it.
const PATIENCE: Duration = Duration::from_secs(10);
