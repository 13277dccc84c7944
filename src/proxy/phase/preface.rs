//! The plaintext before TLS. No byte is read beyond what the protocol allows in plaintext, so injected bytes cannot appear
//! inside TLS (CVE-2021-23214 and similar).

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::outcome::{Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::protocol::postgres;
use crate::protocol::postgres::{HEADER_LENGTH, Packet};
use crate::protocol::{Protocol, TLS_HANDSHAKE_RECORD, proxy_header, redis};
use crate::proxy::phase::close::Close;
use crate::tls::server::ServerTls;
use crate::transport::socket::{Socket, is_drained};

/// A client whose next byte is TLS.
#[derive(Debug)]
pub(crate) struct TlsStart {
    pub(crate) stream: TcpStream,
    /// The client sent no SSLRequest, so ALPN must select PostgreSQL.
    pub(crate) needs_alpn: bool,
}

#[derive(Debug)]
pub(crate) enum Preface {
    Tls(TlsStart, Arc<ServerTls>),
    /// The listener has no TLS. No byte has been read.
    Plain(Socket),
    /// A complete CancelRequest packet in plaintext.
    Cancel(TcpStream, Vec<u8>),
}

pub(crate) async fn read_preface(socket: Socket, policy: &ListenerPolicy) -> Result<Preface, Close> {
    match (socket, &policy.tls) {
        (Socket::Tcp(stream), Some(tls)) => read_before_tls(stream, policy, tls).await,
        (socket, None) => Ok(Preface::Plain(socket)),
        // A reload has enabled TLS while the client waited in the backlog.
        (Socket::Unix(_), Some(_)) => Err(Outcome::from(Reason::ListenerRemoved).into()),
    }
}

async fn read_before_tls(
    mut stream: TcpStream,
    policy: &ListenerPolicy,
    tls: &Arc<ServerTls>,
) -> Result<Preface, Close> {
    let first = peek_byte(&mut stream).await?;
    match (policy.protocol, first == TLS_HANDSHAKE_RECORD) {
        (protocol, true) => {
            let needs_alpn = protocol == Protocol::Postgres;
            Ok(Preface::Tls(TlsStart { stream, needs_alpn }, Arc::clone(tls)))
        }
        (Protocol::Postgres, false) if has_proxy_header(&stream).await => {
            Err(violation(UNEXPECTED_PROXY_HEADER).into())
        }
        (Protocol::Postgres, false) => negotiate(stream, tls).await,
        (Protocol::Redis, false) => {
            let outcome = refuse_plaintext(&stream, "connect with TLS (redis-cli --tls, or a rediss:// URL)").await;
            Err(Close::plain(outcome, stream, redis::SPEAKS_TLS_ONLY.to_vec()))
        }
        (Protocol::Tcp, false) => {
            Err(Close::plain(refuse_plaintext(&stream, "connect with TLS").await, stream, Vec::new()))
        }
    }
}

async fn refuse_plaintext(stream: &TcpStream, fix: &str) -> Outcome {
    if has_proxy_header(stream).await {
        Outcome::new(Reason::PlaintextRefused, UNEXPECTED_PROXY_HEADER)
    } else {
        Outcome::new(Reason::PlaintextRefused, format_args!("the client did not start TLS; {fix}"))
    }
}

/// Whether the client, which is not a trusted load balancer, begins with a PROXY header. Only the bytes received so far are
/// examined: the result changes only the text of the refusal.
async fn has_proxy_header(stream: &TcpStream) -> bool {
    let mut start = [0; 12];
    let length = stream.peek(&mut start).await.unwrap_or_default();
    proxy_header::looks_like_header(start.get(..length).unwrap_or_default())
}

/// Answers PostgreSQL's SSLRequest and GSSENCRequest.
async fn negotiate(mut stream: TcpStream, tls: &Arc<ServerTls>) -> Result<Preface, Close> {
    let mut gss_refused = false;
    loop {
        match read_header(&mut stream).await {
            Ok(Packet::Ssl) => break,
            Ok(Packet::GssEncryption) if !gss_refused => {
                gss_refused = true;
                reply(&mut stream, postgres::REFUSE_ENCRYPTION).await?;
            }
            Ok(Packet::GssEncryption) => {
                return Err(violation("the client sent GSSENCRequest twice").into());
            }
            Ok(Packet::Cancel { body }) => return read_cancel(stream, body).await,
            Ok(Packet::Startup { .. }) => {
                let detail =
                    "StartupMessage without SSLRequest; connect with sslmode=require, verify-ca or verify-full";
                let outcome = Outcome::new(Reason::PlaintextRefused, detail);
                return Err(Close::plain(outcome, stream, postgres::speaks_tls_only()));
            }
            Err(outcome) => return Err(outcome.into()),
        }
    }
    reply(&mut stream, postgres::ACCEPT_TLS).await?;
    if peek_byte(&mut stream).await? != TLS_HANDSHAKE_RECORD {
        return Err(violation("the bytes after SSLRequest are not TLS").into());
    }
    Ok(Preface::Tls(TlsStart { stream, needs_alpn: false }, Arc::clone(tls)))
}

async fn read_cancel(mut stream: TcpStream, body: usize) -> Result<Preface, Close> {
    let mut packet = postgres::cancel_header(body).to_vec();
    packet.resize(HEADER_LENGTH + body, 0);
    let rest = packet.get_mut(HEADER_LENGTH..).unwrap_or_default();
    stream.read_exact(rest).await.map_err(lost)?;
    Ok(Preface::Cancel(stream, packet))
}

async fn read_header(stream: &mut TcpStream) -> Result<Packet, Outcome> {
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await.map_err(lost)?;
    Packet::parse(header).map_err(violation)
}

/// Replies with one byte. Bytes that the client sent without waiting for the reply are a violation.
async fn reply(stream: &mut TcpStream, byte: u8) -> Result<(), Close> {
    if !is_drained(stream).map_err(lost)? {
        return Err(violation("the client sent data after its encryption request without waiting for the reply").into());
    }
    stream.write_all(&[byte]).await.map_err(|error| lost(error).into())
}

/// Returns the next byte and leaves it in the socket.
async fn peek_byte(stream: &mut TcpStream) -> Result<u8, Outcome> {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) => Err(Reason::ClientClosed.into()),
        Ok(_) => Ok(byte[0]),
        Err(error) => Err(lost(error)),
    }
}

/// The usual cause: the load balancer sends the header, but the listener does not list the load balancer.
const UNEXPECTED_PROXY_HEADER: &str = "the client sent a PROXY header, but its address is not in proxy_protocol.trusted; add the \
                                       address, or disable the PROXY protocol on the load balancer";

fn violation(error: impl std::fmt::Display) -> Outcome {
    Outcome::new(Reason::ProtocolViolation, error)
}

/// A client that disconnects before TLS is usually a port check or a health check of a load balancer.
fn lost(error: io::Error) -> Outcome {
    Outcome::new(Reason::ClientClosed, error)
}
