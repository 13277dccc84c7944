//! The routes through a target.

/// A route from a client through a target to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    /// With the ECDSA certificate to the measured Redis.
    Redis,
    /// With the RSA certificate to the measured Redis.
    Rsa,
    /// Like [`Self::Redis`], with a required client certificate.
    Mutual,
    /// To the Redis of the background load.
    Bulk,
    Postgres,
}

impl Route {
    pub(crate) const ALL: &'static [Self] = &[Self::Redis, Self::Rsa, Self::Mutual, Self::Bulk, Self::Postgres];
    pub(crate) const REDIS: &'static [Self] = &[Self::Redis, Self::Rsa, Self::Mutual, Self::Bulk];

    /// The name in configurations.
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
