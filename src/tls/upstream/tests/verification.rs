//! All verification modes with all types of server certificates.

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, NameConstraints};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::tls::fixtures::authority_params;
use crate::tls::upstream::verifier::ServerVerifier;

/// The chain of a server, the bundle, and the expected results.
struct Case {
    what: &'static str,
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    host: &'static str,
    /// A part of the error; `None` if the server is accepted.
    verify_ca: Option<&'static str>,
    verify_full: Option<&'static str>,
}

const UNKNOWN: Option<&str> = Some("not issued by any CA in ca");
const EXPIRED: Option<&str> = Some("it has expired");
const MISNAMED: Option<&str> = Some("it is not for \"db.test\"");

fn rejection(
    verification: Verification,
    anchors: &Anchors,
    chain: &[CertificateDer<'_>],
    host: &str,
    now: OffsetDateTime,
) -> Option<String> {
    let verifier = ServerVerifier::new(verification, anchors, AnchorValidity::Enforce).unwrap();
    let (leaf, intermediates) = chain.split_first().unwrap();
    let name = ServerName::try_from(host).unwrap();
    let first = verifier.verify(leaf, intermediates, &name, now);
    // The cached result is the same.
    assert_eq!(verifier.verify(leaf, intermediates, &name, now).is_ok(), first.is_ok());
    let error = first.err()?;
    Some(explain(&refused(error), None).unwrap())
}

fn check(cases: Vec<Case>) {
    for Case { what, chain, bundle, host, verify_ca, verify_full } in cases {
        let anchors = Anchors::Bundle(bundle);
        let expected = [
            (Verification::Require, &Anchors::None, None),
            // libpq treats `require` with a bundle as `verify-ca`.
            (Verification::Require, &anchors, verify_ca),
            (Verification::VerifyCa, &anchors, verify_ca),
            (Verification::VerifyFull, &anchors, verify_full),
        ];
        for (verification, anchors, expected) in expected {
            let text = rejection(verification, anchors, &chain, host, OffsetDateTime::now_utc());
            match (&text, expected) {
                (None, None) => {}
                (Some(text), Some(part)) => assert!(text.contains(part), "{what}, {verification:?}: {text}"),
                _ => panic!("{what}, {verification:?}: {text:?} and not {expected:?}"),
            }
        }
    }
}

#[test]
fn chain_is_accepted_only_if_it_leads_to_an_anchor() {
    let (root, namesake, other) = (Authority::new("CA"), Authority::new("CA"), Authority::new("Other"));
    let between = root.intermediate("Between");
    let leaf = issued(&root, "x", &["db.test"]).der();
    let below = issued(&between, "x", &["db.test"]).der();
    let case = |what, chain: &[&CertificateDer<'static>], bundle: &[&Authority], expected| Case {
        what,
        chain: chain.iter().map(|der| (*der).clone()).collect(),
        bundle: bundle.iter().map(|authority| authority.der()).collect(),
        host: "db.test",
        verify_ca: expected,
        verify_full: expected,
    };
    check(vec![
        case("the root", &[&leaf], &[&root], None),
        case("one of several", &[&leaf], &[&other, &namesake, &root, &root], None),
        case("another root", &[&leaf], &[&other], UNKNOWN),
        case("its name with another key", &[&leaf], &[&namesake], UNKNOWN),
        case("no anchor", &[&leaf], &[], UNKNOWN),
        case("an intermediate that was sent", &[&below, &between.der()], &[&root], None),
        case(
            "with the root behind it, and all of it twice",
            &[&below, &between.der(), &root.der(), &between.der()],
            &[&root],
            None,
        ),
        case("an intermediate that was not sent", &[&below], &[&root], UNKNOWN),
        case("an intermediate of the bundle", &[&below], &[&between], None),
        case("an intermediate of the bundle, the root elsewhere", &[&below], &[&root, &between], None),
    ]);
}

#[test]
fn verify_full_accepts_only_certificates_with_the_host_name() {
    let root = Authority::new("CA");
    let case = |what, common, names: &[&str], host, verify_full| Case {
        what,
        chain: vec![issued(&root, common, names).der()],
        bundle: vec![root.der()],
        host,
        verify_ca: None,
        verify_full,
    };
    check(vec![
        case("one of several", "x", &["a.test", "db.test"], "db.test", None),
        case("in other letters", "x", &["DB.test"], "db.TEST", None),
        case("another", "x", &["other.test"], "db.test", MISNAMED),
        case("a wildcard", "x", &["*.corp.test"], "db.corp.test", None),
        case("a wildcard for one label only", "x", &["*.test"], "a.db.test", Some("its names are dns:*.test")),
        case("a wildcard for a whole top-level domain", "x", &["*.test"], "db.test", MISNAMED),
        case("a wildcard is no address", "x", &["*.0.0.1"], "10.0.0.1", Some("it is not for \"10.0.0.1\"")),
        case("an address", "x", &["10.0.0.1", "::1"], "10.0.0.1", None),
        case("an address of the other family", "x", &["10.0.0.1", "::1"], "::1", None),
        case("another address", "x", &["10.0.0.2"], "10.0.0.1", Some("ip:10.0.0.2")),
        case("the common name, where there is no other", "db.test", &[], "db.test", None),
        case("the common name in other letters", "Db.Test", &[], "db.test", None),
        case("the common name as a wildcard", "*.test", &[], "db.test", None),
        case("a wildcard for all", "*", &[], "db.test", MISNAMED),
        case(
            "another common name",
            "other.test",
            &[],
            "db.test",
            Some("its only name is the common name \"other.test\""),
        ),
        case("the common name beside other host names", "db.test", &["other.test"], "db.test", MISNAMED),
        case("the common name beside addresses only", "db.test", &["10.0.0.1"], "db.test", None),
        case("the common name as an address", "10.0.0.1", &[], "10.0.0.1", None),
        case("the common name as an address beside others", "10.0.0.1", &["10.0.0.2"], "10.0.0.1", Some("ip:10.0.0.2")),
    ]);
}

#[test]
fn certificate_is_accepted_only_in_its_validity_and_for_its_purpose() {
    let root = Authority::new("CA");
    let now = OffsetDateTime::now_utc();
    let case = |what, change: &dyn Fn(&mut CertificateParams), refused| {
        let mut params = params("x", &["db.test"]);
        change(&mut params);
        Case {
            what,
            chain: vec![root.issue(&params, KeyPair::generate().unwrap()).der()],
            bundle: vec![root.der()],
            host: "db.test",
            verify_ca: refused,
            verify_full: refused,
        }
    };
    check(vec![
        case("expired", &|params| params.not_after = now - Duration::HOUR, EXPIRED),
        case("not yet valid", &|params| params.not_before = now + Duration::HOUR, Some("is not valid yet")),
        case(
            "for clients",
            &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Some("serverAuth"),
        ),
        case("for servers", &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], None),
        case(
            "a CA certificate",
            &|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Some("it is a CA certificate"),
        ),
    ]);
}

