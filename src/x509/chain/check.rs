//! Checks of a configured certificate chain: order, unrelated or repeated certificates, and key usage. Whether the chain is
//! trusted is for the peers to verify.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::x509::certificate::Certificate;
use crate::x509::raw_certificate::RawCertificate;

/// The peers that receive a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownTo {
    /// A server certificate of a listener.
    Clients,
    /// A client certificate for the upstream.
    Upstream,
}

/// A fault for which peers may reject a chain. Positions count the certificates of the file, from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainFault {
    #[error("certificate {second} is the same as certificate {first}; remove one of them")]
    Twice { first: usize, second: usize },
    /// The certificate is not on any path up from certificate 1.
    #[error(
        "certificate {position} ({subject}) does not belong to the chain of certificate 1: it has issued none of the others; \
         remove it or replace it with the issuer of the chain"
    )]
    Unrelated { position: usize, subject: String },
    /// An issuer comes before a certificate that it issued.
    #[error("the certificates are in the wrong order, which some clients reject; use this order: {}", .order.join(", then "))]
    Order {
        /// The subjects in the right order.
        order: Vec<String>,
    },
}

pub(crate) fn chain_faults(chain: &[CertificateDer<'_>]) -> Vec<ChainFault> {
    let mut faults = Vec::new();
    let mut distinct: Vec<(usize, &CertificateDer<'_>)> = Vec::new();
    for (position, der) in (1..).zip(chain) {
        match distinct.iter().find(|(_, known)| *known == der) {
            Some((first, _)) => faults.push(ChainFault::Twice { first: *first, second: position }),
            None => distinct.push((position, der)),
        }
    }
    let ordered = in_order(distinct.iter().map(|(_, der)| *der));
    let belongs = |der: &&CertificateDer<'_>| ordered.contains(der);
    faults.extend(
        distinct
            .iter()
            .filter(|(_, der)| !belongs(der))
            .map(|(position, der)| ChainFault::Unrelated { position: *position, subject: subject(der) }),
    );
    let as_written = distinct.iter().map(|(_, der)| *der).filter(belongs);
    if !is_in_order(&as_written.collect::<Vec<_>>()) {
        faults.push(ChainFault::Order { order: ordered.into_iter().map(subject).collect() });
    }
    faults
}

/// The leaf, then its issuers, then their issuers. Unrelated certificates are left out.
fn in_order<'d>(mut written: impl Iterator<Item = &'d CertificateDer<'d>>) -> Vec<&'d CertificateDer<'d>> {
    let mut ordered: Vec<_> = written.next().into_iter().collect();
    let mut left: Vec<_> = written.collect();
    let mut at = 0;
    while let Some(issued) = ordered.get(at) {
        let (issuers, others) = left.into_iter().partition(|issuer| has_issued(issuer, issued));
        let issuers: Vec<_> = issuers;
        ordered.extend(issuers);
        left = others;
        at += 1;
    }
    ordered
}

/// Whether each certificate except the first follows one that it issued.
fn is_in_order(written: &[&CertificateDer<'_>]) -> bool {
    (1..written.len()).all(|at| {
        let (before, rest) = written.split_at(at);
        rest.first().is_none_or(|issuer| before.iter().any(|issued| has_issued(issuer, issued)))
    })
}

/// If the signature algorithm is not supported, such as SHA-1, only the names are compared.
fn has_issued(issuer: &CertificateDer<'_>, issued: &CertificateDer<'_>) -> bool {
    let (Some(issuer), Some(issued)) = (RawCertificate::read(issuer), RawCertificate::read(issued)) else {
        return false;
    };
    issued.issuer == issuer.subject
        && (!issued.may_be_signed_with(issuer.public_key_info) || issued.is_signed_with(issuer.public_key_info))
}

fn subject(der: &CertificateDer<'_>) -> String {
    Certificate::parse(der).map_or_else(|_| "unreadable".to_owned(), |certificate| certificate.subject)
}

/// Why the certificate's extensions do not allow its use; `None` if they do.
pub(crate) fn purpose_fault(der: &CertificateDer<'_>, shown_to: ShownTo) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let usage = certificate.extended_key_usage().ok().flatten();
    let lacks = usage.is_some_and(|usage| {
        let allowed = match shown_to {
            ShownTo::Clients => usage.value.server_auth,
            ShownTo::Upstream => usage.value.client_auth,
        };
        !(allowed || usage.value.any)
    });
    if lacks {
        return Some(match shown_to {
            ShownTo::Clients => "lacks serverAuth in its extended key usage, so clients that verify it reject it; issue a certificate with serverAuth".to_owned(),
            ShownTo::Upstream => "lacks clientAuth in its extended key usage, so an upstream that verifies it rejects it; issue a certificate with clientAuth".to_owned(),
        });
    }
    let usage = certificate.key_usage().ok().flatten();
    usage.is_some_and(|usage| !usage.value.digital_signature()).then(|| {
        "lacks digitalSignature in its key usage, which TLS 1.3 requires; issue a certificate with digitalSignature"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    };

    use super::*;

    type Der = CertificateDer<'static>;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn ca(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    /// A leaf, its issuer, the issuer's issuer, and an unrelated root.
    fn chain() -> [Der; 4] {
        let root = CertifiedIssuer::self_signed(ca("Root"), key()).unwrap();
        let middle_key = key();
        let middle = ca("Middle").signed_by(&middle_key, &root).unwrap();
        let leaf = params("leaf").signed_by(&key(), &Issuer::new(ca("Middle"), middle_key)).unwrap();
        let other = ca("Other").self_signed(&key()).unwrap();
        [leaf.der().clone(), middle.der().clone(), root.der().clone(), other.der().clone()]
    }

    #[test]
    fn sound_chains_have_no_faults() {
        let [leaf, middle, root, _] = chain();
        for sound in [
            vec![leaf.clone()],
            vec![leaf.clone(), middle.clone()],
            vec![leaf, middle, root.clone()],
            vec![root],
            vec![],
        ] {
            assert_eq!(chain_faults(&sound), []);
        }
    }

    #[test]
    fn wrong_order_is_reported_with_the_right_order() {
        let [leaf, middle, root, _] = chain();
        let order = ["CN=leaf", "CN=Middle", "CN=Root"].map(str::to_owned).to_vec();
        assert_eq!(chain_faults(&[leaf, root, middle]), [ChainFault::Order { order }]);
    }

    #[test]
    fn repeated_and_unrelated_certificates_are_reported_by_position() {
        let [leaf, middle, root, other] = chain();
        let unrelated = ChainFault::Unrelated { position: 2, subject: "CN=Other".to_owned() };
        let twice = ChainFault::Twice { first: 3, second: 5 };
        assert_eq!(chain_faults(&[leaf.clone(), other, middle.clone(), root, middle.clone()]), [twice, unrelated]);
        assert_eq!(chain_faults(&[leaf.clone(), leaf.clone()]), [ChainFault::Twice { first: 1, second: 2 }]);
        // The issuer's name with another key, as after a CA was recreated.
        let namesake = ca("Middle").self_signed(&key()).unwrap();
        let unrelated = ChainFault::Unrelated { position: 2, subject: "CN=Middle".to_owned() };
        assert_eq!(chain_faults(&[leaf.clone(), namesake.der().clone()]), [unrelated]);
    }

    #[test]
    fn both_of_two_cross_signed_issuers_belong_to_the_chain() {
        let [one, two] = ["One", "Two"].map(|name| CertifiedIssuer::self_signed(ca(name), key()).unwrap());
        let middle_key = key();
        let middles = [&one, &two].map(|root| ca("Middle").signed_by(&middle_key, root).unwrap().der().clone());
        let leaf = params("leaf").signed_by(&key(), &Issuer::new(ca("Middle"), middle_key)).unwrap();
        let [first, second] = middles;
        assert_eq!(chain_faults(&[leaf.der().clone(), first, second, two.der().clone(), one.der().clone()]), []);
    }

    #[test]
    fn certificate_with_wrong_key_usage_is_reported_for_its_peers() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
        let with = |purposes: &[ExtendedKeyUsagePurpose], usages: &[KeyUsagePurpose]| {
            let mut params = params("x");
            params.extended_key_usages = purposes.to_vec();
            params.key_usages = usages.to_vec();
            params.self_signed(&key()).unwrap().der().clone()
        };
        let fault = |der: &Der, shown_to| purpose_fault(der, shown_to).unwrap_or_default();
        for allowed in [&[][..], &[Any], &[ServerAuth, ClientAuth]] {
            for shown_to in [ShownTo::Clients, ShownTo::Upstream] {
                assert_eq!(fault(&with(allowed, &[]), shown_to), "");
            }
        }
        assert!(fault(&with(&[ClientAuth], &[]), ShownTo::Clients).contains("lacks serverAuth"));
        assert_eq!(fault(&with(&[ClientAuth], &[]), ShownTo::Upstream), "");
        assert!(fault(&with(&[ServerAuth], &[]), ShownTo::Upstream).contains("lacks clientAuth"));
        let usages = [KeyUsagePurpose::KeyEncipherment];
        assert!(fault(&with(&[ServerAuth], &usages), ShownTo::Clients).contains("digitalSignature"));
    }
}
