//! A load balancer's word on where its client comes from: a PROXY header, which has to come before all else and is read to
//! its last byte and no further.
//!
//! It is taken from the balancers of the configuration, and from nobody else. Only behind it is the source question put.

use crate::protocol::proxy_header::read;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::addr::ClientAddr;
use crate::audit::event::ConnectionFields;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Current, ListenerPolicy};
use crate::protocol::proxy_header::read::{AnnouncedAddress, Progress};
use crate::proxy::phase::authorize::authorize_source;
use crate::session::registry::ConnectionGuard;
use crate::transport::socket::{AcceptedSocket, Socket};

/// A client that has been let in by its own address.
#[derive(Debug)]
pub(crate) struct AnnouncedConnection {
    pub(crate) socket: Socket,
    pub(crate) policy: Arc<ListenerPolicy>,
    /// Whether its source comes slowly enough.
    pub(crate) rate: RateDecision,
}

impl AnnouncedConnection {
    /// A client that came by itself, and was let in when it was accepted.
    pub(crate) fn directly(
        stream: AcceptedSocket,
        policy: Arc<ListenerPolicy>,
        rate: RateDecision,
    ) -> Result<Self, Outcome> {
        let socket = Socket::try_from(stream).map_err(|error| Outcome::new(Reason::ClientClosed, error))?;
        Ok(Self { socket, policy, rate })
    }
}

/// Hears for whom a balancer speaks.
pub(crate) async fn hear(stream: AcceptedSocket) -> Result<(Socket, AnnouncedAddress), Outcome> {
    match Socket::try_from(stream).map_err(|error| Outcome::new(Reason::ClientClosed, error))? {
        Socket::Tcp(mut stream) => {
            let announced = read(&mut stream).await?;
            Ok((Socket::Tcp(stream), announced))
        }
        // Nobody at a Unix socket has an address, and so nobody there is a balancer.
        socket @ Socket::Unix(_) => Ok((socket, AnnouncedAddress::Proxy)),
    }
}

/// Puts the source question for the client that was announced.
pub(crate) fn accept_announced(
    heard: (Socket, AnnouncedAddress),
    current: &Current,
    guard: &ConnectionGuard,
    fields: &mut ConnectionFields,
) -> Result<AnnouncedConnection, Outcome> {
    let (socket, announced) = heard;
    if let AnnouncedAddress::Client { source, destination } = announced {
        fields.client = ClientAddr::new(source);
        fields.destination = Some(destination);
    }
    guard.set_client(fields.client);
    let snapshot = Arc::clone(&current.borrow());
    let judged = authorize_source(&snapshot, fields);
    let policy = judged.map_err(|ending| in_context(ending, fields))?.policy;
    let rate = policy.check_rate(fields.client, Instant::now())?;
    Ok(AnnouncedConnection { socket, policy, rate })
}

/// Who reads the audit should not take a health check for a stranger.
fn in_context(ending: Outcome, fields: &ConnectionFields) -> Outcome {
    if ending.reason != Reason::UntrustedSource || fields.origin().proxy().is_some() {
        return ending;
    }
    let why = "this is a connection of the load balancer's own, such as a health check";
    Outcome::new(ending.reason, format_args!("{}; {why}", ending.detail))
}

async fn read(stream: &mut TcpStream) -> Result<AnnouncedAddress, Outcome> {
    let lost = |error: std::io::Error| Outcome::new(Reason::ClientClosed, error);
    let mut header = Vec::new();
    loop {
        let at_least = match read::read(&header) {
            Progress::More { at_least } => at_least,
            Progress::Done { announced, .. } => return Ok(announced),
            Progress::Missing => {
                let detail = "a load balancer of proxy_protocol.trusted has to begin with a PROXY header, and did not; \
                              have it send one, or take its address out there";
                return Err(Outcome::new(Reason::ProxyHeaderMissing, detail));
            }
            Progress::Invalid(error) => return Err(Outcome::new(Reason::ProxyHeaderInvalid, error)),
        };
        let have = header.len();
        header.resize(at_least, 0);
        let room = header.get_mut(have..).unwrap_or_default();
        match stream.read(room).await.map_err(lost)? {
            // A health check that only connects.
            0 if have == 0 => return Err(Reason::ClientClosed.into()),
            0 => return Err(Outcome::new(Reason::ProxyHeaderInvalid, "the PROXY header has no end")),
            count => header.truncate(have + count),
        }
    }
}
