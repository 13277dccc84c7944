//! Limits of a path besides signatures: dates and properties of CAs, path length, names, and the scope of lists.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use super::*;
use crate::tls::fixtures::named;
use crate::x509::ca_properties::CaFault;

/// Why a chain is rejected with these anchors and lists; `None` if it is accepted.
fn refusal(anchors: &[CertificateDer<'static>], crls: &[Crl], chain: &[CertificateDer<'static>]) -> Option<ChainError> {
    verify(&verifier(anchors, crls, CrlExpired::Refuse), chain).err()
}

fn lasting(name: &str, from: OffsetDateTime, until: OffsetDateTime) -> Authority {
    Authority::with_validity(name, from, until)
}

#[test]
fn anchor_outside_its_validity_is_rejected_unless_anchor_validity_is_ignored() {
    let expired = lasting("Old CA", NOW - Span::days(9), NOW - Span::SECOND);
    let future = lasting("New CA", NOW + Span::SECOND, NOW + Span::days(9));
    let expected = |error: &ChainError| match error {
        ChainError::AnchorExpired { subject, at } => (subject.clone(), *at),
        ChainError::AnchorNotYetValid { subject, from } => (subject.clone(), *from),
        other => panic!("{other:?}"),
    };
    for (authority, name, moment) in [(&expired, "CN=Old CA", NOW), (&future, "CN=New CA", NOW + Span::SECOND)] {
        let chain = [client(authority)];
        let error = refusal(&[authority.der()], &[], &chain).unwrap();
        assert_eq!(expected(&error), (name.to_owned(), moment));
        let ignoring = ClientAuthSettings {
            anchor_validity: AnchorValidity::Ignore,
            ..parts(&[authority.der()], &[], CrlExpired::Refuse)
        };
        let ignoring = ChainVerifier::new(&ignoring).unwrap();
        assert!(verify(&ignoring, &chain).is_ok());
        assert_eq!(ignoring.anchor_error(&authority.der(), NOW), None);
        let enforcing = verifier(&[authority.der()], &[], CrlExpired::Refuse);
        assert_eq!(enforcing.anchor_error(&authority.der(), NOW), Some(error));
    }
}

#[test]
fn identity_expires_with_its_anchor() {
    let end = NOW + Span::DAY;
    let short = lasting("Short CA", NOW - Span::DAY, end);
    let chain = [client(&short)];
    let under = verifier(&[short.der()], &[], CrlExpired::Refuse);
    let identity = verify(&under, &chain).unwrap();
    assert_eq!(identity.until, end + Span::SECOND, "notAfter is inclusive");
    let late = under.reverify(&identity, identity.until).unwrap_err();
    assert!(matches!(late, ChainError::AnchorExpired { .. }), "{late:?}");
    // A renewed certificate of the anchor is accepted.
    let renewed = verifier(&[short.reissued(authority_params("Short CA"), None).der()], &[], CrlExpired::Refuse);
    assert!(renewed.reverify_from_path(&identity, identity.until).unwrap().is_ok());
}

#[test]
fn anchor_revoked_by_its_issuer_in_the_bundle_is_rejected() {
    let pki = Pki::new();
    let anchors = [pki.root.der(), pki.team.der()];
    let chain = [client(&pki.team)];
    assert_eq!(refusal(&anchors, &[list(&pki.root, &[], 1)], &chain), None);
    let revoking = [list(&pki.root, &[pki.team.der()], 2)];
    assert_eq!(refusal(&anchors, &revoking, &chain), Some(ChainError::Revoked));
    assert_eq!(refusal(&anchors[1..], &revoking, &chain), None, "the root is not in the bundle");
    let identity = verify(&verifier(&anchors, &[], CrlExpired::Refuse), &chain).unwrap();
    let again = verifier(&anchors, &revoking, CrlExpired::Refuse);
    assert_eq!(again.reverify(&identity, NOW).unwrap_err(), ChainError::Revoked);
    assert_eq!(again.anchor_error(&pki.team.der(), NOW), Some(ChainError::Revoked));
}

