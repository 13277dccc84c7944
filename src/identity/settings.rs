//! What a listener asks of a client's identity.

use std::fmt;

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may show one; one that is not trusted is refused all the same.
    Optional,
    /// They must show one.
    Required,
}

/// As the configuration has it.
impl fmt::Display for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}
