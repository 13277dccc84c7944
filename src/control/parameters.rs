//! Parameters in the query of a request.

use std::collections::BTreeMap;

use crate::control::response::AdminResponse;
use crate::control::route::invalid;

/// The values of the known parameters, percent-decoded.
///
/// # Errors
/// A 422 response if a parameter is unknown, repeated or not UTF-8.
pub(crate) fn parse<'a>(query: &'a str, known: &[&str]) -> Result<BTreeMap<&'a str, String>, AdminResponse> {
    let mut values = BTreeMap::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, given) = part.split_once('=').unwrap_or((part, ""));
        if !known.contains(&name) {
            let names: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
            let allowed = if known.is_empty() { "none".to_owned() } else { names.join(" and ") };
            return Err(invalid(&format!("unknown parameter {name:?}; allowed: {allowed}")));
        }
        let value = decode(given).ok_or_else(|| invalid(&format!("{name} is not percent-encoded UTF-8")))?;
        if values.insert(name, value).is_some() {
            return Err(invalid(&format!("parameter {name:?} is given twice")));
        }
    }
    Ok(values)
}

/// Percent-decoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok().filter(|digits| !digits.starts_with('+'))?;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_invalid_encodings_are_rejected() {
        let values = parse("source=2001%3adb8%3A%3A1&listener=a+b", &["listener", "source"]).unwrap();
        assert_eq!(values["source"], "2001:db8::1");
        assert_eq!(values["listener"], "a+b");
        for query in ["source=%", "source=%3", "source=%zz", "source=%+1", "source=%ff"] {
            assert!(parse(query, &["source"]).is_err(), "{query}");
        }
    }
}
