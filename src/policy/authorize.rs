//! The two access decisions, source and identity, made by one snapshot. They apply to every new connection, and again to
//! every open session when the policy changes or a deadline passes.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::credential::login::{Login, RevokedLogin};
use crate::identity::client_verifier::{ClientIdentity, PresentedIdentity};
use crate::identity::verified::VerifiedIdentity;
use crate::outcome::{Outcome, Reason};
use crate::policy::{ListenerPolicy, Snapshot};
use crate::source::trusted::{SourceMatch, Untrusted};

/// Proof that a policy admits the source and the identity of a client.
#[must_use]
#[derive(Clone, Debug)]
pub struct Permit {
    pub policy: Arc<ListenerPolicy>,
    /// What admits the source.
    pub source_match: SourceMatch,
    /// The verified identity; `None` without a client certificate.
    pub identity: Option<Arc<VerifiedIdentity>>,
    /// How the client has authenticated; see [`Self::with_login`].
    pub(crate) login: Option<Login>,
}

/// Why a client is denied.
#[derive(Clone, Debug)]
pub enum Denial {
    /// The listener was removed.
    Listener,
    /// The proxy that announced the client is no longer trusted.
    Proxy(ClientAddr),
    /// The client address is not trusted.
    Source(Untrusted),
    /// The client certificate is missing or not accepted.
    Identity(Outcome),
    /// The client has authenticated, but not with a credential that the policy has.
    Login(RevokedLogin),
}

