//! The number of signature checks that a client can cause.

use std::ops::ControlFlow;

use rcgen::KeyPair;

use super::*;
use crate::x509::chain::path::{MAX_FAILED_CHECKS, MAX_SENT};

/// The number of signature checks until a path is found, and the cost of the invalid ones.
fn checks(anchors: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]) -> (usize, usize) {
    let set = AnchorSet::new(anchors, Purpose::ClientAuth, AnchorValidity::Enforce).unwrap();
    let mut relevant_chain = vec![chain[0].clone()];
    relevant_chain.extend(relevant(&chain[0], &chain[1..]).unwrap());
    let mut search = Search::new(&set, &relevant_chain).unwrap();
    let _ = search.run(&mut |_| ControlFlow::Break(()));
    search.checks()
}

/// A leaf, and self-issued certificates with one name and different keys: by names, each could have issued all others.
fn loop_of_intermediates(name: &str) -> Vec<CertificateDer<'static>> {
    let looping: Vec<_> = (0..MAX_SENT).map(|_| Authority::new(name)).collect();
    let mut chain = vec![client(&looping[0])];
    chain.extend(looping.iter().map(Authority::der));
    chain
}

#[test]
fn looping_intermediates_with_an_unknown_name_cause_no_check() {
    let anchors: Vec<_> = (0..62).map(|number| Authority::new(&format!("CA {number}")).der()).collect();
    assert_eq!(checks(&anchors, &loop_of_intermediates("Loop CA")), (0, 0));
}

#[test]
fn looping_intermediates_with_the_name_of_an_anchor_cause_few_checks() {
    let anchors: Vec<_> = (0..62).map(|_| Authority::new("Root CA").der()).collect();
    let chain = loop_of_intermediates("Root CA");
    assert_eq!(checks(&anchors, &chain), (MAX_FAILED_CHECKS, MAX_FAILED_CHECKS));
    let refused = verify(&verifier(&anchors, &[], CrlExpired::Refuse), &chain).unwrap_err();
    assert_eq!(refused, ChainError::TooManyChecks);
}

#[test]
fn key_without_path_to_an_anchor_is_not_used() {
    let [root, impostor] = [(); 2].map(|()| Authority::new("Root CA"));
    let mut above = impostor;
    let mut chain = Vec::new();
    for number in 0..MAX_SENT {
        above = above.intermediate(&format!("CA {number}"));
        chain.insert(0, above.der());
    }
    chain.insert(0, client(&above));
    assert_eq!(checks(&[root.der()], &chain), (1, 1), "only the one that names the anchor");
}

#[test]
fn long_chain_costs_one_check_for_each_certificate() {
    let root = Authority::new("Root CA");
    let mut lowest = root.intermediate("CA 0");
    let mut chain = vec![lowest.der()];
    for number in 1..MAX_SENT {
        lowest = lowest.intermediate(&format!("CA {number}"));
        chain.insert(0, lowest.der());
    }
    chain.insert(0, client(&lowest));
    assert_eq!(checks(&[root.der()], &chain), (MAX_SENT + 1, 0));
    assert!(verify(&verifier(&[root.der()], &[], CrlExpired::Refuse), &chain).is_ok());
}

#[test]
fn key_identifier_finds_the_anchor_among_many_of_its_name() {
    let namesakes: Vec<_> = (0..20).map(|_| Authority::new("Root CA")).collect();
    let anchors: Vec<_> = namesakes.iter().map(Authority::der).collect();
    let mut params = crate::tls::fixtures::named(rcgen::CertificateParams::default(), "app");
    (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::HOUR);
    params.use_authority_key_identifier_extension = true;
    for authority in [&namesakes[0], &namesakes[10], &namesakes[19]] {
        let chain = [authority.issue(&params, KeyPair::generate().unwrap()).der()];
        assert_eq!(checks(&anchors, &chain), (1, 0));
        assert!(verify(&verifier(&anchors, &[], CrlExpired::Refuse), &chain).is_ok());
    }
}