#[test]
fn server_certificate_in_the_bundle_is_pinned() {
    let now = OffsetDateTime::now_utc();
    let alone = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params("x", &["db.test"]);
        change(&mut params);
        IssuedCertificate::self_signed(&params).der()
    };
    let case = |what, der: &CertificateDer<'static>, verify_ca, verify_full| Case {
        what,
        chain: vec![der.clone()],
        bundle: vec![der.clone()],
        host: "db.test",
        verify_ca,
        verify_full,
    };
    let plain = alone(&|_| {});
    let other = alone(&|params| params.subject_alt_names.clear());
    let issued = issued(&Authority::new("Unknown CA"), "x", &["db.test"]).der();
    let untrusted = Case { bundle: vec![other.clone()], ..case("alike, but not in the bundle", &plain, SELF, SELF) };
    const SELF: Option<&str> = Some("it is self-signed and not trusted");
    check(vec![
        case("a server's", &plain, None, None),
        case("a CA's", &alone(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), None, None),
        case("of a CA that is not in the bundle", &issued, None, None),
        case("expired", &alone(&|params| params.not_after = now - Duration::HOUR), EXPIRED, EXPIRED),
        case("for another host", &other, None, MISNAMED),
        case("of version 1", &version_1("db.test").0, None, None),
        case("of version 1 for another host", &version_1("other.test").0, None, MISNAMED),
        untrusted,
    ]);
}

