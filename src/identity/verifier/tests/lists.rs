//! Which revocation lists apply, and when.

use super::*;
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
