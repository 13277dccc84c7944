//! The way out: last words in the client's protocol, and an end of the stream that does not eat them.
//!
//! Closing a socket that holds unread bytes makes the kernel send a reset, and a reset can overtake words that are still
//! on their way. So after the last words the client is listened to a little longer, within bounds.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::outcome::Outcome;
use crate::protocol::Protocol;
use crate::protocol::refusal::refusal;
use crate::proxy::phase::startup::packet::first_packet;
use crate::transport::socket::Socket;
use crate::transport::{ClientStream, Stream};

/// A connection that ends: why, and what is still to be said.
#[derive(Debug)]
pub(crate) struct Close {
    pub(crate) ending: Outcome,
    pub(crate) farewell: Farewell,
}

/// What is still to be said, and to whom.
#[derive(Debug)]
pub(crate) enum Farewell {
    /// Nothing, and the socket is gone.
    Gone,
    /// These words; inside TLS, with close_notify behind them. A socket without TLS may be one whose handshake has failed,
    /// and then there are none but the alert that is on its way.
    Words(ClientStream, Vec<u8>),
    /// These words, and no close_notify behind them: what the client has heard may have been cut short on the other side,
    /// and TLS is how it can know.
    Cut(ClientStream, Vec<u8>),
    /// These words to a client whose session has to be gone soon, whether it listens or not.
    Terminated(ClientStream, Vec<u8>),
    /// The same once the client has sent its PostgreSQL StartupMessage and so listens for an answer.
    AfterStartup(ClientStream, Vec<u8>),
}

/// Whether a PostgreSQL client has sent its StartupMessage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartupState {
    Awaited,
    Heard,
}

impl From<Outcome> for Close {
    fn from(ending: Outcome) -> Self {
        Self { ending, farewell: Farewell::Gone }
    }
}

impl Close {
    /// Says these words to the client, whatever it speaks.
    pub(crate) fn with_words(ending: impl Into<Outcome>, client: ClientStream, words: Vec<u8>) -> Self {
        Self { ending: ending.into(), farewell: Farewell::Words(client, words) }
    }

    /// The same to a client outside TLS.
    pub(crate) fn plain(ending: impl Into<Outcome>, stream: TcpStream, words: Vec<u8>) -> Self {
        Self::with_words(ending, Stream::Plain(Socket::Tcp(stream)), words)
    }

    /// Turns a client away in the words its protocol has for the reason.
    pub(crate) fn refused(ending: Outcome, client: ClientStream, protocol: Protocol, startup: StartupState) -> Self {
        let words = refusal(protocol, ending.reason).unwrap_or_default();
        let farewell = match (protocol, startup) {
            (Protocol::Postgres, StartupState::Awaited) => Farewell::AfterStartup(client, words),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => Farewell::Words(client, words),
        };
        Self { ending, farewell }
    }

    pub(crate) fn terminated(ending: Outcome, client: ClientStream, words: Vec<u8>) -> Self {
        Self { ending, farewell: Farewell::Terminated(client, words) }
    }
}

impl Farewell {
    pub(crate) async fn send(self) {
        // A client that does not listen in time has had its chance.
        let _ = match self {
            Self::Gone => return,
            Self::Words(client, words) => timeout(PATIENCE, send_and_linger(client, &words)).await,
            Self::Cut(client, words) => timeout(PATIENCE, cut_and_linger(client, &words)).await,
            Self::Terminated(client, words) => timeout(LAST_MOMENT, send_and_linger(client, &words)).await,
            Self::AfterStartup(mut client, words) => {
                timeout(PATIENCE, async {
                    // Whatever it sends instead, the answer is the same.
                    let _ = first_packet(&mut client).await;
                    send_and_linger(client, &words).await
                })
                .await
            }
        };
    }
}

/// Says the words and ends the stream. What the client still sends is of no interest, only that it is read, and not as TLS;
/// so a client that has broken TLS, or the end of it, is listened to like any other.
async fn send_and_linger(mut client: ClientStream, words: &[u8]) -> io::Result<()> {
    client.write_all(words).await?;
    client.shutdown().await?;
    linger(client.into_socket()).await
}

/// Says the words, and ends TCP alone.
async fn cut_and_linger(mut client: ClientStream, words: &[u8]) -> io::Result<()> {
    // Who has broken TLS can be told nothing but that, by the alert that is on its way.
    let _ = client.write_all(words).await;
    client.flush().await?;
    let mut socket = client.into_socket();
    socket.shutdown().await?;
    linger(socket).await
}

/// Reads what the client had sent already.
async fn linger(mut socket: Socket) -> io::Result<()> {
    let mut heard = 0;
    let mut bytes = [0; 512];
    while heard < MAX_LINGER_BYTES {
        match socket.read(&mut bytes).await? {
            0 => break,
            count => heard += count,
        }
    }
    Ok(())
}

/// Longer than a round trip around the world; a client that keeps talking past it is cut off.
const PATIENCE: Duration = Duration::from_secs(5);

/// A session that is ended has to be gone within a second. Words the kernel has taken arrive after that, too.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// More than a client sends before it reads an answer.
const MAX_LINGER_BYTES: usize = 256 << 10;
