//! The identity question: does the policy in force now accept this client's certificate?
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question stands here by itself, to be put after every handshake.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::error::BuildError;
use super::failure::{certificate_reason, refused_by_us};
use super::provider;
use super::verifier::{ChainVerifier, RefusalWitness, Refused};
use crate::outcome::{Ending, Reason};
use crate::policy::ClientAuth;

/// Which client certificates a listener accepts.
#[derive(Clone, Debug)]
pub struct ClientTrust {
    auth: ClientAuth,
    verifier: Option<Arc<ChainVerifier>>,
}

/// Who a client is: judged, and accepted.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It showed no certificate and need not.
    Anonymous,
    /// It proved to hold the key of this certificate.
    Certified(Arc<Certificate>),
}

impl ClientTrust {
    /// Trusts what `anchors` vouch for, each of them by itself.
    ///
    /// # Errors
    /// When an anchor cannot be one.
    pub fn new(auth: ClientAuth, anchors: &[CertificateDer<'static>]) -> Result<Self, BuildError> {
        if auth == ClientAuth::None {
            return Ok(Self { auth, verifier: None });
        }
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone()).map_err(BuildError::Anchor)?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let builder = if auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
        let verifier = builder.build().map_err(|error| BuildError::ClientTrust(error.to_string()))?;
        Ok(Self { auth, verifier: Some(Arc::new(ChainVerifier::new(verifier))) })
    }

    /// Whether a certificate can be a trust anchor at all.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_anchor(anchor: &CertificateDer<'static>) -> Result<(), BuildError> {
        RootCertStore::empty().add(anchor.clone()).map_err(BuildError::Anchor)
    }

    /// The verifier of the pattern. Where certificates are asked for, each handshake puts its own [`RefusalWitness`] in its
    /// place.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        match &self.verifier {
            Some(verifier) => Arc::clone(verifier.webpki()),
            None => WebPkiClientVerifier::no_client_auth(),
        }
    }

    /// A verifier for one handshake and the place where it leaves the certificate it refuses. `None` where no certificate
    /// is asked for.
    pub(super) fn witness(&self) -> Option<(Arc<dyn ClientCertVerifier>, Refused)> {
        let verifier = Arc::clone(self.verifier.as_ref()?);
        let refused = Refused::default();
        Some((Arc::new(RefusalWitness::new(verifier, Arc::clone(&refused))), refused))
    }

    /// Judges the chain a client presented, leaf first, now or in the handshake this one resumes.
    ///
    /// # Errors
    /// The ending of the connection.
    pub fn judge(&self, chain: &[CertificateDer<'_>], now: OffsetDateTime) -> Result<Identity, Ending> {
        let Some(verifier) = &self.verifier else { return Ok(Identity::Anonymous) };
        let Some((leaf, intermediates)) = chain.split_first() else {
            return match self.auth {
                ClientAuth::Required => Err(Reason::ClientCertificateMissing.into()),
                ClientAuth::None | ClientAuth::Optional => Ok(Identity::Anonymous),
            };
        };
        let certificate = verifier.judge(leaf, intermediates, unix_time(now)).map_err(|error| {
            let who = Certificate::parse(leaf).map_or_else(|_| "?".to_owned(), |facts| facts.subject);
            Ending::new(certificate_reason(&error), format_args!("client certificate {who}: {}", refused_by_us(&error)))
        })?;
        Ok(Identity::Certified(certificate))
    }
}

fn unix_time(now: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.unix_timestamp()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::tls::specimen::Authority;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));
    const SOON: OffsetDateTime = NOW.saturating_add(Duration::HOUR);

    fn chain(authority: &Authority) -> [CertificateDer<'static>; 1] {
        [authority.client("app", NOW, SOON).der()]
    }

    fn trusting(auth: ClientAuth, authority: &Authority) -> ClientTrust {
        ClientTrust::new(auth, &[authority.der()]).unwrap()
    }

    fn reason(judged: Result<Identity, Ending>) -> Reason {
        judged.unwrap_err().reason
    }

    fn name(judged: Result<Identity, Ending>) -> String {
        match judged.unwrap() {
            Identity::Anonymous => "nobody".to_owned(),
            Identity::Certified(certificate) => certificate.subject.clone(),
        }
    }

    #[test]
    fn a_certificate_that_nobody_asked_for_names_nobody() {
        let trust = ClientTrust::new(ClientAuth::None, &[]).unwrap();
        assert_eq!(name(trust.judge(&[], NOW)), "nobody");
        assert_eq!(name(trust.judge(&chain(&Authority::new("Any CA")), NOW)), "nobody");
    }

    #[test]
    fn an_optional_certificate_may_be_missing_but_not_bad() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Optional, &authority);
        assert_eq!(name(trust.judge(&[], NOW)), "nobody");
        assert_eq!(name(trust.judge(&chain(&authority), NOW)), "CN=app");
        let stranger = chain(&Authority::new("Another CA"));
        assert_eq!(reason(trust.judge(&stranger, NOW)), Reason::ClientCertificateUnknownCa);
    }

    #[test]
    fn a_required_certificate_may_not_be_missing() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        assert_eq!(reason(trust.judge(&[], NOW)), Reason::ClientCertificateMissing);
        assert_eq!(name(trust.judge(&chain(&authority), NOW)), "CN=app");
    }

    #[test]
    fn a_certificate_is_good_in_its_time_only() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        let chain = chain(&authority);
        assert_eq!(reason(trust.judge(&chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(name(trust.judge(&chain, SOON)), "CN=app");
        let late = SOON + Duration::SECOND;
        assert_eq!(reason(trust.judge(&chain, late)), Reason::ClientCertificateExpired);
        // Once verified it is remembered, in its time and no longer.
        assert_eq!(name(trust.judge(&chain, SOON)), "CN=app");
        assert_eq!(reason(trust.judge(&chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(reason(trust.judge(&chain, late)), Reason::ClientCertificateExpired);
    }

    #[test]
    fn a_ca_of_the_same_name_with_another_key_is_unknown() {
        let trust = trusting(ClientAuth::Required, &Authority::new("Clients CA"));
        let impostor = chain(&Authority::new("Clients CA"));
        let ending = trust.judge(&impostor, NOW).unwrap_err();
        assert_eq!(ending.reason, Reason::ClientCertificateUnknownCa);
        assert!(ending.detail.contains("CN=app"), "{}", ending.detail);
    }
}
