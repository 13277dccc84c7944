//! Which revocation lists count, and when.

use super::*;
use crate::x509::crl::CrlNumber;

/// Why a chain is refused by one anchor and these lists; nothing where it is accepted.
fn refusal(anchor: &Authority, lists: &[&Crl], chain: &[CertificateDer<'static>]) -> Option<ChainError> {
    let lists: Vec<_> = lists.iter().map(|list| (*list).clone()).collect();
    verify(&verifier(&[anchor.der()], &lists, CrlExpired::Refuse), chain).err()
}

#[test]
fn newest_list_of_a_ca_counts() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let old = list(&authority, &[], 9);
    let new = read(&authority, &revoking(&revoked, 10, NOW - Span::HOUR));
    // Of an impostor, and newer still: it does not stand in the way.
    let forged = list(&Authority::new("Clients CA"), &[], 11);
    for lists in [[&old, &new, &forged], [&forged, &new, &old]] {
        assert_eq!(refusal(&authority, &lists, &revoked), Some(ChainError::Revoked));
    }
    assert_eq!(refusal(&authority, &[&old], &revoked), None);
    // One that revokes more, of the same number and date.
    let same = list(&authority, &revoked, 9);
    for lists in [[&old, &same], [&same, &old]] {
        assert_eq!(refusal(&authority, &lists, &revoked), Some(ChainError::Revoked));
    }
}

#[test]
fn latest_list_counts_without_numbers() {
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
fn list_of_an_intermediate_counts_by_every_path() {
    let root = Authority::new("Root CA");
    let between = root.intermediate("Clients CA");
    let chain = [client(&between), between.der()];
    let by_intermediate = list(&between, &chain[..1], 1);
    let by_root = list(&root, &chain[1..], 1);
    // Also where it is an anchor itself, and so its list is one of an anchor's.
    for anchor in [&root, &between] {
        assert_eq!(refusal(anchor, &[&by_intermediate], &chain), Some(ChainError::Revoked));
    }
    assert_eq!(refusal(&root, &[&by_root], &chain), Some(ChainError::Revoked));
    assert_eq!(refusal(&between, &[&by_root], &chain), None, "the root is not in the bundle");
    assert_eq!(refusal(&root, &[], &chain), None);
}

#[test]
fn lists_about_different_certificates_of_a_ca_stand_side_by_side() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let users = scoped(&authority, &revoked, 3, Some(CrlScope::UserCertsOnly));
    let authorities = scoped(&authority, &[], 7, Some(CrlScope::CaCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &revoked), Some(ChainError::Revoked));
    let users = scoped(&authority, &[], 3, Some(CrlScope::UserCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &revoked), None);
}

#[test]
fn list_counts_until_its_next_update() {
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
fn expired_part_is_no_reason_for_refusal_beside_a_complete_list() {
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
fn list_of_the_future_does_not_replace_the_one_in_force() {
    let authority = Authority::new("Clients CA");
    let revoked = [client(&authority)];
    let current = list(&authority, &revoked, 2);
    let future = read(&authority, &revoking(&[], 5, NOW + Span::DAY));
    assert_eq!(refusal(&authority, &[&current, &future], &revoked), Some(ChainError::Revoked));
    assert_eq!(refusal(&authority, &[&future], &revoked), None, "the only one there is");
}

#[test]
fn list_about_other_certificates_that_names_one_revokes_it() {
    let authority = Authority::new("Clients CA");
    let chain = [client(&authority)];
    let authorities = scoped(&authority, &chain, 7, Some(CrlScope::CaCertsOnly));
    let users = scoped(&authority, &[], 3, Some(CrlScope::UserCertsOnly));
    assert_eq!(refusal(&authority, &[&users, &authorities], &chain), Some(ChainError::Revoked));
}
