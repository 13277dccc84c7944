//! Since when what a listener goes by has been in force, and what went out of it: for the operator who rotates, and for the
//! words about a client that still comes with the old.

use crate::tls::failure;
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
use crate::source::trusted::TrustedSources;
use crate::timestamp;
use crate::x509::certificate::{Certificate, NameDigest};

/// The history of one listener's certificates and rules. Immutable, like the terms it belongs to.
#[derive(Clone, Debug, Default)]
pub struct CertificateHistory {
    since: HashMap<String, GenerationStamp>,
    departed: Vec<RemovedCertificate>,
    /// When the listener itself was added.
    begun: Option<GenerationStamp>,
    /// The rules that were added later. Shared, because there can be many.
    rules: Arc<HashMap<Source, GenerationStamp>>,
}

/// When a generation came into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationStamp {
    /// Counts applied configurations, from 1.
    pub generation: u64,
    /// The time.
    pub at: OffsetDateTime,
}

/// A certificate that was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemovedCertificate {
    /// Its role, as in audit events.
    pub role: &'static str,
    /// RFC 4514 text, escaped and cut.
    pub subject: String,
    /// The digest of its whole subject.
    pub subject_digest: NameDigest,
    /// Its fingerprint.
    pub sha256: String,
    /// By which generation; `None` where that is only planned.
    pub by: Option<GenerationStamp>,
}

impl CertificateHistory {
    /// The history of a listener that now goes by these certificates, following `before`.
    pub(crate) fn after<'a>(
        before: Option<&ListenerPolicy>,
        now: GenerationStamp,
        certificates: impl Iterator<Item = (&'static str, &'a Certificate)>,
        sources: &TrustedSources,
    ) -> Self {
        let former = before.map(|before| &before.history);
        let known = |sha256: &str| former.and_then(|former| former.since.get(sha256)).copied();
        let since: HashMap<_, _> = certificates
            .map(|(_, certificate)| (certificate.sha256.clone(), known(&certificate.sha256).unwrap_or(now)))
            .collect();
        let gone = before
            .into_iter()
            .flat_map(ListenerPolicy::certificates)
            .filter(|(_, old)| !since.contains_key(&old.sha256));
        let gone = gone.map(|(role, old)| RemovedCertificate {
            role,
            subject: old.subject.clone(),
            subject_digest: old.subject_digest,
            sha256: old.sha256.clone(),
            by: Some(now),
        });
        let still_gone = former.into_iter().flat_map(|former| &former.departed);
        let still_gone = still_gone.filter(|departed| !since.contains_key(&departed.sha256)).cloned();
        let departed = gone.chain(still_gone).take(MOST_DEPARTED).collect();
        let begun = former.and_then(|former| former.begun).or(Some(now));
        Self { since, departed, begun, rules: before.map_or_else(Arc::default, |before| rules(before, now, sources)) }
    }

    /// The same history for a generation that may never come into force.
    pub(crate) fn planned(mut self, generation: u64) -> Self {
        for departed in &mut self.departed {
            departed.by = departed.by.filter(|by| by.generation != generation);
        }
        self
    }

    /// Since when a certificate has been in force without a break.
    pub fn since(&self, sha256: &str) -> Option<GenerationStamp> {
        self.since.get(sha256).copied()
    }

    /// Since when a rule of the listener has been in force without a break.
    pub fn rule_since(&self, source: &Source) -> Option<GenerationStamp> {
        self.rules.get(source).copied().or(self.begun)
    }
}

/// The rules that are younger than the listener, following `before`.
fn rules(
    before: &ListenerPolicy,
    now: GenerationStamp,
    sources: &TrustedSources,
) -> Arc<HashMap<Source, GenerationStamp>> {
    let known: HashSet<&Source> = before.sources.trusted.rules().iter().map(|rule| &rule.source).collect();
    let former = &before.history.rules;
    let since = |source: &Source| if known.contains(source) { former.get(source).copied() } else { Some(now) };
    let younger = sources.rules().iter().filter_map(|rule| Some((rule.source.clone(), since(&rule.source)?)));
    Arc::new(younger.collect())
}

