//! When what a listener goes by was last used by a handshake: the evidence that the old one of two can go.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use super::Terms;
use super::judge::Permission;
use crate::policy::{self, Rule};
use crate::tls::{Certificate, Credential, Evidence, Voucher};

/// Something that lets clients in, or that they are shown, and that can be taken out by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A server certificate, trust anchor or pinned client certificate, by its fingerprint.
    Certificate(Arc<str>),
    /// A rule for this network or host.
    Source(policy::Source),
}

/// When the first and the last handshake was that used something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// The first since the program started.
    pub first: OffsetDateTime,
    /// The last.
    pub last: OffsetDateTime,
}

/// What the handshakes of one listener used. Goes on from one generation to the next.
#[derive(Debug, Default)]
pub struct Usage {
    items: Mutex<HashMap<Item, Uses>>,
}

/// What one client was let in by. Does not keep the terms alive that it was let in under.
#[derive(Clone, Debug, Default)]
pub struct Reliance {
    /// The rule that trusts its source; none where something else let it in.
    pub rule: Option<Arc<Rule>>,
    /// What it identified itself with, where that counts.
    pub credential: Option<Arc<Credential>>,
    /// The same, also while no certificate is asked for: one may be asked for again.
    pub presented: Option<Arc<Credential>>,
    /// The certificate it was shown.
    pub shown: Option<Arc<Certificate>>,
    /// It came without TLS.
    pub plaintext: bool,
}

impl Reliance {
    /// That of a client that was shown this certificate, or none where it came without TLS.
    pub fn on(permission: &Permission, shown: Option<Arc<Certificate>>) -> Self {
        let Permission { standing, credential, .. } = permission;
        let [credential, presented] = [credential.clone(), credential.clone()];
        Self { rule: standing.rule().cloned(), credential, presented, shown, plaintext: false }
    }

    /// The same of a client that came without TLS.
    pub fn in_plaintext(permission: &Permission) -> Self {
        Self { plaintext: true, ..Self::on(permission, None) }
    }

    /// What there is to judge its identity by again.
    pub fn evidence(&self) -> Evidence<'_> {
        if self.plaintext { Evidence::Plaintext } else { Evidence::Credential(self.presented.as_ref()) }
    }

    /// That of the same client, judged again.
    #[must_use]
    pub fn renewed(&self, permission: &Permission) -> Self {
        let renewed = Self::on(permission, self.shown.clone());
        let presented = renewed.presented.or_else(|| self.presented.clone());
        Self { presented, plaintext: self.plaintext, ..renewed }
    }

    /// Whether it would make no difference to go on with the other.
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<Credential>>, other: &Option<Arc<Credential>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.rule == other.rule && same(&self.credential, &other.credential) && same(&self.presented, &other.presented)
    }

    /// From when on the questions have to be put again, though no policy may have changed.
    pub fn until(&self) -> Option<OffsetDateTime> {
        let rule = self.rule.as_ref().and_then(|rule| rule.expires_at);
        let credential = self.credential.as_ref().map(|credential| credential.until);
        rule.into_iter().chain(credential).min()
    }

    /// Everything it relies on.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        let Self { rule, credential, shown, .. } = self;
        let rule = rule.as_ref().map(|rule| Item::Source(rule.source.clone()));
        let voucher = credential.as_ref().map(|credential| match &credential.voucher {
            Voucher::Anchor { sha256, .. } => Item::Certificate(Arc::clone(sha256)),
            Voucher::Pinned => Item::Certificate(credential.certificate.sha256.as_str().into()),
        });
        let shown = shown.as_ref().map(|shown| Item::Certificate(shown.sha256.as_str().into()));
        [rule, voucher, shown].into_iter().flatten()
    }
}

impl Usage {
    /// Notes a handshake.
    pub fn note(&self, reliance: &Reliance, now: OffsetDateTime) {
        let mut items = self.items();
        for item in reliance.items() {
            items.entry(item).and_modify(|uses| uses.last = now).or_insert(Uses { first: now, last: now });
        }
    }

    /// When something was used, if it was.
    pub fn of(&self, item: &Item) -> Option<Uses> {
        self.items().get(item).copied()
    }

    /// Forgets what these terms no longer know.
    pub fn keep_only(&self, terms: &Terms) {
        let certificates: HashSet<&str> = terms.certificates().map(|(_, facts)| facts.sha256.as_str()).collect();
        let sources: HashSet<_> = terms.sources.trusted.rules().iter().map(|rule| &rule.source).collect();
        self.items().retain(|item, _| match item {
            Item::Certificate(sha256) => certificates.contains(&**sha256),
            Item::Source(source) => sources.contains(source),
        });
    }

    fn items(&self) -> MutexGuard<'_, HashMap<Item, Uses>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
