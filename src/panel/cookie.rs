//! The cookie of a panel session (RFC 6265bis).
//!
//! Browsers share cookies between all ports of a host, so the name contains the port: two programs on one host do not sign
//! each other out. With TLS, the prefix `__Host-` keeps other hosts and plaintext pages from setting the cookie.

use std::fmt;

/// The name of the cookie at one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CookieName {
    pub(crate) is_tls: bool,
    /// The port in the address that the browser shows.
    pub(crate) port: u16,
}

impl fmt::Display for CookieName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_tls { "__Host-" } else { "" };
        write!(f, "{prefix}portcullis-{}", self.port)
    }
}

impl CookieName {
    /// The value of this cookie in a `Cookie` header; `None` if it is not there, or there twice with different values.
    pub(crate) fn value_in(self, header: &str) -> Option<&str> {
        let name = self.to_string();
        let pairs = header.split(';').filter_map(|pair| pair.trim_ascii().split_once('='));
        let mut values = pairs.filter_map(|(key, value)| (key == name).then_some(value));
        let first = values.next()?;
        values.all(|other| other == first).then_some(first)
    }

    /// The `Set-Cookie` header that hands a session to the browser until it is closed.
    pub(crate) fn set(self, value: &str) -> String {
        format!("{self}={value}{}", self.attributes())
    }

    /// The `Set-Cookie` header that makes the browser forget the cookie.
    pub(crate) fn clear(self) -> String {
        format!("{self}=; Max-Age=0{}", self.attributes())
    }

    fn attributes(self) -> &'static str {
        if self.is_tls { "; Path=/; HttpOnly; SameSite=Strict; Secure" } else { "; Path=/; HttpOnly; SameSite=Strict" }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: CookieName = CookieName { is_tls: false, port: 9642 };
    const TLS: CookieName = CookieName { is_tls: true, port: 443 };

    #[test]
    fn cookie_is_hidden_from_scripts_and_other_sites() {
        assert_eq!(PLAIN.set("abc"), "portcullis-9642=abc; Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(TLS.set("abc"), "__Host-portcullis-443=abc; Path=/; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(TLS.clear(), "__Host-portcullis-443=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict; Secure");
    }

    #[test]
    fn cookie_is_found_among_others() {
        for (header, value) in [
            ("portcullis-9642=abc", Some("abc")),
            ("a=b; portcullis-9642=abc; c=d", Some("abc")),
            ("portcullis-9642=abc;portcullis-9642=abc", Some("abc")),
            // Another page of this host may have set the second one.
            ("portcullis-9642=abc; portcullis-9642=abd", None),
            ("portcullis-9643=abc", None),
            ("xportcullis-9642=abc", None),
            ("__Host-portcullis-9642=abc", None),
            ("portcullis-9642", None),
            ("", None),
        ] {
            assert_eq!(PLAIN.value_in(header), value, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(header: String) {
            let _ = (PLAIN.value_in(&header), TLS.value_in(&header));
        }
    }
}
