//! Selects the server certificate for a client by SNI and supported signature schemes.

use std::sync::{Arc, OnceLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificates of one listener, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct CertificateSelector {
    choices: Vec<SelectedCertificate>,
}

#[derive(Debug)]
pub(crate) struct SelectedCertificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// Host names in lower case; a leading `*.` matches one label.
    pub(crate) names: Vec<String>,
}

impl CertificateSelector {
    pub(crate) fn new(choices: Vec<SelectedCertificate>) -> Self {
        Self { choices }
    }

    /// The index of the selected certificate: one with the requested name that the client can verify, else one that the client
    /// can verify, else the first.
    pub(crate) fn choose(&self, hello: &ClientHello<'_>) -> usize {
        let verifiable =
            |choice: &SelectedCertificate| choice.key.key.choose_scheme(hello.signature_schemes()).is_some();
        // RFC 6066 §3 forbids a trailing dot, but some clients send one.
        let wanted = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let named = |choice: &SelectedCertificate| wanted.as_deref().is_some_and(|name| choice.has_name(name));
        let first = |test: &dyn Fn(&SelectedCertificate) -> bool| self.choices.iter().position(test);
        first(&|choice| named(choice) && verifiable(choice)).or_else(|| first(&verifiable)).unwrap_or(0)
    }
}

/// The requested host name, and the index of the selected certificate.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) sni: Option<String>,
    pub(crate) shown: usize,
}

/// The ClientHello of one handshake. Empty until it arrives.
pub(crate) type RecordedHello = Arc<OnceLock<Hello>>;

/// The certificate resolver of one handshake. rustls exposes the ClientHello only here, so the resolver records it.
#[derive(Debug)]
pub(crate) struct RecordingResolver {
    selector: Arc<CertificateSelector>,
    hello: RecordedHello,
}

impl RecordingResolver {
    pub(crate) fn new(selector: &Arc<CertificateSelector>, hello: &RecordedHello) -> Self {
        Self { selector: Arc::clone(selector), hello: Arc::clone(hello) }
    }
}

impl ResolvesServerCert for RecordingResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.selector.choose(&hello);
        // After a HelloRetryRequest, the second hello has the same name.
        self.hello.get_or_init(|| Hello { sni: hello.server_name().map(str::to_owned), shown });
        self.selector.choices.get(shown).map(|choice| Arc::clone(&choice.key))
    }
}

impl SelectedCertificate {
    fn has_name(&self, host: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, host))
    }
}

/// Matches by RFC 6125 §6.4.3: `*` is the complete leftmost label and matches exactly one label.
pub(crate) fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == domain),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
    use rustls::crypto::WebPkiSupportedAlgorithms;
    use rustls::pki_types::ServerName;
    use rustls::server::Acceptor;
    use rustls::{ClientConfig, ClientConnection, SignatureScheme};
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::tls::fixtures::Authority;
    use crate::tls::self_test::SignatureOnly;
    use crate::x509::crypto::provider;

    const ECDSA: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    const RSA: SignatureScheme = SignatureScheme::RSA_PSS_SHA256;

    /// A client that can verify one kind of signature.
    fn knows(scheme: SignatureScheme) -> SignatureOnly {
        let all = provider().signature_verification_algorithms;
        let mapping: Vec<_> = all.mapping.iter().filter(|(known, _)| *known == scheme).copied().collect();
        SignatureOnly(WebPkiSupportedAlgorithms { mapping: mapping.leak(), ..all })
    }

    fn choice(host: &str, key: KeyPair) -> SelectedCertificate {
        let until = OffsetDateTime::now_utc() + Duration::DAY;
        let issued_cert = Authority::new("CA").server(host, key, until);
        let key = provider().key_provider.load_private_key(issued_cert.key_der()).unwrap();
        SelectedCertificate {
            key: Arc::new(CertifiedKey::new(vec![issued_cert.der()], key)),
            names: vec![host.to_owned()],
        }
    }

    /// The index selected for a client with this SNI and signature scheme.
    fn selected(selector: &CertificateSelector, name: &str, scheme: SignatureScheme) -> usize {
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(knows(scheme)));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut hello.as_slice()).unwrap();
        let accepted = acceptor.accept().unwrap().expect("a whole hello");
        selector.choose(&accepted.client_hello())
    }

    #[test]
    fn certificate_with_the_requested_name_is_selected_if_the_client_can_verify_it() {
        let rsa = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let ecdsa = || KeyPair::generate().unwrap();
        let selector = CertificateSelector::new(vec![
            choice("a.test", ecdsa()),
            choice("b.test", ecdsa()),
            choice("c.test", rsa()),
        ]);
        let cases = [
            // Named and verifiable, whatever the case of the letters.
            ("b.test", ECDSA, 1),
            ("B.TEST", ECDSA, 1),
            ("c.test", RSA, 2),
            // Named, but not verifiable: the first verifiable one.
            ("b.test", RSA, 2),
            ("c.test", ECDSA, 0),
            // Not named by any.
            ("d.test", ECDSA, 0),
            ("d.test", RSA, 2),
            // SNI cannot contain an address.
            ("192.0.2.1", ECDSA, 0),
            ("192.0.2.1", RSA, 2),
            // None is verifiable: the first, so that the handshake fails with a reason.
            ("c.test", SignatureScheme::ED25519, 0),
        ];
        for (name, scheme, expected) in cases {
            assert_eq!(selected(&selector, name, scheme), expected, "{name} by {scheme:?}");
        }
    }

    #[test]
    fn wildcard_matches_exactly_one_label() {
        assert!(matches("db.example", "db.example"));
        assert!(matches("*.example", "db.example"));
        assert!(!matches("*.example", "a.db.example"));
        assert!(!matches("*.example", "example"));
        assert!(!matches("db.example", "cache.example"));
    }
}