impl Snapshot {
    /// Authorizes the source and the identity of a client.
    ///
    /// # Errors
    /// The reason of the denial.
    pub fn authorize(
        &self,
        listener: &str,
        from: ClientOrigin,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Result<Permit, Denial> {
        let permit = self.authorize_source(listener, from, now)?;
        let identity = permit.policy.authorize_identity(presented, now);
        permit.with_identity(identity)
    }

    /// Authorizes source and identity if that needs no signature verification; `None` if it might.
    pub fn reauthorize_from_path(
        &self,
        listener: &str,
        from: ClientOrigin,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<Permit, Denial>> {
        match self.authorize_source(listener, from, now) {
            Ok(permit) => {
                let identity = permit.policy.reverify_identity_from_path(presented, now)?;
                Some(permit.with_identity(identity))
            }
            Err(denial) => Some(Err(denial)),
        }
    }

    /// Authorizes the identity only; `None` if the listener was removed.
    pub fn authorize_identity(
        &self,
        listener: &str,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<ClientIdentity, Outcome>> {
        Some(self.named(listener)?.authorize_identity(presented, now))
    }

    /// Authorizes the source, given the decision about the identity of a session with the same chain.
    ///
    /// # Errors
    /// The reason of the denial.
    pub fn authorize_with_identity(
        &self,
        listener: &str,
        from: ClientOrigin,
        identity: Result<ClientIdentity, Outcome>,
        now: OffsetDateTime,
    ) -> Result<Permit, Denial> {
        self.authorize_source(listener, from, now)?.with_identity(identity)
    }

    /// Authorizes the source only, including the proxy that announced it.
    ///
    /// # Errors
    /// The reason of the denial.
    pub fn authorize_source(&self, listener: &str, from: ClientOrigin, now: OffsetDateTime) -> Result<Permit, Denial> {
        let policy = self.named(listener).ok_or(Denial::Listener)?;
        if let Some(via) = from.proxy().filter(|via| !policy.proxies.contains(*via)) {
            return Err(Denial::Proxy(via));
        }
        let admitted = policy.sources.admit(from.client, now).map_err(Denial::Source)?;
        Ok(Permit {
            policy: Arc::clone(policy),
            source_match: admitted.source_match().clone(),
            identity: None,
            login: None,
        })
    }
}

impl ListenerPolicy {
    /// Authorizes the identity.
    ///
    /// # Errors
    /// The outcome of a new connection.
    pub fn authorize_identity(
        &self,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Result<ClientIdentity, Outcome> {
        let Some(tls) = &self.tls else { return Ok(ClientIdentity::Anonymous) };
        self.with_rotation_hint(tls.trust().verify(presented, now), presented)
    }

    fn reverify_identity_from_path(
        &self,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<ClientIdentity, Outcome>> {
        let Some(tls) = &self.tls else { return Some(Ok(ClientIdentity::Anonymous)) };
        Some(self.with_rotation_hint(tls.trust().reverify_from_path(presented, now)?, presented))
    }

    /// Adds to a rejection how a certificate rotation explains it.
    fn with_rotation_hint(
        &self,
        identity: Result<ClientIdentity, Outcome>,
        presented: PresentedIdentity<'_>,
    ) -> Result<ClientIdentity, Outcome> {
        identity.map_err(|mut outcome| {
            if let Some(rejected) = presented.leaf() {
                self.add_rotation_hint(&rejected, &mut outcome);
            }
            outcome
        })
    }
}

impl Permit {
    /// Adds the decision about how the client has authenticated. A client that has not is admitted: it authenticates later, or
    /// its session is older than `[listener.credentials]`. Without this section every login is kept as it is.
    ///
    /// # Errors
    /// If the credential is removed, expired or disabled.
    pub(crate) fn with_login(mut self, login: Option<&Login>, now: OffsetDateTime) -> Result<Self, Denial> {
        self.login = match (&self.policy.credentials, login) {
            (Some(credentials), Some(login)) => {
                let names = self.identity.iter().flat_map(|identity| identity.names());
                Some(credentials.judge(login, names, now).map_err(Denial::Login)?)
            }
            (None, login) => login.cloned(),
            (Some(_), None) => None,
        };
        Ok(self)
    }

    /// Adds the decision about the identity.
    fn with_identity(mut self, identity: Result<ClientIdentity, Outcome>) -> Result<Self, Denial> {
        self.identity = match identity.map_err(Denial::Identity)? {
            ClientIdentity::Certified(identity) => Some(identity),
            ClientIdentity::Anonymous => None,
        };
        Ok(self)
    }
}

impl Denial {
    /// The outcome of a new connection.
    pub fn into_connection_outcome(self) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Proxy(via) => Outcome::new(Reason::UntrustedSource, announced_by(via, PRESENT.proxy)),
            Self::Source(untrusted) => Outcome::new(Reason::UntrustedSource, untrusted),
            Self::Identity(outcome) => outcome,
            Self::Login(revoked) => Outcome::new(Reason::CredentialRevoked, revoked),
        }
    }

    /// The outcome of an open session.
    pub fn into_session_outcome(self) -> Outcome {
        self.outcome(&PRESENT)
    }

    /// The outcome that an open session would have under a planned policy.
    pub fn into_plan_outcome(self) -> Outcome {
        self.outcome(&PLANNED)
    }

    fn outcome(self, text: &Text) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Proxy(via) => Outcome::new(Reason::SourceRevoked, announced_by(via, text.proxy)),
            Self::Source(untrusted @ Untrusted { expired: Some(_) }) => Outcome::new(Reason::RuleExpired, untrusted),
            Self::Source(Untrusted { expired: None }) => Outcome::new(Reason::SourceRevoked, text.no_rule),
            Self::Login(revoked) => Outcome::new(Reason::CredentialRevoked, revoked),
            Self::Identity(outcome) if outcome.reason == Reason::ClientCertificateExpired => outcome,
            Self::Identity(Outcome { reason, detail }) => {
                let missing = || format!("{reason}: the session has no client certificate, and one {}", text.required);
                let detail = if detail.is_empty() { missing() } else { detail };
                Outcome { reason: Reason::CredentialRevoked, detail }
            }
        }
    }
}

/// Parts of the reasons why a session is closed.
struct Text {
    no_rule: &'static str,
    proxy: &'static str,
    required: &'static str,
}

const PRESENT: Text = Text {
    no_rule: "no rule trusts this address",
    proxy: "is no longer listed in proxy_protocol.trusted",
    required: "is now required",
};

/// For a policy that is not in force yet.
const PLANNED: Text = Text {
    no_rule: "no rule would trust this address",
    proxy: "would no longer be listed in proxy_protocol.trusted",
    required: "would be required",
};

fn announced_by(via: ClientAddr, status: &str) -> String {
    format!("announced by {}, which {status}", via.source())
}
