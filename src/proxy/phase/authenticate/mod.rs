//! Authentication of the client by Portcullis, on a listener with `[listener.credentials]`.
//!
//! Until it has authenticated, a client costs the upstream nothing, keeps its handshake permit, and has `handshake_timeout`.
//! A client with a certificate that belongs to its user needs no password. An attempt that fails is audited; one after many
//! failures of its source waits for its turn, which holds no worker.

pub(crate) mod postgres;

use std::sync::Arc;

use crate::audit::Audit;
use crate::audit::event::ConnectionFields;
use crate::credential::credentials::Credentials;
use crate::credential::login::Login;
use crate::policy::ListenerPolicy;
use crate::protocol::Protocol;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;

/// How a client has authenticated, and how Portcullis acts for it at the database.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) login: Login,
    /// The user at the database.
    pub(crate) upstream_user: String,
    /// The first bytes for the database. For PostgreSQL: the StartupMessage in the place of the client's.
    pub(crate) startup: Vec<u8>,
    /// Those by which the client has authenticated.
    credentials: Arc<Credentials>,
}

impl Access {
    /// The passwords of the database are those in force now, unless the policy no longer has any.
    pub(crate) fn credentials<'a>(&'a self, policy: &'a ListenerPolicy) -> &'a Credentials {
        policy.credentials.as_ref().unwrap_or(&self.credentials)
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
        // `reauthorize` denies a client that has to authenticate and has not.
        (Some(_), Protocol::Redis | Protocol::Tcp) | (None, _) => Ok(request),
    }
}
