//! Verifies a client's identity against the current policy.
//!
//! rustls calls its verifier only in full handshakes; a resumed handshake restores the stored chain without verification. So
//! the identity is verified here after every handshake, and again whenever the policy or the time changes.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use time::OffsetDateTime;
use webpki::anchor_from_trusted_cert;

use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::recording::{HandshakeFindings, RecordingVerifier};
use crate::identity::refusal::{describe_refusal, reason_of};
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::identity::verified::VerifiedIdentity;
use crate::identity::verifier::ChainVerifier;
use crate::outcome::{Outcome, Reason};
use crate::x509::ca_properties::{DIRECTORY_NAMES, unchecked_constraints};
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::error::BuildError;

/// Verifies client certificates for one listener.
#[derive(Clone, Debug)]
pub struct ClientVerifier {
    auth: ClientAuth,
    verifier: Option<Arc<ChainVerifier>>,
    clients: Arc<TrustedClients>,
}

/// An accepted client identity.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIdentity {
    /// No certificate, and none is required.
    Anonymous,
    /// The client proved that it has the key of this certificate.
    Certified(Arc<VerifiedIdentity>),
}

/// The input of a verification.
#[derive(Clone, Copy, Debug)]
pub enum PresentedIdentity<'a> {
    /// The chain of the handshake, or of the handshake that it resumes. Leaf first; empty without a certificate.
    Chain(&'a [CertificateDer<'a>]),
    /// The connection is not encrypted.
    Plaintext,
    /// The identity that admitted an open session; `None` if the session was admitted without a certificate.
    Verified(Option<&'a Arc<VerifiedIdentity>>),
}

impl ClientVerifier {
    /// # Errors
    /// If a certificate in `anchors` cannot be a trust anchor.
    pub fn new(settings: &ClientAuthSettings) -> Result<Self, BuildError> {
        let verifier = match settings.auth {
            ClientAuth::None => None,
            ClientAuth::Optional | ClientAuth::Required => Some(Arc::new(ChainVerifier::new(settings)?)),
        };
        Ok(Self { auth: settings.auth, verifier, clients: Arc::new(settings.clients.clone()) })
    }

    /// # Errors
    /// [`BuildError::Anchor`] if the certificate cannot be a trust anchor.
    pub fn check_anchor(anchor: &CertificateDer<'static>) -> Result<(), BuildError> {
        anchor_from_trusted_cert(anchor).map(|_| ()).map_err(|error| BuildError::Anchor(error.to_string()))
    }

    /// The name constraints of a CA that cannot be checked, and the consequence, as a text. `None` if all can be checked.
    pub fn unchecked_constraints(anchor: &CertificateDer<'_>) -> Option<String> {
        let kinds = unchecked_constraints(anchor);
        let consequence = match kinds.contains(&DIRECTORY_NAMES) {
            true => "no client certificate from it is accepted",
            false => "client certificates with such names are rejected",
        };
        (!kinds.is_empty()).then(|| {
            format!("limits {} (name constraints), which cannot be checked: {consequence}", kinds.join(" and "))
        })
    }

    /// Why no certificate is accepted through this anchor at `now`. `None` if certificates are accepted, or it is not an anchor.
    pub fn anchor_error(&self, anchor: &CertificateDer<'_>, now: OffsetDateTime) -> Option<ChainError> {
        self.verifier.as_ref()?.anchor_error(anchor, now)
    }

    /// A verifier for one handshake, and the findings that it records. `None` if no certificate is requested.
    pub(crate) fn recording_verifier(&self) -> Option<(Arc<dyn ClientCertVerifier>, Arc<HandshakeFindings>)> {
        let verifier = Arc::clone(self.verifier.as_ref()?);
        let findings = Arc::<HandshakeFindings>::default();
        Some((Arc::new(RecordingVerifier::new(verifier, Arc::clone(&findings))), findings))
    }

