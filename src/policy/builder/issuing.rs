//! Reads `issuing_ca`, and warns about it.

use std::sync::Arc;

use crate::config::Tls;
use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::client_verifier::ClientVerifier;
use crate::issuing::authority::Authority;
use crate::policy::ListenerPolicy;
use crate::policy::builder::Builder;
use crate::policy::issuing::IssuingCa;
use crate::x509::pem;

impl Builder<'_> {
    /// Reads `issuing_ca`; `Some(None)` if it is not set.
    pub(crate) fn issuing_authority(&mut self, tls: &Tls) -> Option<Option<Authority>> {
        let Some(files) = &tls.issuing_ca else { return Some(None) };
        // Reads both before returning, so that all problems are reported.
        let (bundle, key) = (self.reader.pem(&files.cert, pem::certificates), self.reader.private_key(files));
        let (bundle, key) = (bundle?, key?);
        let authority = match Authority::from_bundle(bundle, &key) {
            Ok(authority) => authority,
            Err(error) => {
                let key = &files.key.location;
                self.reader.problems.push(files.cert.problem(format_args!("with key {key}: {error}")));
                return None;
            }
        };
        if let Some(fault) = authority.fault() {
            let subject = &authority.facts().subject;
            let problem = files
                .cert
                .problem(format_args!("cannot issue client certificates with {subject}: {fault}; use a CA that may"));
            self.reader.problems.push(problem);
            return None;
        }
        Some(Some(authority))
    }

    pub(crate) fn warn_about_issuing(&mut self, tls: &Tls, issuing: &IssuingCa) {
        let IssuingCa { authority, refusal } = issuing;
        let subject = &authority.facts().subject;
        if let Some(files) = &tls.issuing_ca {
            self.reader.warn(format_args!(
                "the key of the CA {subject} is on this machine ({}, issuing_ca): whoever gets it can issue certificates for \
                 every client; it is better kept elsewhere",
                files.key.location
            ));
        }
        self.reader.warn_about_dates("issuing CA certificate", authority.facts());
        if let Some(why) = refusal {
            self.reader.warn(format_args!(
                "a client certificate issued by {subject} (issuing_ca) would be rejected: {why}; add the CA to client_ca"
            ));
        }
    }
}

/// Keeps the previous CA if neither it nor the trust in clients has changed: a new one generates a key
/// and signs.
///
/// An expired CA or CRL, which changes the result too, has a warning of its own.
pub(crate) fn judge(
    authority: Authority,
    settings: &ClientAuthSettings,
    trust: &ClientVerifier,
    before: Option<&ListenerPolicy>,
) -> Arc<IssuingCa> {
    let same_trust = before.filter(|before| before.client_auth_settings() == Some(settings));
    let former = same_trust.and_then(|before| before.issuing.as_ref());
    match former.filter(|former| former.authority.is_same_ca(&authority)) {
        Some(former) => Arc::clone(former),
        None => Arc::new(IssuingCa::new(authority, trust)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::policy::Snapshot;
    use crate::policy::fixtures::{ConfigDir, listener};
    use crate::tls::fixtures;

    #[test]
    fn issuing_ca_is_judged_again_only_if_it_or_the_trust_changes() {
        let directory = ConfigDir::new();
        directory.install("main", OffsetDateTime::now_utc() + Duration::days(100));
        let install = |name: &str| {
            let authority = fixtures::Authority::new(name);
            fs::write(directory.path("issuing.crt"), authority.pem()).unwrap();
            fs::write(directory.path("issuing.key"), authority.key_pem()).unwrap();
        };
        install("One");
        let tls =
            "tls.issuing_ca = { cert = \"issuing.crt\", key = \"issuing.key\" }\ntls.client_auth = \"required\"\n";
        let config = |sources: &str, ca: &str| {
            let anchors = format!("tls.client_ca = \"{ca}\"\n");
            format!("{}{tls}{anchors}", listener("main", 0, sources))
        };
        let issuing = |snapshot: &Snapshot| Arc::clone(snapshot.named("main").unwrap().issuing.as_ref().unwrap());

        let first = directory.snapshot(config("\"127.0.0.1\"", "issuing.crt"), None);
        let sources = directory.snapshot(config("\"127.0.0.2\"", "issuing.crt"), Some(&first));
        assert!(Arc::ptr_eq(&issuing(&first), &issuing(&sources)));
        assert_eq!(issuing(&first).refusal, None);

        let distrusting = directory.snapshot(config("\"127.0.0.1\"", "main.crt"), Some(&sources));
        assert!(issuing(&distrusting).refusal.is_some());
        install("Two");
        let other = directory.snapshot(config("\"127.0.0.1\"", "main.crt"), Some(&distrusting));
        assert_eq!(issuing(&other).authority.facts().subject, "CN=Two");
    }
}
