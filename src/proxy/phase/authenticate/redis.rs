//! AUTH and HELLO between a Redis client and Portcullis.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::audit::Audit;
use crate::audit::event::ConnectionFields;
use crate::credential::credentials::Credentials;
use crate::credential::login::{Login, Proof};
use crate::fault::record::Fault;
use crate::login::redis::attempt::Attempt;
use crate::login::redis::before::{Conversation, Event, WRONG_PASSWORD};
use crate::outcome::{Outcome, Reason};
use crate::proxy::phase::authenticate::certificate::owner;
use crate::proxy::phase::authenticate::check::{Claim, Rejection};
use crate::proxy::phase::authenticate::{Access, FAULT, Opening, lost};
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;

/// Authenticates a client that has not sent a byte yet.
pub(crate) async fn authenticate(
    request: SessionRequest,
    credentials: Arc<Credentials>,
    audit: &Audit,
    fields: &mut ConnectionFields,
) -> Result<SessionRequest, Close> {
    let SessionRequest { mut authorized, buffered: _, access: _ } = request;
    let handshake_timeout = authorized.policy.limits.handshake_timeout;
    let mut failed = None;
    let dialogue =
        Dialogue { authorized: &mut authorized, credentials: &credentials, audit, fields, failed: &mut failed };
    let end = match timeout(handshake_timeout, dialogue.run()).await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => End::Closed { reply: Vec::new(), outcome: lost(&error) },
        Err(_) => {
            let detail = "the client did not authenticate within handshake_timeout";
            End::Refused(Outcome::new(Reason::HandshakeTimeout, detail))
        }
    };
    // The last attempt says more about the client than how it left.
    let denied = |outcome: Outcome| match failed {
        Some(why) if outcome.reason != Reason::IoError => Outcome::new(Reason::AuthenticationFailed, why),
        _ => outcome,
    };
    match end {
        End::Admitted { login, attempt, rest } => {
            fields.user = Some(login.client.user.as_str().into());
            let access = Access { login, opening: Opening::Redis(attempt), credentials };
            Ok(SessionRequest { authorized, buffered: rest, access: Some(Box::new(access)) })
        }
        End::Closed { reply, outcome } => Err(Close::with_message(denied(outcome), authorized.client, reply)),
        End::Refused(outcome) => {
            let mut close = authorized.refuse(outcome);
            close.outcome = denied(close.outcome);
            Err(close)
        }
    }
}

/// The conversation with one client that has not authenticated.
struct Dialogue<'a> {
    authorized: &'a mut AuthorizedClient,
    credentials: &'a Arc<Credentials>,
    audit: &'a Audit,
    fields: &'a mut ConnectionFields,
    /// Why its last password was not accepted.
    failed: &'a mut Option<Rejection>,
}

enum End {
    Admitted {
        login: Login,
        /// `None` with a certificate.
        attempt: Option<Attempt>,
        /// What the client has sent after it.
        rest: Vec<u8>,
    },
    /// With the last bytes for the client.
    Closed { reply: Vec<u8>, outcome: Outcome },
    /// With the error of its protocol.
    Refused(Outcome),
}

impl Dialogue<'_> {
    /// # Errors
    /// If the client cannot be read or written.
    async fn run(mut self) -> io::Result<End> {
        if let Some(client) = owner(self.authorized, self.credentials) {
            let login = self.credentials.login(client, Proof::Certificate);
            return Ok(End::Admitted { login, attempt: None, rest: Vec::new() });
        }
        let mut conversation = Conversation::default();
        let mut bytes = [0; READ_SIZE];
        loop {
            let count = self.authorized.client.read(&mut bytes).await?;
            let mut chunk = bytes.get(..count).unwrap_or_default();
            if chunk.is_empty() {
                let outcome = Outcome::new(Reason::ClientClosed, "the client disconnected without authentication");
                return Ok(End::Closed { reply: Vec::new(), outcome });
            }
            let mut replies = Vec::new();
            while let Some(event) = conversation.next(&mut chunk) {
                match event {
                    Event::Reply(reply) => replies.extend(reply),
                    Event::Close(reply) => {
                        replies.extend(reply);
                        let outcome = Outcome::new(Reason::ClientClosed, "the client left without authentication");
                        return Ok(End::Closed { reply: replies, outcome });
                    }
                    Event::Attempt(attempt) => {
                        // What was answered so far must not wait for the check.
                        self.send(&std::mem::take(&mut replies)).await?;
                        match self.check(&attempt).await {
                            Ok(Ok(login)) => {
                                let (attempt, rest) = (Some(attempt), chunk.to_vec());
                                return Ok(End::Admitted { login, attempt, rest });
                            }
                            Ok(Err(_)) => replies.extend(WRONG_PASSWORD),
                            Err(_) => return Ok(End::Refused(Outcome::new(Reason::IoError, FAULT))),
                        }
                    }
                }
            }
            self.send(&replies).await?;
            // Bytes that have come already are read without a pause. Other sessions get their turn before the next ones.
            yield_now().await;
        }
    }

    /// Checks one password. A wrong one is audited.
    async fn check(&mut self, attempt: &Attempt) -> Result<Result<Login, Rejection>, Fault> {
        let (policy, credentials) = (Arc::clone(&self.authorized.policy), Arc::clone(self.credentials));
        let checked = Claim::new(attempt, policy, credentials, self.fields.client).check().await?;
        if let Err(why) = checked {
            *self.failed = Some(why);
            self.fields.user = Some(attempt.shown_user().into());
            self.audit.authentication_failed(self.fields, why);
        }
        Ok(checked)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.authorized.client.write_all(bytes).await?;
            self.authorized.client.flush().await?;
        }
        Ok(())
    }
}

/// In bytes. So many commands of an unauthenticated client are answered at once.
const READ_SIZE: usize = 1024;
