//! When what a listener goes by was last used by a handshake: the evidence that the old one of two can go.

#[cfg(test)]
mod tests;

use crate::source::rule;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::identity::client_verifier::PresentedIdentity;
use crate::identity::verified::{TrustedBy, VerifiedIdentity};
use crate::policy::ListenerPolicy;
use crate::policy::authorize::Permit;
use crate::source::rule::Rule;
use crate::x509::certificate::{Certificate, NameDigest};

/// Something that lets clients in, or that they are shown, and that can be taken out by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A server certificate, trust anchor or pinned client certificate, by its fingerprint.
    Certificate(Arc<str>),
    /// A rule for this network or host.
    Source(rule::Source),
}

/// When something was first and last used, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseRecord {
    /// The first handshake since the program started.
    pub first: OffsetDateTime,
    /// The last handshake, or the end of a session.
    pub last: OffsetDateTime,
    /// The last different users, the latest first; at most eight.
    pub users: Vec<LastUser>,
}

/// Somebody who used something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUser {
    /// RFC 4514 text of the subject, escaped and cut; none without a certificate.
    pub subject: Option<Box<str>>,
    /// The digest of the whole subject.
    digest: Option<NameDigest>,
    /// The source. Its port plays no part.
    source: ClientAddr,
    /// When it last used it.
    pub last: OffsetDateTime,
}

/// What the handshakes of one listener used. Goes on from one generation to the next.
#[derive(Debug, Default)]
pub struct Usage {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    items: HashMap<Item, UseRecord>,
    /// How many users of rules are kept in all.
    users_of_rules: usize,
}

/// What one client was let in by. Does not keep the terms alive that it was let in under.
#[derive(Clone, Debug, Default)]
pub struct Authorization {
    /// The rule that trusts its source; none where something else let it in.
    pub rule: Option<Arc<Rule>>,
    /// What it identified itself with, where that counts.
    pub identity: Option<Arc<VerifiedIdentity>>,
    /// The same, also while no certificate is asked for: one may be asked for again.
    pub presented: Option<Arc<VerifiedIdentity>>,
    /// The certificate it was shown.
    pub shown: Option<Arc<Certificate>>,
    /// It came without TLS.
    pub plaintext: bool,
}

impl Authorization {
    /// That of a client that was shown this certificate, or none where it came without TLS.
    pub fn on(permit: &Permit, shown: Option<Arc<Certificate>>) -> Self {
        let Permit { source_match, identity, .. } = permit;
        let [identity, presented] = [identity.clone(), identity.clone()];
        Self { rule: source_match.rule().cloned(), identity, presented, shown, plaintext: false }
    }

    /// The same of a client that came without TLS.
    pub fn in_plaintext(permit: &Permit) -> Self {
        Self { plaintext: true, ..Self::on(permit, None) }
    }

    /// What there is to judge its identity by again.
    pub fn presented(&self) -> PresentedIdentity<'_> {
        if self.plaintext { PresentedIdentity::Plaintext } else { PresentedIdentity::Verified(self.presented.as_ref()) }
    }

    /// That of the same client, judged again.
    #[must_use]
    pub fn renewed(&self, permit: &Permit) -> Self {
        let renewed = Self::on(permit, self.shown.clone());
        let presented = renewed.presented.or_else(|| self.presented.clone());
        Self { presented, plaintext: self.plaintext, ..renewed }
    }

    /// Whether it would make no difference to go on with the other.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<VerifiedIdentity>>, other: &Option<Arc<VerifiedIdentity>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.rule == other.rule && same(&self.identity, &other.identity) && same(&self.presented, &other.presented)
    }

    /// From when on the questions have to be put again, though no policy may have changed.
    pub fn until(&self) -> Option<OffsetDateTime> {
        let rule = self.rule.as_ref().and_then(|rule| rule.expires_at);
        let identity = self.identity.as_ref().map(|identity| identity.until);
        rule.into_iter().chain(identity).min()
    }

    /// Everything it relies on.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        let Self { rule, identity, shown, .. } = self;
        let rule = rule.as_ref().map(|rule| Item::Source(rule.source.clone()));
        let trusted_by = identity.as_ref().map(|identity| match &identity.trusted_by {
            TrustedBy::Anchor { sha256, .. } => Item::Certificate(Arc::clone(sha256)),
            TrustedBy::Pinned => Item::Certificate(identity.certificate.sha256.as_str().into()),
        });
        let shown = shown.as_ref().map(|shown| Item::Certificate(shown.sha256.as_str().into()));
        [rule, trusted_by, shown].into_iter().flatten()
    }
}

