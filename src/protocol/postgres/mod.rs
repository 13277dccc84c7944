//! The startup packets of PostgreSQL, which come before TLS or first inside it.
//!
//! A startup packet has no type byte: Int32 length (including itself, big endian), Int32 code, body. Source: PostgreSQL
//! documentation, "Message Flow" and "Message Formats". The maximum length is the server's MAX_STARTUP_PACKET_LENGTH.

pub(crate) mod frame;
pub(crate) mod startup;

use std::fmt;

/// Size in bytes of the length and the code.
pub(crate) const HEADER_LENGTH: usize = 8;

/// Maximum size of a startup packet in bytes: 10,000 and the length itself.
pub(crate) const MAX_PACKET_LENGTH: usize = 10_004;

/// The code of a StartupMessage of protocol 3.0.
pub(crate) const PROTOCOL_3_0: u32 = 3 << 16;

/// A whole SSLRequest.
pub(crate) const SSL_REQUEST_PACKET: [u8; HEADER_LENGTH] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Answers SSLRequest: TLS starts now.
pub(crate) const ACCEPT_TLS: u8 = b'S';

/// Answers GSSENCRequest, and SSLRequest where TLS is off: not supported.
pub(crate) const REFUSE_ENCRYPTION: u8 = b'N';

/// The ALPN protocol of PostgreSQL 17 and later.
pub(crate) const ALPN: &[u8] = b"postgresql";

/// The first packet of a connection, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// CancelRequest, which asks to cancel the query of another connection.
    Cancel {
        /// Size in bytes of the process id and the secret key after the header.
        body: usize,
    },
    GssEncryption,
    Ssl,
    /// StartupMessage of protocol 3, any minor version.
    Startup {
        /// Size in bytes after the header.
        body: usize,
    },
}

impl Packet {
    /// Parses the header of a startup packet.
    ///
    /// # Errors
    /// [`Malformed`] for a packet that a server would not accept. Callers use no length that was not checked here.
    pub(crate) fn parse(header: [u8; HEADER_LENGTH]) -> Result<Self, Malformed> {
        let [l0, l1, l2, l3, c0, c1, c2, c3] = header;
        let declared = u32::from_be_bytes([l0, l1, l2, l3]);
        let code = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = usize::try_from(declared)
            .ok()
            .filter(|length| (HEADER_LENGTH..=MAX_PACKET_LENGTH).contains(length))
            .ok_or(Malformed::Length { declared })?;
        let body = length - HEADER_LENGTH;
        match code {
            SSL_REQUEST if body == 0 => Ok(Self::Ssl),
            GSS_ENCRYPTION_REQUEST if body == 0 => Ok(Self::GssEncryption),
            CANCEL_REQUEST if CANCEL_BODY.contains(&body) => Ok(Self::Cancel { body }),
            SSL_REQUEST | GSS_ENCRYPTION_REQUEST | CANCEL_REQUEST => Err(Malformed::Length { declared }),
            _ if code >> 16 == 3 => Ok(Self::Startup { body }),
            _ => Err(Malformed::Code { code }),
        }
    }
}

/// The header of a CancelRequest with a body of `body` bytes.
pub(crate) fn cancel_header(body: usize) -> [u8; HEADER_LENGTH] {
    let length = u32::try_from(HEADER_LENGTH + body).unwrap_or(u32::MAX);
    let mut header = [0; HEADER_LENGTH];
    let (front, back) = header.split_at_mut(4);
    front.copy_from_slice(&length.to_be_bytes());
    back.copy_from_slice(&CANCEL_REQUEST.to_be_bytes());
    header
}

/// A packet that no PostgreSQL client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Neither a request code nor protocol 3.
    Code { code: u32 },
    /// A length that this kind of packet cannot have.
    Length { declared: u32 },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { code } => {
                write!(f, "startup packet has protocol {}.{}, expected PostgreSQL 3.x", code >> 16, code & 0xffff)
            }
            Self::Length { declared } => {
                write!(f, "startup packet has invalid length {declared}")
            }
        }
    }
}

/// A FATAL ErrorResponse. `state` is the five-character SQLSTATE.
///
/// The message has both severity fields: `S` for every client, and `V`, which is never translated, for clients since 9.6.
pub(crate) fn fatal(state: &str, message: &str, hint: &str) -> Vec<u8> {
    let mut fields = Vec::with_capacity(64 + message.len() + hint.len());
    for (kind, text) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', state), (b'M', message), (b'H', hint)] {
        if !text.is_empty() {
            fields.push(kind);
            // A NUL would end the field early.
            fields.extend(text.bytes().filter(|byte| *byte != 0));
            fields.push(0);
        }
    }
    fields.push(0);
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    let mut packet = Vec::with_capacity(fields.len() + 5);
    packet.push(b'E');
    packet.extend(length.to_be_bytes());
    packet.extend(fields);
    packet
}

