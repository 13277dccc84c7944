//! Reading one PostgreSQL startup packet.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::protocol::postgres;
use crate::protocol::postgres::{HEADER_LENGTH, Malformed, Packet};
use crate::transport::{ClientStream, Stream};

/// Why no packet could be read.
#[derive(Debug)]
pub(crate) enum Unheard {
    Lost(io::Error),
    Malformed(Malformed),
}

/// Reads one startup packet, header included. Its length is checked before a byte is set aside for it.
async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Packet, Vec<u8>), Unheard> {
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await.map_err(Unheard::Lost)?;
    let packet = Packet::parse(header).map_err(Unheard::Malformed)?;
    let body = match packet {
        Packet::Cancel { body } | Packet::Startup { body } => body,
        Packet::Ssl | Packet::GssEncryption => 0,
    };
    let mut bytes = header.to_vec();
    bytes.resize(HEADER_LENGTH + body, 0);
    let rest = bytes.get_mut(HEADER_LENGTH..).unwrap_or_default();
    stream.read_exact(rest).await.map_err(Unheard::Lost)?;
    Ok((packet, bytes))
}

/// The first packet that counts. Where TLS is off a client is told so for each kind of encryption it asks for, once; libpq
/// then goes on without, unless its sslmode forbids.
pub(crate) async fn first_packet(client: &mut ClientStream) -> Result<(Packet, Vec<u8>), Unheard> {
    let (mut tls_refused, mut gss_refused) = (false, false);
    loop {
        let (packet, bytes) = read_packet(client).await?;
        let refused = match (&packet, &*client) {
            (Packet::Ssl, Stream::Plain(_)) => &mut tls_refused,
            (Packet::GssEncryption, Stream::Plain(_)) => &mut gss_refused,
            _ => return Ok((packet, bytes)),
        };
        if std::mem::replace(refused, true) {
            return Ok((packet, bytes));
        }
        client.write_all(&[postgres::REFUSE_ENCRYPTION]).await.map_err(Unheard::Lost)?;
    }
}
