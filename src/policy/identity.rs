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

/// What the validity dates of a CA certificate that is a trust anchor mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnchorValidity {
    /// Outside them it vouches for nobody.
    #[default]
    Enforce,
    /// Nothing: the anchor is trusted until it is removed.
    Ignore,
}

impl AnchorValidity {
    /// As the configuration writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Ignore => "ignore",
        }
    }
}

/// What a revocation list past its nextUpdate means for the certificates of its CA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrlExpired {
    /// They are refused: one that was revoked since could not be told from the others.
    #[default]
    Refuse,
    /// The list counts as it is.
    Allow,
}

impl CrlExpired {
    /// As the configuration writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Allow => "allow",
        }
    }
}
