//! When handshakes last used each certificate and rule of a listener: the evidence that an old one can be removed.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::credential::login::{Login, UsedPassword};
use crate::identity::client_verifier::PresentedIdentity;
use crate::identity::verified::{TrustedBy, VerifiedIdentity};
use crate::policy::ListenerPolicy;
use crate::policy::authorize::Permit;
use crate::source::group::{GroupName, SourceGroup};
use crate::source::rule::Source;
use crate::source::rule_set::RuleSet;
use crate::source::trusted::MatchingRule;
use crate::x509::certificate::{Certificate, NameDigest};

/// A certificate or rule that a connection uses and that can be removed separately.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A server certificate, trust anchor or pinned client certificate, by its fingerprint.
    Certificate(Arc<str>),
    /// All rules of the listener for this source. They are one item, whatever their expiry and description are.
    Source(Source),
    /// All rules of a group for this source.
    GroupSource(GroupName, Source),
    /// A password of a client.
    Password(UsedPassword),
}

/// The first and last use of an item, and its last users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UseRecord {
    /// The first handshake since the program started.
    pub first: OffsetDateTime,
    /// The last handshake, or the last end of a session.
    pub last: OffsetDateTime,
    /// The last distinct users, the latest first; at most [`MAX_USERS_PER_ITEM`].
    pub users: Vec<LastUser>,
}

/// A client that used an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastUser {
    /// RFC 4514 text of the subject, escaped and truncated; `None` without a client certificate.
    pub subject: Option<Box<str>>,
    /// The digest of the complete subject.
    digest: Option<NameDigest>,
    /// The client of `clients_file` as which it has authenticated; `None` if it has not.
    pub(crate) user: Option<Box<str>>,
    /// The source. The port is not compared.
    source: ClientAddr,
    pub last: OffsetDateTime,
}

/// What the handshakes of one listener used. Shared by all generations.
#[derive(Debug, Default)]
pub struct Usage {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    items: HashMap<Item, UseRecord>,
    /// The number of users kept for all rules together.
    users_of_rules: usize,
}

/// Everything that one client was admitted by. Does not keep the policy alive that admitted it.
#[derive(Clone, Debug, Default)]
pub struct Authorization {
    /// The rule that trusts its source; `None` if something else admitted it.
    pub rule: Option<MatchingRule>,
    /// The verified identity, if the policy requests client certificates.
    pub identity: Option<Arc<VerifiedIdentity>>,
    /// The identity that the client presented. Kept while the policy requests none, because a later policy may request one.
    pub presented: Option<Arc<VerifiedIdentity>>,
    /// How the client has authenticated; `None` if the listener did not ask, or has not yet.
    pub(crate) login: Option<Arc<Login>>,
    /// The server certificate presented to the client.
    pub shown: Option<Arc<Certificate>>,
    /// Whether the client connected without TLS.
    pub plaintext: bool,
}

impl Authorization {
    /// Builds the authorization of a client to which `shown` was presented; `None` without TLS.
    pub fn on(permit: &Permit, shown: Option<Arc<Certificate>>) -> Self {
        let Permit { policy: _, source_match, identity, login } = permit;
        let [identity, presented] = [identity.clone(), identity.clone()];
        let (rule, login) = (source_match.rule().cloned(), login.clone().map(Arc::new));
        Self { rule, identity, presented, login, shown, plaintext: false }
    }

    /// Builds the authorization of a client without TLS.
    pub fn in_plaintext(permit: &Permit) -> Self {
        Self { plaintext: true, ..Self::on(permit, None) }
    }

    /// What the identity is authorized by again.
    pub fn presented(&self) -> PresentedIdentity<'_> {
        if self.plaintext { PresentedIdentity::Plaintext } else { PresentedIdentity::Verified(self.presented.as_ref()) }
    }

    /// The authorization of the same client under a new permit.
    #[must_use]
    pub fn renewed(&self, permit: &Permit) -> Self {
        let renewed = Self::on(permit, self.shown.clone());
        let presented = renewed.presented.or_else(|| self.presented.clone());
        let login = renewed.login.or_else(|| self.login.clone());
        Self { presented, login, plaintext: self.plaintext, ..renewed }
    }

    /// Whether both admit the client by the same rule, identity and login.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<VerifiedIdentity>>, other: &Option<Arc<VerifiedIdentity>>| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let is_same_login = match (&self.login, &other.login) {
            (Some(one), Some(other)) => one.is_same_as(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.rule == other.rule
            && is_same_login
            && same(&self.identity, &other.identity)
            && same(&self.presented, &other.presented)
    }

    /// The client of `clients_file` as which it has authenticated.
    pub(crate) fn user(&self) -> Option<&str> {
        self.login.as_ref().map(|login| login.client.user.as_str())
    }

    /// When the client must be authorized again even if no policy changes.
    pub fn until(&self) -> Option<OffsetDateTime> {
        let rule = self.rule.as_ref().and_then(MatchingRule::expires_at);
        let identity = self.identity.as_ref().map(|identity| identity.until);
        let login = self.login.as_deref().and_then(Login::until);
        rule.into_iter().chain(identity).chain(login).min()
    }

    /// Every item that the connection uses.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        let Self { rule, identity, login, shown, .. } = self;
        let [rule, through] = rule.as_ref().map_or([None, None], items_of);
        let trusted_by = identity.as_ref().map(|identity| match &identity.trusted_by {
            TrustedBy::Anchor { sha256, .. } => Item::Certificate(Arc::clone(sha256)),
            TrustedBy::Pinned => Item::Certificate(identity.certificate.sha256.as_str().into()),
        });
        let shown = shown.as_ref().map(|shown| Item::Certificate(shown.sha256.as_str().into()));
        let passwords = login.iter().flat_map(|login| login.used_passwords()).map(Item::Password);
        [rule, through, trusted_by, shown].into_iter().flatten().chain(passwords)
    }
}

