//! Certificates for one test: authorities, and the certificates that they issue.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ED25519, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// A certificate authority, a root or one below a root.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The certificates between an issued one and the root, nearest first. Empty for a root.
    path: Vec<Certificate>,
}

#[derive(Debug, Clone)]
struct Certificate {
    der: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::root(authority_params(name))
    }

    /// A root that has expired.
    pub(crate) fn expired(name: &str) -> Self {
        let mut params = authority_params(name);
        params.not_before -= Duration::days(1000);
        params.not_after -= Duration::days(1000);
        Self::root(params)
    }

    /// A root that expires at this time, rounded down to the second.
    pub(crate) fn expiring(name: &str, end: OffsetDateTime) -> Self {
        let mut params = authority_params(name);
        params.not_after = end;
        Self::root(params)
    }

    /// An issuer whose own certificate is not that of a CA.
    pub(crate) fn below_a_leaf(issuer: &Self, name: &str) -> Self {
        let key = KeyPair::generate().expect("an ECDSA key can be made");
        let below = CertifiedIssuer::signed_by(dated(name), key, &issuer.issuer).expect("an authority can sign a leaf");
        let own = Certificate { der: below.der().clone(), pem: below.pem() };
        Self { path: vec![own], issuer: below }
    }

    /// A root whose name constraints permit one directory name only.
    pub(crate) fn limited_to_a_directory(name: &str) -> Self {
        let mut params = authority_params(name);
        let permitted_subtrees = vec![GeneralSubtree::DirectoryName(DistinguishedName::new())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        Self::root(params)
    }

    fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("an ECDSA key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key);
        Self { issuer: issuer.expect("a root can sign itself"), path: Vec::new() }
    }

    /// A root with an RSA-4096 key.
    pub(crate) fn rsa_4096(name: &str) -> Self {
        Self::with_key(name, Key::Rsa4096)
    }

    /// A root with an Ed25519 key.
    pub(crate) fn ed25519(name: &str) -> Self {
        Self::with_key(name, Key::Ed25519)
    }

    fn with_key(name: &str, key: Key) -> Self {
        let issuer = CertifiedIssuer::self_signed(authority_params(name), key.generate());
        Self { issuer: issuer.expect("a root can sign itself"), path: Vec::new() }
    }

    /// An authority with an RSA-4096 key between this one and a leaf.
    pub(crate) fn rsa_4096_intermediate(&self, name: &str) -> Self {
        self.between(name, Key::Rsa4096.generate())
    }

    /// An authority between this one and a leaf.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.between(name, Key::Ecdsa.generate())
    }

    fn between(&self, name: &str, key: KeyPair) -> Self {
        let issuer = CertifiedIssuer::signed_by(authority_params(name), key, &self.issuer);
        let issuer = issuer.expect("an authority can sign another");
        let own = Certificate { der: issuer.der().clone(), pem: issuer.pem() };
        Self { path: [&[own], self.path.as_slice()].concat(), issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    pub(crate) fn issue(&self, request: Request) -> Leaf {
        let key = request.key.generate();
        let certificate = request.params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("an authority can sign a leaf");
        let own = Certificate { der: certificate.der().clone(), pem: certificate.pem() };
        Leaf { path: [&[own], self.path.as_slice()].concat(), key }
    }

    /// Its CRL as PEM, which expires after this many days; negative is in the past.
    pub(crate) fn revoking(&self, leaves: &[&Leaf], until: i64) -> String {
        let list = leaves.iter().fold(CrlContent::nothing(1), |list, leaf| list.and(leaf.der()));
        self.list(list.brief(until * 86_400)).pem()
    }

    /// Signs a CRL with this content.
    pub(crate) fn list(&self, content: CrlContent) -> List {
        List(content.0.signed_by(&self.issuer).expect("an authority can sign a list"))
    }
}

/// The content of a CRL.
#[derive(Debug)]
pub(crate) struct CrlContent(CertificateRevocationListParams);

impl CrlContent {
    /// No revoked certificate, with this CRL number; nextUpdate is tomorrow.
    pub(crate) fn nothing(number: u64) -> Self {
        let now = OffsetDateTime::now_utc();
        Self(CertificateRevocationListParams {
            this_update: now - Duration::HOUR,
            next_update: now + Duration::DAY,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        })
    }

    /// Revokes the serial number of this certificate too.
    pub(crate) fn and(mut self, certificate: &CertificateDer<'_>) -> Self {
        let (_, parsed) = X509Certificate::from_der(certificate).expect("a test's certificate can be read");
        self.0.revoked_certs.push(RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: self.0.this_update,
            reason_code: None,
            invalidity_date: None,
        });
        self
    }

    /// Revokes this many serial numbers of 16 bytes, which no certificate of a test has.
    pub(crate) fn and_many(mut self, count: u64) -> Self {
        let revocation_time = self.0.this_update;
        self.0.revoked_certs.extend((0..count).map(|number| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[[0x55; 8], number.to_be_bytes()].concat()),
            revocation_time,
            reason_code: None,
            invalidity_date: None,
        }));
        self
    }

    /// Limits the CRL to the certificates of CAs.
    pub(crate) fn about_authorities(mut self) -> Self {
        let distribution_point = CrlDistributionPoint { uris: vec!["http://ca.test/list".to_owned()] };
        let scope = Some(CrlScope::CaCertsOnly);
        self.0.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
        self
    }

    /// Sets nextUpdate to this many seconds from now; negative is in the past.
    pub(crate) fn brief(mut self, seconds: i64) -> Self {
        self.0.next_update = OffsetDateTime::now_utc() + Duration::seconds(seconds);
        self.0.this_update = self.0.this_update.min(self.0.next_update - Duration::HOUR);
        self
    }

    /// nextUpdate, rounded to the second as in the CRL.
    pub(crate) fn ends(&self) -> OffsetDateTime {
        self.0.next_update.replace_nanosecond(0).expect("a second has a beginning")
    }
}

