//! The accept loop of one admin address. A limited number of clients is served.

use std::io;
use std::num::NonZeroU32;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::addr::ClientAddr;
use crate::control::access::Peer;
use crate::control::clients::{Clients, Identified};
use crate::control::shared::Shared;
use crate::control::{PART, http};
use crate::fault;
use crate::fault::Backoff;
use crate::limit::sessions::{SessionLimiter, SessionLimits, SessionPermit};
use crate::tls::server::ServerTls;
use crate::transport::socket::keep_alive;
use crate::transport::tls_stream::TlsStream;

/// A bound address of the admin API.
#[derive(Debug)]
pub(crate) enum AdminSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// What serves the clients of one address. Clients do not own the socket, so that it closes before the last of them leaves.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    /// The TLS of TCP clients; `None` if it is off.
    pub(crate) tls: watch::Receiver<Option<Arc<ServerTls>>>,
    pub(crate) limiter: Arc<SessionLimiter>,
}

/// Accepts until the sender of `stopped` is dropped, then returns once every client has its response.
///
/// After a panic, the loop is resumed with the same socket. The owner of the address owns the socket, too: it closes as soon as
/// the owner drops it.
pub(crate) async fn keep_accepting(socket: Weak<AdminSocket>, service: Arc<Service>, mut stopped: watch::Receiver<()>) {
    let mut backoff = Backoff::default();
    while let Some(socket) = socket.upgrade() {
        let accepting = accept(socket, Arc::clone(&service), &mut stopped);
        if fault::contained(PART, accepting).await.is_ok() || stopped.has_changed().is_err() {
            return;
        }
        sleep(backoff.pause()).await;
    }
}

async fn accept(socket: Arc<AdminSocket>, service: Arc<Service>, stopped: &mut watch::Receiver<()>) {
    let mut clients = Clients::default();
    let mut is_failing = false;
    loop {
        tokio::select! {
            // Completes only when the sender is dropped.
            _ = stopped.changed() => break,
            () = clients.ended(), if !clients.is_empty() => {}
            accepted = socket.accept(), if clients.has_room(socket.max_clients()) => match accepted {
                Ok((client, peer)) => {
                    is_failing = false;
                    // One source may not take all connections.
                    let limits = SessionLimits { total: None, per_source: MAX_CLIENTS_PER_SOURCE };
                    if let Ok(permit) = service.limiter.acquire(peer, limits)
                        && clients.make_room(socket.max_clients()).await
                    {
                        let (service, identified) = (Arc::clone(&service), Identified::default());
                        if matches!(client, AdminClient::Unix(_)) {
                            // Only the user of the program and root may connect.
                            identified.set();
                        }
                        let serving = serve(client, peer, permit, service, identified.clone());
                        clients.spawn(identified, async {
                            // A panic is recorded and ends this client only.
                            let _ = fault::contained(PART, serving).await;
                        });
                    }
                }
                Err(error) => {
                    if !is_failing {
                        warn!(%error, "admin address: accept failed, retrying (further errors are not logged)");
                    }
                    is_failing = true;
                    sleep(RETRY_DELAY).await;
                }
            },
        }
    }
    // Streams of events may last for days; meanwhile the address must be free for others.
    drop(socket);
    while !clients.is_empty() {
        clients.ended().await;
    }
}

enum AdminClient {
    Unix(tokio::net::UnixStream),
    Tcp(TcpStream),
}

impl AdminSocket {
    async fn accept(&self) -> io::Result<(AdminClient, ClientAddr)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((AdminClient::Unix(stream), ClientAddr::UNIX))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((AdminClient::Tcp(stream), ClientAddr::new(peer)))
            }
        }
    }

    const fn max_clients(&self) -> usize {
        match self {
            Self::Unix(_) => MAX_UNIX_CLIENTS,
            Self::Tcp(_) => MAX_TCP_CLIENTS,
        }
    }
}

async fn serve(
    client: AdminClient,
    addr: ClientAddr,
    _permit: SessionPermit,
    service: Arc<Service>,
    identified: Identified,
) {
    let shared = &service.shared;
    let stream = match client {
        AdminClient::Unix(stream) => {
            return http::serve(stream, Peer { addr, is_tls: false }, identified, shared).await;
        }
        AdminClient::Tcp(stream) => stream,
    };
    // Fails if the client has disconnected.
    if keep_alive(&stream, DEAD_PEER_TIMEOUT).is_err() {
        return;
    }
    let tls = service.tls.borrow().clone();
    let peer = Peer { addr, is_tls: tls.is_some() };
    match tls {
        None => http::serve(stream, peer, identified, shared).await,
        Some(tls) => match timeout(HANDSHAKE_TIMEOUT, handshake(stream, &tls)).await {
            Ok(Ok(stream)) => http::serve(stream, peer, identified, shared).await,
            Ok(Err(error)) => debug!(source = addr.source(), %error, "admin TLS handshake failed"),
            Err(_) => debug!(source = addr.source(), "admin TLS handshake timed out"),
        },
    }
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(socket: S, tls: &Arc<ServerTls>) -> io::Result<TlsStream<S>> {
    let engine = tls.handshake().engine().map_err(io::Error::other)?;
    let mut stream = TlsStream::new(socket, engine);
    let mut received = 0_usize;
    while stream.engine().is_handshaking() {
        received = received.saturating_add(stream.next_flight().await?);
        if received > MAX_RECEIVED {
            return Err(io::Error::other("the client sent too much before it completed the handshake"));
        }
    }
    Ok(stream)
}

/// Concurrent clients of a Unix socket: more than there are operators, and few enough to bound the cost of slow ones.
pub(crate) const MAX_UNIX_CLIENTS: usize = 32;

/// Concurrent clients of a TCP address.
pub(crate) const MAX_TCP_CLIENTS: usize = 96;

const MAX_CLIENTS_PER_SOURCE: Option<NonZeroU32> = NonZeroU32::new(32);

/// Delay after an accept error; the usual cause is a lack of file descriptors.
const RETRY_DELAY: Duration = Duration::from_millis(250);

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes. The certificates of a client fit in.
const MAX_RECEIVED: usize = 72 << 10;

/// A client that follows events may be silent, but not dead, for this long.
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(120);
