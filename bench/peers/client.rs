//! A client of a Redis behind a target, over TLS or, for a target without TLS, in plaintext.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fault::{Context, Result};

/// The address of a target and how to connect to it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// `None` for plaintext.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// A request and its exact reply.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) request: Arc<[u8]>,
    pub(crate) reply: Arc<[u8]>,
}

impl Exchange {
    pub(crate) fn ping() -> Self {
        Self { request: Arc::from(&b"*1\r\n$4\r\nPING\r\n"[..]), reply: Arc::from(&b"+PONG\r\n"[..]) }
    }

    pub(crate) fn set(key: &str, value: &[u8]) -> Self {
        Self { request: command(&[b"SET", key.as_bytes(), value]).into(), reply: Arc::from(&b"+OK\r\n"[..]) }
    }

    pub(crate) fn get(key: &str, value: &[u8]) -> Self {
        Self { request: command(&[b"GET", key.as_bytes()]).into(), reply: bulk(value).into() }
    }

    /// The exchange repeated `depth` times in one write.
    pub(crate) fn pipelined(&self, depth: usize) -> Self {
        Self { request: self.request.repeat(depth).into(), reply: self.reply.repeat(depth).into() }
    }
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len()).into_bytes();
    words.iter().for_each(|word| text.extend(bulk(word)));
    text
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// An open connection.
#[derive(Debug)]
pub(crate) enum Session {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Session {
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self> {
        let stream =
            TcpStream::connect(endpoint.address).await.context(|| format!("connect to {}", endpoint.address))?;
        stream.set_nodelay(true)?;
        let Some(tls) = &endpoint.tls else { return Ok(Self::Plain(stream)) };
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.context(|| "TLS".to_owned())?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Sends a request and reads the reply. Another reply is an error.
    pub(crate) async fn exchange(&mut self, exchange: &Exchange, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Plain(stream) => converse(stream, exchange, buffer).await,
            Self::Tls(stream) => converse(stream.as_mut(), exchange, buffer).await,
        }
    }

    /// `None` without TLS.
    pub(crate) fn handshake(&self) -> Option<(HandshakeKind, NamedGroup)> {
        let Self::Tls(stream) = self else { return None };
        let tls = stream.get_ref().1;
        tls.handshake_kind().zip(tls.negotiated_key_exchange_group().map(|group| group.name()))
    }

    /// Closes the connection, and waits until the other side has closed.
    pub(crate) async fn close(self) -> Result<()> {
        match self {
            Self::Plain(stream) => shut_down(stream).await,
            Self::Tls(stream) => shut_down(*stream).await,
        }
    }
}

async fn converse<S>(stream: &mut S, exchange: &Exchange, buffer: &mut [u8]) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&exchange.request).await.context(|| "write".to_owned())?;
    stream.flush().await.context(|| "flush".to_owned())?;
    let mut wanted: &[u8] = &exchange.reply;
    while !wanted.is_empty() {
        let count = stream.read(buffer).await.context(|| "read".to_owned())?;
        let got = buffer.get(..count).unwrap_or_default();
        match wanted.strip_prefix(got) {
            Some(rest) if count > 0 => wanted = rest,
            _ => return Err(wrong(got).into()),
        }
    }
    Ok(())
}

fn wrong(got: &[u8]) -> String {
    if got.is_empty() {
        return "the connection ended before the reply was complete".to_owned();
    }
    let shown = got.get(..80).unwrap_or(got);
    format!("unexpected reply: {:?}", String::from_utf8_lossy(shown))
}

async fn shut_down<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    stream.shutdown().await.context(|| "shutdown".to_owned())?;
    let mut rest = [0; 256];
    loop {
        match stream.read(&mut rest).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Some targets close without close_notify, or reset. The exchange is complete by then.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects from an untrusted address and expects the target to close the connection.
pub(crate) async fn expect_rejection(address: SocketAddr) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((UNTRUSTED, 0).into())?;
    let mut stream = match socket.connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
        Err(error) => return Err(error).context(|| format!("connect to {address} as {UNTRUSTED}")),
    };
    let mut byte = [0];
    match stream.read(&mut byte).await {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Ok(_) => Err("the target sent bytes to an untrusted client".into()),
        Err(error) => Err(error.into()),
    }
}

/// Every address of 127/8 is this machine, and only 127.0.0.1 is on the allowlists.
pub(crate) const UNTRUSTED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
