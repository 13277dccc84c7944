pub(crate) mod dates;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::*;
use crate::printable::{MARK, MAX_FIELD};

fn certificate(common_name: &str, uri: &str) -> Certificate {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    Certificate::parse(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).unwrap()
}

#[test]
fn long_names_are_truncated_for_display_and_complete_for_matching() {
    let (name, uri) = ("n".repeat(2_000), format!("spiffe://{}", "u".repeat(2_000)));
    let facts = certificate(&name, &uri);
    for text in [&facts.subject, &facts.issuer] {
        assert!(text.len() == MAX_FIELD && text.ends_with(MARK), "{text}");
        assert!(text.capacity() <= MAX_FIELD, "{}", text.capacity());
    }
    let names: Vec<_> = facts.names().collect();
    assert!(names.contains(&SubjectName::Common(&name)) && names.contains(&SubjectName::Uri(&uri)));
    let json = serde_json::to_value(&facts).unwrap();
    let shown = json["sans"][0].as_str().unwrap();
    assert!(shown.len() == MAX_FIELD && shown.ends_with(MARK), "{shown}");
    assert!(json.to_string().len() < 4 * MAX_FIELD, "{json}");
}

#[test]
fn names_with_the_same_beginning_have_different_digests() {
    let long = "n".repeat(2_000);
    let [one, other] = ["one", "other"].map(|end| certificate(&format!("{long}{end}"), "spiffe://x"));
    assert_eq!(one.subject, other.subject);
    assert_ne!(one.subject_digest, other.subject_digest);
    assert_eq!(one.subject_digest, one.issuer_digest);
}
