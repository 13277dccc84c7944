//! Warns about certificates that expire soon, and about expired CRLs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::warn;

use crate::audit::Audit;
use crate::audit::event::ExpiringCertificate;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::timestamp;
use crate::x509::certificate::Certificate;
use crate::x509::crl::Crl;
use crate::x509::expiry::{days_left, expiry_milestone};

/// Remembers the last warning of each certificate, so that each milestone is reported once.
#[derive(Debug, Default)]
pub(crate) struct ExpiryWatch {
    /// Listener and SHA-256 -> last reported milestone in days. A certificate of `[admin.tls]` has no listener.
    reported: HashMap<(Option<Arc<str>>, String), i64>,
}

impl ExpiryWatch {
    /// Emits `certificate.expiring` for each certificate that has passed a milestone since the last check.
    pub(crate) fn check(&mut self, snapshot: &Snapshot, audit: &Audit) {
        self.check_at(OffsetDateTime::now_utc(), snapshot, audit);
    }

    fn check_at(&mut self, now: OffsetDateTime, snapshot: &Snapshot, audit: &Audit) {
        let mut reported = HashMap::new();
        for (listener, role, certificate) in certificates(snapshot) {
            let Some(milestone) = expiry_milestone(certificate.not_after, now) else { continue };
            let key = (listener.cloned(), certificate.sha256.to_string());
            if reported.contains_key(&key) {
                continue;
            }
            if self.reported.get(&key) != Some(&milestone) {
                let expiring = ExpiringCertificate {
                    role,
                    subject: &certificate.subject,
                    sha256: certificate.sha256.as_str(),
                    not_after: certificate.not_after,
                    days_left: days_left(certificate.not_after, now),
                };
                audit.certificate_expiring(listener.map(|name| &**name), &expiring);
            }
            reported.insert(key, milestone);
        }
        for (policy, list) in lists(snapshot).filter(|(_, list)| list.is_expired_at(now)) {
            // Warn on the day of expiry and daily after, until the CRL is replaced.
            let day = days_left(list.next_update, now);
            let key = (Some(Arc::clone(&policy.name)), list.sha256.clone());
            if self.reported.get(&key) != Some(&day) {
                let expired_at = timestamp::seconds(list.next_update);
                warn!(
                    listener = %policy.name,
                    issuer = %list.issuer,
                    expired_at,
                    "CRL expired, replace the file in client_crl"
                );
            }
            reported.insert(key, day);
        }
        // Entries that are no longer in use are dropped, and are reported again if they return.
        self.reported = reported;
    }
}

/// All certificates with their role and, except for those of the admin API, their listener.
fn certificates(snapshot: &Snapshot) -> impl Iterator<Item = (Option<&Arc<str>>, &'static str, &Certificate)> {
    fn of_listener(
        policy: &Arc<ListenerPolicy>,
    ) -> impl Iterator<Item = (Option<&Arc<str>>, &'static str, &Certificate)> {
        policy.certificates().map(|(role, certificate)| (Some(&policy.name), role, certificate))
    }
    let of_listeners = snapshot.listeners().iter().flat_map(of_listener);
    of_listeners.chain(snapshot.admin_certificates().map(|(role, certificate)| (None, role, certificate)))
}

fn lists(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<ListenerPolicy>, &Crl)> {
    snapshot.listeners().iter().flat_map(|policy| policy.revocation_lists().iter().map(move |list| (policy, list)))
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "certificate expiry";

/// Each check reads the wall clock, so a machine that was suspended catches up.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::audit::{LineFormat, open_audit_file};
    use crate::policy::fixtures::{ConfigDir, listener};

    /// The number of events for a certificate in the audit file.
    fn count_events(dir: &ConfigDir, audit: &Audit, sha256: &str) -> usize {
        audit.flush();
        let text = std::fs::read_to_string(dir.path("audit.log")).unwrap();
        let lines = text.lines().filter(|line| line.contains("\"event\":\"certificate.expiring\""));
        lines.filter(|line| line.contains(sha256)).count()
    }

    #[test]
    fn certificate_is_reported_once_and_again_after_its_return() {
        let dir = ConfigDir::new();
        let now = OffsetDateTime::now_utc();
        let ending = dir.install("ending", now + Duration::days(5));
        let lasting = dir.install("lasting", now + Duration::days(365));
        let (ours, theirs) = (listener("ending", 1001, ""), listener("lasting", 1002, ""));
        let both = dir.snapshot([ours, theirs.clone()].concat(), None);
        let one = dir.snapshot(theirs, None);

        let file = open_audit_file(dir.path("audit.log")).unwrap();
        let audit = Audit::start(LineFormat::Json, Some(file));
        let mut watch = ExpiryWatch::default();
        let mut check = |snapshot: &Snapshot| {
            watch.check(snapshot, &audit);
            count_events(&dir, &audit, &ending)
        };
        assert_eq!(check(&both), 1);
        assert_eq!(check(&both), 1, "it is already reported");
        assert_eq!(check(&one), 1, "it is not in use");
        assert_eq!(check(&both), 2, "it has returned");
        assert_eq!(count_events(&dir, &audit, &lasting), 0);
    }

    #[test]
    fn clock_change_reports_each_milestone_once() {
        let dir = ConfigDir::new();
        let now = OffsetDateTime::now_utc();
        let ending = dir.install("ending", now + Duration::days(100));
        let snapshot = dir.snapshot(listener("ending", 1001, ""), None);
        let file = open_audit_file(dir.path("audit.log")).unwrap();
        let audit = Audit::start(LineFormat::Json, Some(file));
        let mut watch = ExpiryWatch::default();
        // Days by which the clock is moved, and the number of events so far.
        for (days, expected) in
            [(0, 0), (95, 1), (95, 1), (0, 1), (-20_000, 1), (95, 2), (96, 2), (2_000_000, 3), (95, 4)]
        {
            let set = now.saturating_add(Duration::days(days));
            watch.check_at(set, &snapshot, &audit);
            watch.check_at(set, &snapshot, &audit);
            assert_eq!(count_events(&dir, &audit, &ending), expected, "set to day {days}");
        }
    }
}
