//! The two questions, source and identity, put to one snapshot: by a connection on its way in, and again for every open
//! session when the policy or the time has changed.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::identity::client_verifier::{ClientIdentity, PresentedIdentity};
use crate::identity::verified::VerifiedIdentity;
use crate::outcome::{Outcome, Reason};
use crate::policy::{ListenerPolicy, Snapshot};
use crate::source::trusted::{SourceMatch, Untrusted};

/// Leave to go on: both questions were answered well, under these terms.
#[must_use]
#[derive(Clone, Debug)]
pub struct Permit {
    /// The listener's terms.
    pub policy: Arc<ListenerPolicy>,
    /// What lets the source in.
    pub source_match: SourceMatch,
    /// What the client identified itself with.
    pub identity: Option<Arc<VerifiedIdentity>>,
}

/// Why a client may not go on.
#[derive(Clone, Debug)]
pub enum Denial {
    /// Its listener is no longer there.
    Listener,
    /// The load balancer that speaks for it is one no more.
    Balancer(ClientAddr),
    /// Its address is not trusted.
    Source(Untrusted),
    /// What it identified itself with is not good, or not there.
    Identity(Outcome),
}

impl Snapshot {
    /// Puts both questions.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn authorize(
        &self,
        listener: &str,
        from: ClientOrigin,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Result<Permit, Denial> {
        let permit = self.authorize_source(listener, from, now)?;
        let verified = permit.policy.verify_identity(presented, now);
        permit.of(verified)
    }

    /// Puts both questions, where the answer costs no signature. Nothing, where it might.
    pub fn reauthorize_from_path(
        &self,
        listener: &str,
        from: ClientOrigin,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<Permit, Denial>> {
        match self.authorize_source(listener, from, now) {
            Ok(permit) => {
                let verified = permit.policy.reverify_identity_from_path(presented, now)?;
                Some(permit.of(verified))
            }
            Err(refusal) => Some(Err(refusal)),
        }
    }

    /// Puts the identity question only. Nothing, where the listener is gone.
    pub fn verify_identity(
        &self,
        listener: &str,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<ClientIdentity, Outcome>> {
        Some(self.named(listener)?.verify_identity(presented, now))
    }

    /// Puts the source question, where the identity question has been answered for a session of the same chain.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn authorize_identified(
        &self,
        listener: &str,
        from: ClientOrigin,
        identity: Result<ClientIdentity, Outcome>,
        now: OffsetDateTime,
    ) -> Result<Permit, Denial> {
        self.authorize_source(listener, from, now)?.of(identity)
    }

    /// Puts the source question only, and whether the word is still taken by which the client comes from there.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn authorize_source(&self, listener: &str, from: ClientOrigin, now: OffsetDateTime) -> Result<Permit, Denial> {
        let policy = self.named(listener).ok_or(Denial::Listener)?;
        if let Some(via) = from.proxy().filter(|via| !policy.proxies.contains(*via)) {
            return Err(Denial::Balancer(via));
        }
        let admitted = policy.sources.admit(from.client, now).map_err(Denial::Source)?;
        Ok(Permit { policy: Arc::clone(policy), source_match: admitted.source_match().clone(), identity: None })
    }
}

impl ListenerPolicy {
    /// Puts the identity question.
    ///
    /// # Errors
    /// The ending of a connection that is on its way in.
    pub fn verify_identity(
        &self,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Result<ClientIdentity, Outcome> {
        let Some(tls) = &self.tls else { return Ok(ClientIdentity::Anonymous) };
        self.explained(tls.trust().verify(presented, now), presented)
    }

    fn reverify_identity_from_path(
        &self,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<ClientIdentity, Outcome>> {
        let Some(tls) = &self.tls else { return Some(Ok(ClientIdentity::Anonymous)) };
        Some(self.explained(tls.trust().reverify_from_path(presented, now)?, presented))
    }

    /// Adds to a refusal what a rotation has to do with it.
    fn explained(
        &self,
        verified: Result<ClientIdentity, Outcome>,
        presented: PresentedIdentity<'_>,
    ) -> Result<ClientIdentity, Outcome> {
        verified.map_err(|mut ending| {
            if let Some(refused) = presented.leaf() {
                self.tell_kin(&refused, &mut ending);
            }
            ending
        })
    }
}

impl Permit {
    /// Adds the answer to the identity question.
    fn of(mut self, verified: Result<ClientIdentity, Outcome>) -> Result<Self, Denial> {
        self.identity = match verified.map_err(Denial::Identity)? {
            ClientIdentity::Certified(identity) => Some(identity),
            ClientIdentity::Anonymous => None,
        };
        Ok(self)
    }
}

impl Denial {
    /// The ending of a connection that is on its way in.
    pub fn into_connection_outcome(self) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Balancer(via) => Outcome::new(Reason::UntrustedSource, no_word(via)),
            Self::Source(untrusted) => Outcome::new(Reason::UntrustedSource, untrusted),
            Self::Identity(ending) => ending,
        }
    }

    /// The ending of a session that was let in before.
    pub fn into_session_outcome(self) -> Outcome {
        self.ending(&PRESENT)
    }

    /// The ending that a session would have, were the policy in force.
    pub fn into_plan_outcome(self) -> Outcome {
        self.ending(&FUTURE)
    }

    fn ending(self, words: &Words) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Balancer(via) => {
                let via = via.source();
                let detail = format_args!("it came by the word of {via}, which {}", words.no_balancer);
                Outcome::new(Reason::SourceRevoked, detail)
            }
            Self::Source(untrusted @ Untrusted { expired: Some(_) }) => Outcome::new(Reason::RuleExpired, untrusted),
            Self::Source(Untrusted { expired: None }) => Outcome::new(Reason::SourceRevoked, words.no_rule),
            Self::Identity(ending) if ending.reason == Reason::ClientCertificateExpired => ending,
            Self::Identity(Outcome { reason, detail }) => {
                let none = || format!("{reason}: it was let in without a client certificate, and {}", words.needs_one);
                let detail = if detail.is_empty() { none() } else { detail };
                Outcome { reason: Reason::CredentialRevoked, detail }
            }
        }
    }
}

/// Parts of the reasons why a session ends.
struct Words {
    no_rule: &'static str,
    no_balancer: &'static str,
    needs_one: &'static str,
}

const PRESENT: Words = Words {
    no_rule: "no rule trusts this address",
    no_balancer: "is no load balancer of proxy_protocol.trusted any more",
    needs_one: "now needs one",
};

/// For a policy that is not in force yet.
const FUTURE: Words = Words {
    no_rule: "no rule would trust this address",
    no_balancer: "would be no load balancer of proxy_protocol.trusted any more",
    needs_one: "would need one",
};

fn no_word(via: ClientAddr) -> String {
    format!("it came by the word of {}, which is no load balancer of proxy_protocol.trusted any more", via.source())
}