#[test]
fn second_certificate_of_a_subject_is_tried_and_a_third_is_not() {
    let root = Authority::new("Root CA");
    let team = root.intermediate("Team CA");
    let other = Authority::new("Other CA");
    let crossed = || team.reissued(authority_params("Team CA"), Some(&other)).der();
    let leaf = client(&team);
    let under_root = verifier(&[root.der()], &[], CrlExpired::Refuse);
    assert!(verify(&under_root, &[leaf.clone(), crossed(), team.der()]).is_ok());
    let refused = verify(&under_root, &[leaf, crossed(), crossed(), team.der()]).unwrap_err();
    assert_eq!(refused, ChainError::UnknownIssuer);
}

#[test]
fn sessions_of_one_client_share_the_failures_of_a_pass() {
    let [root, renewed] = [(); 2].map(|()| Authority::new("Root CA"));
    let leaf = client(&root);
    let before = verifier(&[root.der()], &[], CrlExpired::Refuse);
    let sessions: Vec<_> = (0..10)
        .map(|_| {
            verify(&before, &[leaf.clone(), Authority::new("Root CA").der(), Authority::new("Root CA").der()]).unwrap()
        })
        .collect();
    let after = verifier(&[renewed.der()], &[], CrlExpired::Refuse);
    for session in &sessions {
        assert!(after.reverify(session, NOW).is_err());
    }
    assert_eq!(after.memo.len(), MAX_FAILED_CHECKS);
    // Another client is not affected.
    let other = verify(&before, &[client(&root)]).unwrap();
    assert_eq!(after.reverify(&other, NOW).unwrap_err(), ChainError::UnknownIssuer);
}

#[test]
fn session_with_another_anchor_on_its_path_causes_at_most_one_check() {
    let pki = Pki::new();
    let [root, team, deep] = [&pki.root, &pki.team, &pki.deep].map(Authority::der);
    let chain = |leaf| [leaf, deep.clone(), team.clone()];
    let before = verifier(std::slice::from_ref(&root), &[], CrlExpired::Refuse);
    let sessions: Vec<_> = (0..5).map(|_| verify(&before, &chain(client(&pki.deep))).unwrap()).collect();
    let down = verifier(std::slice::from_ref(&team), &[], CrlExpired::Refuse);
    let by_other = pki.team.reissued(authority_params("Team CA"), Some(&pki.other)).der();
    let crossed: Vec<_> =
        (0..5).map(|_| verify(&before, &[client(&pki.team), team.clone(), by_other.clone()]).unwrap()).collect();
    let up = verifier(&[pki.other.der()], &[], CrlExpired::Refuse);
    for (verifier, sessions, expected) in [(&down, &sessions, 0), (&up, &crossed, 1)] {
        for session in sessions {
            verifier.reverify(session, NOW).unwrap();
        }
        assert!(verifier.memo.len() <= expected, "{}", verifier.memo.len());
    }
}

#[test]
fn too_many_comparisons_of_names_and_constraints_are_rejected() {
    let root = Authority::new("Root CA");
    let limited = |subtrees: usize| {
        let mut params = authority_params("Limited CA");
        let excluded_subtrees =
            (0..subtrees).map(|number| GeneralSubtree::DnsName(format!("x{number}.test"))).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
        Authority::new("Limited CA").reissued(params, Some(&root))
    };
    let named = |authority: &Authority, names: usize| {
        let names: Vec<String> = (0..names).map(|number| format!("n{number}.example")).collect();
        let mut params = crate::tls::fixtures::named(rcgen::CertificateParams::new(names).unwrap(), "app");
        (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::HOUR);
        [authority.issue(&params, KeyPair::generate().unwrap()).der(), authority.der()]
    };
    let under_root = verifier(&[root.der()], &[], CrlExpired::Refuse);
    assert!(verify(&under_root, &named(&limited(20), 100)).is_ok());
    let refused = verify(&under_root, &named(&limited(100), 100)).unwrap_err();
    assert_eq!(refused, ChainError::TooManyNames);
}

