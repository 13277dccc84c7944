//! DER one element at a time, for what has to be read byte for byte as webpki reads it, or is too long to be taken apart whole.

use x509_parser::der_parser::asn1_rs::Any;
use x509_parser::prelude::FromDer as _;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const SEQUENCE: u8 = 0x30;
/// What is only there when it is not the usual: the version of a certificate, the extensions of a revocation list.
pub(crate) const TAGGED_0: u8 = 0xa0;

/// The contents of the first element, and what follows it.
pub(crate) fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, element) = Any::from_der(der).ok()?;
    Some((element.data, rest))
}

/// The same, where the first element is of this kind.
pub(crate) fn element_of(kind: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    if der.first() == Some(&kind) { element(der) } else { None }
}

/// A `SEQUENCE` of what is encoded already. `None` where its length takes more than four bytes.
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
