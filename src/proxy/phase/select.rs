//! Whether the PostgreSQL server that was reached will do, where there are several or one is wanted that takes writes.
//!
//! The client's StartupMessage goes to one place after the other, and the client hears nothing, until one begins to deal with
//! it and does not say that it is only starting or stopping. One that hangs or closes is gone past, too.
//!
//! Which role it has a server says only behind authentication, which is between it and the client. So where one is wanted that
//! takes writes, the client hears nothing until a server says that it is a primary; but one that asks the client for a password
//! cannot be exchanged any more without the client noticing. If that one is a standby, the client is told to come again, and
//! from then on the place is tried behind the others.

use std::io;
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
use crate::upstream::dial::{EndpointError, closed_early, unhealthy};
use crate::upstream::record::{record_failure, record_healthy, record_role};

/// A client and an upstream that will do.
#[derive(Debug)]
pub(crate) struct SelectedUpstream {
    pub(crate) dialed: Dialed,
    /// The beginning of a PostgreSQL session, as far as it has come.
    pub(crate) startup: Option<Box<StartupRelay>>,
}

/// What has come of a node.
#[derive(Debug)]
pub(crate) enum Selected {
    Session(Box<SelectedUpstream>),
    /// It will not do, and the client has not noticed.
    Retry(SessionRequest),
}

pub(crate) async fn select(dialed: Dialed, candidates: &mut Candidates) -> Result<Selected, Close> {
    let Dialed { authorized, connected, .. } = &dialed;
    let policy = &authorized.policy;
    if policy.protocol != Protocol::Postgres {
        record_healthy(&connected.endpoint, &policy.upstream);
        return Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: None })));
    }
    let withhold = match policy.upstream.settings.target {
        Target::Primary => Withhold::Role,
        // A server that restarts takes connections before it is ready.
        Target::Any if candidates.has_several() || candidates.has_waited() => Withhold::Refusal,
        Target::Any => Withhold::Nothing,
    };
    let startup = Box::new(StartupRelay::of(&dialed, withhold));
    if withhold == Withhold::Nothing {
        record_healthy(&dialed.connected.endpoint, &dialed.authorized.policy.upstream);
        return Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: Some(startup) })));
    }
    let mut probe = StartupProbe { dialed, startup, has_waited: candidates.has_waited() };
    let result = probe.withhold(candidates.patience()).await;
    let StartupProbe { dialed, startup, .. } = probe;
    let Dialed { authorized, connected, first } = dialed;
    let (endpoint, upstream) = (&connected.endpoint, &authorized.policy.upstream);
    match result {
        ProbeResult::Chosen(role) => {
            record_healthy(endpoint, upstream);
            if role == Some(ServerRole::Primary) {
                record_role(endpoint, upstream, true);
            }
            // It has had the first packet.
            let dialed = Dialed { authorized, connected, first: Vec::new() };
            Ok(Selected::Session(Box::new(SelectedUpstream { dialed, startup: Some(startup) })))
        }
        ProbeResult::EndpointError(endpoint_error, role) => {
            if role == Some(ServerRole::Standby) {
                record_role(endpoint, upstream, false);
            }
            if !startup.asks_client() {
                candidates.reject(endpoint, upstream, endpoint_error);
                return Ok(Selected::Retry(SessionRequest { authorized, first }));
            }
            if endpoint_error.is_healthy {
                record_failure(endpoint, upstream, &endpoint_error, candidates.has_several());
            }
            let next = if role == Some(ServerRole::Standby) {
                "; when the client comes again another is tried first"
            } else {
                ""
            };
            let detail = format_args!("upstream {endpoint}: {}{next}", endpoint_error.words);
            let ending = Outcome::new(endpoint_error.reason, detail);
            Err(Close::with_words(ending, authorized.client, postgres::try_again()))
        }
        ProbeResult::ClientLost(error) => Err(Outcome::new(Reason::ClientClosed, error).into()),
        ProbeResult::Silence => {
            Err(Close::with_words(Reason::IdleTimeout, authorized.client, farewell_message(Reason::IdleTimeout)))
        }
    }
}

/// A server that has to show what it is.
struct StartupProbe {
    dialed: Dialed,
    startup: Box<StartupRelay>,
    /// The client has been held already while the upstream refused connections, and is held on while it starts.
    has_waited: bool,
}

enum ProbeResult {
    /// It is the client's, for better or worse.
    Chosen(Option<ServerRole>),
    EndpointError(EndpointError, Option<ServerRole>),
    ClientLost(io::Error),
    /// The client was asked for something, and nothing was said for as long as a session may be silent.
    Silence,
}

