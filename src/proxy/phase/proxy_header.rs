//! The PROXY header of a trusted load balancer, which announces the client's address. It is the first thing on the
//! connection and is read to its last byte, not beyond.
//!
//! Only load balancers in `proxy_protocol.trusted` get here. The announced address is the source that is authorized.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::addr::ClientAddr;
use crate::audit::event::ConnectionFields;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Current, ListenerPolicy};
use crate::protocol::proxy_header::read;
use crate::protocol::proxy_header::read::{AnnouncedAddress, Progress};
use crate::proxy::phase::authorize::authorize_source;
use crate::session::registry::ConnectionGuard;
use crate::transport::socket::{AcceptedSocket, Socket};

/// A client whose own address is a trusted source.
#[derive(Debug)]
pub(crate) struct AnnouncedConnection {
    pub(crate) socket: Socket,
    pub(crate) policy: Arc<ListenerPolicy>,
    /// The decision of the source's rate limit.
    pub(crate) rate: RateDecision,
}

impl AnnouncedConnection {
    /// A client without a load balancer, whose source was authorized at accept.
    pub(crate) fn direct(
        stream: AcceptedSocket,
        policy: Arc<ListenerPolicy>,
        rate: RateDecision,
    ) -> Result<Self, Outcome> {
        let socket = Socket::try_from(stream).map_err(|error| Outcome::new(Reason::ClientClosed, error))?;
        Ok(Self { socket, policy, rate })
    }
}

/// Reads the PROXY header of a load balancer. The caller sets the deadline.
pub(crate) async fn read_proxy_header(stream: AcceptedSocket) -> Result<(Socket, AnnouncedAddress), Outcome> {
    match Socket::try_from(stream).map_err(|error| Outcome::new(Reason::ClientClosed, error))? {
        Socket::Tcp(mut stream) => {
            let announced = read(&mut stream).await?;
            Ok((Socket::Tcp(stream), announced))
        }
        // A client of a Unix socket has no address, so it is never a load balancer.
        socket @ Socket::Unix(_) => Ok((socket, AnnouncedAddress::Proxy)),
    }
}

/// Authorizes the source that the load balancer has announced.
pub(crate) fn accept_announced(
    header: (Socket, AnnouncedAddress),
    current: &Current,
    guard: &ConnectionGuard,
    fields: &mut ConnectionFields,
) -> Result<AnnouncedConnection, Outcome> {
    let (socket, announced) = header;
    if let AnnouncedAddress::Client { source, destination } = announced {
        fields.client = ClientAddr::new(source);
        fields.destination = Some(destination);
    }
    guard.set_client(fields.client);
    let snapshot = Arc::clone(&current.borrow());
    let decision = authorize_source(&snapshot, fields);
    let policy = decision.map_err(|outcome| add_context(outcome, fields))?.policy;
    let rate = policy.check_rate(fields.client, Instant::now())?;
    Ok(AnnouncedConnection { socket, policy, rate })
}

/// Keeps readers of the audit from taking a health check for an untrusted client.
fn add_context(outcome: Outcome, fields: &ConnectionFields) -> Outcome {
    if outcome.reason != Reason::UntrustedSource || fields.origin().proxy().is_some() {
        return outcome;
    }
    let why = "the load balancer opened this connection for itself, for example as a health check";
    Outcome::new(outcome.reason, format_args!("{}; {why}", outcome.detail))
}

async fn read(stream: &mut TcpStream) -> Result<AnnouncedAddress, Outcome> {
    let lost = |error: std::io::Error| Outcome::new(Reason::ClientClosed, error);
    let mut header = Vec::new();
    loop {
        let at_least = match read::read(&header) {
            Progress::More { at_least } => at_least,
            Progress::Done { announced, .. } => return Ok(announced),
            Progress::Missing => {
                let detail = "the load balancer sent no PROXY header; enable the PROXY protocol on it, or remove its \
                              address from proxy_protocol.trusted";
                return Err(Outcome::new(Reason::ProxyHeaderMissing, detail));
            }
            Progress::Invalid(error) => return Err(Outcome::new(Reason::ProxyHeaderInvalid, error)),
        };
        let received = header.len();
        header.resize(at_least, 0);
        let rest = header.get_mut(received..).unwrap_or_default();
        match stream.read(rest).await.map_err(lost)? {
            // A health check that only connects.
            0 if received == 0 => return Err(Reason::ClientClosed.into()),
            0 => {
                return Err(Outcome::new(
                    Reason::ProxyHeaderInvalid,
                    "the connection was closed within the PROXY header",
                ));
            }
            count => header.truncate(received + count),
        }
    }
}
