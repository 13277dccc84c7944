//! Results agree between full verification and reverification, and with webpki where the rules are equal.

use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use super::*;
use crate::x509::clock::unix_time;
use crate::x509::crypto::provider;

/// The comparable part of a result.
fn comparable(result: Result<Arc<VerifiedIdentity>, ChainError>) -> Result<String, ChainError> {
    result.map(|identity| format!("{:?} until {}", identity.certificate.sha256, identity.until))
}

#[test]
fn reverification_has_the_result_of_a_fresh_verification() {
    let pki = Pki::new();
    let sent = pki.sent();
    let clients: Vec<_> = sent.iter().map(|(_, chain)| chain[0].clone()).collect();
    let root = [pki.root.der()];
    let before = [Vec::new(), vec![list(&pki.root, &[], 1)]].map(|crls| verifier(&root, &crls, CrlExpired::Refuse));
    let (mut good, mut refused, mut left) = (0, 0, 0);
    for (lists_are, lists, _) in pki.lists(&clients) {
        for (anchors_are, anchors) in pki.anchors() {
            for expired in [CrlExpired::Refuse, CrlExpired::Allow] {
                for (sends, chain) in &sent {
                    let what = format!("{sends}; lists: {lists_are}, {expired:?}; anchors: {anchors_are}");
                    let [again, anew] = [(); 2].map(|()| verifier(&anchors, &lists, expired));
                    for before in &before {
                        let identity = verify(before, chain).unwrap();
                        let expected = comparable(verify(&anew, chain));
                        match again.reverify_from_path(&identity, NOW) {
                            Some(Ok(reverified)) => {
                                good += 1;
                                assert_eq!(
                                    comparable(Ok(reverified)).is_ok(),
                                    expected.is_ok(),
                                    "{what}: {expected:?}"
                                );
                            }
                            Some(Err(error)) => {
                                refused += 1;
                                assert_eq!(Err(error), expected, "{what}");
                            }
                            None => left += 1,
                        }
                        let reverified = comparable(again.reverify(&identity, NOW));
                        assert_eq!(reverified.is_ok(), expected.is_ok(), "{what}: {reverified:?}, {expected:?}");
                    }
                }
            }
        }
    }
    assert!(good > 3000 && refused > 500 && left < good, "{good} good, {refused} refused, {left} left");
}

/// The result of webpki: with each anchor alone, and the lists of the anchor and of the intermediates.
fn webpki_result(
    anchors: &[CertificateDer<'static>],
    lists: &[Crl],
    expired: CrlExpired,
    chain: &[CertificateDer<'static>],
) -> Result<(), Error> {
    let mut refusal = Error::from(CertificateError::UnknownIssuer);
    for anchor in anchors {
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone()).unwrap();
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let mut own: Vec<_> =
            lists.iter().filter(|list| !list.has_issuer(anchor) || list.is_signed_by(anchor)).collect();
        // webpki uses the first list of a name.
        own.sort_by_key(|list| std::cmp::Reverse(list.number.clone()));
        if !own.is_empty() {
            let ders = own.iter().map(|list| list.der().clone());
            builder = builder.with_crls(ders).allow_unknown_revocation_status();
            if expired == CrlExpired::Refuse {
                builder = builder.enforce_revocation_expiration();
            }
        }
        match builder.build().unwrap().verify_client_cert(&chain[0], &chain[1..], unix_time(NOW)) {
            Ok(_) => return Ok(()),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

#[test]
fn result_is_that_of_webpki_where_the_rules_are_equal() {
    let pki = Pki::new();
    let sent = pki.sent();
    let clients: Vec<_> = sent.iter().map(|(_, chain)| chain[0].clone()).collect();
    let mut compared = 0;
    for (lists_are, lists, whole) in pki.lists(&clients) {
        for (anchors_are, anchors) in pki.anchors() {
            // Portcullis also applies the lists of an anchor's issuer in the bundle.
            let binds = ["one with the intermediates", "one that has expired"].contains(&lists_are);
            // Lists signed by another key of the anchor's name reject its certificates; webpki ignores such lists.
            let is_foreign = match lists_are {
                "an impostor's" => true,
                "an impostor's of the team" => anchors_are.contains("the team"),
                _ => false,
            };
            if !whole || is_foreign || anchors_are == "the team too" && binds {
                continue;
            }
            for expired in [CrlExpired::Refuse, CrlExpired::Allow] {
                for (sends, chain) in &sent {
                    let what = format!("{sends}; lists: {lists_are}, {expired:?}; anchors: {anchors_are}");
                    let expected = webpki_result(&anchors, &lists, expired, chain);
                    // If several paths have a fault, webpki reports that of the last one.
                    let own = verify(&verifier(&anchors, &lists, expired), chain).map(|_| ());
                    assert_eq!(own.is_ok(), expected.is_ok(), "{what}: {own:?}, {expected:?}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 5000, "{compared}");
}

#[test]
fn reverified_identity_expires_with_the_current_lists() {
    let pki = Pki::new();
    let (root, chain) = ([pki.root.der()], [client(&pki.root)]);
    let lists =
        [(1, -Span::HOUR), (2, Span::ZERO)].map(|(number, later)| read(&pki.root, &revoking(&[], number, NOW + later)));
    let [old, new] = lists.each_ref().map(|list| list.next_update);
    let before = verifier(&root, &lists[..1], CrlExpired::Refuse);
    let identity = verify(&before, &chain).unwrap();
    assert_eq!(identity.until, old);
    let again = verifier(&root, &lists, CrlExpired::Refuse);
    let renewed = again.reverify_from_path(&identity, NOW).unwrap().unwrap();
    assert_eq!((renewed.until, renewed.verifier_id), (new, again.id));
    assert!(Arc::ptr_eq(&again.reverify(&renewed, NOW).unwrap(), &renewed));
    assert!(Arc::ptr_eq(&again.reverify(&identity, NOW).unwrap(), &renewed), "sessions of a client share one");
    assert_eq!(again.reverify(&renewed, new).unwrap_err(), ChainError::RevocationListExpired);
    let lenient = verifier(&root, &lists, CrlExpired::Allow);
    assert_eq!(lenient.reverify(&renewed, new).unwrap().until, renewed.validity.end.min(lenient_end(&root)));
}

/// The end of the anchor's validity.
fn lenient_end(anchors: &[CertificateDer<'static>]) -> OffsetDateTime {
    Certificate::parse(&anchors[0]).unwrap().end()
}

#[test]
fn pinned_certificate_revoked_by_an_anchor_is_rejected() {
    let pki = Pki::new();
    let chain = [client(&pki.root)];
    let pinned = |crls: &[Crl]| {
        let parts = ClientAuthSettings { pinned: chain.to_vec(), ..parts(&[pki.root.der()], crls, CrlExpired::Refuse) };
        ChainVerifier::new(&parts).unwrap()
    };
    let identity = verify(&pinned(&[list(&pki.root, &[], 1)]), &chain).unwrap();
    assert_eq!(identity.trusted_by, TrustedBy::Pinned);
    let revoked = pinned(&[list(&pki.root, &chain, 2)]);
    assert_eq!(verify(&revoked, &chain).unwrap_err(), ChainError::Revoked);
    assert_eq!(revoked.reverify(&identity, NOW).unwrap_err(), ChainError::Revoked);
}
