//! Options for expired trust anchors and revocation lists.

/// How the validity dates of a trust anchor are treated (`anchor_validity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnchorValidity {
    /// Outside its dates, the anchor is not trusted.
    #[default]
    Enforce,
    /// The anchor is trusted until it is removed.
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

/// How a revocation list past its nextUpdate is treated (`crl_expired`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrlExpired {
    /// The certificates of its CA are rejected, because later revocations are unknown.
    #[default]
    Refuse,
    /// The expired list is still used.
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
