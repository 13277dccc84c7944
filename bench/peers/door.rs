//! The ways into a target.

/// A way into a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    /// With the ECDSA certificate, to the Redis that is measured with.
    Redis,
    /// The same with the RSA certificate.
    Rsa,
    /// The same, and clients must show a certificate.
    Mutual,
    /// To the Redis of the background load.
    Bulk,
    Postgres,
}

impl Door {
    pub(crate) const ALL: &'static [Self] = &[Self::Redis, Self::Rsa, Self::Mutual, Self::Bulk, Self::Postgres];
    pub(crate) const REDIS: &'static [Self] = &[Self::Redis, Self::Rsa, Self::Mutual, Self::Bulk];

    /// Its name in configurations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Rsa => "rsa",
            Self::Mutual => "mutual",
            Self::Bulk => "bulk",
            Self::Postgres => "postgres",
        }
    }
}