/// Answers a StartupMessage without TLS, so that the client can show the reason.
pub(crate) fn speaks_tls_only() -> Vec<u8> {
    fatal(
        INVALID_AUTHORIZATION,
        "this port accepts TLS connections only",
        "Connect with sslmode=verify-full (or at least sslmode=require).",
    )
}

/// Answers a client when no server accepts writes, or none is ready. The client may retry: libpq tries its next host.
pub(crate) fn try_again() -> Vec<u8> {
    fatal(CANNOT_CONNECT_NOW, "no server behind this proxy can take this connection now", "Connect again.")
}

/// SQLSTATE admin_shutdown: the session is terminated, and not because of an error.
pub(crate) const ADMIN_SHUTDOWN: &str = "57P01";
/// SQLSTATE feature_not_supported.
pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// SQLSTATE invalid_password: the user or the password is wrong.
pub(crate) const INVALID_PASSWORD: &str = "28P01";
/// SQLSTATE invalid_authorization_specification: the source or the identity of the client is not trusted.
pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
/// SQLSTATE cannot_connect_now: libpq and asyncpg try their next host, and pg_isready reports that the server rejects
/// connections.
pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE too_many_connections.
pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
/// SQLSTATE protocol_violation.
pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_ENCRYPTION_REQUEST: u32 = 80_877_104;

/// Size in bytes of the process id (4) and the secret key: 4 in protocol 3.0, up to 256 since 3.2.
pub(crate) const CANCEL_BODY: std::ops::RangeInclusive<usize> = 8..=260;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(length: u32, code: u32) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..].copy_from_slice(&code.to_be_bytes());
        bytes
    }

    #[test]
    fn known_startup_packet_is_recognised() {
        assert_eq!(Packet::parse(header(8, 80_877_103)), Ok(Packet::Ssl));
        assert_eq!(Packet::parse(SSL_REQUEST_PACKET), Ok(Packet::Ssl));
        assert_eq!(Packet::parse(header(8, 80_877_104)), Ok(Packet::GssEncryption));
        assert_eq!(Packet::parse(header(16, 80_877_102)), Ok(Packet::Cancel { body: 8 }));
        assert_eq!(Packet::parse(header(268, 80_877_102)), Ok(Packet::Cancel { body: 260 }));
        for version in [196_608, 196_610, 206_607] {
            assert_eq!(Packet::parse(header(8, version)), Ok(Packet::Startup { body: 0 }));
            assert_eq!(Packet::parse(header(10_004, version)), Ok(Packet::Startup { body: 9_996 }));
        }
    }

    #[test]
    fn startup_packet_with_invalid_length_is_malformed() {
        for length in [0, 4, 7, 10_005, 0x7fff_ffff, u32::MAX] {
            assert_eq!(Packet::parse(header(length, 196_608)), Err(Malformed::Length { declared: length }));
        }
        for (length, code) in [(9, 80_877_103), (12, 80_877_104), (15, 80_877_102), (269, 80_877_102)] {
            assert_eq!(Packet::parse(header(length, code)), Err(Malformed::Length { declared: length }));
        }
    }

    #[test]
    fn startup_packet_with_unknown_code_is_malformed() {
        for code in [0, 131_072, 80_877_105, u32::from_be_bytes(*b"GET ")] {
            assert_eq!(Packet::parse(header(8, code)), Err(Malformed::Code { code }));
        }
    }

    #[test]
    fn error_response_has_the_format_of_the_protocol() {
        let expected = b"E\x00\x00\x00\x26SFATAL\0VFATAL\0C28000\0Mno\0Hask us\0\0";
        let packet = fatal("28000", "n\0o", "ask us");
        assert_eq!(packet, expected);
        assert_eq!(usize::from(packet[4]), packet.len() - 1);
    }

    proptest! {
        #[test]
        fn parsed_packet_is_never_longer_than_the_maximum(bytes in any::<[u8; 8]>()) {
            if let Ok(Packet::Startup { body } | Packet::Cancel { body }) = Packet::parse(bytes) {
                prop_assert!(body + HEADER_LENGTH <= MAX_PACKET_LENGTH);
            }
        }
    }
}
