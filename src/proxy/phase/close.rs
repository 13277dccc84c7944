//! The way out: last words in the client's protocol, and an end of the stream that does not eat them.
//!
//! Closing a socket that holds unread bytes makes the kernel send a reset, and a reset can overtake words that are still
//! on their way. So after the last words the client is listened to a little longer, within bounds.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::outcome::Ending;
use crate::protocol::Protocol;
use crate::protocol::refusal::refusal;
use crate::proxy::phase::startup::packet::first_packet;
use crate::transport::socket::Socket;
use crate::transport::{ClientLeg, Leg};

/// A connection that ends: why, and what is still to be said.
#[derive(Debug)]
pub(crate) struct Leave {
    pub(crate) ending: Ending,
    pub(crate) parting: Parting,
}

/// What is still to be said, and to whom.
#[derive(Debug)]
pub(crate) enum Parting {
    /// Nothing, and the socket is gone.
    Gone,
    /// These words; inside TLS, with close_notify behind them. A socket without TLS may be one whose handshake has failed,
    /// and then there are none but the alert that is on its way.
    Words(ClientLeg, Vec<u8>),
    /// These words, and no close_notify behind them: what the client has heard may have been cut short on the other side,
    /// and TLS is how it can know.
    Cut(ClientLeg, Vec<u8>),
    /// These words to a client whose session has to be gone soon, whether it listens or not.
    ShownOut(ClientLeg, Vec<u8>),
    /// The same once the client has sent its PostgreSQL StartupMessage and so listens for an answer.
    AfterStartup(ClientLeg, Vec<u8>),
}

/// Whether a PostgreSQL client has sent its StartupMessage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    Awaited,
    Heard,
}

impl From<Ending> for Leave {
    fn from(ending: Ending) -> Self {
        Self { ending, parting: Parting::Gone }
    }
}

impl Leave {
    /// Says these words to the client, whatever it speaks.
    pub(crate) fn with_words(ending: impl Into<Ending>, client: ClientLeg, words: Vec<u8>) -> Self {
        Self { ending: ending.into(), parting: Parting::Words(client, words) }
    }

    /// The same to a client outside TLS.
    pub(crate) fn plain(ending: impl Into<Ending>, stream: TcpStream, words: Vec<u8>) -> Self {
        Self::with_words(ending, Leg::Plain(Socket::Tcp(stream)), words)
    }

    /// Turns a client away in the words its protocol has for the reason.
    pub(crate) fn refused(ending: Ending, client: ClientLeg, protocol: Protocol, startup: Startup) -> Self {
        let words = refusal(protocol, ending.reason).unwrap_or_default();
        let parting = match (protocol, startup) {
            (Protocol::Postgres, Startup::Awaited) => Parting::AfterStartup(client, words),
            (Protocol::Postgres | Protocol::Redis | Protocol::Tcp, _) => Parting::Words(client, words),
        };
        Self { ending, parting }
    }

    pub(crate) fn shown_out(ending: Ending, client: ClientLeg, words: Vec<u8>) -> Self {
        Self { ending, parting: Parting::ShownOut(client, words) }
    }
}

impl Parting {
    pub(crate) async fn say(self) {
        // A client that does not listen in time has had its chance.
        let _ = match self {
            Self::Gone => return,
            Self::Words(client, words) => timeout(PATIENCE, say_and_listen(client, &words)).await,
            Self::Cut(client, words) => timeout(PATIENCE, cut_and_listen(client, &words)).await,
            Self::ShownOut(client, words) => timeout(LAST_MOMENT, say_and_listen(client, &words)).await,
            Self::AfterStartup(mut client, words) => {
                timeout(PATIENCE, async {
                    // Whatever it sends instead, the answer is the same.
                    let _ = first_packet(&mut client).await;
                    say_and_listen(client, &words).await
                })
                .await
            }
        };
    }
}

/// Says the words and ends the stream. What the client still sends is of no interest, only that it is read, and not as TLS;
/// so a client that has broken TLS, or the end of it, is listened to like any other.
async fn say_and_listen(mut client: ClientLeg, words: &[u8]) -> io::Result<()> {
    client.write_all(words).await?;
    client.shutdown().await?;
    listen(client.into_socket()).await
}

/// Says the words, and ends TCP alone.
async fn cut_and_listen(mut client: ClientLeg, words: &[u8]) -> io::Result<()> {
    // Who has broken TLS can be told nothing but that, by the alert that is on its way.
    let _ = client.write_all(words).await;
    client.flush().await?;
    let mut socket = client.into_socket();
    socket.shutdown().await?;
    listen(socket).await
}

/// Reads what the client had sent already.
async fn listen(mut socket: Socket) -> io::Result<()> {
    let mut heard = 0;
    let mut bytes = [0; 512];
    while heard < MOST_HEARD {
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
const MOST_HEARD: usize = 256 << 10;
