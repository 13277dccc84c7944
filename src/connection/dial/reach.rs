//! One node: connected to, told where its client comes from, met in TLS, and asked for its role.

use std::io;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::warn;

use super::network::{connect, connect_exactly, within};
use crate::addr::UpstreamAddr;
use crate::connection::leg::{Leg, UpstreamLeg};
use crate::connection::socket::{Socket, nothing_waits};
use crate::connection::stream::TlsStream;
use crate::outcome::Reason;
use crate::protocol::redis::{self, Answer, Role, Told, Untold};
use crate::protocol::{Negotiation, Protocol, Target, postgres};
use crate::snapshot::{Node, Terms, Whereabouts};
use crate::tls::{Client, UpstreamAttempt};

/// A node that answers.
#[derive(Debug)]
pub(in crate::connection) struct Reached {
    pub(in crate::connection) leg: UpstreamLeg,
    pub(in crate::connection) whereabouts: Whereabouts,
}

/// A node that will not do.
#[derive(Debug)]
pub(super) struct Unfit {
    /// For the auditor, should no other do either.
    pub(super) reason: Reason,
    /// For the operator.
    pub(super) words: String,
    /// Whether it answers, and only has not the role that is wanted.
    pub(super) answers: bool,
}

/// Reaches a node, with the header before all else where there is one.
pub(super) async fn reach(node: &Arc<Node>, terms: &Terms, header: &[u8]) -> Result<Reached, Unfit> {
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    let (socket, address) = connect(node, terms, deadline).await.map_err(silent)?;
    let mut leg = prepare(socket, node, terms, header, deadline).await?;
    if (terms.protocol, terms.upstream.target) == (Protocol::Redis, Target::Primary) {
        within(deadline, ask_role(&mut leg)).await.map_err(silent)?.judge(node, terms)?;
    }
    Ok(Reached { leg, whereabouts: Whereabouts { node: Arc::clone(node), socket: address } })
}

/// Reaches a node where a session is, and nowhere else.
pub(super) async fn reach_again(whereabouts: &Whereabouts, terms: &Terms, header: &[u8]) -> Result<UpstreamLeg, Unfit> {
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    let socket = match whereabouts.socket {
        Some(address) => connect_exactly(address, deadline).await,
        None => connect(&whereabouts.node, terms, deadline).await.map(|(socket, _)| socket),
    };
    prepare(socket.map_err(silent)?, &whereabouts.node, terms, header, deadline).await
}

/// Says what has to be said before the client's first byte.
async fn prepare(
    mut socket: Socket,
    node: &Node,
    terms: &Terms,
    header: &[u8],
    deadline: Instant,
) -> Result<UpstreamLeg, Unfit> {
    within(deadline, socket.write_all(header)).await.map_err(silent)?;
    match (terms.upstream_tls(), socket, node.address()) {
        (Some(tls), Socket::Tcp(stream), UpstreamAddr::Tcp { host, .. }) => {
            let negotiation = terms.upstream.tls.as_ref().map(|tls| tls.negotiation);
            let asks_first = (terms.protocol, negotiation) == (Protocol::Postgres, Some(Negotiation::Postgres));
            let attempt = tls.attempt(host).map_err(|error| no_tls(error.to_string()))?;
            let encrypted = within(deadline, encrypt(stream, &attempt, asks_first)).await;
            encrypted.map(|stream| Leg::Tls(Box::new(stream))).map_err(|error| no_tls(attempt.explain(&error)))
        }
        (_, socket, _) => Ok(Leg::Plain(socket)),
    }
}

async fn encrypt(
    mut stream: TcpStream,
    attempt: &UpstreamAttempt,
    asks_first: bool,
) -> io::Result<TlsStream<TcpStream, Client>> {
    if asks_first {
        request_tls(&mut stream).await?;
    }
    let mut stream = TlsStream::new(stream, attempt.records().map_err(io::Error::other)?);
    while stream.records().is_handshaking() {
        stream.next_flight().await?;
    }
    attempt.judge(stream.records(), OffsetDateTime::now_utc())?;
    Ok(stream)
}

/// PostgreSQL's SSLRequest. What came behind the answer in the clear could be taken for a part of TLS (CVE-2021-23222).
async fn request_tls(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&postgres::SSL_REQUEST_PACKET).await?;
    match stream.read_u8().await? {
        postgres::ACCEPT_TLS if nothing_waits(stream)? => Ok(()),
        postgres::ACCEPT_TLS => Err(io::Error::other("bytes came in the clear behind its answer to SSLRequest")),
        postgres::REFUSE_ENCRYPTION => Err(io::Error::other(
            "the upstream has no TLS (it answered SSLRequest with N); set ssl = on there, or tls = \"disable\" here",
        )),
        _ => Err(io::Error::other("what answers SSLRequest is no PostgreSQL server")),
    }
}

async fn ask_role(leg: &mut UpstreamLeg) -> io::Result<Role> {
    leg.write_all(redis::QUESTION).await?;
    leg.flush().await?;
    let mut answer = Answer::default();
    let mut bytes = [0; 1024];
    loop {
        let heard = leg.read(&mut bytes).await?;
        let Some(heard) = bytes.get(..heard).filter(|heard| !heard.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match answer.follow(heard) {
            Told::More => {}
            // Bytes behind it would be taken for the answer to the client's first command.
            Told::Done { role, used } if used == heard.len() => return Ok(role),
            Told::Done { .. } | Told::Invalid => return Err(io::Error::other("its answer to ROLE is none")),
        }
    }
}

impl Role {
    /// Whether a server of this role takes writes. One that does not say is taken, for it may.
    fn judge(self, node: &Node, terms: &Terms) -> Result<(), Unfit> {
        let not_master = |words: &str| {
            node.takes_writes(false);
            Err(Unfit { reason: Reason::UpstreamUnreachable, words: words.to_owned(), answers: true })
        };
        match self {
            Self::Master => {
                node.takes_writes(true);
                Ok(())
            }
            Self::Replica => not_master("it is a replica, and target is \"master\""),
            Self::Sentinel => not_master("it is a sentinel, and target is \"master\""),
            Self::Untold(Untold::Loading) => not_master("it is still loading its data"),
            Self::Untold(untold @ (Untold::NoAuth | Untold::NoPerm | Untold::Other)) => {
                if node.takes_writes(true) {
                    warn!(
                        "listener {}: upstream {} does not say whether it is a master ({untold:?}); taken for one",
                        terms.name,
                        node.address()
                    );
                }
                Ok(())
            }
        }
    }
}

fn silent(error: io::Error) -> Unfit {
    Unfit { reason: Reason::UpstreamUnreachable, words: error.to_string(), answers: false }
}

fn no_tls(words: String) -> Unfit {
    Unfit { reason: Reason::UpstreamTlsFailed, words, answers: false }
}