impl StartupProbe {
    async fn withhold(&mut self, patience: Duration) -> ProbeResult {
        let deadline = Instant::now() + patience;
        let Dialed { connected, first, .. } = &mut self.dialed;
        if let Err(error) = send(&mut connected.stream, first).await {
            return self.lost(&error);
        }
        loop {
            let result = match self.startup.asks_client() {
                // The client takes its time, and the server gives it one.
                true => match self.dialed.authorized.policy.limits.idle_timeout {
                    Some(limit) => timeout(limit, self.step()).await.unwrap_or(Some(ProbeResult::Silence)),
                    None => self.step().await,
                },
                false => timeout_at(deadline, self.step()).await.unwrap_or_else(|_| Some(unresponsive(HANGS))),
            };
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// One step further, between the two.
    async fn step(&mut self) -> Option<ProbeResult> {
        let Dialed { authorized: AuthorizedClient { client, .. }, connected, first } = &mut self.dialed;
        let repeatable = !self.startup.asks_client();
        let (mut theirs, mut ours) = ([0; 4096], [0; 4096]);
        let step = tokio::select! {
            heard = connected.stream.read(&mut theirs) => match heard {
                Ok(0) => return Some(unresponsive("it closed the connection without a word")),
                Ok(count) => self.startup.follow(theirs.get(..count).unwrap_or_default()),
                Err(error) => return Some(self.lost(&error)),
            },
            said = client.read(&mut ours), if !repeatable || first.len() < MAX_REPEATED => {
                let bytes = match said {
                    Ok(0) => return Some(ProbeResult::ClientLost(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => ours.get(..count).unwrap_or_default(),
                    Err(error) => return Some(ProbeResult::ClientLost(error)),
                };
                if repeatable {
                    first.extend_from_slice(bytes);
                }
                let sent = send(&mut connected.stream, bytes).await;
                return sent.err().map(|error| self.lost(&error));
            }
        };
        match step {
            // It deals with the client. What that is to hear of it by now is left to the relay.
            StartupStep::Ongoing if self.startup.withhold() == Withhold::Refusal && self.startup.has_pending() => {
                return Some(ProbeResult::Chosen(None));
            }
            StartupStep::Role(ServerRole::Standby) => {
                let words = "it is a standby, and target is \"primary\"";
                return Some(ProbeResult::EndpointError(unsuitable(words), Some(ServerRole::Standby)));
            }
            StartupStep::Refused if self.startup.is_not_ready() => {
                let endpoint_error =
                    EndpointError { refuses: self.has_waited, ..unsuitable("it is not ready for connections (57P03)") };
                return Some(ProbeResult::EndpointError(endpoint_error, None));
            }
            StartupStep::Lost if repeatable => return Some(unresponsive("what answers is no PostgreSQL server")),
            StartupStep::Aborted => return Some(unresponsive("it did not say whether it is a primary")),
            // What a refusal says is for the client; and one that does not tell its role may be what is wanted.
            StartupStep::Role(role @ (ServerRole::Primary | ServerRole::Unknown)) => {
                self.startup.release();
                return Some(ProbeResult::Chosen(Some(role)));
            }
            StartupStep::Refused | StartupStep::Done | StartupStep::Lost => {
                self.startup.release();
                return Some(ProbeResult::Chosen(None));
            }
            StartupStep::Ongoing | StartupStep::Ask => {}
        }
        if let Err(error) = send(client, &self.startup.take_pending()).await {
            return Some(ProbeResult::ClientLost(error));
        }
        if step == StartupStep::Ask {
            return send(&mut connected.stream, RECOVERY_QUERY).await.err().map(|error| self.lost(&error));
        }
        None
    }

    fn lost(&self, error: &io::Error) -> ProbeResult {
        ProbeResult::EndpointError(closed_early(error, &self.dialed.authorized.policy.upstream), None)
    }
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// It does not answer as a server should.
fn unresponsive(words: &str) -> ProbeResult {
    ProbeResult::EndpointError(unhealthy(io::Error::other(words)), None)
}

/// It answers, but is not what is wanted, or not yet.
fn unsuitable(words: &str) -> EndpointError {
    let reason = Reason::UpstreamUnreachable;
    EndpointError { reason, words: words.to_owned(), is_healthy: true, is_local: false, refuses: false }
}

const HANGS: &str = "it took the connection, and then there was no answer in time (connect_timeout)";

/// What a client may say behind its StartupMessage before it has been asked: it is kept, to be said to another server again.
const MAX_REPEATED: usize = 32 << 10;
