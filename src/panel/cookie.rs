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
    /// The values of this cookie in a `Cookie` header, at most [`MAX_VALUES`].
    ///
    /// There can be several: without TLS, a page of another port of this host may set a cookie of the same name for a longer
    /// path, and must not lock the person out.
    pub(crate) fn values_in(self, header: &str) -> impl Iterator<Item = &str> {
        let name = self.to_string();
        let pairs = header.split(';').filter_map(|pair| pair.trim_ascii().split_once('='));
        pairs.filter_map(move |(key, value)| (key == name).then_some(value)).take(MAX_VALUES)
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

/// More than other pages set by accident.
const MAX_VALUES: usize = 8;

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
        for (header, values) in [
            ("portcullis-9642=abc", &["abc"][..]),
            ("a=b; portcullis-9642=abc; c=d", &["abc"]),
            ("portcullis-9642=abc; portcullis-9642=abd", &["abc", "abd"]),
            ("portcullis-9643=abc", &[]),
            ("xportcullis-9642=abc", &[]),
            ("__Host-portcullis-9642=abc", &[]),
            ("portcullis-9642", &[]),
            ("", &[]),
        ] {
            assert_eq!(PLAIN.values_in(header).collect::<Vec<_>>(), values, "{header}");
        }
        assert_eq!(PLAIN.values_in(&"portcullis-9642=abc;".repeat(1_000)).count(), MAX_VALUES);
    }

    proptest! {
        #[test]
        fn any_header_is_read(header: String) {
            let _ = (PLAIN.values_in(&header).count(), TLS.values_in(&header).count());
        }
    }
}