/// A signed CRL.
#[derive(Debug)]
pub(crate) struct List(CertificateRevocationList);

impl List {
    pub(crate) fn pem(&self) -> String {
        self.0.pem().expect("a list can be written")
    }

    pub(crate) fn der(&self) -> &[u8] {
        self.0.der()
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = dated(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn dated(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::days(1), now + Duration::days(365));
    params
}

/// The properties of a requested certificate.
#[derive(Debug)]
pub(crate) struct Request {
    params: CertificateParams,
    key: Key,
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Ecdsa,
    Rsa,
    Rsa4096,
    Ed25519,
}

impl Key {
    fn generate(self) -> KeyPair {
        match self {
            Self::Ecdsa => KeyPair::generate(),
            Self::Ed25519 => KeyPair::generate_for(&PKCS_ED25519).and_then(|key| {
                // Without the public key at its end, which OpenSSL does not read.
                let seed = key.serialize_der()[16..48].to_vec();
                let head = *b"\x30\x2e\x02\x01\0\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
                KeyPair::try_from([&head[..], &seed].concat())
            }),
            Self::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Self::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        }
        .expect("a key can be made")
    }
}

impl Request {
    /// A server certificate for the given names and addresses; the first is its common name too.
    pub(crate) fn server(names: &[&str]) -> Self {
        let mut params = dated(names.first().expect("a server has a name"));
        params.subject_alt_names = names.iter().map(|name| subject_name(name)).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Self { params, key: Key::Ecdsa }
    }

    /// A client certificate.
    pub(crate) fn client(name: &str) -> Self {
        let mut params = dated(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Self { params, key: Key::Ecdsa }
    }

    /// One more name, as `dns:…`, `uri:…` or `email:…`.
    pub(crate) fn also(mut self, name: &str) -> Self {
        let (kind, name) = name.split_once(':').expect("a kind and a name");
        let text = || name.try_into().expect("a test's names are ASCII");
        self.params.subject_alt_names.push(match kind {
            "dns" => SanType::DnsName(text()),
            "uri" => SanType::URI(text()),
            "email" => SanType::Rfc822Name(text()),
            _ => panic!("{kind} is no kind of name"),
        });
        self
    }

    /// With the critical extension certificatePolicies, which many libraries do not support.
    pub(crate) fn with_critical_policies(mut self) -> Self {
        // One policy, 1.2.3.4.
        let mut extension =
            CustomExtension::from_oid_content(&[2, 5, 29, 32], b"\x30\x07\x30\x05\x06\x03\x2a\x03\x04".to_vec());
        extension.set_criticality(true);
        self.params.custom_extensions.push(extension);
        self
    }

    /// The request of a CA, as `openssl req -x509` makes it.
    pub(crate) fn authority(mut self) -> Self {
        self.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self
    }

    /// Expires at this time, rounded down to the second.
    pub(crate) fn expiring(mut self, end: OffsetDateTime) -> Self {
        self.params.not_after = end;
        self
    }

    pub(crate) fn organization(mut self, name: &str) -> Self {
        self.params.distinguished_name.push(DnType::OrganizationName, name);
        self
    }

    pub(crate) fn ed25519(self) -> Self {
        Self { key: Key::Ed25519, ..self }
    }

    pub(crate) fn rsa(self) -> Self {
        Self { key: Key::Rsa, ..self }
    }

    pub(crate) fn rsa_4096(self) -> Self {
        Self { key: Key::Rsa4096, ..self }
    }

    /// Valid from and until this many days from now; negative is in the past.
    pub(crate) fn valid(mut self, from: i64, until: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        self.params.not_before = now + Duration::days(from);
        self.params.not_after = now + Duration::days(until);
        self
    }
}

fn subject_name(name: &str) -> SanType {
    match name.parse::<IpAddr>() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().expect("a test's names are ASCII")),
    }
}

/// An end-entity certificate, with its key and the chain to its root.
#[derive(Debug)]
pub(crate) struct Leaf {
    path: Vec<Certificate>,
    key: KeyPair,
}

impl Leaf {
    /// The certificate and the intermediates, as in the certificate file of a server.
    pub(crate) fn pem(&self) -> String {
        self.path.iter().map(|certificate| certificate.pem.as_str()).collect()
    }

    /// A copy of the certificate and its key.
    pub(crate) fn copied(&self) -> Self {
        let key = KeyPair::try_from(self.key.serialize_der()).expect("a key can be read again");
        Self { path: self.path.clone(), key }
    }

    /// With these certificates after it.
    pub(crate) fn followed_by(mut self, authorities: &[Authority]) -> Self {
        let others = authorities.iter().map(|one| Certificate { der: one.der().clone(), pem: one.pem() });
        self.path.extend(others);
        self
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn path(&self) -> Vec<CertificateDer<'static>> {
        self.path.iter().map(|certificate| certificate.der.clone()).collect()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("rcgen writes PKCS#8")
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.path[0].der
    }

    /// A serial number that no other certificate has.
    pub(crate) fn by_itself(request: Request) -> Self {
        let key = request.key.generate();
        let certificate = request.params.self_signed(&key).expect("a leaf can sign itself");
        Self { path: vec![Certificate { der: certificate.der().clone(), pem: certificate.pem() }], key }
    }

    /// Lower-case hex, as in audit events.
    pub(crate) fn sha256(&self) -> String {
        sha256(self.der())
    }
}

/// The SHA-256 of some bytes in lower-case hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
