//! Parameters in the query and in the path of a request.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::values::parse_positive_duration;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::control::route::Parameter;

/// The values of the known parameters of a query, percent-decoded.
#[derive(Debug, Default)]
pub(crate) struct Parameters(BTreeMap<&'static str, String>);

impl Parameters {
    /// # Errors
    /// A 422 response if a parameter is unknown, repeated or not UTF-8.
    pub(crate) fn parse(query: &str, known: &[Parameter]) -> Result<Self, AdminResponse> {
        let mut values = BTreeMap::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, given) = part.split_once('=').unwrap_or((part, ""));
            let Some(Parameter { name, .. }) = known.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<_> = known.iter().map(|parameter| format!("{:?}", parameter.name)).collect();
                let allowed = if known.is_empty() { "none".to_owned() } else { names.join(" and ") };
                return Err(invalid(format_args!("unknown parameter {name:?}; allowed: {allowed}")));
            };
            let value = decode(given).ok_or_else(|| invalid(format_args!("{name} is not percent-encoded UTF-8")))?;
            if values.insert(*name, value).is_some() {
                return Err(invalid(format_args!("parameter {name:?} is given twice")));
            }
        }
        Ok(Self(values))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// A 422 response for another value: a misspelt `plan` must not cause a change.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, AdminResponse> {
        match self.get(name) {
            None => Ok(default),
            Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(invalid(format_args!("{name} is {other:?}; it must be true or false"))),
        }
    }

    /// `wait`: how long a caller waits for the members of the fleet.
    ///
    /// # Errors
    /// A 422 response for another value.
    pub(crate) fn wait(&self) -> Result<Option<Duration>, AdminResponse> {
        let Some(text) = self.get("wait") else { return Ok(None) };
        match parse_positive_duration(text) {
            Ok(wait) if wait <= MAX_WAIT => Ok(Some(wait)),
            Ok(_) => Err(invalid(format_args!("wait is {text:?}; it must be at most {MAX_WAIT:?}"))),
            Err(error) => Err(invalid(format_args!("wait is {text:?}; expected {error}"))),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// A 422 response for another value.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, AdminResponse> {
        let number = |text: &str| {
            text.parse().map_err(|_| invalid(format_args!("{name} is {text:?}; it must be a whole number")))
        };
        self.get(name).map(number).transpose()
    }
}

/// A request has 50 seconds altogether.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A 422 response.
pub(crate) fn invalid(message: impl std::fmt::Display) -> AdminResponse {
    AdminResponse::error(ErrorKind::Unprocessable, message)
}

/// Percent-decoding (RFC 3986 §2.1).
pub(crate) fn decode(text: &str) -> Option<String> {
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

    const KNOWN: [Parameter; 2] = [Parameter { name: "listener", text: "" }, Parameter { name: "source", text: "" }];

    #[test]
    fn values_are_decoded_and_invalid_encodings_are_rejected() {
        let values = Parameters::parse("source=2001%3adb8%3A%3A1&listener=a+b", &KNOWN).unwrap();
        assert_eq!(values.get("source"), Some("2001:db8::1"));
        assert_eq!(values.get("listener"), Some("a+b"));
        for query in ["source=%", "source=%3", "source=%zz", "source=%+1", "source=%ff", "x=1", "source=1&source=1"] {
            assert!(Parameters::parse(query, &KNOWN).is_err(), "{query}");
        }
    }
}
