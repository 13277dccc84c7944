//! Selects the PostgreSQL server for a session when the upstream has several endpoints or `target = "primary"`.
//!
//! The client's StartupMessage is sent to one endpoint after the other, and the replies are withheld, until a server accepts
//! the session. Endpoints that hang, close the connection or report that they are starting or stopping are skipped.
//!
//! With `target = "primary"` the replies are withheld until the server reports its role, which it does only after
//! authentication. A server that asks the client for a password cannot be replaced without the client noticing. If that server
//! is a standby, the client gets an error that makes it reconnect, and the endpoint is tried last from then on.

use std::io;
use std::mem;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use crate::outcome::{Outcome, Reason};
use crate::protocol::farewell::farewell_message;
use crate::protocol::postgres::startup::{RECOVERY_QUERY, ServerRole, StartupStep, Withhold};
use crate::protocol::{Protocol, Target, postgres};
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::dial::{Candidates, Dialed};
use crate::proxy::phase::startup::SessionRequest;
use crate::proxy::relay::startup::StartupRelay;
use crate::upstream::dial::{
    CLOSED_WITHOUT_RESPONSE, EndpointError, EndpointFault, NOT_POSTGRES, closed_early, dial_failed, unsuitable,
};
use crate::upstream::record::{record_failure, record_healthy, record_role};

/// A client and the endpoint that serves its session.
#[derive(Debug)]
pub(crate) struct SelectedUpstream {
    pub(crate) dialed: Dialed,
    /// The startup of a PostgreSQL session, which may not be complete.
    pub(crate) startup: Option<Box<StartupRelay>>,
}

#[derive(Debug)]
pub(crate) enum Selected {
    Session(Box<SelectedUpstream>),
    /// The endpoint is rejected. The client has received nothing from it, so the next endpoint can be tried.
    Retry(SessionRequest),
}

/// Decides whether the dialed endpoint serves the session.
pub(crate) async fn select(dialed: Dialed, candidates: &mut Candidates) -> Result<Selected, Close> {
    let Dialed { authorized, connected, .. } = &dialed;
    let policy = &authorized.policy;
    if policy.protocol != Protocol::Postgres {
        record_healthy(&connected.endpoint, &policy.upstream);
        return Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: None })));
    }
    let withhold = match policy.upstream.settings.target {
        Target::Primary => Withhold::Role,
        // A restarting server accepts connections before it is ready.
        Target::Any if candidates.has_several() || candidates.has_waited() => Withhold::Refusal,
        Target::Any => Withhold::Nothing,
    };
    let mut startup = Box::new(StartupRelay::new(&dialed, withhold));
    if withhold == Withhold::Nothing {
        startup.follow(&dialed.connected.greeting);
        record_healthy(&dialed.connected.endpoint, &dialed.authorized.policy.upstream);
        return Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: Some(startup) })));
    }
    let mut attempt = StartupAttempt { dialed, startup, has_waited: candidates.has_waited() };
    let result = attempt.run(candidates.response_timeout()).await;
    let StartupAttempt { dialed, startup, .. } = attempt;
    let Dialed { authorized, connected, buffered, access } = dialed;
    let (endpoint, upstream) = (&connected.endpoint, &authorized.policy.upstream);
    match result {
        AttemptResult::Accepted(role) => {
            record_healthy(endpoint, upstream);
            if role == Some(ServerRole::Primary) {
                record_role(endpoint, upstream, true);
            }
            // The attempt has already sent the client's bytes.
            let dialed = Dialed { authorized, connected, buffered: Vec::new(), access };
            Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: Some(startup) })))
        }
        AttemptResult::Rejected(endpoint_error, role) => {
            if role == Some(ServerRole::Standby) {
                record_role(endpoint, upstream, false);
            }
            if !startup.asks_client() {
                candidates.reject(endpoint, upstream, endpoint_error);
                return Ok(Selected::Retry(SessionRequest { authorized, buffered, access }));
            }
            // The client takes part in the startup by now, so a lost connection may be its doing and ejects nothing.
            if endpoint_error.fault == EndpointFault::Unsuitable {
                record_failure(endpoint, upstream, &endpoint_error, candidates.has_several());
            }
            let next = if role == Some(ServerRole::Standby) {
                "; other endpoints are tried first when the client reconnects"
            } else {
                ""
            };
            let detail = format_args!("upstream {endpoint}: {}{next}", endpoint_error.detail);
            let outcome = Outcome::new(endpoint_error.reason, detail);
            Err(Close::with_message(outcome, authorized.client, postgres::try_again()))
        }
        AttemptResult::ClientLost(error) => Err(Outcome::new(Reason::ClientClosed, error).into()),
        AttemptResult::Idle => {
            Err(Close::with_message(Reason::IdleTimeout, authorized.client, farewell_message(Reason::IdleTimeout)))
        }
    }
}

/// Runs the startup between client and server until the endpoint is accepted or rejected.
struct StartupAttempt {
    dialed: Dialed,
    startup: Box<StartupRelay>,
    /// The client was held while the upstream refused connections. It stays held while the server starts.
    has_waited: bool,
}

