//! How strictly the certificates and revocation lists of CAs are taken.

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
