//! Authenticates Portcullis to a database in the place of a client, with the passwords of `upstream_password_file`.
//!
//! They are tried in order; the one that worked is first the next time. So the password of the database can be changed while
//! the old and the new one are in the file.

pub(crate) mod postgres;
pub(crate) mod redis;

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::credential::upstream_passwords::UpstreamPasswords;
use crate::login::redis::upstream::ServerTraits;
use crate::outcome::Reason;
use crate::printable;
use crate::transport::UpstreamStream;
use crate::upstream::Upstream;
use crate::upstream::dial::{EndpointError, unsuitable};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::login::postgres::PostgresLogin;

/// How Portcullis authenticates for one client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DatabaseLogin<'a> {
    Postgres(PostgresLogin<'a>),
    Redis(DatabaseUser<'a>),
}

/// A stream on which the database has accepted the user.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub(crate) stream: UpstreamStream,
    /// What the client has to receive first; nothing from Redis.
    pub(crate) greeting: Vec<u8>,
    /// What is known about a Redis server; `None` for PostgreSQL.
    pub(crate) redis: Option<ServerTraits>,
}

/// A user of the database, as which Portcullis acts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatabaseUser<'a> {
    pub(crate) name: &'a str,
    pub(crate) passwords: &'a UpstreamPasswords,
}

/// Why an endpoint does not serve the client.
#[derive(Debug)]
pub(crate) enum LoginError {
    Endpoint(EndpointError),
    /// The server is starting or stopping. Its words, or its error code.
    NotReady(String),
}

impl DatabaseLogin<'_> {
    /// Dials an endpoint by `deadline` and authenticates.
    pub(crate) async fn dial(
        &self,
        endpoint: &Endpoint,
        upstream: &Upstream,
        header: &[u8],
        deadline: Instant,
    ) -> Result<LoggedIn, LoginError> {
        match self {
            Self::Postgres(login) => {
                let (stream, greeting) = login.dial(endpoint, upstream, header, deadline).await?;
                Ok(LoggedIn { stream, greeting, redis: None })
            }
            Self::Redis(user) => {
                let (stream, server) = user.dial_redis(endpoint, upstream, header, deadline).await?;
                Ok(LoggedIn { stream, greeting: Vec::new(), redis: Some(server) })
            }
        }
    }
}

impl LoginError {
    /// A client that was held while the upstream refused connections stays held while the server starts.
    pub(crate) fn into_error(self, has_waited: bool) -> EndpointError {
        match self {
            Self::Endpoint(error) => error,
            Self::NotReady(why) => {
                EndpointError { refuses: has_waited, ..unsuitable(&format!("is not ready for connections ({why})")) }
            }
        }
    }
}

impl From<EndpointError> for LoginError {
    fn from(error: EndpointError) -> Self {
        Self::Endpoint(error)
    }
}

impl DatabaseUser<'_> {
    /// Records that the database accepts the user, with the password in this line if it has asked for one. Logs a change.
    fn note_accepted(&self, endpoint: &Endpoint, upstream: &Upstream, line: Option<usize>) {
        if self.passwords.note_accepted(self.name, line, OffsetDateTime::now_utc()) {
            let user = printable::quoted(self.name);
            info!(listener = %upstream.listener, upstream = %endpoint, user, line, "upstream accepts the user again");
        }
    }

    /// The error of an endpoint that rejects the user with every password. Logs a change.
    fn rejected(&self, endpoint: &Endpoint, upstream: &Upstream, tried: &[usize], why: &str) -> EndpointError {
        let user = printable::quoted(self.name);
        let lines = tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if self.passwords.note_rejected(self.name) {
            warn!(
                listener = %upstream.listener,
                upstream = %endpoint,
                user,
                lines,
                error = why,
                "upstream rejects the user with each password; update upstream_password_file"
            );
        }
        let with = if lines.is_empty() { String::new() } else { format!(" with upstream_password_file lines {lines}") };
        let error = unsuitable(&format!("rejects the user \"{user}\"{with}: {why}"));
        EndpointError { reason: Reason::UpstreamAuthenticationFailed, ..error }
    }
}

/// The name under which faults are counted.
const PART: &str = "upstream logins";
