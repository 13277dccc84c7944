//! Which revocation lists apply, and when.

use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, KeyPair};

use super::*;
use crate::tls::fixtures::named;
use crate::x509::crl::CrlNumber;

/// Why a chain is rejected with one anchor and these lists; `None` if it is accepted.
fn refusal(anchor: &Authority, lists: &[&Crl], chain: &[CertificateDer<'static>]) -> Option<ChainError> {
    let lists: Vec<_> = lists.iter().map(|list| (*list).clone()).collect();
    verify(&verifier(&[anchor.der()], &lists, CrlExpired::Refuse), chain).err()
}

#[test]
fn newest_list_of_a_ca_applies() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let old = list(&authority, &[], 9);
    let new = read(&authority, &revoking(&revoked, 10, NOW - Span::HOUR));
    // A newer list signed by another key of the same name is ignored.
    let forged = list(&Authority::new("Clients CA"), &[], 11);
    for lists in [[&old, &new, &forged], [&forged, &new, &old]] {
        assert_eq!(refusal(&authority, &lists, &revoked), Some(ChainError::Revoked));
    }
    assert_eq!(refusal(&authority, &[&old], &revoked), None);
    // Same number and date: the list that revokes more applies.
    let same = list(&authority, &revoked, 9);
    for lists in [[&old, &same], [&same, &old]] {
        assert_eq!(refusal(&authority, &lists, &revoked), Some(ChainError::Revoked));
    }
}

#[test]
fn latest_list_applies_if_a_list_has_no_number() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let of = |number: Option<u32>, revoked: &[_], hours| {
        let mut list = read(&authority, &revoking(revoked, 1, NOW + Span::hours(hours)));
        list.number = number.map(CrlNumber::from);
        list
    };
    let [early, late] = [of(Some(7), &[], -1), of(None, &revoked, 0)];
    for lists in [[&early, &late], [&late, &early]] {
        assert_eq!(refusal(&authority, &lists, &revoked), Some(ChainError::Revoked));
    }
}

#[test]
fn list_of_an_intermediate_applies_on_every_path() {
    let root = Authority::new("Root CA");
    let between = root.intermediate("Clients CA");
    let chain = [client(&between), between.der()];
    let by_intermediate = list(&between, &chain[..1], 1);
    let by_root = list(&root, &chain[1..], 1);
    // Also if the intermediate is a trust anchor.
    for anchor in [&root, &between] {
        assert_eq!(refusal(anchor, &[&by_intermediate], &chain), Some(ChainError::Revoked));
    }
    assert_eq!(refusal(&root, &[&by_root], &chain), Some(ChainError::Revoked));
    assert_eq!(refusal(&between, &[&by_root], &chain), None, "the root is not in the bundle");
    assert_eq!(refusal(&root, &[], &chain), None);
}

#[test]
fn lists_with_different_scopes_apply_together() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let users = scoped(&authority, &revoked, 3, Some(CrlScope::UserCertsOnly));
    let authorities = scoped(&authority, &[], 7, Some(CrlScope::CaCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &revoked), Some(ChainError::Revoked));
    let users = scoped(&authority, &[], 3, Some(CrlScope::UserCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &revoked), None);
}

#[test]
fn list_expires_at_its_next_update() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    for (early, expected) in [(Span::DAY, Some(ChainError::RevocationListExpired)), (Span::DAY - Span::SECOND, None)] {
        let list = read(&authority, &revoking(&[], 1, NOW - early));
        assert_eq!(list.is_expired_at(NOW), expected.is_some());
        assert_eq!(refusal(&authority, &[&list], &chain), expected);
    }
    let expired = read(&authority, &revoking(&chain, 1, NOW - Span::DAY));
    assert_eq!(refusal(&authority, &[&expired], &chain), Some(ChainError::Revoked), "what it names stays revoked");
}

