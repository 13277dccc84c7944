//! What is wrong with a certificate chain in a file before anybody is shown it: not whether it can be trusted, which is for
//! those to judge who see it, but whether it is what was meant.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::x509::certificate::Certificate;
use crate::x509::raw_certificate::RawCertificate;

/// Whom a certificate is shown to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownTo {
    /// The clients of a listener: it is a server's.
    Clients,
    /// An upstream that asks for one: it is a client's.
    Upstream,
}

/// Something that peers may refuse a chain for. Numbers are those of the certificates in their file, from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainFault {
    /// It is in the file more than once.
    #[error("certificate {second} is the same as certificate {first}; remove one of them")]
    Twice {
        /// Where it is first.
        first: usize,
        /// Where it is again.
        second: usize,
    },
    /// It has issued none of the others, however far below it.
    #[error(
        "certificate {position} ({subject}) does not belong to the chain of certificate 1: it has issued none of the others; \
         remove it or replace it with the issuer of the chain"
    )]
    Unrelated {
        /// Its number.
        position: usize,
        /// Its subject.
        subject: String,
    },
    /// An issuer comes before what it has issued.
    #[error("the certificates are in the wrong order, which some clients reject; use this order: {}", .order.join(", then "))]
    Order {
        /// The subjects in the right order.
        order: Vec<String>,
    },
}

/// Finds what is wrong with the chain behind its first certificate.
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

/// The leaf, then its issuers, then theirs. Those that have issued none of them are left out.
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

/// Whether each but the first comes behind one that it has issued.
fn is_in_order(written: &[&CertificateDer<'_>]) -> bool {
    (1..written.len()).all(|at| {
        let (before, rest) = written.split_at(at);
        rest.first().is_none_or(|issuer| before.iter().any(|issued| has_issued(issuer, issued)))
    })
}

/// Whether one has issued the other, as far as can be told: a signature of a kind that is not supported here, such as SHA-1,
/// is left to the names.
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

/// What a certificate may not be used for by its own extensions, though it is; nothing where it may.
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

    /// A leaf, its issuer, the issuer's issuer, and a root of another family.
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
    fn wrong_order_is_told_with_the_right_one() {
        let [leaf, middle, root, _] = chain();
        let order = ["CN=leaf", "CN=Middle", "CN=Root"].map(str::to_owned).to_vec();
        assert_eq!(chain_faults(&[leaf, root, middle]), [ChainFault::Order { order }]);
    }

    #[test]
    fn repeated_and_unrelated_certificates_are_told_by_their_number() {
        let [leaf, middle, root, other] = chain();
        let unrelated = ChainFault::Unrelated { position: 2, subject: "CN=Other".to_owned() };
        let twice = ChainFault::Twice { first: 3, second: 5 };
        assert_eq!(chain_faults(&[leaf.clone(), other, middle.clone(), root, middle.clone()]), [twice, unrelated]);
        assert_eq!(chain_faults(&[leaf.clone(), leaf.clone()]), [ChainFault::Twice { first: 1, second: 2 }]);
        // The name of the issuer and another key, as after a CA was made anew.
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
    fn certificates_may_be_used_for_what_their_extensions_allow() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
        let with = |purposes: &[ExtendedKeyUsagePurpose], usages: &[KeyUsagePurpose]| {
            let mut params = params("x");
            params.extended_key_usages = purposes.to_vec();
            params.key_usages = usages.to_vec();
            params.self_signed(&key()).unwrap().der().clone()
        };
        let told = |der: &Der, shown_to| purpose_fault(der, shown_to).unwrap_or_default();
        for allowed in [&[][..], &[Any], &[ServerAuth, ClientAuth]] {
            for shown_to in [ShownTo::Clients, ShownTo::Upstream] {
                assert_eq!(told(&with(allowed, &[]), shown_to), "");
            }
        }
        assert!(told(&with(&[ClientAuth], &[]), ShownTo::Clients).contains("lacks serverAuth"));
        assert_eq!(told(&with(&[ClientAuth], &[]), ShownTo::Upstream), "");
        assert!(told(&with(&[ServerAuth], &[]), ShownTo::Upstream).contains("lacks clientAuth"));
        let usages = [KeyUsagePurpose::KeyEncipherment];
        assert!(told(&with(&[ServerAuth], &usages), ShownTo::Clients).contains("digitalSignature"));
    }
}
