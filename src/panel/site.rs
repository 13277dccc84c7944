//! Whether a browser's request comes from the control panel itself.
//!
//! Two attacks are rejected here. In DNS rebinding, a page at `attacker.example` lets its name resolve to the address of
//! Portcullis; then `Host` has a name that is not ours. In cross-site request forgery, a page sends a request to our name;
//! then the browser says so in `Sec-Fetch-Site` (W3C Fetch Metadata) or `Origin` (RFC 6454 §7).

use std::net::IpAddr;

/// The host and port of a site, as in `Host` (RFC 9110 §7.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// In lower case, without the final dot and without the brackets of an IPv6 address.
    host: String,
    pub(crate) port: Option<u16>,
}

/// The host names under which a browser may open the panel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostNames {
    /// In lower case; `*.` stands for one label.
    names: Vec<String>,
}

/// What the headers say about the page that caused a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestOrigin<'a> {
    /// `Sec-Fetch-Site`
    pub(crate) fetch_site: Option<&'a [u8]>,
    /// `Origin`
    pub(crate) origin: Option<&'a [u8]>,
}

impl HostPort {
    /// Reads `HOST[:PORT]`, where an IPv6 address is in brackets.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some(""))?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        (!host.is_empty() && host.bytes().all(is_allowed)).then_some(Self { host, port })
    }

    pub(crate) fn has_dot(&self) -> bool {
        self.host.contains('.')
    }

    /// Whether both name the same host and port, with the default port of their scheme.
    fn is_same(&self, other: &Self, default_port: u16) -> bool {
        let port = |authority: &Self| authority.port.unwrap_or(default_port);
        self.host == other.host && port(self) == port(other)
    }
}

impl HostNames {
    /// The names in the configuration and in the certificates of the admin address.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self { names: names.into_iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect() }
    }

    /// Whether a browser may open the panel under this name. IP addresses cannot be rebound, and `localhost` resolves to
    /// nothing else (RFC 6761 §6.3).
    pub(crate) fn has(&self, authority: &HostPort) -> bool {
        let host = authority.host.as_str();
        host.parse::<IpAddr>().is_ok() || host == "localhost" || self.names.iter().any(|name| matches(name, host))
    }
}

/// RFC 6125 §6.4.3: `*` is the whole first label.
fn matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => name == host,
    }
}

/// Whether a request comes from another page than the panel. A client that sends neither header is no browser, and no page can
/// make it send a cookie.
pub(crate) fn is_cross_origin(request: RequestOrigin<'_>, site: &HostPort, is_tls: bool) -> bool {
    let RequestOrigin { fetch_site, origin } = request;
    match (fetch_site, origin) {
        // `none` is a person who typed the address.
        (Some(fetch_site), _) => !matches!(fetch_site, b"same-origin" | b"none"),
        (None, Some(origin)) => !is_origin_of(origin, site, is_tls),
        (None, None) => false,
    }
}

fn is_origin_of(origin: &[u8], site: &HostPort, is_tls: bool) -> bool {
    let (scheme, default_port) = if is_tls { ("https://", 443) } else { ("http://", 80) };
    let authority = std::str::from_utf8(origin).ok().and_then(|text| HostPort::parse(text.strip_prefix(scheme)?));
    authority.is_some_and(|authority| authority.is_same(site, default_port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> HostPort {
        HostPort::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn host_is_compared_without_port_and_case() {
        let names = HostNames::new(["Panel.Example.com".to_owned(), "*.internal".to_owned()]);
        for host in [
            "127.0.0.1",
            "10.1.2.3:9642",
            "[::1]:9642",
            "[2001:db8::1]",
            "localhost",
            "LocalHost:1",
            "panel.example.com:9642",
            "PANEL.example.COM.",
            "proxy.internal",
        ] {
            assert!(names.has(&parsed(host)), "{host}");
        }
        for host in [
            "attacker.example",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
            "example.com",
            "x.panel.example.com",
            "a.b.internal",
            "internal",
            "1",
            "0x7f.1",
            "127.1",
        ] {
            assert!(!names.has(&parsed(host)), "{host}");
        }
    }

    #[test]
    fn text_of_another_form_is_no_authority() {
        for text in
            ["", ":80", "a:b", "a:80:90", "a:+80", "a:99999", "[::1", "[localhost]", "[::1]x", "a b", "a/b", "u@a"]
        {
            assert_eq!(HostPort::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_page_itself_is_of_the_same_origin() {
        let site = parsed("localhost:9642");
        let by_fetch = |text: &str, origin: Option<&'static str>| {
            let request = RequestOrigin { fetch_site: Some(text.as_bytes()), origin: origin.map(str::as_bytes) };
            is_cross_origin(request, &site, false)
        };
        assert!(!by_fetch("same-origin", None) && !by_fetch("none", None));
        // Another port of this host is same-site.
        for other in ["same-site", "cross-site", "", "Same-Origin", "same-origin, cross-site"] {
            assert!(by_fetch(other, Some("http://localhost:9642")), "{other}");
        }
    }

    #[test]
    fn origin_counts_where_there_is_no_fetch_metadata() {
        let is_cross = |origin: &str, site: &str, is_tls: bool| {
            is_cross_origin(RequestOrigin { fetch_site: None, origin: Some(origin.as_bytes()) }, &parsed(site), is_tls)
        };
        for (origin, site, is_tls) in [
            ("http://localhost:9642", "localhost:9642", false),
            ("http://LOCALHOST:9642", "localhost:9642", false),
            ("https://panel.example", "panel.example", true),
            ("https://panel.example:443", "panel.example", true),
            ("http://[::1]:9642", "[::1]:9642", false),
        ] {
            assert!(!is_cross(origin, site, is_tls), "{origin}");
        }
        for (origin, site, is_tls) in [
            ("http://localhost:9643", "localhost:9642", false),
            ("https://localhost:9642", "localhost:9642", false),
            ("http://localhost:9642", "localhost:9642", true),
            ("http://127.0.0.1:9642", "localhost:9642", false),
            ("null", "localhost:9642", false),
            ("", "localhost:9642", false),
            ("localhost:9642", "localhost:9642", false),
        ] {
            assert!(is_cross(origin, site, is_tls), "{origin}");
        }
        assert!(!is_cross_origin(RequestOrigin::default(), &parsed("localhost"), false), "curl sends neither");
    }

    proptest! {
        #[test]
        fn foreign_name_is_never_ours(host in "[a-z]{1,10}(\\.[a-z]{1,10}){1,3}") {
            let names = HostNames::new(["panel.example.com".to_owned()]);
            prop_assume!(host != "panel.example.com");
            prop_assert!(!names.has(&parsed(&host)));
        }

        #[test]
        fn any_text_is_read(text: String) {
            let _ = HostPort::parse(&text);
        }
    }
}