/// The rule that matches, and for one of a group also the rule of the listener that names the group.
fn items_of(matching: &MatchingRule) -> [Option<Item>; 2] {
    let source = || matching.rule.source.clone();
    match (matching.group(), &matching.through) {
        (Some(group), Some(through)) => {
            [Some(Item::Source(through.source.clone())), Some(Item::GroupSource(group.clone(), source()))]
        }
        _ => [Some(Item::Source(source())), None],
    }
}

impl Item {
    const fn is_rule(&self) -> bool {
        matches!(self, Self::Source(_) | Self::GroupSource(..))
    }
}

impl LastUser {
    fn new(authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) -> Self {
        let certificate = authorization.identity.as_ref().map(|identity| &identity.certificate);
        Self {
            subject: certificate.map(|certificate| certificate.subject.as_str().into()),
            digest: certificate.map(|certificate| certificate.subject_digest),
            user: authorization.user().map(Into::into),
            source: client,
            last: now,
        }
    }

    /// The source as in audit events.
    pub fn source(&self) -> String {
        self.source.source()
    }

    fn is_same_as(&self, other: &Self) -> bool {
        self.digest == other.digest && self.user == other.user && self.source.ip() == other.source.ip()
    }
}

impl UseRecord {
    /// Records a use. Returns whether the number of users has grown.
    fn note(&mut self, user: &LastUser, may_grow: bool) -> bool {
        self.last = self.last.max(user.last);
        if let Some(known) = self.users.iter_mut().find(|known| known.is_same_as(user)) {
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
    /// Records a use of an item that was used before.
    fn note(&mut self, item: &Item, user: &LastUser) {
        let is_rule = item.is_rule();
        let may_grow = !is_rule || self.users_of_rules < MAX_USERS_OF_RULES;
        let grown = self.items.get_mut(item).is_some_and(|uses| uses.note(user, may_grow));
        self.users_of_rules += usize::from(is_rule && grown);
    }

    /// The sources of a set of rules that were used. There may be many more rules than used ones.
    fn used_sources(&self, group: Option<&GroupName>, set: &RuleSet) -> HashSet<Source> {
        let used = self.items.keys().filter_map(|item| match item {
            Item::Source(source) if group.is_none() => Some(source),
            Item::GroupSource(name, source) if group == Some(name) => Some(source),
            Item::Certificate(_) | Item::Source(_) | Item::GroupSource(..) | Item::Password(_) => None,
        });
        let used: HashSet<&Source> = used.collect();
        if used.is_empty() {
            return HashSet::new();
        }
        set.rules().iter().map(|rule| &rule.source).filter(|source| used.contains(source)).cloned().collect()
    }
}

impl Usage {
    /// Records a handshake of this client.
    pub fn note(&self, authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) {
        let user = LastUser::new(authorization, client, now);
        let mut records = self.records();
        for item in authorization.items() {
            records.items.entry(item.clone()).or_insert_with(|| UseRecord { first: now, last: now, users: Vec::new() });
            records.note(&item, &user);
        }
    }

    /// Records the end of a session as a use of its items. Items that were removed during the session stay forgotten.
    pub fn note_end(&self, authorization: &Authorization, client: ClientAddr, now: OffsetDateTime) {
        let user = LastUser::new(authorization, client, now);
        let mut records = self.records();
        authorization.items().for_each(|item| records.note(&item, &user));
    }

    /// Returns the recorded use of an item, latest user first.
    pub fn of(&self, item: &Item) -> Option<UseRecord> {
        let mut uses = self.records().items.get(item).cloned()?;
        uses.users.sort_by_key(|user| Reverse(user.last));
        Some(uses)
    }

    /// Whether an item was used.
    pub fn contains(&self, item: &Item) -> bool {
        self.records().items.contains_key(item)
    }

    /// Forgets the items that are no longer part of the policy.
    pub fn keep_only(&self, policy: &ListenerPolicy) {
        let certificates: HashSet<&str> =
            policy.certificates().map(|(_, certificate)| certificate.sha256.as_str()).collect();
        let mut records = self.records();
        let sources = records.used_sources(None, policy.sources.trusted.own());
        let groups = policy.sources.trusted.groups();
        let of_group = |group: &Arc<SourceGroup>| {
            let sources = records.used_sources(Some(&group.name), &group.sources);
            (group.name.clone(), sources)
        };
        let of_groups: HashMap<GroupName, HashSet<Source>> = groups.map(of_group).collect();
        records.items.retain(|item, _| match item {
            Item::Certificate(sha256) => certificates.contains(&**sha256),
            Item::Source(source) => sources.contains(source),
            Item::GroupSource(group, source) => of_groups.get(group).is_some_and(|sources| sources.contains(source)),
            Item::Password(password) => {
                policy.credentials.as_ref().is_some_and(|credentials| password.is_in(&credentials.clients))
            }
        });
        let rules = records.items.iter().filter(|(item, _)| item.is_rule());
        records.users_of_rules = rules.map(|(_, uses)| uses.users.len()).sum();
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maximum number of users kept for one certificate, CA or rule.
const MAX_USERS_PER_ITEM: usize = 8;

/// Maximum number of users kept for all rules of a listener together, of which there can be 100,000. Above it, only times are
/// kept.
const MAX_USERS_OF_RULES: usize = 16_384;
