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
use crate::audit::event::Facts;
use crate::limit::rate_limiter::Pace;
use crate::outcome::{Ending, Reason};
use crate::policy::{Current, Terms};
use crate::protocol::proxy_header;
use crate::protocol::proxy_header::read::{Announced, Progress};
use crate::proxy::phase::authorize::judge_source;
use crate::session::registry::Presence;
use crate::transport::socket::{Accepted, Socket};

/// A client that has been let in by its own address.
#[derive(Debug)]
pub(crate) struct Introduced {
    pub(crate) socket: Socket,
    pub(crate) terms: Arc<Terms>,
    /// Whether its source comes slowly enough.
    pub(crate) pace: Pace,
}

impl Introduced {
    /// A client that came by itself, and was let in when it was accepted.
    pub(crate) fn directly(stream: Accepted, terms: Arc<Terms>, pace: Pace) -> Result<Self, Ending> {
        let socket = Socket::try_from(stream).map_err(|error| Ending::new(Reason::ClientClosed, error))?;
        Ok(Self { socket, terms, pace })
    }
}

/// Hears for whom a balancer speaks.
pub(crate) async fn hear(stream: Accepted) -> Result<(Socket, Announced), Ending> {
    match Socket::try_from(stream).map_err(|error| Ending::new(Reason::ClientClosed, error))? {
        Socket::Tcp(mut stream) => {
            let announced = read(&mut stream).await?;
            Ok((Socket::Tcp(stream), announced))
        }
        // Nobody at a Unix socket has an address, and so nobody there is a balancer.
        socket @ Socket::Unix(_) => Ok((socket, Announced::Balancer)),
    }
}

/// Puts the source question for the client that was announced.
pub(crate) fn introduce(
    heard: (Socket, Announced),
    current: &Current,
    presence: &Presence,
    facts: &mut Facts,
) -> Result<Introduced, Ending> {
    let (socket, announced) = heard;
    if let Announced::Client { source, destination } = announced {
        facts.client = ClientAddr::new(source);
        facts.destination = Some(destination);
    }
    presence.is_for(facts.client);
    let snapshot = Arc::clone(&current.borrow());
    let judged = judge_source(&snapshot, facts);
    let terms = judged.map_err(|ending| in_context(ending, facts))?.terms;
    let pace = terms.pace(facts.client, Instant::now())?;
    Ok(Introduced { socket, terms, pace })
}

/// Who reads the audit should not take a health check for a stranger.
fn in_context(ending: Ending, facts: &Facts) -> Ending {
    if ending.reason != Reason::UntrustedSource || facts.provenance().spokesman().is_some() {
        return ending;
    }
    let why = "this is a connection of the load balancer's own, such as a health check";
    Ending::new(ending.reason, format_args!("{}; {why}", ending.detail))
}

async fn read(stream: &mut TcpStream) -> Result<Announced, Ending> {
    let lost = |error: std::io::Error| Ending::new(Reason::ClientClosed, error);
    let mut header = Vec::new();
    loop {
        let at_least = match read::read(&header) {
            Progress::More { at_least } => at_least,
            Progress::Done { announced, .. } => return Ok(announced),
            Progress::Missing => {
                let detail = "a load balancer of proxy_protocol.trusted has to begin with a PROXY header, and did not; \
                              have it send one, or take its address out there";
                return Err(Ending::new(Reason::ProxyHeaderMissing, detail));
            }
            Progress::Invalid(error) => return Err(Ending::new(Reason::ProxyHeaderInvalid, error)),
        };
        let have = header.len();
        header.resize(at_least, 0);
        let room = header.get_mut(have..).unwrap_or_default();
        match stream.read(room).await.map_err(lost)? {
            // A health check that only connects.
            0 if have == 0 => return Err(Reason::ClientClosed.into()),
            0 => return Err(Ending::new(Reason::ProxyHeaderInvalid, "the PROXY header has no end")),
            count => header.truncate(have + count),
        }
    }
}
