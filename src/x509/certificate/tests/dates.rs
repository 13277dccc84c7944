//! Dates of certificates, and bytes that are not certificates.

use std::sync::LazyLock;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, NameConstraints};

use crate::tls::fixtures::{Authority, IssuedCertificate};
use crate::x509::certificate::*;
use crate::x509::channel_binding;

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

fn read(kind: u8, text: &str) -> Option<String> {
    let der = [&[kind, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let time = ASN1Time::from_der(&der).ok()?.1;
    Some(timestamp::seconds(moment(time)))
}

#[test]
fn certificate_date_with_offset_is_converted_to_utc() {
    for (kind, text, expected) in [
        (UTC_TIME, "270131000000Z", "2027-01-31T00:00:00Z"),
        (UTC_TIME, "491231235959-0500", "2050-01-01T04:59:59Z"),
        (UTC_TIME, "500101000000+2359", "1949-12-31T00:01:00Z"),
        (GENERALIZED_TIME, "99991231235959Z", "9999-12-31T23:59:59Z"),
        (GENERALIZED_TIME, "00000101000000Z", "0000-01-01T00:00:00Z"),
    ] {
        assert_eq!(read(kind, text).as_deref(), Some(expected), "{text}");
    }
    for text in ["99991231235959-0500", "99999931235959Z", "Z", ""] {
        assert_eq!(read(GENERALIZED_TIME, text), None, "{text}");
    }
    let end = timestamp::parse("9999-12-31T23:59:59Z").unwrap();
    let beyond = end.replace_offset(time::UtcOffset::from_hms(-5, 0, 0).unwrap());
    assert!(moment(ASN1Time::new(beyond)) >= end, "should a later parser let it pass");
}

#[test]
fn certificate_with_maximum_not_after_never_expires() {
    // RFC 5280 §4.1.2.5
    let end = timestamp::parse("9999-12-31T23:59:59Z").unwrap();
    let leaf = Authority::new("CA").client("app", OffsetDateTime::UNIX_EPOCH, end);
    let facts = Certificate::parse(&leaf.der()).unwrap();
    assert_eq!(facts.not_after, end);
    assert!(facts.end() > end);
    assert!(facts.is_valid_at(OffsetDateTime::now_utc()) && facts.is_valid_at(end));
    assert!(serde_json::to_string(&facts).unwrap().contains("9999-12-31T23:59:59Z"));
}

proptest! {
    #[test]
    fn altered_certificate_is_parsed_or_rejected_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let mut params = CertificateParams::new(["app.test".to_owned(), "10.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::OrganizationName, "Example");
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 99]), "odd");
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("test".to_owned())],
                excluded_subtrees: Vec::new(),
            });
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
            IssuedCertificate::self_signed(&params).der().to_vec()
        });
        let mut der = WHOLE.clone();
        for (place, byte) in changes {
            *place.get_mut(&mut der) = byte;
        }
        for der in [&der[..], &der[..cut.index(der.len())]] {
            let der = CertificateDer::from(der);
            if let Ok(facts) = Certificate::parse(&der) {
                prop_assert!(serde_json::to_string(&facts).is_ok());
                prop_assert!(facts.end() >= facts.not_after && facts.names().count() > 0);
            }
            let _ = channel_binding::end_point(&der);
        }
    }
}
