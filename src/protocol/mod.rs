//! The wire formats of Redis, PostgreSQL and the PROXY protocol, as far as a proxy needs them. These are the bytes before
//! TLS, error messages to rejected clients, farewell messages, and PROXY headers.
//!
//! The module is pure: it takes bytes and returns a verdict.

pub(crate) mod farewell;
pub(crate) mod postgres;
pub(crate) mod proxy_header;
pub(crate) mod redis;
pub(crate) mod refusal;

use std::fmt;

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL frontend/backend protocol 3.x.
    Postgres,
    /// Redis, any RESP version.
    Redis,
    /// Any protocol that starts with TLS.
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

/// How the certificate of an upstream is verified. The names are those of libpq's `sslmode` (PostgreSQL documentation, "SSL
/// Support").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// TLS with any certificate; with a CA configured, the same as [`Self::VerifyCa`].
    Require,
    /// A certificate issued by the CA, with any name.
    VerifyCa,
    /// A certificate issued by the CA, with the name of the upstream.
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

/// How TLS with a PostgreSQL server starts (libpq's `sslnegotiation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// After an SSLRequest and its answer.
    Postgres,
    /// At once, as PostgreSQL 17 and later support it.
    Direct,
}

/// Which of several upstream endpoints a session needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The first endpoint that can be reached.
    #[default]
    Any,
    /// The endpoint that accepts writes: the PostgreSQL primary or the Redis master.
    Primary,
}

impl Target {
    /// The value of `upstream.target` for a listener of this protocol.
    pub const fn word(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Any, _) => "any",
            (Self::Primary, Protocol::Redis) => "master",
            (Self::Primary, Protocol::Postgres | Protocol::Tcp) => "primary",
        }
    }
}

/// The lowest TLS version that a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinTlsVersion {
    /// TLS 1.2 and 1.3.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// The first byte of every TLS connection: a record of type handshake (RFC 8446 §5.1).
pub(crate) const TLS_HANDSHAKE_RECORD: u8 = 0x16;
