//! A client that authenticates again in the middle of its session, which Redis allows at any time.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::audit::event::ConnectionFields;
use crate::credential::credentials::Credentials;
use crate::credential::login::Login;
use crate::login::redis::attempt::Attempt;
use crate::login::redis::credentials::UpstreamCredentials;
use crate::policy::authorize::Denial;
use crate::policy::usage::Authorization;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::proxy::accepted::Shared;
use crate::proxy::phase::authenticate::check::Claim;
use crate::session::registry::ConnectionHandle;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::login::DatabaseUser;
use crate::upstream::{Upstream, proxy_header};

/// Who a client of a session is, and by which policy that is decided. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    connection: ConnectionHandle,
    fields: ConnectionFields,
    start: Start,
}

/// With what a session has begun.
#[derive(Debug)]
pub(crate) struct Start {
    /// Only used while the listener no longer exists.
    pub(crate) policy: Arc<ListenerPolicy>,
    /// Only used while the policy has none.
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) endpoint: Endpoint,
}

/// The check of a password.
pub(crate) type Checking = Pin<Box<dyn CheckFuture>>;

/// A future that can be shown.
pub(crate) trait CheckFuture: Future<Output = Checked> + Send {}

impl<F: Future<Output = Checked> + Send> CheckFuture for F {}

impl fmt::Debug for dyn CheckFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckFuture")
    }
}

/// The result of a check.
#[derive(Debug)]
pub(crate) enum Checked {
    /// The client continues as this user of the database.
    Right(UpstreamCredentials),
    Wrong,
    /// The check has panicked.
    Fault,
}

impl Account {
    pub(crate) fn new(
        shared: Arc<Shared>,
        connection: ConnectionHandle,
        fields: ConnectionFields,
        start: Start,
    ) -> Self {
        Self(Arc::new(Inner { shared, connection, fields, start }))
    }

    /// Checks a password by the policy in force. If it is right, the session belongs to its user from then on.
    pub(crate) fn check(&self, attempt: &Attempt) -> Checking {
        let (inner, shown_user) = (Arc::clone(&self.0), attempt.shown_user());
        let snapshot = Arc::clone(&inner.shared.current.borrow());
        let (policy, credentials) = inner.in_force(&snapshot);
        let claim = Claim::new(attempt, policy, credentials, inner.fields.client);
        Box::pin(async move { inner.check(claim, &shown_user).await })
    }
}

impl Inner {
    fn in_force(&self, snapshot: &Snapshot) -> (Arc<ListenerPolicy>, Arc<Credentials>) {
        let policy = snapshot.named(&self.fields.listener).unwrap_or(&self.start.policy);
        (Arc::clone(policy), Arc::clone(policy.credentials.as_ref().unwrap_or(&self.start.credentials)))
    }

    async fn check(&self, claim: Claim, shown_user: &str) -> Checked {
        let Ok(checked) = claim.check().await else { return Checked::Fault };
        let login = match checked {
            Ok(login) => login,
            Err(why) => {
                let fields = ConnectionFields { user: Some(shown_user.into()), ..self.fields.clone() };
                self.shared.audit.authentication_failed(&fields, why);
                return Checked::Wrong;
            }
        };
        let Some(policy) = self.adopt(&login) else { return Checked::Wrong };
        // The session stays at its server when the listener gets another one, which must not learn the new server's passwords.
        let is_same = policy.upstream.settings == self.start.policy.upstream.settings;
        let policy = if is_same { &policy } else { &self.start.policy };
        let credentials = policy.credentials.as_ref().unwrap_or(&self.start.credentials);
        let passwords = &credentials.upstream_passwords;
        let user = DatabaseUser { name: &login.upstream_user, passwords };
        if passwords.count() > 1 && passwords.begin_learning(user.name, OffsetDateTime::now_utc()) {
            self.learn(&policy.upstream, user).await;
        }
        Checked::Right(user.redis_credentials(passwords.in_order(user.name).first()))
    }

    /// Finds out which password the server accepts now, on a connection of its own: the one that worked last may be the old one.
    async fn learn(&self, upstream: &Upstream, user: DatabaseUser<'_>) {
        let deadline = Instant::now() + upstream.settings.connect_timeout;
        let header = proxy_header::own_header(upstream);
        // If the server cannot be reached, the password that worked last is the best guess.
        let _ = user.dial_redis(&self.start.endpoint, upstream, &header, deadline).await;
    }

    /// Makes a login that of the session. Returns the policy in force; `None` if it does not accept the login any more.
    fn adopt(&self, login: &Login) -> Option<Arc<ListenerPolicy>> {
        let mut is_adopted = false;
        loop {
            let snapshot = Arc::clone(&self.shared.current.borrow());
            let (policy, credentials) = self.in_force(&snapshot);
            let session = self.connection.session()?;
            let Authorization { login: present, identity, .. } = &session.authorization;
            let next = match present {
                Some(present) if is_adopted => Login::clone(present),
                Some(present) => present.followed_by(login.clone()),
                None => login.clone(),
            };
            let now = OffsetDateTime::now_utc();
            let names = identity.iter().flat_map(|identity| identity.names());
            match credentials.judge(&next, names, now) {
                Ok(judged) => {
                    let authorization =
                        Authorization { login: Some(Arc::new(judged)), ..session.authorization.clone() };
                    policy.usage.note(&authorization, self.fields.client, now);
                    // Otherwise the session was judged meanwhile, so the present authorization is another one.
                    is_adopted |= self.connection.replace(&session, authorization);
                    // A reload from here on finds the new login. A reload just before may have missed it.
                    if is_adopted && self.shared.current.borrow().generation == snapshot.generation {
                        return Some(policy);
                    }
                }
                Err(revoked) if is_adopted => {
                    self.connection.end(Denial::Login(revoked).into_session_outcome());
                    return None;
                }
                Err(_) => return None,
            }
        }
    }
}
