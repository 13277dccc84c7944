//! A local certificate authority, and the certificates that it signs.

use std::fmt;

use ::pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{CertificateParams, Issuer, KeyIdMethod, KeyPair, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::asn1_rs::{Any, BitString, FromDer as _, Sequence, ToDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use zeroize::{Zeroize as _, Zeroizing};

use crate::issuing::IssuingError;
use crate::x509::ca_properties::{CaFault, CaProperties, Purpose};
use crate::x509::certificate::Certificate;
use crate::x509::key_pair::CertifiedKeyPair;

/// A CA certificate with its private key.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    facts: Certificate,
    issuer: Issuer<'static, KeyPair>,
    /// All certificates of the CA file.
    bundle: Vec<CertificateDer<'static>>,
}

/// Never shows the key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("subject", &self.facts.subject).finish_non_exhaustive()
    }
}

/// Why a certificate file and a key are not a CA. The texts follow the name of the certificate file, except of `Key`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("no certificate in this file matches the key; use the key of one of them")]
    OtherKey,
    #[error("{subject} is not a CA and cannot issue certificates; use a CA certificate")]
    NotACa { subject: String },
    #[error("the private key is not usable: {0}")]
    Key(String),
    #[error(transparent)]
    Certificate(#[from] IssuingError),
}