/// The holder of one server key must not be able to issue server certificates.
#[test]
fn pinned_server_certificate_issues_no_trusted_certificates() {
    let issuer = |ca: IsCa| {
        let mut params = params("one.test", &["one.test"]);
        params.is_ca = ca;
        Authority::self_signed(&params)
    };
    let case = |what, issuer: &Authority, expected| Case {
        what,
        chain: vec![issued(issuer, "x", &["db.test"]).der()],
        bundle: vec![issuer.der()],
        host: "db.test",
        verify_ca: expected,
        verify_full: expected,
    };
    check(vec![
        case("a server's", &issuer(IsCa::NoCa), UNKNOWN),
        case("a server's with CA:FALSE", &issuer(IsCa::ExplicitNoCa), UNKNOWN),
        case("a CA's", &issuer(IsCa::Ca(BasicConstraints::Unconstrained)), None),
    ]);
}

/// webpki checks name constraints only for subject alternative names.
#[test]
fn common_name_below_a_ca_with_name_constraints_is_ignored() {
    let constrained = |name: &str| {
        let mut params = authority_params(name);
        let permitted_subtrees = vec![GeneralSubtree::DnsName("team.test".to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        params
    };
    let (root, alone) = (Authority::new("CA"), Authority::self_signed(&constrained("Team root")));
    let team = root.intermediate("Team CA").reissued(constrained("Team CA"), Some(&root));
    let free = team.reissued(authority_params("Team CA"), Some(&root));
    let case = |what, common, names: &[&str], below: &[&Authority], bundle: &Authority, verify_full| Case {
        what,
        chain: [issued(below.first().unwrap_or(&bundle), common, names).der()]
            .into_iter()
            .chain(below.iter().map(|authority| authority.der()))
            .collect(),
        bundle: vec![bundle.der()],
        host: "db.test",
        verify_ca: None,
        verify_full,
    };
    let refused = Some("is ignored below a CA with name constraints");
    check(vec![
        case("below a constrained CA", "db.test", &[], &[&team], &root, refused),
        case("below a constrained anchor", "DB.test", &[], &[], &alone, refused),
        case("another subject alternative name", "db.test", &["a.team.test"], &[&team], &root, MISNAMED),
        case("by a way around the constrained CA", "db.test", &[], &[&team, &free], &root, None),
    ]);
}

#[test]
fn cached_result_ends_with_the_validity_of_the_chain() {
    let root = Authority::new("CA");
    let parts = parts(Verification::VerifyFull, &[&root]);
    let verifier = ServerVerifier::new(parts.verification, &parts.anchors, AnchorValidity::Enforce).unwrap();
    let leaf = issued(&root, "x", &["db.test"]).der();
    let verify = |host: &'static str, now| verifier.verify(&leaf, &[], &ServerName::try_from(host).unwrap(), now);
    let now = OffsetDateTime::now_utc();
    assert!(verify("db.test", now).is_ok());
    assert!(verify("other.test", now).is_err(), "the name is part of the question");
    assert!(verify("db.test", now + Duration::DAY * 2).is_err());
    assert!(verify("db.test", now - Duration::DAY * 2).is_err());
}

#[test]
fn system_roots_are_read_only_if_needed_and_trusted() {
    let unread = || unreachable!("the roots are not needed");
    assert_eq!(Anchors::new(None, Verification::Require, unread), Ok(Anchors::None));
    let error = Anchors::new(None, Verification::VerifyCa, || Err("no file".to_owned())).unwrap_err();
    assert!(error.to_string().contains("ca-certificates"), "{error}");
    let other = Authority::new("CA").der();
    let anchors = Anchors::new(None, Verification::VerifyFull, || Ok(vec![other])).unwrap();
    let leaf = issued(&Authority::new("CA"), "x", &["db.test"]).der();
    let text = rejection(Verification::VerifyFull, &anchors, &[leaf], "db.test", OffsetDateTime::now_utc()).unwrap();
    assert!(text.contains("not issued by any root certificate of the system"), "{text}");
    let root = Authority::new("CA");
    let leaf = issued(&root, "x", &["db.test"]).der();
    let anchors = Anchors::System(vec![CertificateDer::from(b"invalid".to_vec()), root.der()]);
    assert_eq!(rejection(Verification::VerifyFull, &anchors, &[leaf], "db.test", OffsetDateTime::now_utc()), None);
}