#[test]
fn expired_partitioned_list_is_ignored_beside_a_complete_list() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    let part = |from| {
        let mut params = revoking(&[], 1, from);
        let distribution_point = CrlDistributionPoint { uris: vec!["http://ca.test/part".to_owned()] };
        params.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope: None });
        read(&authority, &params)
    };
    let [expired, current] = [NOW - Span::DAY, NOW].map(part);
    let complete = list(&authority, &[], 1);
    assert_eq!(refusal(&authority, &[&expired, &complete], &chain), None);
    assert_eq!(refusal(&authority, &[&expired], &chain), Some(ChainError::RevocationListExpired));
    assert_eq!(refusal(&authority, &[&current], &chain), None);
}

#[test]
fn list_with_future_this_update_does_not_replace_the_current_list() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let current = list(&authority, &revoked, 2);
    let future = read(&authority, &revoking(&[], 5, NOW + Span::DAY));
    assert_eq!(refusal(&authority, &[&current, &future], &revoked), Some(ChainError::Revoked));
    assert_eq!(refusal(&authority, &[&future], &revoked), None, "the only one there is");
}

#[test]
fn list_revokes_a_certificate_outside_its_scope() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    let authorities = scoped(&authority, &chain, 7, Some(CrlScope::CaCertsOnly));
    let users = scoped(&authority, &[], 3, Some(CrlScope::UserCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &chain), Some(ChainError::Revoked));
}

#[test]
fn list_of_the_future_bounds_what_the_current_one_allows() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    let current = list(&authority, &[], 1);
    let from = NOW + Span::MINUTE;
    let upcoming = read(&authority, &revoking(&chain, 2, from));
    for expired in [CrlExpired::Refuse, CrlExpired::Allow] {
        let verifier = verifier(&[authority.der()], &[current.clone(), upcoming.clone()], expired);
        let identity = verify(&verifier, &chain).unwrap();
        assert_eq!(identity.until, from, "{expired:?}");
        assert_eq!(verifier.verify_and_remember(&chain[0], &[], from), Err(ChainError::Revoked), "{expired:?}");
        let again = verifier.reverify_from_path(&identity, from);
        assert_eq!(again.unwrap().unwrap_err(), ChainError::Revoked, "{expired:?}");
    }
}

#[test]
fn list_whose_issuer_uses_another_string_type_applies() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    let mut params = authority_params("Clients CA");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, DnValue::PrintableString("CLIENTS  CA".try_into().unwrap()));
    let list = list(&authority.reissued(params, None), &chain, 1);
    assert!(list.is_signed_by(&authority.der()));
    assert_eq!(refusal(&authority, &[&list], &chain), Some(ChainError::Revoked));
}

#[test]
fn path_is_not_rechecked_while_the_signature_of_a_list_is_unverified() {
    let root = Authority::new("Root CA");
    let team = root.intermediate("Team CA");
    let chain = [client(&team), team.der()];
    let before = verify(&verifier(&[root.der()], &[], CrlExpired::Refuse), &chain).unwrap();
    let after = verifier(&[root.der()], &[list(&team, &[], 1)], CrlExpired::Refuse);
    assert!(after.reverify_from_path(&before, NOW).is_none(), "that takes a signature verification");
    after.reverify_by_search(&before, NOW).unwrap();
    assert!(after.reverify_from_path(&before, NOW).is_some());
}

#[test]
fn client_whose_key_may_not_sign_is_rejected() {
    let authority = Authority::new("Clients CA");
    let with = |usages: &[KeyUsagePurpose]| {
        let mut params = named(CertificateParams::default(), "app");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = usages.to_vec();
        (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::DAY);
        [authority.issue(&params, KeyPair::generate().unwrap()).der()]
    };
    let sign = with(&[KeyUsagePurpose::DigitalSignature]);
    assert_eq!(refusal(&authority, &[], &sign), None);
    for usage in [KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::CrlSign] {
        assert_eq!(refusal(&authority, &[], &with(&[usage])), Some(ChainError::KeyUsage));
    }
}
