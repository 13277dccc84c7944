//! Authenticates to Redis. All passwords are tried on one connection, which Redis leaves open.

use std::io;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::credential::upstream_passwords::UpstreamPassword;
use crate::login::redis::credentials::UpstreamCredentials;
use crate::login::redis::upstream::{LoginOutcome, LoginReply, ServerTraits, UpstreamLogin};
use crate::transport::UpstreamStream;
use crate::upstream::Upstream;
use crate::upstream::connect::within;
use crate::upstream::dial::{CLOSED_WITHOUT_RESPONSE, check_role, closed_early, dial_any_role};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::login::{DatabaseUser, LoginError};

impl DatabaseUser<'_> {
    /// Dials an endpoint by `deadline` and authenticates. With `target = "master"` only a master is accepted.
    pub(crate) async fn dial_redis(
        &self,
        endpoint: &Endpoint,
        upstream: &Upstream,
        header: &[u8],
        deadline: Instant,
    ) -> Result<(UpstreamStream, ServerTraits), LoginError> {
        let mut stream = dial_any_role(endpoint, upstream, header, deadline).await?;
        let mut untried = self.passwords.in_order(self.name).into_iter();
        let mut entry = untried.next();
        let mut login = UpstreamLogin::default();
        let mut tried = Vec::new();
        let why = loop {
            let credentials = self.redis_credentials(entry.as_ref());
            let outcome = within(deadline, ask(&mut stream, &mut login, &credentials)).await;
            tried.extend(entry.as_ref().map(|entry| entry.line));
            match outcome.map_err(|error| closed_early(&error, upstream))? {
                LoginOutcome::Accepted(server) => {
                    self.note_accepted(endpoint, upstream, tried.last().copied());
                    check_role(&mut stream, endpoint, upstream, deadline).await?;
                    return Ok((stream, server));
                }
                LoginOutcome::WrongPassword => {
                    if let Some(UpstreamPassword { line, .. }) = entry {
                        self.passwords.note_wrong(self.name, line, OffsetDateTime::now_utc());
                    }
                    match untried.next() {
                        Some(next) => entry = Some(next),
                        None => break WRONG_PASSWORD.to_owned(),
                    }
                }
                LoginOutcome::NotReady(words) => return Err(LoginError::NotReady(words)),
                LoginOutcome::NotSupported(words) => break words,
            }
        };
        Err(self.rejected(endpoint, upstream, &tried, &why).into())
    }

    /// The user with one of its passwords, or as one who needs none.
    pub(crate) fn redis_credentials(&self, entry: Option<&UpstreamPassword>) -> UpstreamCredentials {
        match entry {
            Some(entry) => UpstreamCredentials::new(self.name, entry.expose()),
            None => UpstreamCredentials::without_password(self.name),
        }
    }
}

/// Sends one request and reads its reply.
async fn ask(
    stream: &mut UpstreamStream,
    login: &mut UpstreamLogin,
    credentials: &UpstreamCredentials,
) -> io::Result<LoginOutcome> {
    stream.write_all(&login.request(credentials)).await?;
    stream.flush().await?;
    let mut bytes = [0; 1024];
    loop {
        let count = stream.read(&mut bytes).await?;
        let Some(received) = bytes.get(..count).filter(|received| !received.is_empty()) else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, CLOSED_WITHOUT_RESPONSE));
        };
        match login.follow(received, credentials) {
            LoginReply::More => {}
            LoginReply::Done(outcome) => return Ok(outcome),
            LoginReply::Invalid => return Err(io::Error::other("is not a Redis server: unexpected reply")),
        }
    }
}

/// The words of Redis.
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled";
