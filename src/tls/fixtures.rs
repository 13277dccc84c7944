//! Certificates and TLS configurations for unit tests.

use std::sync::{Arc, LazyLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::x509::crypto::provider;

/// A CA with its own key. Several CAs can have the same name.
#[derive(Debug)]
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct IssuedCertificate {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap())
    }

    /// A self-signed CA with this validity.
    pub(crate) fn with_validity(name: &str, from: OffsetDateTime, until: OffsetDateTime) -> Self {
        let mut params = authority_params(name);
        (params.not_before, params.not_after) = (from, until);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// An issuer with this certificate, even if it is not a CA certificate.
    pub(crate) fn self_signed(params: &CertificateParams) -> Self {
        Self(CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// A CA issued by this CA.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self(CertifiedIssuer::signed_by(authority_params(name), KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    /// A CA issued by this CA with this key usage; empty: no key usage extension.
    pub(crate) fn intermediate_for(&self, name: &str, usages: &[KeyUsagePurpose]) -> Self {
        let mut params = authority_params(name);
        params.key_usages = usages.to_vec();
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap())
    }

    /// Another certificate for the same key, self-signed or issued by another CA.
    pub(crate) fn reissued(&self, params: CertificateParams, by: Option<&Self>) -> Self {
        let key = KeyPair::try_from(self.0.key().serialize_der()).unwrap();
        Self(match by {
            Some(by) => CertifiedIssuer::signed_by(params, key, &by.0).unwrap(),
            None => CertifiedIssuer::self_signed(params, key).unwrap(),
        })
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client certificate with this validity.
    pub(crate) fn client(&self, name: &str, from: OffsetDateTime, until: OffsetDateTime) -> IssuedCertificate {
        let mut params = named(CertificateParams::default(), name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (from, until);
        self.issue(&params, KeyPair::generate().unwrap())
    }

    /// A server certificate for one host.
    pub(crate) fn server(&self, host: &str, key: KeyPair, until: OffsetDateTime) -> IssuedCertificate {
        let mut params = named(CertificateParams::new([host.to_owned()]).unwrap(), host);
        params.not_after = until;
        self.issue(&params, key)
    }

    /// A revocation list, usually of [`revoking`].
    pub(crate) fn list(&self, params: &CertificateRevocationListParams) -> CertificateRevocationList {
        params.signed_by(&self.0).unwrap()
    }

    pub(crate) fn issue(&self, params: &CertificateParams, key: KeyPair) -> IssuedCertificate {
        IssuedCertificate { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }
}

impl IssuedCertificate {
    pub(crate) fn self_signed(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), key }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// A revocation list that is valid for one day.
pub(crate) fn revoking(
    certificates: &[CertificateDer<'static>],
    number: u64,
    from: OffsetDateTime,
) -> CertificateRevocationListParams {
    let revoked = |der: &CertificateDer<'_>| RevokedCertParams {
        serial_number: SerialNumber::from_slice(X509Certificate::from_der(der).unwrap().1.raw_serial()),
        revocation_time: from,
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: from,
        next_update: from + Duration::DAY,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: certificates.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

/// The parameters of a CA certificate.
pub(crate) fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(CertificateParams::default(), name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn named(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// The TLS options of a test client and server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsOptions {
    /// Index of the cipher suite, modulo their number. The suite determines the TLS version.
    pub(crate) suite: usize,
    /// Bytes of the largest record, header included; at least 32.
    pub(crate) record: Option<usize>,
    /// Whether the server requires a client certificate. The certificate is larger than a record.
    pub(crate) client_auth: bool,
}

/// The certificates of all handshakes in a test binary. Ed25519 signatures have a fixed length, so two handshakes with the same
/// options have equal sizes and can be split at the same positions.
struct TestPeers {
    roots: Arc<RootCertStore>,
    server: IssuedCertificate,
    client: IssuedCertificate,
}

static TEST_PEERS: LazyLock<TestPeers> = LazyLock::new(|| {
    let authority = Authority::new("Test CA");
    let key = || KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let names: Vec<String> = (0..1000).map(|number| format!("name-{number:04}.test")).collect();
    let mut params = named(CertificateParams::new(names).unwrap(), "client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut roots = RootCertStore::empty();
    roots.add(authority.der()).unwrap();
    TestPeers {
        roots: Arc::new(roots),
        server: authority.server("db.test", key(), params.not_after),
        client: authority.issue(&params, key()),
    }
});

impl TlsOptions {
    fn suite(self) -> SupportedCipherSuite {
        let mut suites = provider().cipher_suites.clone();
        suites.retain(|suite| !suite.suite().as_str().unwrap_or_default().contains("_RSA_"));
        suites[self.suite % suites.len()]
    }

    pub(crate) fn client(self) -> ClientConnection {
        ClientConnection::new(self.client_config(), "db.test".try_into().unwrap()).unwrap()
    }

    pub(crate) fn client_config(self) -> Arc<ClientConfig> {
        let suite = self.suite();
        let version = if suite.tls13().is_some() { &TLS13 } else { &TLS12 };
        let provider = rustls::crypto::CryptoProvider { cipher_suites: vec![suite], ..(*provider()).clone() };
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(Arc::clone(&TEST_PEERS.roots));
        let own = &TEST_PEERS.client;
        let mut config = config.with_client_auth_cert(vec![own.der()], own.key_der()).unwrap();
        config.max_fragment_size = self.record;
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    pub(crate) fn server_config(self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12]).unwrap();
        let config = if self.client_auth {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&TEST_PEERS.roots), provider());
            config.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            config.with_no_client_auth()
        };
        let own = &TEST_PEERS.server;
        Arc::new(config.with_single_cert(vec![own.der()], own.key_der()).unwrap())
    }
}

/// Test data without repetition, from a position in an endless sequence.
pub(crate) fn test_bytes(from: usize, length: usize) -> Vec<u8> {
    let bytes = (from..from + length).map(|place| (place / 4).wrapping_mul(2_654_435_761).to_le_bytes()[place % 4]);
    bytes.collect()
}