    /// The verifier of the template configuration. With client authentication, each handshake replaces it with its own
    /// [`RecordingVerifier`].
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.recording_verifier().map_or_else(WebPkiClientVerifier::no_client_auth, |(verifier, _)| verifier)
    }

    /// The configured `trusted_clients`.
    pub fn clients(&self) -> &TrustedClients {
        &self.clients
    }

    /// Verifies a client: its chain, or the identity of its open session.
    ///
    /// # Errors
    /// The outcome of the rejected connection.
    pub fn verify(&self, presented: PresentedIdentity<'_>, now: OffsetDateTime) -> Result<ClientIdentity, Outcome> {
        if let Some(reverified) = self.reverify_from_path(presented, now) {
            return reverified;
        }
        let Some(verifier) = &self.verifier else { return Ok(ClientIdentity::Anonymous) };
        let verified = match presented {
            PresentedIdentity::Verified(Some(identity)) => verifier.reverify_by_search(identity, now),
            PresentedIdentity::Chain([leaf, intermediates @ ..]) => {
                verifier.verify_and_remember(leaf, intermediates, now)
            }
            PresentedIdentity::Verified(None) | PresentedIdentity::Chain([]) | PresentedIdentity::Plaintext => {
                return self.without_certificate();
            }
        };
        self.authorize(verified, presented)
    }

    /// Like [`verify`](Self::verify), without signature checks. `None` if the result would need one.
    pub fn reverify_from_path(
        &self,
        presented: PresentedIdentity<'_>,
        now: OffsetDateTime,
    ) -> Option<Result<ClientIdentity, Outcome>> {
        let verified = match (&self.verifier, presented) {
            (_, PresentedIdentity::Plaintext) => {
                let detail = "the connection is not encrypted; this listener requires TLS";
                return Some(Err(Outcome::new(Reason::PlaintextRefused, detail)));
            }
            (None, _) => return Some(Ok(ClientIdentity::Anonymous)),
            (Some(_), PresentedIdentity::Verified(None) | PresentedIdentity::Chain([])) => {
                return Some(self.without_certificate());
            }
            (Some(_), PresentedIdentity::Chain([_, ..])) => return None,
            (Some(verifier), PresentedIdentity::Verified(Some(identity))) => {
                let verified = verifier.reverify_from_path(identity, now)?;
                // On another path, the common name may be usable.
                let may_be_named = |identity: &Arc<VerifiedIdentity>| {
                    identity.ignores_common_name()
                        && !verifier.has_searched_all_paths(identity)
                        && !self.clients.trust(identity.names())
                };
                if verified.as_ref().is_ok_and(may_be_named) {
                    return None;
                }
                verified
            }
        };
        Some(self.authorize(verified, presented))
    }

    fn without_certificate(&self) -> Result<ClientIdentity, Outcome> {
        match self.auth {
            ClientAuth::Required => Err(Reason::ClientCertificateMissing.into()),
            ClientAuth::None | ClientAuth::Optional => Ok(ClientIdentity::Anonymous),
        }
    }

    fn authorize(
        &self,
        verified: Result<Arc<VerifiedIdentity>, ChainError>,
        presented: PresentedIdentity<'_>,
    ) -> Result<ClientIdentity, Outcome> {
        let identity = verified
            .map_err(|error| Outcome::new(reason_of(&error), describe_refusal(&error, presented.leaf().as_ref())))?;
        if self.clients.trust(identity.names()) {
            Ok(ClientIdentity::Certified(identity))
        } else {
            Err(not_trusted(&identity))
        }
    }
}

fn not_trusted(identity: &VerifiedIdentity) -> Outcome {
    let names: Vec<_> = identity.names().map(|name| name.to_string()).collect();
    let Certificate { subject, .. } = &identity.certificate;
    let common_name = match identity.ignores_common_name() {
        true => "; its common name is ignored because a CA above it has name constraints",
        false => "",
    };
    let detail = format_args!(
        "client certificate {subject}: it is valid, but trusted_clients lists none of its names: {}{common_name}",
        names.join(", ")
    );
    Outcome::new(Reason::ClientNotTrusted, detail)
}

