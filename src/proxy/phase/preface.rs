//! The plaintext that may come before TLS. Nothing is read past what the protocol allows to come unencrypted, so no byte
//! that was injected there can turn up inside TLS (CVE-2021-23214 and its kin).

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
use crate::transport::socket::{Socket, nothing_waits};

/// A client whose next byte belongs to TLS.
#[derive(Debug)]
pub(crate) struct TlsStart {
    pub(crate) stream: TcpStream,
    /// Whether ALPN has to show that this is PostgreSQL, because no SSLRequest did.
    pub(crate) needs_alpn: bool,
}

/// How a client begins.
#[derive(Debug)]
pub(crate) enum Preface {
    Tls(TlsStart, Arc<ServerTls>),
    /// TLS is off here, and nothing has been read.
    Plain(Socket),
    /// A whole CancelRequest, as it came before TLS.
    Cancel(TcpStream, Vec<u8>),
}

pub(crate) async fn read_preface(socket: Socket, policy: &ListenerPolicy) -> Result<Preface, Close> {
    match (socket, &policy.tls) {
        (Socket::Tcp(stream), Some(tls)) => begin(stream, policy, tls).await,
        (socket, None) => Ok(Preface::Plain(socket)),
        // A reload has turned TLS on while this one waited to be accepted.
        (Socket::Unix(_), Some(_)) => Err(Outcome::from(Reason::ListenerRemoved).into()),
    }
}

/// What comes before TLS.
async fn begin(mut stream: TcpStream, policy: &ListenerPolicy, tls: &Arc<ServerTls>) -> Result<Preface, Close> {
    let first = first_byte(&mut stream).await?;
    match (policy.protocol, first == TLS_HANDSHAKE_RECORD) {
        (protocol, true) => {
            let needs_alpn = protocol == Protocol::Postgres;
            Ok(Preface::Tls(TlsStart { stream, needs_alpn }, Arc::clone(tls)))
        }
        (Protocol::Postgres, false) if is_announced(&stream).await => Err(violation(ANNOUNCED).into()),
        (Protocol::Postgres, false) => negotiate(stream, tls).await,
        (Protocol::Redis, false) => {
            let ending = plaintext(&stream, "connect with TLS (redis-cli --tls, or a rediss:// URL)").await;
            Err(Close::plain(ending, stream, redis::SPEAKS_TLS_ONLY.to_vec()))
        }
        (Protocol::Tcp, false) => Err(Close::plain(plaintext(&stream, "connect with TLS").await, stream, Vec::new())),
    }
}

async fn plaintext(stream: &TcpStream, what_to_do: &str) -> Outcome {
    if is_announced(stream).await {
        Outcome::new(Reason::PlaintextRefused, ANNOUNCED)
    } else {
        Outcome::new(Reason::PlaintextRefused, format_args!("it began without TLS; {what_to_do}"))
    }
}

/// Whether somebody who is no load balancer of ours begins with a PROXY header. What has come so far is looked at, and
/// nothing waited for: it decides no more than the words for the refusal.
async fn is_announced(stream: &TcpStream) -> bool {
    let mut begun = [0; 12];
    let seen = stream.peek(&mut begun).await.unwrap_or_default();
    proxy_header::looks_like_header(begun.get(..seen).unwrap_or_default())
}

/// PostgreSQL's SSLRequest, GSSENCRequest and what else may come in their place.
async fn negotiate(mut stream: TcpStream, tls: &Arc<ServerTls>) -> Result<Preface, Close> {
    let mut gss_refused = false;
    loop {
        match read_header(&mut stream).await {
            Ok(Packet::Ssl) => break,
            Ok(Packet::GssEncryption) if !gss_refused => {
                gss_refused = true;
                answer(&mut stream, postgres::REFUSE_ENCRYPTION).await?;
            }
            Ok(Packet::GssEncryption) => {
                return Err(violation("GSSENCRequest was sent twice").into());
            }
            Ok(Packet::Cancel { body }) => return cancel(stream, body).await,
            Ok(Packet::Startup { .. }) => {
                let detail =
                    "a StartupMessage without SSLRequest; connect with sslmode=require, verify-ca or verify-full";
                let ending = Outcome::new(Reason::PlaintextRefused, detail);
                return Err(Close::plain(ending, stream, postgres::speaks_tls_only()));
            }
            Err(ending) => return Err(ending.into()),
        }
    }
    answer(&mut stream, postgres::ACCEPT_TLS).await?;
    if first_byte(&mut stream).await? != TLS_HANDSHAKE_RECORD {
        return Err(violation("what followed SSLRequest is not TLS").into());
    }
    Ok(Preface::Tls(TlsStart { stream, needs_alpn: false }, Arc::clone(tls)))
}

async fn cancel(mut stream: TcpStream, body: usize) -> Result<Preface, Close> {
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

/// Answers a request by one byte, unless the client did not wait for it.
async fn answer(stream: &mut TcpStream, byte: u8) -> Result<(), Close> {
    if !nothing_waits(stream).map_err(lost)? {
        return Err(violation("bytes were sent behind the request for encryption, before its answer").into());
    }
    stream.write_all(&[byte]).await.map_err(|error| lost(error).into())
}

/// The next byte, left where it is.
async fn first_byte(stream: &mut TcpStream) -> Result<u8, Outcome> {
    let mut byte = [0];
    match stream.peek(&mut byte).await {
        Ok(0) => Err(Reason::ClientClosed.into()),
        Ok(_) => Ok(byte[0]),
        Err(error) => Err(lost(error)),
    }
}

/// The mistake behind most of these: the load balancer was told to send the header, and the listener not to expect it.
const ANNOUNCED: &str = "it began with a PROXY header, which is taken from load balancers in proxy_protocol.trusted only; put its \
                         address there, or have it send none";

fn violation(what: impl std::fmt::Display) -> Outcome {
    Outcome::new(Reason::ProtocolViolation, what)
}

/// A client that goes away before TLS is a port check or a load balancer's probe, and no error.
fn lost(error: io::Error) -> Outcome {
    Outcome::new(Reason::ClientClosed, error)
}
