//! The two questions, source and identity, put to one snapshot: by a connection on its way in, and again for every open
//! session when the policy or the time has changed.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::identity::client_verifier::{Evidence, Identity};
use crate::identity::verified::Credential;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Snapshot, Terms};
use crate::source::trusted::{Standing, Stranger};

/// Leave to go on: both questions were answered well, under these terms.
#[must_use]
#[derive(Clone, Debug)]
pub struct Permission {
    /// The listener's terms.
    pub terms: Arc<Terms>,
    /// What lets the source in.
    pub standing: Standing,
    /// What the client identified itself with.
    pub credential: Option<Arc<Credential>>,
}

/// Why a client may not go on.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Its listener is no longer there.
    Listener,
    /// The load balancer that speaks for it is one no more.
    Balancer(ClientAddr),
    /// Its address is not trusted.
    Source(Stranger),
    /// What it identified itself with is not good, or not there.
    Identity(Outcome),
}

impl Snapshot {
    /// Puts both questions.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn judge(
        &self,
        listener: &str,
        from: ClientOrigin,
        evidence: Evidence<'_>,
        now: OffsetDateTime,
    ) -> Result<Permission, Refusal> {
        let permission = self.judge_source(listener, from, now)?;
        let judged = permission.terms.judge_identity(evidence, now);
        permission.of(judged)
    }

    /// Puts both questions, where the answer costs no signature. Nothing, where it might.
    pub fn recheck(
        &self,
        listener: &str,
        from: ClientOrigin,
        evidence: Evidence<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<Permission, Refusal>> {
        match self.judge_source(listener, from, now) {
            Ok(permission) => {
                let judged = permission.terms.recheck_identity(evidence, now)?;
                Some(permission.of(judged))
            }
            Err(refusal) => Some(Err(refusal)),
        }
    }

    /// Puts the identity question only. Nothing, where the listener is gone.
    pub fn judge_identity(
        &self,
        listener: &str,
        evidence: Evidence<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<Identity, Outcome>> {
        Some(self.named(listener)?.judge_identity(evidence, now))
    }

    /// Puts the source question, where the identity question has been answered for a session of the same chain.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn judge_identified(
        &self,
        listener: &str,
        from: ClientOrigin,
        identity: Result<Identity, Outcome>,
        now: OffsetDateTime,
    ) -> Result<Permission, Refusal> {
        self.judge_source(listener, from, now)?.of(identity)
    }

    /// Puts the source question only, and whether the word is still taken by which the client comes from there.
    ///
    /// # Errors
    /// The answer that is no.
    pub fn judge_source(&self, listener: &str, from: ClientOrigin, now: OffsetDateTime) -> Result<Permission, Refusal> {
        let terms = self.named(listener).ok_or(Refusal::Listener)?;
        if let Some(balancer) = from.proxy().filter(|balancer| !terms.balancers.speak_from(*balancer)) {
            return Err(Refusal::Balancer(balancer));
        }
        let admitted = terms.sources.admit(from.client, now).map_err(Refusal::Source)?;
        Ok(Permission { terms: Arc::clone(terms), standing: admitted.standing().clone(), credential: None })
    }
}

impl Terms {
    /// Puts the identity question.
    ///
    /// # Errors
    /// The ending of a connection that is on its way in.
    pub fn judge_identity(&self, evidence: Evidence<'_>, now: OffsetDateTime) -> Result<Identity, Outcome> {
        let Some(tls) = &self.tls else { return Ok(Identity::Anonymous) };
        self.explained(tls.trust().judge(evidence, now), evidence)
    }

    fn recheck_identity(&self, evidence: Evidence<'_>, now: OffsetDateTime) -> Option<Result<Identity, Outcome>> {
        let Some(tls) = &self.tls else { return Some(Ok(Identity::Anonymous)) };
        Some(self.explained(tls.trust().recheck(evidence, now)?, evidence))
    }

    /// Adds to a refusal what a rotation has to do with it.
    fn explained(&self, judged: Result<Identity, Outcome>, evidence: Evidence<'_>) -> Result<Identity, Outcome> {
        judged.map_err(|mut ending| {
            if let Some(refused) = evidence.leaf() {
                self.tell_kin(&refused, &mut ending);
            }
            ending
        })
    }
}

impl Permission {
    /// Adds the answer to the identity question.
    fn of(mut self, judged: Result<Identity, Outcome>) -> Result<Self, Refusal> {
        self.credential = match judged.map_err(Refusal::Identity)? {
            Identity::Certified(credential) => Some(credential),
            Identity::Anonymous => None,
        };
        Ok(self)
    }
}

impl Refusal {
    /// The ending of a connection that is on its way in.
    pub fn at_the_door(self) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Balancer(balancer) => Outcome::new(Reason::UntrustedSource, no_word(balancer)),
            Self::Source(stranger) => Outcome::new(Reason::UntrustedSource, stranger),
            Self::Identity(ending) => ending,
        }
    }

    /// The ending of a session that was let in before.
    pub fn of_a_session(self) -> Outcome {
        self.ending(&PRESENT)
    }

    /// The ending that a session would have, were the policy in force.
    pub fn of_a_plan(self) -> Outcome {
        self.ending(&FUTURE)
    }

    fn ending(self, words: &Words) -> Outcome {
        match self {
            Self::Listener => Reason::ListenerRemoved.into(),
            Self::Balancer(balancer) => {
                let balancer = balancer.source();
                let detail = format_args!("it came by the word of {balancer}, which {}", words.no_balancer);
                Outcome::new(Reason::SourceRevoked, detail)
            }
            Self::Source(stranger @ Stranger { expired: Some(_) }) => Outcome::new(Reason::RuleExpired, stranger),
            Self::Source(Stranger { expired: None }) => Outcome::new(Reason::SourceRevoked, words.no_rule),
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

fn no_word(balancer: ClientAddr) -> String {
    format!(
        "it came by the word of {}, which is no load balancer of proxy_protocol.trusted any more",
        balancer.source()
    )
}
