//! Distinguished names as RFC 4514 text, most specific first: `CN=app,O=Example,C=US`.
//!
//! Peers choose the names in their certificates, so all characters that could end a field or a line are escaped.

use std::fmt::{self, Write as _};

use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer as _};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::printable::{BoundedText, MAX_FIELD, is_combining, is_hidden};

/// Formats a name by RFC 4514 §2, truncated to [`MAX_FIELD`] bytes.
pub(crate) fn rfc4514(name: &X509Name<'_>) -> String {
    let mut out = BoundedText::new(MAX_FIELD);
    // The error means that the text is full. `finish` handles it.
    let _ = write_name(&mut out, name);
    out.finish()
}

fn write_name(out: &mut BoundedText, name: &X509Name<'_>) -> fmt::Result {
    let sets: Vec<_> = name.iter().collect();
    for (index, set) in sets.into_iter().rev().enumerate() {
        out.push(if index == 0 { "" } else { "," })?;
        for (index, attribute) in set.iter().enumerate() {
            out.push(if index == 0 { "" } else { "+" })?;
            write_attribute(out, attribute)?;
        }
    }
    Ok(())
}

/// The most specific common name: from the last RDN that has one. `None` if that RDN has several, or the value uses a legacy
/// string type or contains control characters.
pub(crate) fn common_name(name: &X509Name<'_>) -> Option<String> {
    let is_common_name = |attribute: &&AttributeTypeAndValue<'_>| attribute.attr_type().to_id_string() == COMMON_NAME;
    let levels: Vec<_> = name.iter().map(|set| set.iter().filter(is_common_name).collect::<Vec<_>>()).collect();
    let [only] = levels.iter().rfind(|names| !names.is_empty())?.as_slice() else { return None };
    let value = only.attr_value();
    let plain = [Tag::Utf8String, Tag::PrintableString, Tag::Ia5String].contains(&value.tag());
    let text = only.as_str().ok().filter(|text| plain && !text.is_empty() && !text.chars().any(char::is_control))?;
    Some(text.to_owned())
}

fn write_attribute(out: &mut BoundedText, attribute: &AttributeTypeAndValue<'_>) -> fmt::Result {
    let oid = attribute.attr_type().to_id_string();
    let keyword = KEYWORDS.iter().find(|(known, _)| *known == oid).map(|(_, keyword)| *keyword);
    write!(out, "{}=", keyword.unwrap_or(&oid))?;
    // A type without a keyword, or a value that is not text, is written as hex of its DER (§2.4).
    match (keyword, attribute.as_str()) {
        (Some(_), Ok(text)) => write_escaped(out, text),
        (Some(_), Err(_)) | (None, _) => write_encoding(out, attribute.attr_value()),
    }
}

fn write_encoding(out: &mut BoundedText, value: &Any<'_>) -> fmt::Result {
    out.push("#")?;
    let der = value.to_der_vec().unwrap_or_default();
    der.iter().try_for_each(|byte| out.push(&format!("{byte:02x}")))
}

/// Escapes by §2.4: special characters with a backslash, invisible characters as hex of their UTF-8.
fn write_escaped(out: &mut BoundedText, text: &str) -> fmt::Result {
    let mut characters = text.chars().peekable();
    let mut is_first = true;
    while let Some(character) = characters.next() {
        let is_last = characters.peek().is_none();
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.push(&format!("\\{character}"))?,
            '#' | ' ' if is_first => out.push(&format!("\\{character}"))?,
            ' ' if is_last => out.push("\\ ")?,
            _ if is_hidden(character) || (is_first && is_combining(character)) => out.push(&in_hex(character))?,
            _ => out.write_char(character)?,
        }
        is_first = false;
    }
    Ok(())
}

fn in_hex(character: char) -> String {
    let mut utf8 = [0; 4];
    character.encode_utf8(&mut utf8).bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "\\{byte:02x}");
        hex
    })
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
    fn separators_and_invisible_characters_are_escaped() {
        let escaped = |text: &str| {
            let mut out = BoundedText::new(MAX_FIELD);
            write_escaped(&mut out, text).unwrap();
            out.finish()
        };
        assert_eq!(escaped("app"), "app");
        assert_eq!(escaped("a,b+c"), "a\\,b\\+c");
        assert_eq!(escaped(" #x "), "\\ #x\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("a\nb\0"), "a\\0ab\\00");
        assert_eq!(escaped("Zoë"), "Zoë");
        assert_eq!(escaped(" "), "\\ ");
        assert_eq!(escaped("a\u{202e}b\u{a0}"), "a\\e2\\80\\aeb\\c2\\a0");
        assert_eq!(escaped("\u{301}e\u{301}"), "\\cc\\81e\u{301}");
    }

    #[test]
    fn common_name_is_the_last_one_if_it_is_plain_text() {
        use rcgen::DnValue::{BmpString, Utf8String};
        let common_name = |names: &[rcgen::DnValue]| {
            // rcgen keeps both because it treats the two types as different.
            let kinds = [rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]), rcgen::DnType::CommonName];
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (kind, name) in kinds.into_iter().zip(names) {
                params.distinguished_name.push(kind, name.clone());
            }
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            crate::x509::certificate::Certificate::parse(certificate.der()).unwrap().common_name
        };
        let text = |text: &str| Utf8String(text.to_owned());
        assert_eq!(common_name(&[text("app")]), Some("app".to_owned()));
        assert_eq!(common_name(&[text("Users"), text("app")]), Some("app".to_owned()));
        assert_eq!(common_name(&[text("app\0.evil")]), None);
        assert_eq!(common_name(&[BmpString("app".try_into().unwrap())]), None);
        assert_eq!(common_name(&[]), None);
    }
}
