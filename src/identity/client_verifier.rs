//! The identity question: does the policy in force now accept this client's certificate?
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question stands here by itself, to be put after every handshake, and again whenever the policy or the time has changed.

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

/// Which client certificates a listener accepts.
#[derive(Clone, Debug)]
pub struct ClientVerifier {
    auth: ClientAuth,
    verifier: Option<Arc<ChainVerifier>>,
    clients: Arc<TrustedClients>,
}

/// Who a client is: verified, and accepted.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIdentity {
    /// It showed no certificate and need not.
    Anonymous,
    /// It proved to hold the key of this certificate.
    Certified(Arc<VerifiedIdentity>),
}

/// What a client has to show for itself.
#[derive(Clone, Copy, Debug)]
pub enum PresentedIdentity<'a> {
    /// The chain of its handshake, leaf first, or of the handshake that this one resumes; empty where it showed none.
    Chain(&'a [CertificateDer<'a>]),
    /// It is outside TLS, and so has none.
    Plaintext,
    /// What it was let in with; nothing, where it was let in without.
    Credential(Option<&'a Arc<VerifiedIdentity>>),
}

impl ClientVerifier {
    /// Builds the trust.
    ///
    /// # Errors
    /// When an anchor cannot be one.
    pub fn new(parts: &ClientAuthSettings) -> Result<Self, BuildError> {
        let verifier = match parts.auth {
            ClientAuth::None => None,
            ClientAuth::Optional | ClientAuth::Required => Some(Arc::new(ChainVerifier::new(parts)?)),
        };
        Ok(Self { auth: parts.auth, verifier, clients: Arc::new(parts.clients.clone()) })
    }