type Change = fn(&mut CertificateParams);

/// A CA issued by another CA, with changed parameters.
fn below(authority: &Authority, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
    let mut params = authority_params(name);
    change(&mut params);
    Authority::new(name).reissued(params, Some(authority))
}

fn root_with(change: impl FnOnce(&mut CertificateParams)) -> Authority {
    let mut params = authority_params("Root CA");
    change(&mut params);
    Authority::self_signed(&params)
}

fn path_length(length: u8) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length))
}

#[test]
fn ca_without_permission_to_issue_is_rejected_at_every_position() {
    let plain = Authority::new("Root CA");
    let no_cert_sign = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let for_servers =
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let faults: [(Change, CaFault); 2] =
        [(no_cert_sign, CaFault::KeyUsage), (for_servers, CaFault::ExtendedKeyUsage("clientAuth"))];
    for (change, fault) in faults {
        let error = |name: &str| Some(ChainError::Ca { subject: format!("CN={name}"), fault });
        let root = root_with(change);
        assert_eq!(refusal(&[root.der()], &[], &[client(&root)]), error("Root CA"), "an anchor");
        let team = below(&plain, "Team CA", change);
        let chain = [client(&team), team.der()];
        assert_eq!(refusal(&[plain.der()], &[], &chain), error("Team CA"), "an intermediate that was sent");
        assert_eq!(refusal(&[plain.der(), team.der()], &[], &chain), error("Team CA"), "one in the bundle");
        let good_below = below(&root, "Team CA", |_| {});
        let chain = [client(&good_below)];
        assert_eq!(refusal(&[root.der(), good_below.der()], &[], &chain), error("Root CA"), "one above an anchor");
    }
}

#[test]
fn path_length_applies_to_the_whole_path() {
    let root = root_with(path_length(0));
    let team = below(&root, "Team CA", |_| {});
    let too_long = |anchor: &str| Some(ChainError::PathLength { anchor: format!("CN={anchor}") });
    assert_eq!(refusal(&[root.der()], &[], &[client(&root)]), None);
    assert_eq!(refusal(&[root.der()], &[], &[client(&team), team.der()]), too_long("Root CA"));
    assert_eq!(refusal(&[root.der(), team.der()], &[], &[client(&team)]), too_long("Team CA"));
    assert_eq!(refusal(&[team.der()], &[], &[client(&team)]), None, "its issuer is not in the bundle");

    let root = root_with(path_length(1));
    let team = below(&root, "Team CA", |_| {});
    let deep = below(&team, "Deep CA", |_| {});
    let [team_der, deep_der] = [&team, &deep].map(Authority::der);
    assert_eq!(refusal(&[root.der()], &[], &[client(&team), team_der.clone()]), None);
    let chain = [client(&deep), deep_der.clone(), team_der.clone()];
    assert_eq!(refusal(&[root.der()], &[], &chain), too_long("Root CA"));
    assert_eq!(refusal(&[root.der(), team_der], &[], &chain), too_long("Team CA"));
    // A self-issued certificate with a new key does not count (RFC 5280 §4.2.1.9).
    let rolled = below(&root, "Root CA", |_| {});
    let team = below(&rolled, "Team CA", |_| {});
    assert_eq!(refusal(&[root.der()], &[], &[client(&team), team.der(), rolled.der()]), None);
}

fn constrained_to(name: &str) -> impl Fn(&mut CertificateParams) {
    move |params| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
}

