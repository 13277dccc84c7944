//! Reading one PostgreSQL startup packet, from any stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::protocol::postgres::{HEADER_LENGTH, Malformed, Packet};

/// Why no packet could be read.
#[derive(Debug)]
pub(super) enum Unheard {
    Lost(io::Error),
    Malformed(Malformed),
}

/// Reads one startup packet, header included. Its length is checked before a byte is set aside for it.
pub(super) async fn read_packet<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Packet, Vec<u8>), Unheard> {
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