#[test]
fn invalid_signature_of_an_expensive_key_counts_twice() {
    let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let expensive = || {
        let issuer = rcgen::CertifiedIssuer::self_signed(authority_params("Root CA"), key()).unwrap();
        (issuer.der().clone(), issuer)
    };
    let anchors: Vec<_> = (0..3).map(|_| expensive().0).collect();
    let (_, impostor) = expensive();
    let leaf = crate::tls::fixtures::named(rcgen::CertificateParams::default(), "app");
    let leaf = leaf.signed_by(&key(), &impostor).unwrap().der().clone();
    assert_eq!(checks(&anchors, &[leaf]), (2, MAX_FAILED_CHECKS));
}

#[test]
fn unrelated_certificates_are_not_kept() {
    let root = Authority::new("Root CA");
    let junk = Authority::new("Unrelated CA").der();
    let identity = verify(&verifier(&[root.der()], &[], CrlExpired::Refuse), &[client(&root), junk]).unwrap();
    assert_eq!(identity.sent(), 1);
}

#[test]
fn revoked_certificate_is_rejected_without_search() {
    let root = Authority::new("Root CA");
    let leaf = client(&root);
    let junk = || Authority::new("Root CA").der();
    let before = verifier(&[root.der()], &[], CrlExpired::Refuse);
    let session = verify(&before, &[leaf.clone(), junk(), junk()]).unwrap();
    let after = verifier(&[root.der()], &[list(&root, &[leaf], 1)], CrlExpired::Refuse);
    assert_eq!(after.reverify_from_path(&session, NOW), Some(Err(ChainError::Revoked)));
    let expired = session.validity.end;
    assert_eq!(before.reverify_from_path(&session, expired), Some(Err(ChainError::Expired)));
    assert_eq!((before.memo.len(), after.memo.len()), (0, 0));
}

#[test]
fn names_are_not_compared_again_with_the_same_constraints() {
    let root = Authority::new("Root CA");
    let limited = |subtree: &str| {
        let mut params = authority_params("Limited CA");
        let permitted_subtrees = vec![GeneralSubtree::DnsName(subtree.to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        params
    };
    let below = Authority::new("Limited CA").reissued(limited("test"), Some(&root));
    let leaf = client(&below);
    let chain = [leaf.clone(), below.der()];
    let lists = [list(&root, &[], 1)];
    for anchors in [vec![root.der()], vec![below.der()], vec![root.der(), below.der()]] {
        let session = verify(&verifier(&anchors, &[], CrlExpired::Refuse), &chain).unwrap();
        let after = verifier(&anchors, &lists, CrlExpired::Refuse);
        let again = after.reverify_from_path(&session, NOW).expect("the path is the same").unwrap();
        assert!(again.ignores_common_name() && !after.has_searched_all_paths(&again));
        assert_eq!(after.memo.len(), 0);
    }
    // Other constraints on the same key and name.
    let changed = below.reissued(limited("example"), Some(&root));
    let session = verify(&verifier(&[below.der()], &[], CrlExpired::Refuse), &chain).unwrap();
    assert_eq!(verifier(&[changed.der()], &[], CrlExpired::Refuse).reverify_from_path(&session, NOW), None);
}

#[test]
fn too_large_certificate_is_rejected_unless_pinned() {
    let root = Authority::new("Root CA");
    let names: Vec<String> = (0..2_000).map(|number| format!("n{number}.example")).collect();
    let mut params = crate::tls::fixtures::named(rcgen::CertificateParams::new(names).unwrap(), "app");
    (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::HOUR);
    let chain = [root.issue(&params, KeyPair::generate().unwrap()).der()];
    let refused = verify(&verifier(&[root.der()], &[], CrlExpired::Refuse), &chain).unwrap_err();
    assert_eq!(refused, ChainError::TooLarge);
    let pinning = ClientAuthSettings { pinned: chain.to_vec(), ..parts(&[], &[], CrlExpired::Refuse) };
    assert!(verify(&ChainVerifier::new(&pinning).unwrap(), &chain).is_ok());
}