impl PresentedIdentity<'_> {
    /// `None` if there is no certificate, or it cannot be parsed.
    pub fn leaf(self) -> Option<Certificate> {
        match self {
            Self::Chain(chain) => Certificate::parse(chain.first()?).ok(),
            Self::Plaintext => None,
            Self::Verified(identity) => Some(identity?.certificate.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, IsCa};
    use time::Duration;

    use super::*;
    use crate::tls::fixtures::{Authority, named, revoking};
    use crate::x509::chain::settings::{AnchorValidity, CrlExpired};
    use crate::x509::crl::Crl;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));
    const SOON: OffsetDateTime = NOW.saturating_add(Duration::HOUR);

    fn chain(authority: &Authority) -> [CertificateDer<'static>; 1] {
        [authority.client("app", NOW, SOON).der()]
    }

    fn settings(auth: ClientAuth, authority: &Authority) -> ClientAuthSettings {
        ClientAuthSettings {
            auth,
            anchors: vec![authority.der()],
            pinned: Vec::new(),
            crls: Vec::new(),
            crl_expired: CrlExpired::Refuse,
            anchor_validity: AnchorValidity::Enforce,
            clients: TrustedClients::default(),
        }
    }

    fn verify(
        trust: &ClientVerifier,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<ClientIdentity, Outcome> {
        trust.verify(PresentedIdentity::Chain(chain), now)
    }

    fn trusting(auth: ClientAuth, authority: &Authority) -> ClientVerifier {
        ClientVerifier::new(&settings(auth, authority)).unwrap()
    }

    fn reason(verified: Result<ClientIdentity, Outcome>) -> Reason {
        verified.unwrap_err().reason
    }

    fn name(verified: Result<ClientIdentity, Outcome>) -> String {
        match verified.unwrap() {
            ClientIdentity::Anonymous => "anonymous".to_owned(),
            ClientIdentity::Certified(identity) => identity.certificate.subject.clone(),
        }
    }

    #[test]
    fn certificate_without_client_auth_gives_no_identity() {
        let trust = trusting(ClientAuth::None, &Authority::new("Clients CA"));
        assert_eq!(name(verify(&trust, &[], NOW)), "anonymous");
        assert_eq!(name(verify(&trust, &chain(&Authority::new("Any CA")), NOW)), "anonymous");
    }

    #[test]
    fn optional_certificate_may_be_missing_but_not_untrusted() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Optional, &authority);
        assert_eq!(name(verify(&trust, &[], NOW)), "anonymous");
        assert_eq!(name(verify(&trust, &chain(&authority), NOW)), "CN=app");
        let untrusted = chain(&Authority::new("Another CA"));
        assert_eq!(reason(verify(&trust, &untrusted, NOW)), Reason::ClientCertificateUnknownCa);
    }

    #[test]
    fn required_certificate_must_be_presented() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        assert_eq!(reason(verify(&trust, &[], NOW)), Reason::ClientCertificateMissing);
        assert_eq!(name(verify(&trust, &chain(&authority), NOW)), "CN=app");
    }

    #[test]
    fn certificate_is_rejected_before_and_after_its_validity() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        let chain = chain(&authority);
        assert_eq!(reason(verify(&trust, &chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(name(verify(&trust, &chain, SOON)), "CN=app");
        let late = SOON + Duration::SECOND;
        assert_eq!(name(verify(&trust, &chain, late - Duration::NANOSECOND)), "CN=app", "the last second is its own");
        assert_eq!(reason(verify(&trust, &chain, late)), Reason::ClientCertificateExpired);
        // The cached result ends with the certificate too.
        assert_eq!(name(verify(&trust, &chain, SOON)), "CN=app");
        assert_eq!(reason(verify(&trust, &chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(reason(verify(&trust, &chain, late)), Reason::ClientCertificateExpired);
    }

    #[test]
    fn client_that_sends_more_than_six_intermediates_is_rejected() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        let mut chain = chain(&authority).to_vec();
        let others = [(); 7].map(|()| Authority::new("Clients CA").der());
        chain.extend_from_slice(&others[..6]);
        // Repeated certificates count once.
        chain.extend_from_within(..);
        assert_eq!(name(verify(&trust, &chain, NOW)), "CN=app");
        chain.extend_from_slice(&others[6..]);
        let ending = verify(&trust, &chain, NOW).unwrap_err();
        assert_eq!(ending.reason, Reason::ClientCertificateInvalid);
        assert!(ending.detail.contains("more than 6 certificates"), "{}", ending.detail);
    }

    #[test]
    fn revoked_certificate_is_reported_as_revoked_whatever_else_is_sent() {
        let [authority, other] = ["Clients CA", "Another CA"].map(Authority::new);
        let chain = chain(&authority);
        let lists = Crl::parse_all(authority.list(&revoking(&chain, 1, NOW)).der()).unwrap();
        // An expired certificate of the CA's name, which webpki reports instead of revocation, and invalid bytes.
        let ended = Authority::with_validity("Clients CA", NOW - Duration::DAY, NOW - Duration::HOUR).der();
        let junk = CertificateDer::from(b"junk".to_vec());
        for (pinned, along) in [(&chain[..0], &[&junk][..]), (&chain, &[&junk, &ended])] {
            let (anchors, pinned) = (vec![other.der(), authority.der()], pinned.to_vec());
            let settings = ClientAuthSettings {
                anchors,
                pinned,
                crls: lists.clone(),
                ..settings(ClientAuth::Required, &authority)
            };
            let trust = ClientVerifier::new(&settings).unwrap();
            assert_eq!(reason(verify(&trust, &chain, NOW)), Reason::ClientCertificateRevoked);
            for along in along {
                let chain = [chain[0].clone(), (*along).clone()];
                assert_eq!(reason(verify(&trust, &chain, NOW)), Reason::ClientCertificateRevoked, "{along:?}");
            }
        }
    }

    /// The holder of one client key must not be able to issue client certificates.
    #[test]
    fn client_certificate_in_client_ca_issues_no_trusted_certificates() {
        for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
            let mut params = named(CertificateParams::default(), "app");
            params.is_ca = is_ca;
            let client = Authority::self_signed(&params);
            let trust = trusting(ClientAuth::Required, &client);
            assert_eq!(reason(verify(&trust, &chain(&client), NOW)), Reason::ClientCertificateUnknownCa);
        }
    }

    #[test]
    fn ca_with_the_same_name_and_another_key_is_unknown() {
        let trust = trusting(ClientAuth::Required, &Authority::new("Clients CA"));
        let impostor = chain(&Authority::new("Clients CA"));
        let ending = verify(&trust, &impostor, NOW).unwrap_err();
        assert_eq!(ending.reason, Reason::ClientCertificateUnknownCa);
        assert!(ending.detail.contains("CN=app"), "{}", ending.detail);
    }
}
