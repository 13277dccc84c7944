//! Authenticates to PostgreSQL. Each password is tried on a new connection, because a server closes the one with a wrong
//! password.

use std::io;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::credential::scram;
use crate::credential::upstream_passwords::UpstreamPassword;
use crate::credential::verifier::Parameters;
use crate::fault;
use crate::login::postgres::upstream::{Credentials, UpstreamFailure, UpstreamLogin, UpstreamStep};
use crate::protocol::postgres::CANNOT_CONNECT_NOW;
use crate::transport::socket::Socket;
use crate::transport::{Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::connect::within;
use crate::upstream::dial::{CLOSED_WITHOUT_RESPONSE, NOT_POSTGRES, closed_early, dial_endpoint, dial_failed};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::login::{DatabaseUser, LoginError, PART};
use crate::x509::channel_binding::end_point;

/// How Portcullis starts a session for one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PostgresLogin<'a> {
    pub(crate) user: DatabaseUser<'a>,
    /// The StartupMessage.
    pub(crate) startup: &'a [u8],
}

/// How an attempt with one password ends.
enum Verdict {
    /// The database accepts the session, or rejects it for a reason that the client has to know. With the bytes for the client.
    Passed {
        greeting: Vec<u8>,
        is_accepted: bool,
        by_password: bool,
    },
    /// The password is wrong.
    WrongPassword(String),
    /// Another password changes nothing.
    Rejected(String),
    NotReady,
    NotPostgres,
}

impl PostgresLogin<'_> {
    /// Dials an endpoint by `deadline` and authenticates. Returns the stream, and what the client has to receive first.
    pub(crate) async fn dial(
        &self,
        endpoint: &Endpoint,
        upstream: &Upstream,
        header: &[u8],
        deadline: Instant,
    ) -> Result<(UpstreamStream, Vec<u8>), LoginError> {
        let mut untried = self.user.passwords.in_order(self.user.name).into_iter();
        let mut entry = untried.next();
        let mut tried = Vec::new();
        let why = loop {
            let dialed = dial_endpoint(endpoint, upstream, header, deadline).await;
            let mut stream = dialed.map_err(LoginError::Endpoint)?;
            let verdict = within(deadline, self.log_in(&mut stream, entry.as_ref())).await;
            tried.extend(entry.as_ref().map(|entry| entry.line));
            match verdict.map_err(|error| LoginError::Endpoint(closed_early(&error, upstream)))? {
                Verdict::Passed { greeting, is_accepted, by_password } => {
                    if is_accepted {
                        let line = tried.last().copied().filter(|_| by_password);
                        self.user.note_accepted(endpoint, upstream, line);
                    }
                    return Ok((stream, greeting));
                }
                Verdict::NotReady => return Err(LoginError::NotReady(CANNOT_CONNECT_NOW.to_owned())),
                Verdict::NotPostgres => {
                    return Err(LoginError::Endpoint(dial_failed(io::Error::other(NOT_POSTGRES))));
                }
                Verdict::Rejected(why) => break why,
                Verdict::WrongPassword(why) => {
                    if let Some(UpstreamPassword { line, .. }) = entry {
                        self.user.passwords.note_wrong(self.user.name, line, OffsetDateTime::now_utc());
                    }
                    match untried.next() {
                        Some(next) => entry = Some(next),
                        None => break why,
                    }
                }
            }
        };
        Err(LoginError::Endpoint(self.user.rejected(endpoint, upstream, &tried, &why)))
    }

    /// Authenticates on a new connection.
    async fn log_in(&self, stream: &mut UpstreamStream, entry: Option<&UpstreamPassword>) -> io::Result<Verdict> {
        let nonce = scram::nonce().ok_or_else(|| io::Error::other("the system has no random numbers"))?;
        let (binding, is_confidential) = match stream {
            Stream::Tls(stream) => (stream.engine().server_chain().first().and_then(|leaf| end_point(leaf)), true),
            Stream::Plain(socket) => (None, matches!(socket, Socket::Unix(_))),
        };
        let credentials = Credentials {
            user: self.user.name,
            password: entry.map(UpstreamPassword::expose),
            binding: binding.as_deref(),
            is_confidential,
        };
        send(stream, self.startup).await?;
        let mut login = UpstreamLogin::new(credentials, nonce);
        let mut bytes = [0; 4096];
        loop {
            let count = stream.read(&mut bytes).await?;
            let received = bytes.get(..count).filter(|received| !received.is_empty());
            let mut chunk = received.ok_or_else(|| io::Error::other(CLOSED_WITHOUT_RESPONSE))?;
            let mut out = Zeroizing::default();
            let known = |parameters: &Parameters| self.user.passwords.salted(entry?, parameters);
            let step = loop {
                match login.follow(chunk, &mut out, known) {
                    Ok(UpstreamStep::Salt(parameters)) => self.salt(entry, parameters).await?,
                    step => break step,
                }
                chunk = &[];
            };
            send(stream, &out).await?;
            match step {
                Ok(UpstreamStep::Ongoing | UpstreamStep::Salt(_)) => {}
                step => return Ok(Verdict::of(step, login.has_sent_password())),
            }
        }
    }

    /// Computes SaltedPassword, which takes milliseconds, on another thread.
    async fn salt(&self, entry: Option<&UpstreamPassword>, parameters: Parameters) -> io::Result<()> {
        let Some(entry) = entry.cloned() else { return Ok(()) };
        let passwords = self.user.passwords.clone();
        let work = move || {
            let salted = parameters.salted(entry.expose());
            passwords.keep_salted(&entry, parameters, salted);
        };
        fault::contained_blocking(PART, work)
            .await
            .map_err(|_| io::Error::other("an internal error prevented the authentication"))
    }
}

impl Verdict {
    fn of(step: Result<UpstreamStep, UpstreamFailure>, by_password: bool) -> Self {
        match step {
            Ok(UpstreamStep::Done { rest }) => Self::Passed { greeting: rest, is_accepted: true, by_password },
            Ok(UpstreamStep::Refused(refusal)) => match (refusal.not_ready, refusal.wrong_password) {
                (true, _) => Self::NotReady,
                (false, true) if refusal.password_was_sent => Self::WrongPassword(refusal.text()),
                (false, true) => Self::Rejected(refusal.text()),
                // Such as too many connections (53300). The client gets the error of the database.
                (false, false) => Self::Passed { greeting: refusal.message, is_accepted: false, by_password },
            },
            Err(
                UpstreamFailure::Malformed
                | UpstreamFailure::Type(_)
                | UpstreamFailure::Order(_)
                | UpstreamFailure::Version,
            )
            | Ok(UpstreamStep::Ongoing | UpstreamStep::Salt(_)) => Self::NotPostgres,
            Err(failure) => Self::Rejected(failure.to_string()),
        }
    }
}

async fn send(stream: &mut UpstreamStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
