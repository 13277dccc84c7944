//! The end of a connection: a farewell message in the client's protocol, then a lingering close.
//!
//! When a socket with unread bytes is closed, the kernel sends a reset, which can destroy a message in flight. So after the
//! farewell, the socket is read for a bounded time and number of bytes.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::outcome::Outcome;
use crate::protocol::Protocol;
use crate::protocol::refusal::refusal;
use crate::proxy::phase::startup::packet::read_first_packet;
use crate::transport::socket::Socket;
use crate::transport::{ClientStream, Stream};

/// The outcome of a connection, and the farewell that is still to be sent.
#[derive(Debug)]
pub(crate) struct Close {
    pub(crate) outcome: Outcome,
    pub(crate) farewell: Farewell,
}

/// The last bytes for the client, and how its stream ends.
#[derive(Debug)]
pub(crate) enum Farewell {
    /// The socket is already closed.
    Closed,
    /// Sends the message, then close_notify inside TLS. After a failed handshake the stream is the plain socket, the message
    /// is empty, and the alert is already in flight.
    Message(ClientStream, Vec<u8>),
    /// Sends the message without close_notify: the upstream's data may be incomplete, and its absence shows that to the
    /// client.
    Truncated(ClientStream, Vec<u8>),
    /// Sends the message to a client whose session must end soon, even if the client does not read.
    Terminated(ClientStream, Vec<u8>),
    /// Reads the StartupMessage of a PostgreSQL client, which expects a reply only then, and sends the message.
    AfterStartup(ClientStream, Vec<u8>),
}

/// Whether a PostgreSQL client has sent its StartupMessage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartupState {
    Awaited,
    Received,
}

impl From<Outcome> for Close {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, farewell: Farewell::Closed }
    }
}

impl Close {
    /// Sends `message`, which is in the client's protocol.
    pub(crate) fn with_message(outcome: impl Into<Outcome>, client: ClientStream, message: Vec<u8>) -> Self {
        Self { outcome: outcome.into(), farewell: Farewell::Message(client, message) }
    }

    /// Sends `message` to a client outside TLS.
    pub(crate) fn plain(outcome: impl Into<Outcome>, stream: TcpStream, message: Vec<u8>) -> Self {
        Self::with_message(outcome, Stream::Plain(Socket::Tcp(stream)), message)
    }

    /// Refuses a client with the error message of its protocol for the reason.
    pub(crate) fn refused(outcome: Outcome, client: ClientStream, protocol: Protocol, startup: StartupState) -> Self {
        let message = refusal(protocol, outcome.reason).unwrap_or_default();
        let farewell = match (protocol, startup) {
            (Protocol::Postgres, StartupState::Awaited) => Farewell::AfterStartup(client, message),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => Farewell::Message(client, message),
        };
        Self { outcome, farewell }
    }

    pub(crate) fn terminated(outcome: Outcome, client: ClientStream, message: Vec<u8>) -> Self {
        Self { outcome, farewell: Farewell::Terminated(client, message) }
    }
}

impl Farewell {
    pub(crate) async fn send(self) {
        // Errors and timeouts are ignored: the connection ends in any case.
        let _ = match self {
            Self::Closed => return,
            Self::Message(client, message) => timeout(FAREWELL_TIMEOUT, send_and_linger(client, &message)).await,
            Self::Truncated(client, message) => timeout(FAREWELL_TIMEOUT, truncate_and_linger(client, &message)).await,
            Self::Terminated(client, message) => timeout(TERMINATION_TIMEOUT, send_and_linger(client, &message)).await,
            Self::AfterStartup(mut client, message) => {
                timeout(FAREWELL_TIMEOUT, async {
                    // The message is the same for any other packet.
                    let _ = read_first_packet(&mut client).await;
                    send_and_linger(client, &message).await
                })
                .await
            }
        };
    }
}

/// Sends the message and ends the stream. The bytes that the client still sends are read from the socket and not decrypted,
/// so this also works after a TLS error.
async fn send_and_linger(mut client: ClientStream, message: &[u8]) -> io::Result<()> {
    client.write_all(message).await?;
    client.shutdown().await?;
    linger(client.into_socket()).await
}

/// Sends the message and ends only TCP.
async fn truncate_and_linger(mut client: ClientStream, message: &[u8]) -> io::Result<()> {
    // Fails after a TLS error of the client. The alert is already queued, and the flush sends it.
    let _ = client.write_all(message).await;
    client.flush().await?;
    let mut socket = client.into_socket();
    socket.shutdown().await?;
    linger(socket).await
}

/// Reads and discards the bytes that the client has already sent.
async fn linger(mut socket: Socket) -> io::Result<()> {
    let mut discarded = 0;
    let mut bytes = [0; 512];
    while discarded < MAX_LINGER_BYTES {
        match socket.read(&mut bytes).await? {
            0 => break,
            count => discarded += count,
        }
    }
    Ok(())
}

/// Longer than any round trip. After that the connection is closed even if the client still sends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// A terminated session must end within one second. The kernel delivers a message that it has accepted even after that.
pub(crate) const TERMINATION_TIMEOUT: Duration = Duration::from_millis(500);

/// More than a client sends before it reads a reply.
const MAX_LINGER_BYTES: usize = 256 << 10;
