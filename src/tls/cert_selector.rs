//! Which of a listener's certificates a client is shown: by the name it asks for, then by what it can verify.

use std::sync::{Arc, OnceLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificates of one listener, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct CertificateSelector {
    choices: Vec<SelectedCertificate>,
}

/// One certificate with its key.
#[derive(Debug)]
pub(crate) struct SelectedCertificate {
    /// The chain and the key that signs for it.
    pub(crate) key: Arc<CertifiedKey>,
    /// Host names it is valid for, lower case.
    pub(crate) names: Vec<String>,
}

impl CertificateSelector {
    pub(crate) fn new(choices: Vec<SelectedCertificate>) -> Self {
        Self { choices }
    }

    /// The index of the certificate for this client: named and verifiable, else verifiable, else the first.
    pub(crate) fn choose(&self, hello: &ClientHello<'_>) -> usize {
        let verifiable =
            |choice: &SelectedCertificate| choice.key.key.choose_scheme(hello.signature_schemes()).is_some();
        // A trailing dot marks a name as complete, and is no part of it (RFC 6066 §3 forbids it; clients send it all the same).
        let wanted = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let named = |choice: &SelectedCertificate| wanted.as_deref().is_some_and(|name| choice.set_client(name));
        let first = |test: &dyn Fn(&SelectedCertificate) -> bool| self.choices.iter().position(test);
        first(&|choice| named(choice) && verifiable(choice)).or_else(|| first(&verifiable)).unwrap_or(0)
    }
}

/// What one handshake came to know: the name the client asked for, and the index of the certificate it was shown.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) sni: Option<String>,
    pub(crate) shown: usize,
}

/// Where the hello of one handshake is left. Empty until it has come.
pub(crate) type RecordedHello = Arc<OnceLock<Hello>>;

/// The chooser of one handshake. rustls keeps the hello to itself; this is where it lets us see it.
#[derive(Debug)]
pub(crate) struct RecordingResolver {
    selector: Arc<CertificateSelector>,
    heard: RecordedHello,
}

impl RecordingResolver {
    pub(crate) fn new(selector: &Arc<CertificateSelector>, heard: &RecordedHello) -> Self {
        Self { selector: Arc::clone(selector), heard: Arc::clone(heard) }
    }
}

impl ResolvesServerCert for RecordingResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.selector.choose(&hello);
        // A client that is asked for a second hello says the same in it.
        self.heard.get_or_init(|| Hello { sni: hello.server_name().map(str::to_owned), shown });
        self.selector.choices.get(shown).map(|choice| Arc::clone(&choice.key))
    }
}

impl SelectedCertificate {
    fn set_client(&self, host: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, host))
    }
}

/// Matches as RFC 6125 §6.4.3 does: `*` is the whole leftmost label and stands for exactly one.
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

    /// What the hello of a client that asks for this name and knows this kind of signature is answered with.
    fn chosen(selector: &CertificateSelector, name: &str, scheme: SignatureScheme) -> usize {
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
    fn a_client_is_shown_what_it_asked_for_where_it_can_verify_that() {
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
            // Named, but not verifiable: then the first that is.
            ("b.test", RSA, 2),
            ("c.test", ECDSA, 0),
            // Not named by any.
            ("d.test", ECDSA, 0),
            ("d.test", RSA, 2),
            // An address is not asked for by SNI.
            ("192.0.2.1", ECDSA, 0),
            ("192.0.2.1", RSA, 2),
            // Nothing is verifiable: the first, so that the handshake says why it fails.
            ("c.test", SignatureScheme::ED25519, 0),
        ];
        for (name, scheme, expected) in cases {
            assert_eq!(chosen(&selector, name, scheme), expected, "{name} by {scheme:?}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        assert!(matches("db.example", "db.example"));
        assert!(matches("*.example", "db.example"));
        assert!(!matches("*.example", "a.db.example"));
        assert!(!matches("*.example", "example"));
        assert!(!matches("db.example", "cache.example"));
    }
}
