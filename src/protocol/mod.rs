//! The plaintext edges of the protocols a listener can speak: what may come before TLS, how a client is told no, how a
//! session is told that it is over, what two proxies say to each other of a client, and what a DNS server says of a name.
//!
//! Pure: bytes in, verdict out.

pub(crate) mod farewell;
pub(crate) mod postgres;
pub(crate) mod proxy_header;
pub(crate) mod redis;
pub(crate) mod refusal;

use std::fmt;

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL frontend/backend protocol 3.x.
    Postgres,
    /// Redis, any RESP version.
    Redis,
    /// Any protocol that begins with TLS.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Tcp => "tcp",
        })
    }
}

/// How far an upstream has to show who it is, in libpq's words (PostgreSQL documentation, "SSL Support").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// TLS, with whoever answers; where a CA is given, as [`Self::VerifyCa`].
    Require,
    /// A certificate that the CA vouches for, of whatever name.
    VerifyCa,
    /// A certificate that the CA vouches for, of the upstream's name.
    VerifyFull,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// How TLS with a PostgreSQL server begins, in libpq's words (`sslnegotiation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// Behind an SSLRequest and its answer.
    Postgres,
    /// At once, as PostgreSQL 17 and later take it.
    Direct,
}

/// Which of several upstreams a session needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The first that can be reached.
    #[default]
    Any,
    /// The one that takes writes: PostgreSQL's primary, Redis' master.
    Primary,
}

impl Target {
    /// As the configuration of a listener of this protocol has it.
    pub const fn word(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Any, _) => "any",
            (Self::Primary, Protocol::Redis) => "master",
            (Self::Primary, Protocol::Postgres | Protocol::Tcp) => "primary",
        }
    }
}

/// The lowest TLS version a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinTlsVersion {
    /// TLS 1.2 and 1.3.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// The first byte of every TLS connection: a record of type handshake (RFC 8446 §5.1).
pub(crate) const TLS_HANDSHAKE_RECORD: u8 = 0x16;