#[test]
fn common_name_below_name_constraints_is_ignored() {
    let root = Authority::new("Root CA");
    let team = below(&root, "Team CA", constrained_to("team-b.internal"));
    let chain = [client(&team), team.der()];
    let has_common_name = |anchors: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]| {
        let identity = verify(&verifier(anchors, &[], CrlExpired::Refuse), chain).unwrap();
        let is_common = |name| matches!(name, crate::x509::subject_name::SubjectName::Common("app"));
        let counts = identity.names().any(is_common);
        assert_eq!(identity.ignores_common_name(), !counts);
        counts
    };
    assert!(has_common_name(&[root.der()], &[client(&root)]));
    assert!(!has_common_name(&[root.der()], &chain), "an intermediate that was sent");
    assert!(!has_common_name(&[team.der()], &chain), "an anchor");
    let deep = below(&team, "Deep CA", |_| {});
    assert!(!has_common_name(&[team.der(), deep.der()], &[client(&deep)]), "what stands above an anchor");
    // Another path leads over the same CA without constraints.
    let free = team.reissued(authority_params("Team CA"), None).der();
    assert!(has_common_name(&[root.der(), free], &chain));
}

#[test]
fn name_constraints_above_an_anchor_apply_to_its_certificates() {
    let root = root_with(constrained_to("team-b.internal"));
    let team = below(&root, "Team CA", |_| {});
    let with_name = |host: &str| {
        let mut params = named(CertificateParams::new([host.to_owned()]).unwrap(), "app");
        (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::HOUR);
        [team.issue(&params, KeyPair::generate().unwrap()).der()]
    };
    let anchors = [root.der(), team.der()];
    assert_eq!(refusal(&anchors, &[], &with_name("a.team-b.internal")), None);
    assert!(refusal(&anchors, &[], &with_name("a.prod.internal")).is_some());
    assert_eq!(refusal(&anchors[1..], &[], &with_name("a.prod.internal")), None);
}

#[test]
fn anchor_errors_are_none_for_roots_and_intermediates_in_order() {
    let pki = Pki::new();
    let anchors = [pki.root.der(), pki.team.der(), pki.deep.der(), pki.other.der()];
    let verifier = verifier(&anchors, &[list(&pki.root, &[], 1)], CrlExpired::Refuse);
    for anchor in &anchors {
        assert_eq!(verifier.anchor_error(anchor, NOW), None);
    }
}

/// A client certificate with a CRL distribution point.
fn client_with_point(authority: &Authority, uri: &str) -> CertificateDer<'static> {
    let mut params = named(CertificateParams::default(), "app");
    (params.not_before, params.not_after) = (NOW - Span::HOUR, NOW + Span::HOUR);
    params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![uri.to_owned()] }];
    authority.issue(&params, KeyPair::generate().unwrap()).der()
}

#[test]
fn certificate_not_covered_by_any_list_of_its_ca_is_rejected() {
    let root = Authority::new("Root CA");
    let anchors = [root.der()];
    let unknown = Some(ChainError::RevocationUnknown { subject: "CN=app".to_owned() });
    let elsewhere = [client_with_point(&root, "http://old.test/list")];
    let there = [client_with_point(&root, "http://ca.test/list")];
    let unstated = [client(&root)];
    let empty = |scope| [scoped(&root, &[], 1, scope)];
    let of = |chain: &[CertificateDer<'static>], lists: &[Crl]| refusal(&anchors, lists, chain);
    assert_eq!(of(&there, &empty(None)), None);
    assert_eq!(of(&elsewhere, &empty(None)), unknown);
    assert_eq!(of(&unstated, &empty(None)), None, "it may be in any part");
    assert_eq!(of(&there, &empty(Some(CrlScope::UserCertsOnly))), None);
    for chain in [&there, &elsewhere, &unstated] {
        assert_eq!(of(chain, &empty(Some(CrlScope::CaCertsOnly))), unknown);
        let naming = |scope| [scoped(&root, chain, 1, scope)];
        for scope in [None, Some(CrlScope::CaCertsOnly), Some(CrlScope::UserCertsOnly)] {
            assert_eq!(of(chain, &naming(scope)), Some(ChainError::Revoked), "named, whatever the list is about");
        }
    }
    // A complete list covers every certificate.
    let [part] = empty(None);
    assert_eq!(of(&elsewhere, &[part.clone(), list(&root, &[], 2)]), None);
    assert_eq!(of(&elsewhere, &[part, list(&root, &elsewhere, 2)]), Some(ChainError::Revoked));
}
