//! Authentication of the client by Portcullis, on a listener with `[listener.credentials]`.
//!
//! Until it has authenticated, a client costs the upstream nothing, keeps its handshake permit, and has `handshake_timeout`.
//! A client with a certificate that belongs to its user needs no password. An attempt that fails is audited; one after many
//! failures of its source waits for its turn, which holds no worker.

mod certificate;
pub(crate) mod check;
pub(crate) mod postgres;
pub(crate) mod redis;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::sleep;

use crate::addr::ClientAddr;
use crate::audit::Audit;
use crate::audit::event::ConnectionFields;
use crate::credential::credentials::Credentials;
use crate::credential::login::Login;
use crate::limit::attempts::Turn;
use crate::login::redis::attempt::Attempt;
use crate::outcome::{Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::protocol::Protocol;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;
use crate::upstream::login::postgres::PostgresLogin;
use crate::upstream::login::{DatabaseLogin, DatabaseUser};

/// How a client has authenticated, and how Portcullis acts for it at the database.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) login: Login,
    pub(crate) opening: Opening,
    /// Those by which the client has authenticated.
    pub(crate) credentials: Arc<Credentials>,
}

/// What the database receives first from the client, or in its place.
#[derive(Debug)]
pub(crate) enum Opening {
    /// The StartupMessage in the place of the client's.
    Postgres(Vec<u8>),
    /// The command by which the client has authenticated, with a password of the database. `None` with a certificate.
    Redis(Option<Attempt>),
}

impl Access {
    /// The passwords of the database are those in force now, unless the policy no longer has any.
    pub(crate) fn credentials<'a>(&'a self, policy: &'a ListenerPolicy) -> &'a Arc<Credentials> {
        policy.credentials.as_ref().unwrap_or(&self.credentials)
    }

    /// How Portcullis authenticates to the database for this client.
    pub(crate) fn database_login<'a>(&'a self, policy: &'a ListenerPolicy) -> DatabaseLogin<'a> {
        let user =
            DatabaseUser { name: &self.login.upstream_user, passwords: &self.credentials(policy).upstream_passwords };
        match &self.opening {
            Opening::Postgres(startup) => DatabaseLogin::Postgres(PostgresLogin { user, startup }),
            Opening::Redis(_) => DatabaseLogin::Redis(user),
        }
    }
}

/// Authenticates a client if its listener requires that. The returned request has only bytes that follow the authentication.
pub(crate) async fn authenticate(
    request: SessionRequest,
    audit: &Audit,
    fields: &mut ConnectionFields,
) -> Result<SessionRequest, Close> {
    let policy = &request.authorized.policy;
    match (policy.credentials.clone(), policy.protocol) {
        (Some(credentials), Protocol::Postgres) => postgres::authenticate(request, credentials, audit, fields).await,
        (Some(credentials), Protocol::Redis) => redis::authenticate(request, credentials, audit, fields).await,
        // The configuration does not allow credentials there.
        (Some(_), Protocol::Tcp) | (None, _) => Ok(request),
    }
}

/// Waits until an attempt to authenticate may be judged. Holds no worker.
async fn wait_for_turn(policy: &ListenerPolicy, from: ClientAddr, user: &[u8]) -> Turn {
    let turn = policy.attempts.turn(from, user, Instant::now());
    if !turn.delay.is_zero() {
        sleep(turn.delay.min(policy.limits.handshake_timeout / 2)).await;
    }
    turn
}

/// The outcome of a client that cannot be read or written.
fn lost(error: &io::Error) -> Outcome {
    let reason =
        if error.kind() == io::ErrorKind::InvalidData { Reason::ProtocolViolation } else { Reason::ClientClosed };
    Outcome::new(reason, format_args!("client: {error}"))
}

/// Detail for a check that has panicked.
pub(crate) const FAULT: &str = "an internal error prevented the authentication";
