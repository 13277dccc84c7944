//! Speaks up in time about certificates in use that are about to run out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::audit::{Audit, ExpiringCertificate};
use crate::policy::{days_left, expiry_milestone};
use crate::snapshot::Snapshot;

/// Remembers what it has said already.
#[derive(Debug, Default)]
pub struct ExpiryWatch {
    told: HashMap<(Arc<str>, String), i64>,
}

impl ExpiryWatch {
    /// Audits every certificate of `snapshot` that has passed a milestone since it was last spoken of.
    pub fn look(&mut self, snapshot: &Snapshot, audit: &Audit) {
        let now = OffsetDateTime::now_utc();
        let mut told = HashMap::new();
        for terms in snapshot.listeners() {
            for (role, certificate) in terms.certificates() {
                let Some(milestone) = expiry_milestone(certificate.not_after, now) else { continue };
                let key = (Arc::clone(&terms.name), certificate.sha256.clone());
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
                    audit.certificate_expiring(&terms.name, &expiring);
                }
                told.insert(key, milestone);
            }
        }
        // What is no longer in use is forgotten, and spoken of anew should it come back.
        self.told = told;
    }
}

/// How often to look. Asked by the wall clock each time, so that a suspended machine catches up.
pub const LOOK_EVERY: Duration = Duration::from_secs(600);