/// A new certificate with its key.
pub(crate) struct Signed {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    /// The CA of `key` among the certificates of its file.
    ///
    /// # Errors
    /// If none of them has the key, or the one that has it is not a CA.
    pub(crate) fn from_bundle(
        bundle: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Self, AuthorityError> {
        let pair = KeyPair::try_from(key).map_err(|error| AuthorityError::Key(error.to_string()))?;
        // Without this check, a wrong key would issue certificates that no one can verify.
        let fits =
            |der: &&CertificateDer<'static>| CertifiedKeyPair::new(vec![(*der).clone()], key.clone_key()).is_ok();
        let own = bundle.iter().find(fits).cloned().ok_or(AuthorityError::OtherKey)?;
        let authority = Self::from_parts(own, pair, bundle)?;
        if !authority.facts.ca {
            return Err(AuthorityError::NotACa { subject: authority.facts.subject });
        }
        Ok(authority)
    }

    /// Why the CA must not issue client certificates.
    pub(crate) fn fault(&self) -> Option<CaFault> {
        match CaProperties::read(&self.certificate, Purpose::ClientAuth) {
            Some(properties) => properties.fault,
            None => Some(CaFault::NotACa),
        }
    }

    pub(crate) fn new(certificate: &CertificateDer<'static>, key: KeyPair) -> Result<Self, IssuingError> {
        Self::from_parts(certificate.clone(), key, vec![certificate.clone()])
    }

    fn from_parts(
        certificate: CertificateDer<'static>,
        key: KeyPair,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IssuingError> {
        let facts = Certificate::parse(&certificate).map_err(IssuingError::certificate)?;
        let mut params = CertificateParams::default();
        if let Some(id) = subject_key_identifier(&parsed(&certificate)?) {
            params.key_identifier_method = KeyIdMethod::PreSpecified(id.to_vec());
        }
        Ok(Self { certificate, facts, issuer: Issuer::new(params, key), bundle })
    }

    pub(crate) fn facts(&self) -> &Certificate {
        &self.facts
    }

    /// Whether the other CA issues the same certificates. A key that matches an unchanged certificate is the same key.
    pub(crate) fn is_same_ca(&self, other: &Self) -> bool {
        self.certificate == other.certificate && self.bundle == other.bundle
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// All certificates of the CA file as PEM, without a private key that the file may contain.
    pub(crate) fn bundle_pem(&self) -> String {
        self.bundle.iter().map(certificate_pem).collect()
    }

    /// The certificates of the CA file.
    pub(crate) fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// The intermediates that a peer sends after its certificate: this CA, if it is not self-signed, and the intermediates
    /// of its file up to the root.
    pub(crate) fn intermediates(&self) -> Vec<&CertificateDer<'static>> {
        let parsed: Vec<_> = self.bundle.iter().filter_map(|der| Some((der, Certificate::parse(der).ok()?))).collect();
        let mut chain = Vec::new();
        let (mut der, mut facts) = (&self.certificate, &self.facts);
        for _ in 0..=parsed.len() {
            if facts.self_signed {
                break;
            }
            chain.push(der);
            let above = parsed.iter().find(|(_, above)| above.subject_digest == facts.issuer_digest);
            let Some((next, next_facts)) = above else { break };
            (der, facts) = (next, next_facts);
        }
        chain
    }

    /// The same as PEM.
    pub(crate) fn intermediates_pem(&self) -> String {
        self.intermediates().into_iter().map(certificate_pem).collect()
    }

    /// Issues a certificate for `key`. A `subject` (DER of a Name) replaces the subject of `params`.
    pub(crate) fn sign(
        &self,
        params: &CertificateParams,
        key: KeyPair,
        subject: Option<&[u8]>,
    ) -> Result<Signed, IssuingError> {
        let draft = params.signed_by(&key, &self.issuer).map_err(IssuingError::certificate)?;
        let certificate = self.with_names(draft.der(), subject)?;
        Ok(Signed { certificate, key })
    }

    /// Replaces issuer and subject of the draft with exact DER names and signs it again.
    ///
    /// rcgen keeps one attribute per type, so it loses the first of two OUs or DCs. A certificate whose issuer is not
    /// byte-identical to the subject of its CA cannot be verified.
    fn with_names(
        &self,
        draft: &CertificateDer<'_>,
        subject: Option<&[u8]>,
    ) -> Result<CertificateDer<'static>, IssuingError> {
        let issuer = parsed(&self.certificate)?;
        let issuer = issuer.subject().as_raw();
        let broken = || IssuingError::certificate("the draft is not a certificate");
        let outer = pieces(draft).ok_or_else(broken)?;
        let [tbs, algorithm, _] = outer.as_slice() else { return Err(broken()) };
        let inner = pieces(tbs).ok_or_else(broken)?;
        let [version, serial, signature, _, validity, own, rest @ ..] = inner.as_slice() else { return Err(broken()) };
        let head = [*version, *serial, *signature, issuer, *validity, subject.unwrap_or(own)];
        let tbs = der(&Sequence::new([head.concat(), rest.concat()].concat().into()))?;
        let signature = self.issuer.key().sign(&tbs).map_err(IssuingError::certificate)?;
        let signature = der(&BitString::new(0, &signature))?;
        let certificate = der(&Sequence::new([tbs.as_slice(), *algorithm, &signature].concat().into()))?;
        Ok(certificate.into())
    }
}

impl Signed {
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    pub(crate) fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }
}

/// rcgen keeps the DER of the key beside the key of the crypto library, which wipes its own.
impl Drop for Signed {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

pub(crate) fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IssuingError> {
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(IssuingError::certificate)
}

pub(crate) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    ::pem::encode_config(&Pem::new("CERTIFICATE", der.as_ref()), config)
}

fn subject_key_identifier<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// Splits a DER SEQUENCE into the encodings of its elements.
fn pieces(sequence: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, sequence) = Any::from_der(sequence).ok()?;
    let (mut pieces, mut rest) = (Vec::new(), sequence.data);
    while !rest.is_empty() {
        let (after, _) = Any::from_der(rest).ok()?;
        let (piece, tail) = rest.split_at_checked(rest.len() - after.len())?;
        pieces.push(piece);
        rest = tail;
    }
    Some(pieces)
}

fn der(value: &impl ToDer) -> Result<Vec<u8>, IssuingError> {
    value.to_der_vec().map_err(IssuingError::certificate)
}
