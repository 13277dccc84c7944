//! Reads one PostgreSQL startup packet.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::protocol::postgres;
use crate::protocol::postgres::{HEADER_LENGTH, Malformed, Packet};
use crate::transport::{ClientStream, Stream};

#[derive(Debug)]
pub(crate) enum PacketError {
    Lost(io::Error),
    Malformed(Malformed),
}

/// Reads one startup packet, including its header. The length is checked before memory is allocated.
async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Packet, Vec<u8>), PacketError> {
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await.map_err(PacketError::Lost)?;
    let packet = Packet::parse(header).map_err(PacketError::Malformed)?;
    let body = match packet {
        Packet::Cancel { body } | Packet::Startup { body } => body,
        Packet::Ssl | Packet::GssEncryption => 0,
    };
    let mut bytes = header.to_vec();
    bytes.resize(HEADER_LENGTH + body, 0);
    let rest = bytes.get_mut(HEADER_LENGTH..).unwrap_or_default();
    stream.read_exact(rest).await.map_err(PacketError::Lost)?;
    Ok((packet, bytes))
}

/// Reads the first packet that is not an encryption request.
///
/// On a listener without TLS, SSLRequest and GSSENCRequest are each refused once. libpq then continues in plaintext, unless
/// its sslmode forbids it.
pub(crate) async fn read_first_packet(client: &mut ClientStream) -> Result<(Packet, Vec<u8>), PacketError> {
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
        client.write_all(&[postgres::REFUSE_ENCRYPTION]).await.map_err(PacketError::Lost)?;
    }
}
