//! The URL of an API. Requests and the token go to its origin only.

use std::fmt;

use hyper::Uri;

/// An `https` URL, without query and user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    /// Without a slash at the end.
    prefix: String,
}

impl Endpoint {
    /// Reads a URL such as `https://api.digitalocean.com`; `None` if it is not `https`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let (host, port) = origin(&url)?;
        let prefix = url.path().trim_end_matches('/').to_owned();
        url.query().is_none().then_some(Self { host, port, prefix })
    }

    /// The URL of a path with its query.
    pub(crate) fn url(&self, path: &str) -> String {
        let Self { host, port, prefix } = self;
        format!("https://{host}:{port}{prefix}{path}")
    }

    /// Whether a link, absolute or relative, has this scheme, host and port.
    pub(crate) fn has_origin_of(&self, link: &str) -> bool {
        if link.starts_with('/') {
            // "//host/path" is a link to another host.
            return !link.starts_with("//");
        }
        let Ok(link) = link.parse::<Uri>() else { return false };
        origin(&link).is_some_and(|(host, port)| host == self.host && port == self.port)
    }
}

/// `https://HOST:PORT`
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

/// Host and port of an `https` URL.
fn origin(url: &Uri) -> Option<(String, u16)> {
    let authority = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let is_https = url.scheme_str() == Some("https") && !authority.host().is_empty();
    is_https.then(|| (authority.host().to_ascii_lowercase(), authority.port_u16().unwrap_or(HTTPS)))
}

const HTTPS: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Endpoint {
        Endpoint::parse(url).unwrap()
    }

    #[test]
    fn path_is_added_to_the_url() {
        for (url, expected) in [
            ("https://api.digitalocean.com", "https://api.digitalocean.com:443/v2/x?page=1"),
            ("https://API.example:8443/", "https://api.example:8443/v2/x?page=1"),
            ("https://[::1]:1/do/", "https://[::1]:1/do/v2/x?page=1"),
        ] {
            assert_eq!(endpoint(url).url("/v2/x?page=1"), expected);
        }
        for url in
            ["", "/", "api.digitalocean.com", "http://api.digitalocean.com", "https://", "https://u@h/", "https://h/?a"]
        {
            assert_eq!(Endpoint::parse(url), None, "{url}");
        }
    }

    #[test]
    fn link_to_another_origin_is_recognized() {
        let endpoint = endpoint("https://api.digitalocean.com");
        for link in [
            "https://api.digitalocean.com/v2/droplets?page=2",
            "https://API.DigitalOcean.com:443/v2/droplets?page=2",
            "/v2/droplets?page=2",
        ] {
            assert!(endpoint.has_origin_of(link), "{link}");
        }
        for link in [
            "https://api.digitalocean.com.evil.test/v2/droplets?page=2",
            "https://api.digitalocean.com:8443/v2/droplets?page=2",
            "https://api.digitalocean.com@evil.test/",
            "https://user@api.digitalocean.com/",
            "http://api.digitalocean.com/v2/droplets?page=2",
            "//evil.test/v2/droplets?page=2",
            "evil.test:443",
            "",
            "\n",
        ] {
            assert!(!endpoint.has_origin_of(link), "{link}");
        }
    }
}