impl ListenerPolicy {
    /// Explains a failed handshake, with what of it came by a rotation.
    pub fn handshake_failure(
        &self,
        error: &io::Error,
        shown: Option<&Certificate>,
        refused: Option<&RefusedClient>,
    ) -> Outcome {
        let mut ending = failure::handshake_failure(error, shown, refused);
        if failure::is_refusal_of_ours(error)
            && let Some(since) = shown.and_then(|shown| self.history.since(&shown.sha256))
        {
            ending.add(format_args!("; this certificate has been in use since {since}"));
        }
        if let Some(certificate) = refused.and_then(|refused| refused.certificate.as_ref()) {
            self.tell_kin(certificate, &mut ending);
        }
        ending
    }

    /// Adds to the refusal of a client certificate that its CA, or it itself, has been trusted until lately, or that another
    /// CA of the same name is trusted.
    pub(crate) fn tell_kin(&self, refused: &Certificate, ending: &mut Outcome) {
        if ending.reason != Reason::ClientCertificateUnknownCa {
            return;
        }
        if self.anchors.iter().any(|anchor| anchor.subject_digest == refused.issuer_digest) {
            ending.add(
                "; client_ca has a CA of that name with another key, as when a CA was made anew under its old name",
            );
        }
        let is_of_it = |departed: &&RemovedCertificate| match departed.role {
            "client_ca" => departed.subject_digest == refused.issuer_digest,
            _ => departed.role == "client_certificate" && departed.sha256 == refused.sha256,
        };
        if let Some(RemovedCertificate { subject, by, .. }) = self.history.departed.iter().find(is_of_it) {
            let subject = printable::quoted(subject);
            match by {
                Some(by) => ending.add(format_args!("; {subject} was taken out by {by}")),
                None => ending.add(format_args!("; {subject} would be removed by this reload")),
            }
        }
    }
}

impl fmt::Display for GenerationStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, at } = self;
        let at = timestamp::seconds(*at);
        match generation {
            // The first was no reload.
            1 => write!(f, "the start at {at}"),
            _ => write!(f, "the reload to generation {generation} at {at}"),
        }
    }
}

/// What went out long ago nobody asks for.
const MOST_DEPARTED: usize = 64;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::policy::fixtures::{Site, listener};

    #[test]
    fn what_stays_keeps_its_date_and_what_goes_is_remembered_until_it_comes_back() {
        let site = Site::new();
        let year = OffsetDateTime::now_utc() + Duration::days(365);
        let old = site.install("db", year);
        let config = listener("db", 1001, "");
        let first = site.snapshot(&config, None);
        let same = site.snapshot(&config, Some(&first));
        let old_pair = ["crt", "key"].map(|ending| std::fs::read(site.path(&format!("db.{ending}"))).unwrap());
        let new = site.install("db", year);
        let turned = site.snapshot(&config, Some(&same));
        let generation = |snapshot: &crate::policy::Snapshot, sha256: &str| {
            snapshot.named("db").unwrap().history.since(sha256).map(|since| since.generation)
        };
        assert_eq!(generation(&same, &old), Some(1));
        assert_eq!((generation(&turned, &old), generation(&turned, &new)), (None, Some(3)));
        let departed = &turned.named("db").unwrap().history.departed;
        assert!(
            matches!(departed.as_slice(), [only] if only.sha256 == old && only.by.is_some_and(|by| by.generation == 3)),
            "{departed:?}"
        );

        for (ending, bytes) in ["crt", "key"].into_iter().zip(old_pair) {
            std::fs::write(site.path(&format!("db.{ending}")), bytes).unwrap();
        }
        let back = site.snapshot(&config, Some(&turned));
        assert_eq!(generation(&back, &old), Some(4));
        assert!(back.named("db").unwrap().history.departed.iter().all(|departed| departed.sha256 == new));
    }

    #[test]
    fn rule_is_as_old_as_the_reload_that_added_it() {
        let site = Site::new();
        site.install("db", OffsetDateTime::now_utc() + Duration::days(365));
        let of = |sources: &str| listener("db", 1001, sources);
        let first = site.snapshot(of(r#""10.0.0.1", "10.0.0.2""#), None);
        let added = site.snapshot(of(r#""10.0.0.1", "10.0.0.2", "10.0.0.3""#), Some(&first));
        let removed = site.snapshot(of(r#""10.0.0.1", "10.0.0.3""#), Some(&added));
        let back = site.snapshot(of(r#""10.0.0.1", "10.0.0.2", "10.0.0.3""#), Some(&removed));
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
