//! Host names as trusted sources.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// A host that a rule trusts. Hosts with the same name are equal, whatever their refresh interval is.
#[derive(Clone, Debug)]
pub struct Host {
    pub name: HostName,
    /// Interval between lookups of its addresses.
    pub refresh: Duration,
}

impl PartialEq for Host {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Host {}

impl Hash for Host {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A host name in lower case, without a trailing dot, that no resolver parses as an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        if is_address(text) {
            return Err(HostNameError::Address);
        }
        if text.contains('*') {
            return Err(HostNameError::Wildcard);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > MAX_NAME || !name.split('.').all(is_label) {
            return Err(HostNameError::Syntax);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// An address, or a number that a resolver parses as one.
    #[error("an address, not a host name; use type \"ip_addr\" or \"ip_addr:…\"")]
    Address,
    /// A port, a scheme, a space, an empty or overlong label, …
    #[error("not a valid host name; write it without scheme, port and path, such as \"db.internal\"")]
    Syntax,
    /// A `*`, which cannot be looked up.
    #[error("a wildcard pattern and cannot be looked up; use one host name such as \"db.internal\"")]
    Wildcard,
}

/// Whether a text is an address, a network or a number: `getaddrinfo` parses `10.1`, `0x7f.1` and `2130706433` as IPv4
/// addresses.
fn is_address(text: &str) -> bool {
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    let last = text.strip_suffix('.').unwrap_or(text).rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    address.parse::<IpAddr>().is_ok()
        || is_number(last)
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Underscores are allowed, because container names contain them.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// RFC 1035 section 2.3.4: in text form without the trailing dot.
const MAX_NAME: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_name_is_lower_cased_without_trailing_dot() {
        for (text, shown) in [
            ("DB.Internal.", "db.internal"),
            ("localhost", "localhost"),
            ("redis_1.prod-eu.internal", "redis_1.prod-eu.internal"),
            ("4.db", "4.db"),
            ("1e100.net", "1e100.net"),
            ("x.0xyz", "x.0xyz"),
        ] {
            assert_eq!(text.parse::<HostName>().map(|name| name.to_string()), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn invalid_host_name_is_rejected_with_its_reason() {
        use HostNameError::{Address, Syntax, Wildcard};
        let long = format!("{}.x", "a.".repeat(126));
        for (text, error) in [
            ("10.1.2.3", Address),
            ("10.1.2.3.", Address),
            ("10.0.0.0/8", Address),
            ("::1", Address),
            ("2001:db8::/32", Address),
            ("10.1", Address),
            ("2130706433", Address),
            ("0x7f.1", Address),
            ("0x7f000001", Address),
            ("evil.0x1", Address),
            ("*.internal", Wildcard),
            ("", Syntax),
            (".", Syntax),
            ("a..b", Syntax),
            ("db:6379", Syntax),
            ("https://db", Syntax),
            ("db/8", Syntax),
            ("db internal", Syntax),
            ("-db", Syntax),
            ("db-.internal", Syntax),
            ("däb.internal", Syntax),
            ("db\0", Syntax),
            (&"a".repeat(64), Syntax),
            (&long, Syntax),
        ] {
            assert_eq!(text.parse::<HostName>(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_host_name_parses_again_and_is_never_an_address(text in "[a-zA-Z0-9._:/*x-]{1,12}") {
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert_eq!(name.as_str().parse::<HostName>(), Ok(name.clone()));
                // std and inet_aton parse only texts that end in a number as addresses.
                prop_assert!(text.parse::<IpAddr>().is_err());
                let last = name.as_str().rsplit('.').next().unwrap_or_default();
                prop_assert!(last.bytes().any(|byte| !byte.is_ascii_digit()));
            }
        }
    }
}
