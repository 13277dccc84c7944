//! The PROXY protocol, versions 1 and 2, by which a proxy announces the client's address.
//!
//! Portcullis reads headers from load balancers in front of it ([`read::read`]) and sends headers to upstreams
//! ([`write::ProxyHeader`]). Source: HAProxy, "The PROXY protocol, versions 1 & 2". Whether a header is expected depends on
//! the peer's address and is decided before a byte is read. [`looks_like_header`] serves error messages only.

pub(crate) mod crc32c;
pub(crate) mod read;
pub(crate) mod write;

/// The first bytes of every version 2 header. No other protocol accepts them.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The first bytes of every version 1 header.
const NAME: &[u8] = b"PROXY ";

/// Whether a stream from which no header is expected begins like one.
pub(crate) fn looks_like_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE) || bytes.starts_with(NAME)
}

/// Size in bytes of the signature, version and command, family and transport, and length.
const PREFIX: usize = 16;

/// The upper four bits of the 13th byte.
const VERSION_2: u8 = 0x20;

/// The lower four bits of the 13th byte: the proxy opened the connection for itself.
const COMMAND_LOCAL: u8 = 0;
/// The lower four bits of the 13th byte: the proxy opened the connection for a client.
const COMMAND_PROXY: u8 = 1;

/// The upper four bits of the 14th byte are the address family, the lower four the transport. 0 is "unspecified" in both.
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
