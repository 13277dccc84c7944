//! Distinguished names as text, by RFC 4514: most specific first, `CN=app,O=Example,C=US`.
//!
//! A name comes from a certificate that anybody may have written, so whatever could end a field or a line is escaped.

use std::fmt::Write as _;

use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer as _};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Writes `name` as RFC 4514 §2 says.
pub(super) fn rfc4514(name: &X509Name<'_>) -> String {
    let mut sets: Vec<String> =
        name.iter().map(|set| set.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    sets.reverse();
    sets.join(",")
}

/// The most specific common name: the one of the last level that has any. Where a level has several, or its text is in an
/// encoding of another age or holds control characters, it is nobody's name.
pub(super) fn common_name(name: &X509Name<'_>) -> Option<String> {
    let is_common_name = |attribute: &&AttributeTypeAndValue<'_>| attribute.attr_type().to_id_string() == COMMON_NAME;
    let levels: Vec<_> = name.iter().map(|set| set.iter().filter(is_common_name).collect::<Vec<_>>()).collect();
    let [only] = levels.iter().rfind(|names| !names.is_empty())?.as_slice() else { return None };
    let value = only.attr_value();
    let plain = [Tag::Utf8String, Tag::PrintableString, Tag::Ia5String].contains(&value.tag());
    let text = only.as_str().ok().filter(|text| plain && !text.is_empty() && !text.chars().any(char::is_control))?;
    Some(text.to_owned())
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let keyword = KEYWORDS.iter().find(|(known, _)| *known == oid).map(|(_, keyword)| *keyword);
    // A type without a keyword, or a value that is no text, is written as the hex of its encoding (§2.4).
    match (keyword, attribute.as_str()) {
        (Some(keyword), Ok(text)) => format!("{keyword}={}", escaped(text)),
        (Some(keyword), Err(_)) => format!("{keyword}={}", encoding(attribute.attr_value())),
        (None, _) => format!("{oid}={}", encoding(attribute.attr_value())),
    }
}

fn encoding(value: &Any<'_>) -> String {
    let der = value.to_der_vec().unwrap_or_default();
    der.iter().fold(String::from("#"), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' | ' ' if index == 0 => out.extend(['\\', character]),
            ' ' if index == last => out.push_str("\\ "),
            _ if character.is_control() => {
                let mut utf8 = [0; 4];
                for byte in character.encode_utf8(&mut utf8).bytes() {
                    let _ = write!(out, "\\{byte:02x}");
                }
            }
            _ => out.push(character),
        }
    }
    out
}

/// The keywords of RFC 4514 §3, by object identifier.
const KEYWORDS: [(&str, &str); 9] = [
    (COMMON_NAME, "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

const COMMON_NAME: &str = "2.5.4.3";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_end_a_field_or_a_line_is_escaped() {
        assert_eq!(escaped("app"), "app");
        assert_eq!(escaped("a,b+c"), "a\\,b\\+c");
        assert_eq!(escaped(" #x "), "\\ #x\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("a\nb\0"), "a\\0ab\\00");
        assert_eq!(escaped("Zoë"), "Zoë");
    }

    #[test]
    fn the_common_name_is_the_last_one_and_plain() {
        use rcgen::DnValue::{BmpString, Utf8String};
        let common_name = |names: &[rcgen::DnValue]| {
            // Two types that rcgen takes for different ones, so that it keeps both.
            let kinds = [rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]), rcgen::DnType::CommonName];
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (kind, name) in kinds.into_iter().zip(names) {
                params.distinguished_name.push(kind, name.clone());
            }
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            crate::tls::Certificate::parse(certificate.der()).unwrap().common_name
        };
        let text = |text: &str| Utf8String(text.to_owned());
        assert_eq!(common_name(&[text("app")]), Some("app".to_owned()));
        assert_eq!(common_name(&[text("Users"), text("app")]), Some("app".to_owned()));
        assert_eq!(common_name(&[text("app\0.evil")]), None);
        assert_eq!(common_name(&[BmpString("app".try_into().unwrap())]), None);
        assert_eq!(common_name(&[]), None);
    }
}
