//! Rules in arguments.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::source::host::HostName;
use crate::source::rule::{Network, NetworkError, Source};

/// A rule as `TYPE:VALUE`. The program checks types and values, because it may know more types than this command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GivenRule {
    pub(crate) kind: String,
    pub(crate) value: String,
}

impl GivenRule {
    pub(crate) fn in_json(&self) -> Value {
        json!({ "type": self.kind, "value": self.value })
    }

    /// Whether a rule of the program trusts the same source, in any spelling.
    pub(crate) fn is_same_source(&self, kind: &str, value: &str) -> bool {
        self.kind == kind && canonical(kind, &self.value) == canonical(kind, value)
    }
}

/// A value in the form by which two spellings are equal: `10.0.0.1` and `10.0.0.1/32`, or `DB.Internal.` and `db.internal`.
fn canonical(kind: &str, value: &str) -> String {
    let canonical = match kind {
        Source::IP_ADDR => value.parse().ok().map(|network: Network| network.net().to_string()),
        Source::DNS => value.parse().ok().map(|name: HostName| name.to_string()),
        _ => None,
    };
    canonical.unwrap_or_else(|| value.to_owned())
}

impl fmt::Display for GivenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl FromStr for GivenRule {
    type Err = GivenRuleError;

    fn from_str(text: &str) -> Result<Self, GivenRuleError> {
        let ip_addr = || Self { kind: Source::IP_ADDR.to_owned(), value: text.to_owned() };
        let error = match text.parse::<Network>() {
            Ok(_) => return Ok(ip_addr()),
            Err(error) => error,
        };
        // An IPv6 address has colons, too.
        let address = text.split(['/', '%']).next().unwrap_or(text);
        match text.split_once(':') {
            Some((kind, value)) if address.parse::<IpAddr>().is_err() && !kind.is_empty() && !value.is_empty() => {
                Ok(Self { kind: kind.to_owned(), value: value.to_owned() })
            }
            _ if error == NetworkError::Syntax => Err(GivenRuleError::Syntax),
            _ => Err(GivenRuleError::Network(error)),
        }
    }
}

/// Why an argument is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GivenRuleError {
    #[error("it is {0}")]
    Network(NetworkError),
    #[error("expected TYPE:VALUE, such as dns:app.internal or tag:backend, or an IP address or network")]
    Syntax,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, GivenRuleError> {
        text.parse::<GivenRule>().map(|rule| format!("{} {}", rule.kind, rule.value))
    }

    #[test]
    fn address_and_network_need_no_type() {
        for text in ["203.0.113.7", "10.0.0.0/8", "2001:db8::1", "fe80::1", "2001:db8::/32", "::1", "::ffff:10.0.0.1"] {
            assert_eq!(parsed(text), Ok(format!("ip_addr {text}")));
        }
        assert_eq!(parsed("ip_addr:2001:db8::1").as_deref(), Ok("ip_addr 2001:db8::1"));
        assert_eq!(parsed("dns:app.internal").as_deref(), Ok("dns app.internal"));
        assert_eq!(parsed("k8s:a:b").as_deref(), Ok("k8s a:b"));
    }

    #[test]
    fn invalid_argument_is_rejected_with_its_reason() {
        for text in ["", "app.internal", ":x", "dns:", "ip_addr", "10.0.0"] {
            assert_eq!(parsed(text), Err(GivenRuleError::Syntax), "{text:?}");
        }
        for (text, word) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("fe80::1%eth0", "zone"),
            ("010.0.0.1", "leading zero"),
            ("10.0.0.0/33", "prefix length"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn spellings_of_one_source_are_the_same() {
        let is_same =
            |one: &str, kind: &str, value: &str| one.parse::<GivenRule>().unwrap().is_same_source(kind, value);
        assert!(is_same("10.0.0.1", "ip_addr", "10.0.0.1/32"));
        assert!(is_same("::ffff:10.0.0.1", "ip_addr", "10.0.0.1"));
        assert!(is_same("2001:DB8::1", "ip_addr", "2001:db8:0::1/128"));
        assert!(is_same("dns:DB.Internal.", "dns", "db.internal"));
        assert!(is_same("tag:A", "tag", "A"));
        assert!(!is_same("tag:A", "tag", "a"));
        assert!(!is_same("10.0.0.1", "ip_addr", "10.0.0.0/24"));
        assert!(!is_same("dns:db", "tag", "db"));
    }
}
