//! Removes a certificate from the text of a file of pinned certificates.

use std::collections::HashSet;

use crate::x509::error::BuildError;
use crate::x509::fingerprint::CertificateFingerprint;
use crate::x509::pem;
use crate::x509::pem::PemError;
use crate::x509::pinned::select_pinned;

/// Why a certificate cannot be removed from a file. The texts follow the name of the file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum RemovalError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Certificate(#[from] BuildError),
    #[error("does not hold the certificate any more; read the list again")]
    Absent,
    #[error("has certificates that share a line; write each block on lines of its own")]
    Inseparable,
    #[error("holds a private key as well, so the API does not remove the file; remove it by hand")]
    PrivateKey,
}

/// Removes a certificate from the content of a file; `None` if nothing else is pinned by it. All other bytes stay the same,
/// except the issuers of the removed certificate: without it, they would be pinned themselves.
pub(crate) fn remove_certificate(
    content: &[u8],
    sha256: &CertificateFingerprint,
) -> Result<Option<Vec<u8>>, RemovalError> {
    let fingerprints = |bytes: &[u8]| -> Result<HashSet<CertificateFingerprint>, RemovalError> {
        Ok(select_pinned(pem::certificates(bytes)?)?.into_iter().map(|(_, certificate)| certificate.sha256).collect())
    };
    let mut allowed = fingerprints(content)?;
    if !allowed.remove(sha256) {
        return Err(RemovalError::Absent);
    }
    let mut removed = HashSet::from([sha256.clone()]);
    while !allowed.is_empty() {
        let rest = pem::remove_certificates(content, |der| removed.contains(&CertificateFingerprint::from_der(der)))?;
        let orphans: Vec<_> = fingerprints(&rest)?.difference(&allowed).cloned().collect();
        if orphans.is_empty() {
            return Ok(Some(rest));
        }
        let before = removed.len();
        removed.extend(orphans);
        if removed.len() == before {
            return Err(RemovalError::Inseparable);
        }
    }
    if pem::mentions_private_key(content) { Err(RemovalError::PrivateKey) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    #[test]
    fn issuers_of_the_removed_certificate_are_not_pinned_in_its_place() {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params("root", true), key()).unwrap();
        let middle = CertifiedIssuer::signed_by(params("middle", true), key(), &root).unwrap();
        let app = params("app", false).signed_by(&key(), &middle).unwrap();
        let other = params("other", false).signed_by(&key(), &root).unwrap();
        let chain = format!("# app\n{}{}{}", app.pem(), middle.pem(), root.pem());
        let sha256 = CertificateFingerprint::from_der(app.der());
        let without_app = |text: &str| remove_certificate(text.as_bytes(), &sha256);
        assert_eq!(without_app(&chain), Ok(None));
        let rest = without_app(&format!("{chain}# other\n{}", other.pem())).unwrap().unwrap();
        assert_eq!(String::from_utf8(rest).unwrap(), format!("# app\n{}# other\n{}", root.pem(), other.pem()));
        assert_eq!(without_app(&other.pem()), Err(RemovalError::Absent));
        let with_key = format!("{}{}", app.pem(), key().serialize_pem());
        assert_eq!(without_app(&with_key), Err(RemovalError::PrivateKey));
        assert!(without_app(&app.pem()[..70]).is_err());
    }
}