    /// Whether a certificate can be a trust anchor at all.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_anchor(anchor: &CertificateDer<'static>) -> Result<(), BuildError> {
        anchor_from_trusted_cert(anchor).map(|_| ()).map_err(|error| BuildError::Anchor(error.to_string()))
    }

    /// What of its name constraints cannot be checked, and what follows from that; nothing where all of it can.
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

    /// Why a trust anchor vouches for nobody at this time; nothing where it does, or is none.
    pub fn anchor_error(&self, anchor: &CertificateDer<'_>, now: OffsetDateTime) -> Option<ChainError> {
        self.verifier.as_ref()?.anchor_error(anchor, now)
    }

    /// A verifier for one handshake and what it finds out. `None` where no certificate is asked for.
    pub(crate) fn recording_verifier(&self) -> Option<(Arc<dyn ClientCertVerifier>, Arc<HandshakeFindings>)> {
        let verifier = Arc::clone(self.verifier.as_ref()?);
        let findings = Arc::<HandshakeFindings>::default();
        Some((Arc::new(RecordingVerifier::new(verifier, Arc::clone(&findings))), findings))
    }

    /// The verifier of the pattern. Where certificates are asked for, each handshake puts its own [`RecordingVerifier`] in its
    /// place.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.recording_verifier().map_or_else(WebPkiClientVerifier::no_client_auth, |(verifier, _)| verifier)
    }

    /// Whom of the holders of a good certificate it lets in.
    pub fn clients(&self) -> &TrustedClients {
        &self.clients
    }

    /// Judges a client by what it has to show.
    ///
    /// # Errors
    /// The ending of the connection.
    pub fn verify(&self, presented: PresentedIdentity<'_>, now: OffsetDateTime) -> Result<ClientIdentity, Outcome> {
        if let Some(reverified) = self.reverify_from_path(presented, now) {
            return reverified;
        }
        let Some(verifier) = &self.verifier else { return Ok(ClientIdentity::Anonymous) };
        let verified = match presented {
            PresentedIdentity::Credential(Some(identity)) => verifier.reverify_by_search(identity, now),
            PresentedIdentity::Chain([leaf, intermediates @ ..]) => {
                verifier.verify_and_remember(leaf, intermediates, now)
            }
            PresentedIdentity::Credential(None) | PresentedIdentity::Chain([]) | PresentedIdentity::Plaintext => {
                return self.without_certificate();
            }
        };
        self.authorize(verified, presented)
    }

    /// Judges a client as [`judge`](Self::judge) does, where that costs no signature. Nothing, where it might.
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
            (Some(_), PresentedIdentity::Credential(None) | PresentedIdentity::Chain([])) => {
                return Some(self.without_certificate());
            }
            (Some(_), PresentedIdentity::Chain([_, ..])) => return None,
            (Some(verifier), PresentedIdentity::Credential(Some(identity))) => {
                let verified = verifier.reverify_from_path(identity, now)?;
                // By another path its common name may count.
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
    /// The facts of the certificate shown, where it is one.
    pub fn leaf(self) -> Option<Certificate> {
        match self {
            Self::Chain(chain) => Certificate::parse(chain.first()?).ok(),
            Self::Plaintext => None,
            Self::Credential(identity) => Some(identity?.certificate.clone()),
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

    fn parts(auth: ClientAuth, authority: &Authority) -> ClientAuthSettings {
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
        ClientVerifier::new(&parts(auth, authority)).unwrap()
    }

    fn reason(verified: Result<ClientIdentity, Outcome>) -> Reason {
        verified.unwrap_err().reason
    }

    fn name(verified: Result<ClientIdentity, Outcome>) -> String {
        match verified.unwrap() {
            ClientIdentity::Anonymous => "nobody".to_owned(),
            ClientIdentity::Certified(identity) => identity.certificate.subject.clone(),
        }
    }

    #[test]
    fn a_certificate_that_nobody_asked_for_names_nobody() {
        let trust = trusting(ClientAuth::None, &Authority::new("Clients CA"));
        assert_eq!(name(verify(&trust, &[], NOW)), "nobody");
        assert_eq!(name(verify(&trust, &chain(&Authority::new("Any CA")), NOW)), "nobody");
    }

    #[test]
    fn an_optional_certificate_may_be_missing_but_not_bad() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Optional, &authority);
        assert_eq!(name(verify(&trust, &[], NOW)), "nobody");
        assert_eq!(name(verify(&trust, &chain(&authority), NOW)), "CN=app");
        let untrusted = chain(&Authority::new("Another CA"));
        assert_eq!(reason(verify(&trust, &untrusted, NOW)), Reason::ClientCertificateUnknownCa);
    }

    #[test]
    fn a_required_certificate_may_not_be_missing() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        assert_eq!(reason(verify(&trust, &[], NOW)), Reason::ClientCertificateMissing);
        assert_eq!(name(verify(&trust, &chain(&authority), NOW)), "CN=app");
    }

    #[test]
    fn a_certificate_is_good_in_its_time_only() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        let chain = chain(&authority);
        assert_eq!(reason(verify(&trust, &chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(name(verify(&trust, &chain, SOON)), "CN=app");
        let late = SOON + Duration::SECOND;
        assert_eq!(name(verify(&trust, &chain, late - Duration::NANOSECOND)), "CN=app", "the last second is its own");
        assert_eq!(reason(verify(&trust, &chain, late)), Reason::ClientCertificateExpired);
        // Once verified it is remembered, in its time and no longer.
        assert_eq!(name(verify(&trust, &chain, SOON)), "CN=app");
        assert_eq!(reason(verify(&trust, &chain, NOW - Duration::SECOND)), Reason::ClientCertificateInvalid);
        assert_eq!(reason(verify(&trust, &chain, late)), Reason::ClientCertificateExpired);
    }

    #[test]
    fn a_client_that_sends_more_certificates_than_a_chain_can_need_is_refused() {
        let authority = Authority::new("Clients CA");
        let trust = trusting(ClientAuth::Required, &authority);
        let mut chain = chain(&authority).to_vec();
        let others = [(); 7].map(|()| Authority::new("Clients CA").der());
        chain.extend_from_slice(&others[..6]);
        // What comes twice, as the client's own certificate may, counts once.
        chain.extend_from_within(..);
        assert_eq!(name(verify(&trust, &chain, NOW)), "CN=app");
        chain.extend_from_slice(&others[6..]);
        let ending = verify(&trust, &chain, NOW).unwrap_err();
        assert_eq!(ending.reason, Reason::ClientCertificateInvalid);
        assert!(ending.detail.contains("more than 6 certificates"), "{}", ending.detail);
    }

    #[test]
    fn what_is_sent_along_does_not_hide_that_a_certificate_is_taken_back() {
        let [authority, other] = ["Clients CA", "Another CA"].map(Authority::new);
        let chain = chain(&authority);
        let lists = Crl::parse_all(authority.list(&revoking(&chain, 1, NOW)).der()).unwrap();
        // Of the CA's name and past its time, which webpki finds worse than revoked; and no certificate at all.
        let ended = Authority::with_validity("Clients CA", NOW - Duration::DAY, NOW - Duration::HOUR).der();
        let junk = CertificateDer::from(b"junk".to_vec());
        for (pinned, along) in [(&chain[..0], &[&junk][..]), (&chain, &[&junk, &ended])] {
            let (anchors, pinned) = (vec![other.der(), authority.der()], pinned.to_vec());
            let parts =
                ClientAuthSettings { anchors, pinned, crls: lists.clone(), ..parts(ClientAuth::Required, &authority) };
            let trust = ClientVerifier::new(&parts).unwrap();
            assert_eq!(reason(verify(&trust, &chain, NOW)), Reason::ClientCertificateRevoked);
            for along in along {
                let chain = [chain[0].clone(), (*along).clone()];
                assert_eq!(reason(verify(&trust, &chain, NOW)), Reason::ClientCertificateRevoked, "{along:?}");
            }
        }
    }

    /// Who has the key of one client must not make more of them.
    #[test]
    fn a_clients_own_certificate_among_the_anchors_vouches_for_nobody() {
        for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
            let mut params = named(CertificateParams::default(), "app");
            params.is_ca = is_ca;
            let client = Authority::self_signed(&params);
            let trust = trusting(ClientAuth::Required, &client);
            assert_eq!(reason(verify(&trust, &chain(&client), NOW)), Reason::ClientCertificateUnknownCa);
        }
    }

    #[test]
    fn a_ca_of_the_same_name_with_another_key_is_unknown() {
        let trust = trusting(ClientAuth::Required, &Authority::new("Clients CA"));
        let impostor = chain(&Authority::new("Clients CA"));
        let ending = verify(&trust, &impostor, NOW).unwrap_err();
        assert_eq!(ending.reason, Reason::ClientCertificateUnknownCa);
        assert!(ending.detail.contains("CN=app"), "{}", ending.detail);
    }
}
