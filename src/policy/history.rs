//! Since when certificates and rules of a listener are in force, and which certificates were removed. Used for rotation status,
//! and to explain the rejection of a client that still uses an old certificate.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::identity::recording::RefusedClient;
use crate::outcome::{Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::printable;
use crate::source::rule::Source;
use crate::source::rule_set::touched;
use crate::source::trusted::TrustedSources;
use crate::timestamp;
use crate::tls::failure;
use crate::x509::certificate::{Certificate, NameDigest};

/// The history of one listener's certificates and rules. Immutable, like the policy it belongs to.
#[derive(Clone, Debug, Default)]
pub struct CertificateHistory {
    since: HashMap<String, GenerationStamp>,
    removed: Vec<RemovedCertificate>,
    /// When the listener was added.
    added: Option<GenerationStamp>,
    /// Rules added after the listener. Shared, because there can be many.
    rules: Arc<HashMap<Source, GenerationStamp>>,
}

/// A generation, and when it came into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationStamp {
    /// Counted from 1.
    pub generation: u64,
    pub at: OffsetDateTime,
}

/// A certificate that was removed from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemovedCertificate {
    /// The role as in audit events.
    pub role: &'static str,
    /// RFC 4514 text, escaped and truncated.
    pub subject: String,
    /// The digest of the complete subject.
    pub subject_digest: NameDigest,
    pub sha256: String,
    /// The generation that removed it; `None` in a plan.
    pub by: Option<GenerationStamp>,
}

impl CertificateHistory {
    /// Builds the history of a listener with these certificates and rules, as the successor of `before`.
    pub(crate) fn after<'a>(
        before: Option<&ListenerPolicy>,
        now: GenerationStamp,
        certificates: impl Iterator<Item = (&'static str, &'a Certificate)>,
        sources: &TrustedSources,
    ) -> Self {
        let former = before.map(|before| &before.history);
        let known = |sha256: &str| former.and_then(|former| former.since.get(sha256)).copied();
        let since: HashMap<_, _> = certificates
            .map(|(_, certificate)| (certificate.sha256.to_string(), known(certificate.sha256.as_str()).unwrap_or(now)))
            .collect();
        let newly_removed = before
            .into_iter()
            .flat_map(ListenerPolicy::certificates)
            .filter(|(_, old)| !since.contains_key(old.sha256.as_str()));
        let newly_removed = newly_removed.map(|(role, old)| RemovedCertificate {
            role,
            subject: old.subject.clone(),
            subject_digest: old.subject_digest,
            sha256: old.sha256.to_string(),
            by: Some(now),
        });
        let still_removed = former.into_iter().flat_map(|former| &former.removed);
        let still_removed = still_removed.filter(|removed| !since.contains_key(&removed.sha256)).cloned();
        let removed = newly_removed.chain(still_removed).take(MAX_REMOVED).collect();
        let added = former.and_then(|former| former.added).or(Some(now));
        Self { since, removed, added, rules: before.map_or_else(Arc::default, |before| rules(before, now, sources)) }
    }

    /// Returns the same history for a plan, in which no certificate has been removed by `generation` yet.
    pub(crate) fn planned(mut self, generation: u64) -> Self {
        for removed in &mut self.removed {
            removed.by = removed.by.filter(|by| by.generation != generation);
        }
        self
    }

    /// Since when a certificate has been continuously in force.
    pub fn since(&self, sha256: &str) -> Option<GenerationStamp> {
        self.since.get(sha256).copied()
    }

    /// Since when a rule of the listener has been continuously in force.
    pub fn rule_since(&self, source: &Source) -> Option<GenerationStamp> {
        self.rules.get(source).copied().or(self.added)
    }
}

/// The rules added after the listener, given those of `before`.
fn rules(
    before: &ListenerPolicy,
    now: GenerationStamp,
    sources: &TrustedSources,
) -> Arc<HashMap<Source, GenerationStamp>> {
    let (old, former) = (before.sources.trusted.rules(), &before.history.rules);
    let candidates = touched(sources.rules(), old);
    if candidates.is_empty() && former.is_empty() {
        return Arc::clone(former);
    }
    let touched_sources: HashSet<&Source> = candidates.iter().map(|rule| &rule.source).collect();
    let known = old.iter().map(|rule| &rule.source).filter(|source| touched_sources.contains(source));
    let known: HashSet<&Source> = known.collect();
    let is_new = |source: &Source| touched_sources.contains(source) && !known.contains(source);
    let since = |source: &Source| if is_new(source) { Some(now) } else { former.get(source).copied() };
    // Without former ones, only a touched rule can be younger than the listener.
    let all = if former.is_empty() { candidates } else { sources.rules() };
    let younger = all.iter().filter_map(|rule| Some((rule.source.clone(), since(&rule.source)?)));
    Arc::new(younger.collect())
}

