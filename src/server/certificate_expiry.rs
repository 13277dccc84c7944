//! Speaks up in time about certificates in use that are about to run out, and about revocation lists that have.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::warn;

use crate::audit::Audit;
use crate::audit::event::ExpiringCertificate;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::timestamp;
use crate::x509::crl::Crl;
use crate::x509::expiry::{days_left, expiry_milestone};

/// Remembers what it has said already.
#[derive(Debug, Default)]
pub(crate) struct ExpiryWatch {
    told: HashMap<(Arc<str>, String), i64>,
}

impl ExpiryWatch {
    /// Audits every certificate of `snapshot` that has passed a milestone since it was last spoken of.
    pub(crate) fn look(&mut self, snapshot: &Snapshot, audit: &Audit) {
        self.look_at(OffsetDateTime::now_utc(), snapshot, audit);
    }

    fn look_at(&mut self, now: OffsetDateTime, snapshot: &Snapshot, audit: &Audit) {
        let mut told = HashMap::new();
        for policy in snapshot.listeners() {
            for (role, certificate) in policy.certificates() {
                let Some(milestone) = expiry_milestone(certificate.not_after, now) else { continue };
                let key = (Arc::clone(&policy.name), certificate.sha256.clone());
                if told.contains_key(&key) {
                    continue;
                }
                if self.told.get(&key) != Some(&milestone) {
                    let expiring = ExpiringCertificate {
                        role,
                        subject: &certificate.subject,
                        sha256: &certificate.sha256,
                        not_after: certificate.not_after,
                        days_left: days_left(certificate.not_after, now),
                    };
                    audit.certificate_expiring(&policy.name, &expiring);
                }
                told.insert(key, milestone);
            }
        }
        for (policy, list) in lists(snapshot).filter(|(_, list)| list.is_expired_at(now)) {
            // The day it runs out, and every day until there is a new one.
            let day = days_left(list.next_update, now);
            let key = (Arc::clone(&policy.name), list.sha256.clone());
            if self.told.get(&key) != Some(&day) {
                let expired_at = timestamp::seconds(list.next_update);
                warn!(
                    listener = %policy.name,
                    issuer = %list.issuer,
                    expired_at,
                    "CRL expired; put a new one into client_crl"
                );
            }
            told.insert(key, day);
        }
        // What is no longer in use is forgotten, and spoken of anew should it come back.
        self.told = told;
    }
}

fn lists(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<ListenerPolicy>, &Crl)> {
    snapshot.listeners().iter().flat_map(|policy| policy.revocation_lists().iter().map(move |list| (policy, list)))
}

/// What its faults are noted under.
pub(crate) const PART: &str = "certificate expiry";

/// How often to look. Asked by the wall clock each time, so that a suspended machine catches up.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::audit::{LineFormat, open_audit_file};
    use crate::policy::fixtures::{Site, listener};

    /// How often the audit file speaks of a certificate.
    fn mentions(site: &Site, audit: &Audit, sha256: &str) -> usize {
        audit.flush();
        let text = std::fs::read_to_string(site.path("audit.log")).unwrap();
        let lines = text.lines().filter(|line| line.contains("\"event\":\"certificate.expiring\""));
        lines.filter(|line| line.contains(sha256)).count()
    }

    #[test]
    fn a_certificate_is_spoken_of_once_and_again_when_it_comes_back() {
        let site = Site::new();
        let now = OffsetDateTime::now_utc();
        let ending = site.install("ending", now + Duration::days(5));
        let lasting = site.install("lasting", now + Duration::days(365));
        let (ours, theirs) = (listener("ending", 1001, ""), listener("lasting", 1002, ""));
        let both = site.snapshot([ours, theirs.clone()].concat(), None);
        let one = site.snapshot(theirs, None);

        let file = open_audit_file(site.path("audit.log")).unwrap();
        let audit = Audit::start(LineFormat::Json, Some(file));
        let mut watch = ExpiryWatch::default();
        let mut look = |snapshot: &Snapshot| {
            watch.look(snapshot, &audit);
            mentions(&site, &audit, &ending)
        };
        assert_eq!(look(&both), 1);
        assert_eq!(look(&both), 1, "it has been spoken of");
        assert_eq!(look(&one), 1, "it is not in use");
        assert_eq!(look(&both), 2, "it has come back");
        assert_eq!(mentions(&site, &audit, &lasting), 0);
    }

    #[test]
    fn certificate_under_a_clock_that_is_set_is_told_once_for_each_milestone_that_it_is_set_to() {
        let site = Site::new();
        let now = OffsetDateTime::now_utc();
        let ending = site.install("ending", now + Duration::days(100));
        let snapshot = site.snapshot(listener("ending", 1001, ""), None);
        let file = open_audit_file(site.path("audit.log")).unwrap();
        let audit = Audit::start(LineFormat::Json, Some(file));
        let mut watch = ExpiryWatch::default();
        // Days that the clock is set to, and how often the certificate has been spoken of then.
        for (days, expected) in
            [(0, 0), (95, 1), (95, 1), (0, 1), (-20_000, 1), (95, 2), (96, 2), (2_000_000, 3), (95, 4)]
        {
            let set = now.saturating_add(Duration::days(days));
            watch.look_at(set, &snapshot, &audit);
            watch.look_at(set, &snapshot, &audit);
            assert_eq!(mentions(&site, &audit, &ending), expected, "set to day {days}");
        }
    }
}
