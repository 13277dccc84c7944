//! Serves `[admin] metrics` over HTTP/1.1 on a thread of its own, so that scrapes and health checks are answered while the
//! server loop and the workers are busy.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::ACCEPT;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::addr::ClientAddr;
use crate::fault;
use crate::fault::Backoff;
use crate::limit::sessions::{SessionLimiter, SessionLimits};
use crate::metrics::exposition::Sources;
use crate::metrics::exposition::answer::{PART, respond};

/// The endpoint, which may be closed.
#[derive(Debug)]
pub(crate) struct MetricsEndpoint {
    sources: Arc<Sources>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    configured: SocketAddr,
    /// Dropped to stop the thread.
    _running: watch::Sender<()>,
}

/// The change that [`MetricsEndpoint::commit`] applies. Dropping it unbinds an address that was bound for it.
#[derive(Debug)]
pub(crate) enum Prepared {
    Stay,
    Close,
    Open(Bound),
}

/// A bound address and the thread that will serve it.
#[derive(Debug)]
pub(crate) struct Bound {
    configured: SocketAddr,
    address: SocketAddr,
    /// Starts the thread. Dropping it ends the thread.
    start: oneshot::Sender<watch::Receiver<()>>,
}

impl Prepared {
    /// Whether the endpoint stays unchanged.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Stay)
    }
}

impl MetricsEndpoint {
    /// A closed endpoint.
    pub(crate) fn new(sources: Arc<Sources>) -> Self {
        Self { sources, open: None }
    }

    /// Prepares the change to `address`: the same one, another one, or none.
    ///
    /// # Errors
    /// The address cannot be bound, or the kernel refuses a thread. The open endpoint stays open.
    pub(crate) fn prepare(&self, address: Option<SocketAddr>) -> io::Result<Prepared> {
        let opened = self.open.as_ref().map(|open| open.configured);
        match address {
            address if address == opened => Ok(Prepared::Stay),
            None => Ok(Prepared::Close),
            Some(configured) => {
                let named = |error: io::Error| io::Error::new(error.kind(), format!("{configured}: {error}"));
                Ok(Prepared::Open(self.bind(configured).map_err(named)?))
            }
        }
    }

    /// Applies the prepared change.
    pub(crate) fn commit(&mut self, prepared: Prepared) {
        match prepared {
            Prepared::Stay => {}
            Prepared::Close => self.open = None,
            Prepared::Open(Bound { configured, address, start }) => {
                let (running, stopped) = watch::channel(());
                // Fails only if the thread has ended, which it does not by itself.
                let _ = start.send(stopped);
                self.open = Some(Open { configured, _running: running });
                info!(%address, "serving metrics");
            }
        }
    }

    fn bind(&self, configured: SocketAddr) -> io::Result<Bound> {
        let socket = std::net::TcpListener::bind(configured)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        // One scrape is rendered at a time.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(socket)?
        };
        let (start, started) = oneshot::channel();
        let sources = Arc::clone(&self.sources);
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            runtime.block_on(async move {
                if let Ok(stopped) = started.await {
                    keep_accepting(&listener, stopped, &sources).await;
                }
            });
            // A client that is still served does not delay the end of the thread.
            runtime.shutdown_background();
        })?;
        Ok(Bound { configured, address, start })
    }
}

/// Accepts until the sender of `stopped` is dropped. After a panic, the loop is resumed with the same socket.
async fn keep_accepting(listener: &TcpListener, mut stopped: watch::Receiver<()>, sources: &Arc<Sources>) {
    let mut backoff = Backoff::default();
    loop {
        let accepting = accept(listener, &mut stopped, sources);
        if fault::contained(PART, accepting).await.is_ok() || stopped.has_changed().is_err() {
            return;
        }
        sleep(backoff.pause()).await;
    }
}

async fn accept(listener: &TcpListener, stopped: &mut watch::Receiver<()>, sources: &Arc<Sources>) {
    let mut clients = JoinSet::new();
    let limiter = Arc::<SessionLimiter>::default();
    let mut is_failing = false;
    loop {
        tokio::select! {
            // Completes only when the sender is dropped.
            _ = stopped.changed() => return,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    // One source must not keep a health check from its answer.
                    let limits = SessionLimits { total: None, per_source: MAX_CLIENTS_PER_SOURCE };
                    if let Ok(permit) = limiter.acquire(ClientAddr::new(peer), limits) {
                        let sources = Arc::clone(sources);
                        clients.spawn(fault::contained(PART, async move {
                            let _permit = permit;
                            serve(stream, sources).await;
                        }));
                    }
                }
                Err(error) => {
                    if !is_failing {
                        warn!(%error, "metrics: accept failed, retrying (further errors are not logged)");
                    }
                    is_failing = true;
                    sleep(RETRY_DELAY).await;
                }
            },
        }
    }
}

/// Serves one request. Errors of the connection are ignored: the client has disconnected or does not speak HTTP.
async fn serve(stream: TcpStream, sources: Arc<Sources>) {
    let service = service_fn(|request| answer(request, &sources));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        // An idle client would occupy one of the few connections.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn answer(request: Request<Incoming>, sources: &Arc<Sources>) -> Result<Response<Full<Bytes>>, Infallible> {
    // Several `Accept` headers are one list (RFC 9110 section 5.3).
    let accepted: Vec<_> = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accepted.join(",");
    let response = respond(sources, request.method(), request.uri().path(), Some(&accept)).await;
    Ok(response.map(Full::from))
}

const THREAD: &str = "portcullis-metrics";

/// Concurrent clients. The others wait in the backlog of the kernel.
const MAX_CLIENTS: usize = 32;

const MAX_CLIENTS_PER_SOURCE: Option<NonZeroU32> = NonZeroU32::new(16);

/// From accept to the end of the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The whole connection, including the time in which the client reads the answer. The default timeout of Prometheus.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes.
const MAX_HEAD: usize = 16 << 10;

/// Delay after an accept error; the usual cause is a lack of file descriptors.
const RETRY_DELAY: Duration = Duration::from_millis(250);