impl ListenerPolicy {
    /// Explains a failed handshake, with a hint if a certificate rotation caused it.
    pub fn handshake_failure(
        &self,
        error: &io::Error,
        shown: Option<&Certificate>,
        refused: Option<&RefusedClient>,
    ) -> Outcome {
        let mut outcome = failure::handshake_failure(error, shown, refused);
        if failure::is_refusal_of_ours(error)
            && let Some(since) = shown.and_then(|shown| self.history.since(shown.sha256.as_str()))
        {
            outcome.add(format_args!("; this certificate has been in use since {since}"));
        }
        if let Some(certificate) = refused.and_then(|refused| refused.certificate.as_ref()) {
            self.add_rotation_hint(certificate, &mut outcome);
        }
        outcome
    }

    /// Adds to the rejection of a client certificate that the certificate or its CA was removed, or that another CA of the same
    /// name is trusted.
    pub(crate) fn add_rotation_hint(&self, rejected: &Certificate, outcome: &mut Outcome) {
        if outcome.reason != Reason::ClientCertificateUnknownCa {
            return;
        }
        if self.anchors.iter().any(|anchor| anchor.subject_digest == rejected.issuer_digest) {
            outcome.add(
                "; client_ca contains a CA of the same name with another key; the CA may have been recreated under its old name",
            );
        }
        let is_related = |removed: &&RemovedCertificate| match removed.role {
            "client_ca" => removed.subject_digest == rejected.issuer_digest,
            _ => removed.role == "client_certificate" && removed.sha256 == rejected.sha256.as_str(),
        };
        if let Some(RemovedCertificate { role, subject, by, .. }) = self.history.removed.iter().find(is_related) {
            let subject = printable::quoted(subject);
            match by {
                Some(by) => outcome.add(format_args!("; {subject} was removed by {by}")),
                None if *role == "client_certificate" => {
                    outcome.add(format_args!("; {subject} would no longer be pinned"));
                }
                None => outcome.add(format_args!("; {subject} would be removed by this reload")),
            }
        }
    }
}

impl fmt::Display for GenerationStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, at } = self;
        let at = timestamp::seconds(*at);
        match generation {
            // The first generation is the start, not a reload.
            1 => write!(f, "the start at {at}"),
            _ => write!(f, "the reload to generation {generation} at {at}"),
        }
    }
}

/// Older removals are forgotten.
const MAX_REMOVED: usize = 64;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::policy::fixtures::{ConfigDir, listener};

    #[test]
    fn kept_certificate_keeps_its_date_and_removed_one_is_remembered_until_it_returns() {
        let dir = ConfigDir::new();
        let year = OffsetDateTime::now_utc() + Duration::days(365);
        let old = dir.install("db", year);
        let config = listener("db", 1001, "");
        let first = dir.snapshot(&config, None);
        let same = dir.snapshot(&config, Some(&first));
        let old_pair = ["crt", "key"].map(|ending| std::fs::read(dir.path(&format!("db.{ending}"))).unwrap());
        let new = dir.install("db", year);
        let rotated = dir.snapshot(&config, Some(&same));
        let generation = |snapshot: &crate::policy::Snapshot, sha256: &str| {
            snapshot.named("db").unwrap().history.since(sha256).map(|since| since.generation)
        };
        assert_eq!(generation(&same, &old), Some(1));
        assert_eq!((generation(&rotated, &old), generation(&rotated, &new)), (None, Some(3)));
        let removed = &rotated.named("db").unwrap().history.removed;
        assert!(
            matches!(removed.as_slice(), [only] if only.sha256 == old && only.by.is_some_and(|by| by.generation == 3)),
            "{removed:?}"
        );

        for (ending, bytes) in ["crt", "key"].into_iter().zip(old_pair) {
            std::fs::write(dir.path(&format!("db.{ending}")), bytes).unwrap();
        }
        let back = dir.snapshot(&config, Some(&rotated));
        assert_eq!(generation(&back, &old), Some(4));
        assert!(back.named("db").unwrap().history.removed.iter().all(|removed| removed.sha256 == new));
    }

    #[test]
    fn rule_is_as_old_as_the_reload_that_added_it() {
        let dir = ConfigDir::new();
        dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
        let of = |sources: &str| listener("db", 1001, sources);
        let first = dir.snapshot(of(r#""10.0.0.1", "10.0.0.2""#), None);
        let added = dir.snapshot(of(r#""10.0.0.1", "10.0.0.2", "10.0.0.3""#), Some(&first));
        let removed = dir.snapshot(of(r#""10.0.0.1", "10.0.0.3""#), Some(&added));
        let back = dir.snapshot(of(r#""10.0.0.1", "10.0.0.2", "10.0.0.3""#), Some(&removed));
        let policy = back.named("db").unwrap();
        let since =
            |rule: &crate::source::rule::Rule| policy.history.rule_since(&rule.source).map(|since| since.generation);
        let mut generations: Vec<_> =
            policy.sources.trusted.rules().iter().map(|rule| (rule.to_string(), since(rule).unwrap())).collect();
        generations.sort();
        let expected = [("ip_addr:10.0.0.1", 1), ("ip_addr:10.0.0.2", 4), ("ip_addr:10.0.0.3", 2)];
        assert_eq!(generations, expected.map(|(rule, generation)| (rule.to_owned(), generation)));
    }
}
