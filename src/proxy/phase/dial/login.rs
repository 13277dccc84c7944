//! Authenticates to the database in the place of the client.
//!
//! The passwords of `upstream_password_file` are tried in order, each on a new connection, because a server closes the one
//! with a wrong password. The one that worked is first the next time.

use std::io;

use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::credential::scram;
use crate::credential::upstream_passwords::{UpstreamPassword, UpstreamPasswords};
use crate::credential::verifier::Parameters;
use crate::fault;
use crate::login::postgres::upstream::{Credentials, UpstreamFailure, UpstreamLogin, UpstreamStep};
use crate::outcome::Reason;
use crate::policy::ListenerPolicy;
use crate::printable;
use crate::proxy::phase::authenticate::Access;
use crate::transport::socket::Socket;
use crate::transport::{Stream, UpstreamStream};
use crate::upstream::Upstream;
use crate::upstream::connect::within;
use crate::upstream::dial::{
    CLOSED_WITHOUT_RESPONSE, EndpointError, NOT_POSTGRES, closed_early, dial_endpoint, dial_failed, unsuitable,
};
use crate::upstream::endpoint::Endpoint;
use crate::x509::channel_binding::end_point;

/// How Portcullis authenticates to the database for one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatabaseLogin<'a> {
    access: &'a Access,
    passwords: &'a UpstreamPasswords,
}

/// Why an endpoint does not serve the client.
#[derive(Debug)]
pub(crate) enum DialError {
    Endpoint(EndpointError),
    /// The server is starting or stopping.
    NotReady,
}

impl DialError {
    /// A client that was held while the upstream refused connections stays held while the server starts.
    pub(crate) fn into_error(self, has_waited: bool) -> EndpointError {
        match self {
            Self::Endpoint(error) => error,
            Self::NotReady => {
                EndpointError { refuses: has_waited, ..unsuitable("is not ready for connections (57P03)") }
            }
        }
    }
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

impl<'a> DatabaseLogin<'a> {
    pub(crate) fn new(access: &'a Access, policy: &'a ListenerPolicy) -> Self {
        Self { access, passwords: &access.credentials(policy).upstream_passwords }
    }

    /// Dials an endpoint by `deadline` and authenticates. Returns the stream, and what the client has to receive first.
    pub(crate) async fn dial(
        &self,
        endpoint: &Endpoint,
        upstream: &Upstream,
        header: &[u8],
        deadline: Instant,
    ) -> Result<(UpstreamStream, Vec<u8>), DialError> {
        let user = &self.access.upstream_user;
        let mut untried = self.passwords.in_order(user).into_iter();
        let mut entry = untried.next();
        let mut tried = Vec::new();
        let why = loop {
            let dialed = dial_endpoint(endpoint, upstream, header, deadline).await;
            let mut stream = dialed.map_err(DialError::Endpoint)?;
            let verdict = within(deadline, self.log_in(&mut stream, entry.as_ref())).await;
            tried.extend(entry.as_ref().map(|entry| entry.line));
            match verdict.map_err(|error| DialError::Endpoint(closed_early(&error, upstream)))? {
                Verdict::Passed { greeting, is_accepted, by_password } => {
                    if is_accepted {
                        let line = tried.last().copied().filter(|_| by_password);
                        self.note_accepted(endpoint, upstream, line);
                    }
                    return Ok((stream, greeting));
                }
                Verdict::NotReady => return Err(DialError::NotReady),
                Verdict::NotPostgres => {
                    return Err(DialError::Endpoint(dial_failed(io::Error::other(NOT_POSTGRES))));
                }
                Verdict::Rejected(why) => break why,
                Verdict::WrongPassword(why) => {
                    if let Some(UpstreamPassword { line, .. }) = entry {
                        self.passwords.note_wrong(user, line, OffsetDateTime::now_utc());
                    }
                    match untried.next() {
                        Some(next) => entry = Some(next),
                        None => break why,
                    }
                }
            }
        };
        Err(DialError::Endpoint(self.rejected(endpoint, upstream, &tried, &why)))
    }

    /// Authenticates on a new connection.
    async fn log_in(&self, stream: &mut UpstreamStream, entry: Option<&UpstreamPassword>) -> io::Result<Verdict> {
        let nonce = scram::nonce().ok_or_else(|| io::Error::other("the system has no random numbers"))?;
        let (binding, is_confidential) = match stream {
            Stream::Tls(stream) => (stream.engine().server_chain().first().and_then(|leaf| end_point(leaf)), true),
            Stream::Plain(socket) => (None, matches!(socket, Socket::Unix(_))),
        };
        let credentials = Credentials {
            user: &self.access.upstream_user,
            password: entry.map(UpstreamPassword::expose),
            binding: binding.as_deref(),
            is_confidential,
        };
        send(stream, &self.access.startup).await?;
        let mut login = UpstreamLogin::new(credentials, nonce);
        let mut bytes = [0; 4096];
        loop {
            let count = stream.read(&mut bytes).await?;
            let received = bytes.get(..count).filter(|received| !received.is_empty());
            let mut chunk = received.ok_or_else(|| io::Error::other(CLOSED_WITHOUT_RESPONSE))?;
            let mut out = Zeroizing::default();
            let known = |parameters: &Parameters| self.passwords.salted(entry?, parameters);
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
        let passwords = self.passwords.clone();
        let work = move || {
            let salted = parameters.salted(entry.expose());
            passwords.keep_salted(&entry, parameters, salted);
        };
        fault::contained_blocking(crate::proxy::PART, work)
            .await
            .map_err(|_| io::Error::other("an internal error prevented the authentication"))
    }

    fn note_accepted(&self, endpoint: &Endpoint, upstream: &Upstream, line: Option<usize>) {
        let user = &self.access.upstream_user;
        if self.passwords.note_accepted(user, line, OffsetDateTime::now_utc()) {
            let user = printable::quoted(user);
            info!(listener = %upstream.listener, upstream = %endpoint, user, line, "upstream accepts the user again");
        }
    }

    /// The error of an endpoint that rejects the user with every password. Logs a change.
    fn rejected(&self, endpoint: &Endpoint, upstream: &Upstream, tried: &[usize], why: &str) -> EndpointError {
        let user = printable::quoted(&self.access.upstream_user);
        let lines = tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if self.passwords.note_rejected(&self.access.upstream_user) {
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