enum AttemptResult {
    Accepted(Option<ServerRole>),
    Rejected(EndpointError, Option<ServerRole>),
    ClientLost(io::Error),
    /// No byte in either direction for `idle_timeout`, after the server asked the client for a password.
    Idle,
}

impl StartupAttempt {
    async fn run(&mut self, response_timeout: Duration) -> AttemptResult {
        let deadline = Instant::now() + response_timeout;
        let Dialed { connected, buffered, .. } = &mut self.dialed;
        if let Err(error) = send(&mut connected.stream, buffered).await {
            return self.lost(&error);
        }
        // What the server has sent since Portcullis has authenticated to it.
        let greeting = mem::take(&mut self.dialed.connected.greeting);
        if !greeting.is_empty() {
            let step = self.startup.follow(&greeting);
            if let Some(result) = self.apply(step, true).await {
                return result;
            }
        }
        loop {
            let result = match self.startup.asks_client() {
                // No deadline for the client's password: the server has its own authentication timeout.
                true => match self.dialed.authorized.policy.limits.idle_timeout {
                    Some(limit) => timeout(limit, self.step()).await.unwrap_or(Some(AttemptResult::Idle)),
                    None => self.step().await,
                },
                false => timeout_at(deadline, self.step()).await.unwrap_or_else(|_| Some(unresponsive(NO_RESPONSE))),
            };
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Reads once from either side and forwards what may pass.
    async fn step(&mut self) -> Option<AttemptResult> {
        let Dialed { authorized: AuthorizedClient { client, .. }, connected, buffered, .. } = &mut self.dialed;
        let can_retry = !self.startup.asks_client();
        let (mut from_upstream, mut from_client) = ([0; 4096], [0; 4096]);
        let step = tokio::select! {
            read = connected.stream.read(&mut from_upstream) => match read {
                Ok(0) => return Some(unresponsive(CLOSED_WITHOUT_RESPONSE)),
                Ok(count) => self.startup.follow(from_upstream.get(..count).unwrap_or_default()),
                Err(error) => return Some(self.lost(&error)),
            },
            read = client.read(&mut from_client), if !can_retry || buffered.len() < MAX_REPEATED => {
                let bytes = match read {
                    Ok(0) => return Some(AttemptResult::ClientLost(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => from_client.get(..count).unwrap_or_default(),
                    Err(error) => return Some(AttemptResult::ClientLost(error)),
                };
                if can_retry {
                    buffered.extend_from_slice(bytes);
                }
                let sent = send(&mut connected.stream, bytes).await;
                return sent.err().map(|error| self.lost(&error));
            }
        };
        self.apply(step, can_retry).await
    }

    /// Acts on a step of the startup.
    async fn apply(&mut self, step: StartupStep, can_retry: bool) -> Option<AttemptResult> {
        match step {
            // The server accepts the session. The relay sends the pending reply to the client.
            StartupStep::Ongoing if self.startup.withhold() == Withhold::Refusal && self.startup.has_pending() => {
                return Some(AttemptResult::Accepted(None));
            }
            StartupStep::Role(ServerRole::Standby) => {
                let error = unsuitable("is a standby, but target is \"primary\"");
                return Some(AttemptResult::Rejected(error, Some(ServerRole::Standby)));
            }
            StartupStep::Refused if self.startup.is_not_ready() => {
                let endpoint_error =
                    EndpointError { refuses: self.has_waited, ..unsuitable("is not ready for connections (57P03)") };
                return Some(AttemptResult::Rejected(endpoint_error, None));
            }
            StartupStep::Lost if can_retry => return Some(unresponsive(NOT_POSTGRES)),
            StartupStep::Aborted => return Some(unresponsive("did not report whether it is a primary")),
            // A refusal goes to the client. A server that does not report its role may be a primary.
            StartupStep::Role(role @ (ServerRole::Primary | ServerRole::Unknown)) => {
                self.startup.release();
                return Some(AttemptResult::Accepted(Some(role)));
            }
            StartupStep::Refused | StartupStep::Done | StartupStep::Lost => {
                self.startup.release();
                return Some(AttemptResult::Accepted(None));
            }
            StartupStep::Ongoing | StartupStep::Ask => {}
        }
        let Dialed { authorized: AuthorizedClient { client, .. }, connected, .. } = &mut self.dialed;
        if let Err(error) = send(client, &self.startup.take_pending()).await {
            return Some(AttemptResult::ClientLost(error));
        }
        if step == StartupStep::Ask {
            return send(&mut connected.stream, RECOVERY_QUERY).await.err().map(|error| self.lost(&error));
        }
        None
    }

    fn lost(&self, error: &io::Error) -> AttemptResult {
        AttemptResult::Rejected(closed_early(error, &self.dialed.authorized.policy.upstream), None)
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// The endpoint does not respond as a PostgreSQL server does.
fn unresponsive(detail: &str) -> AttemptResult {
    AttemptResult::Rejected(dial_failed(io::Error::other(detail)), None)
}

const NO_RESPONSE: &str = "accepted the connection but did not respond within connect_timeout";

/// The most bytes that a client may send after its StartupMessage before the server has asked for a password. They are kept
/// for the next endpoint.
const MAX_REPEATED: usize = 32 << 10;
