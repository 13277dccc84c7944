//! The PROXY protocol, versions 1 and 2: how one proxy tells the next whom a connection is for.
//!
//! A load balancer in front tells us ([`read::read`]), and we tell the upstream ([`write::ProxyHeader`]). Source: HAProxy's
//! specification "The PROXY protocol, versions 1 & 2". Whether a header is expected is never guessed from the bytes: it is
//! a matter of where they come from, and decided before this is asked. Only to say what is wrong may one ask whether bytes
//! [look like one](`looks_like_header`).

pub(crate) mod crc32c;
pub(crate) mod read;
pub(crate) mod write;

/// What every header of version 2 begins with. No other protocol takes it for its own.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What every header of version 1 begins with.
const NAME: &[u8] = b"PROXY ";

/// Whether these are the first bytes of a header, from somebody of whom none was expected.
pub(crate) fn looks_like_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE) || bytes.starts_with(NAME)
}

/// Signature, version and command, family and transport, length of the rest.
const PREFIX: usize = 16;

/// The upper half of the 13th byte.
const VERSION_2: u8 = 0x20;

/// The lower half of the 13th byte: the connection is the sender's own.
const COMMAND_LOCAL: u8 = 0;
/// The lower half of the 13th byte: the connection is for somebody else.
const COMMAND_PROXY: u8 = 1;

/// The upper half of the 14th byte is the family, the lower half the transport; of both, 0 says "of a kind you do not know".
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
