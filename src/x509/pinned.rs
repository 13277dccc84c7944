//! Which certificates of a file of `client_certificates` are pinned.

use rustls::pki_types::CertificateDer;

use crate::x509::certificate::Certificate;
use crate::x509::error::BuildError;
use crate::x509::key_kind::{KeyKind, USABLE_KEYS};
use crate::x509::pem;
use crate::x509::pem::PemError;

/// Selects all certificates of a file, except those that issued another one of it.
///
/// # Errors
/// If one of them cannot be parsed, or is not of version 3.
pub(crate) fn select_pinned(
    ders: Vec<CertificateDer<'static>>,
) -> Result<Vec<(CertificateDer<'static>, Certificate)>, BuildError> {
    let parsed: Result<Vec<_>, BuildError> = ders
        .iter()
        .map(|der| {
            let certificate = Certificate::parse(der)?;
            certificate.require_v3()?;
            Ok(certificate)
        })
        .collect();
    let parsed = parsed?;
    let has_issued =
        |one: &Certificate| parsed.iter().any(|other| !other.self_signed && other.issuer_digest == one.subject_digest);
    Ok(ders.into_iter().zip(parsed.iter().cloned()).filter(|(_, one)| !has_issued(one)).collect())
}

/// One client certificate that a caller sends to be pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPem {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) certificate: Certificate,
}

/// Why a text is not one client certificate. No text repeats a part of the input that may be a key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ClientPemError {
    #[error("contains a private key; send the certificate only, and replace the key if others could read this request")]
    PrivateKey,
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Certificate(#[from] BuildError),
    #[error("contains {0} client certificates; send one, which may be followed by the chain of its issuers")]
    Several(usize),
    #[error(
        "{subject} is a CA certificate, which identifies no client; send the certificate of a client, or add the CA to client_ca"
    )]
    Authority { subject: String },
    #[error("the key of {subject} is {kind}, which cannot verify signatures; use {USABLE_KEYS}")]
    Key { subject: String, kind: KeyKind },
}

impl ClientPem {
    /// Reads one certificate, which the chain of its issuers may follow.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ClientPemError> {
        if pem::mentions_private_key(text) {
            return Err(ClientPemError::PrivateKey);
        }
        let mut found = select_pinned(pem::certificates(text)?)?;
        let count = found.len();
        let Some((der, certificate)) = found.pop().filter(|_| count == 1) else {
            return Err(ClientPemError::Several(count));
        };
        // openssl req -x509 marks each certificate as a CA, so a self-signed one may be that of a client.
        if certificate.ca && !certificate.self_signed {
            return Err(ClientPemError::Authority { subject: certificate.subject });
        }
        match KeyKind::of_certificate(&der) {
            Some(kind) if !kind.is_supported() => Err(ClientPemError::Key { subject: certificate.subject, kind }),
            Some(_) | None => Ok(Self { der, certificate }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    fn params(is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params.distinguished_name.push(rcgen::DnType::CommonName, if is_ca { "CA" } else { "app" });
        params
    }

    #[test]
    fn exactly_one_client_certificate_is_accepted() {
        let root = CertifiedIssuer::self_signed(params(true), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params(false).signed_by(&key, &root).unwrap();
        let mut below = params(true);
        below.distinguished_name.push(rcgen::DnType::CommonName, "Intermediate CA");
        let below = below.signed_by(&key, &root).unwrap();
        let alone = params(false).self_signed(&key).unwrap();
        let parse = |text: &str| ClientPem::parse(text.as_bytes());
        for text in [leaf.pem(), format!("{}{}", leaf.pem(), root.pem()), format!("{}{}", root.pem(), leaf.pem())] {
            assert_eq!(parse(&text).unwrap().der, *leaf.der());
        }
        assert_eq!(parse(&alone.pem()).unwrap().der, *alone.der());
        assert_eq!(parse(&root.pem()).unwrap().der, *root.der(), "as openssl req -x509 makes them for clients");
        assert!(matches!(parse(&below.pem()), Err(ClientPemError::Authority { .. })));
        assert_eq!(parse(&format!("{}{}", leaf.pem(), alone.pem())), Err(ClientPemError::Several(2)));
        assert_eq!(parse(""), Err(ClientPemError::Pem(PemError::Empty)));
        assert_eq!(parse("hello"), Err(ClientPemError::Pem(PemError::NoCertificate)));
        assert!(matches!(parse(&leaf.pem()[..90]), Err(ClientPemError::Pem(PemError::Malformed { .. }))));
    }

    #[test]
    fn private_key_is_rejected_in_any_form_and_never_repeated() {
        let key = KeyPair::generate().unwrap();
        let alone = params(false).self_signed(&key).unwrap();
        let secret = key.serialize_pem();
        for text in [
            secret.clone(),
            format!("{}{secret}", alone.pem()),
            format!("x{secret}"),
            secret.replace("-----BEGIN ", "-----BEGIN ENCRYPTED "),
            secret[..80].to_owned(),
        ] {
            let error = ClientPem::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error, ClientPemError::PrivateKey, "{text}");
            assert!(!secret.lines().skip(1).any(|line| error.to_string().contains(&line[..8])));
        }
    }
}
