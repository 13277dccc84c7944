//! Reads DER one element at a time: for values that must be compared byte by byte as in webpki, and for large structures.

use x509_parser::der_parser::asn1_rs::Any;
use x509_parser::prelude::FromDer as _;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
/// Context tag 0: the version of a certificate, the extensions of a revocation list.
pub(crate) const TAGGED_0: u8 = 0xa0;

/// The contents of the first element, and the bytes after it.
pub(crate) fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, element) = Any::from_der(der).ok()?;
    Some((element.data, rest))
}

/// Like [`element`], if the first element has this tag.
pub(crate) fn element_of(kind: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    if der.first() == Some(&kind) { element(der) } else { None }
}

/// Encodes a `SEQUENCE` of DER elements. `None` if its length needs more than four bytes.
pub(crate) fn sequence(parts: &[&[u8]]) -> Option<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = u32::try_from(length).ok()?.to_be_bytes();
    let digits = bytes.get(bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..)?;
    let mut encoded = Vec::with_capacity(length.saturating_add(bytes.len()).saturating_add(2));
    encoded.push(SEQUENCE);
    match u8::try_from(length) {
        Ok(short @ ..0x80) => encoded.push(short),
        _ => {
            encoded.push(u8::try_from(digits.len()).ok()? | 0x80);
            encoded.extend_from_slice(digits);
        }
    }
    parts.iter().for_each(|part| encoded.extend_from_slice(part));
    Some(encoded)
}