impl LastUser {
    fn new(authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) -> Self {
        let certificate = authorization.identity.as_ref().map(|identity| &identity.certificate);
        Self {
            subject: certificate.map(|certificate| certificate.subject.as_str().into()),
            digest: certificate.map(|certificate| certificate.subject_digest),
            source: client,
            last: now,
        }
    }

    /// The source, as audit events have it.
    pub fn source(&self) -> String {
        self.source.source()
    }

    fn is(&self, other: &Self) -> bool {
        self.digest == other.digest && self.source.ip() == other.source.ip()
    }
}

impl UseRecord {
    /// Notes a use. Returns whether there is one user more than before.
    fn note(&mut self, user: &LastUser, may_grow: bool) -> bool {
        self.last = self.last.max(user.last);
        if let Some(known) = self.users.iter_mut().find(|known| known.is(user)) {
            known.last = known.last.max(user.last);
            return false;
        }
        if may_grow && self.users.len() < MAX_USERS_PER_ITEM {
            self.users.push(user.clone());
            return true;
        }
        if let Some(oldest) = self.users.iter_mut().min_by_key(|known| known.last) {
            oldest.clone_from(user);
        }
        false
    }
}

impl Records {
    /// Notes a use of something that was used before.
    fn note(&mut self, item: &Item, user: &LastUser) {
        let is_rule = matches!(item, Item::Source(_));
        let may_grow = !is_rule || self.users_of_rules < MAX_USERS_OF_RULES;
        let grown = self.items.get_mut(item).is_some_and(|uses| uses.note(user, may_grow));
        self.users_of_rules += usize::from(is_rule && grown);
    }
}

impl Usage {
    /// Notes a handshake of this client.
    pub fn note(&self, authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) {
        let user = LastUser::new(authorization, client, now);
        let mut records = self.records();
        for item in authorization.items() {
            records.items.entry(item.clone()).or_insert_with(|| UseRecord { first: now, last: now, users: Vec::new() });
            records.note(&item, &user);
        }
    }

    /// Notes that a session of this client ends: until now it used what it relied on. What has been removed meanwhile
    /// stays forgotten.
    pub fn note_end(&self, authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) {
        let user = LastUser::new(authorization, client, now);
        let mut records = self.records();
        authorization.items().for_each(|item| records.note(&item, &user));
    }

    /// When something was used and by whom, if it was.
    pub fn of(&self, item: &Item) -> Option<UseRecord> {
        let mut uses = self.records().items.get(item).cloned()?;
        uses.users.sort_by_key(|user| Reverse(user.last));
        Some(uses)
    }

    /// Whether something was used.
    pub fn knows(&self, item: &Item) -> bool {
        self.records().items.contains_key(item)
    }

    /// Forgets what these terms no longer know.
    pub fn keep_only(&self, policy: &ListenerPolicy) {
        let certificates: HashSet<&str> = policy.certificates().map(|(_, facts)| facts.sha256.as_str()).collect();
        let sources: HashSet<_> = policy.sources.trusted.rules().iter().map(|rule| &rule.source).collect();
        let mut records = self.records();
        records.items.retain(|item, _| match item {
            Item::Certificate(sha256) => certificates.contains(&**sha256),
            Item::Source(source) => sources.contains(source),
        });
        let rules = records.items.iter().filter(|(item, _)| matches!(item, Item::Source(_)));
        records.users_of_rules = rules.map(|(_, uses)| uses.users.len()).sum();
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Users kept for one certificate, CA or rule.
const MAX_USERS_PER_ITEM: usize = 8;

/// Users kept for all rules of a listener together: rules can be 100,000. Beyond that the times alone are kept.
const MAX_USERS_OF_RULES: usize = 16_384;
