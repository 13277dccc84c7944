//! Whether a listener requires client certificates.

use std::fmt;

/// The key `client_auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Certificates are not requested.
    #[default]
    None,
    /// Clients may present a certificate; an untrusted one is rejected.
    Optional,
    /// Clients must present a certificate.
    Required,
}

/// The value in the configuration.
impl fmt::Display for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}
